"""Make a Hugging Face folder with the shape of a real model and random weights.

The weights are gaussian with a scale for each row, in BF16, the same for the same options; the
tokenizer is a byte-level BPE of the right size over made-up words, cut like the model's own, or a
real one out of a GGUF file. So the folder converts, loads and runs everywhere, and says nothing.

    python bench/synthetic.py                             # Llama-3.2-1B's shape, 2.5 GB
    python bench/synthetic.py --layers 36                 # twice as large
    python bench/synthetic.py --shape qwen2.5-0.5b
    python bench/synthetic.py --tokenizer llama-3-vocabulary.gguf
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common import WORK
from kvant.files.atomic import AtomicFile
from kvant.files.gguf import read_gguf
from kvant.files.safetensors import header_bytes
from kvant.packing.half import float_to_bf16
from kvant.tokenizer.byte_alphabet import BYTE_CHARACTERS
from kvant.tokenizer.gguf_meta import from_metadata
from kvant.tokenizer.hf_write import to_hf_config, to_hf_json
from kvant.tokenizer.pretokenizers import describe, find

__all__ = ["SHAPES", "Shape", "build", "make"]

CHUNK = 1 << 22
"""Weights made and written at a time."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; ``config`` holds the keys of config.json beyond them."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    ordinary_tokens: int
    special_tokens: tuple[str, ...]
    pre_tokenizer: str
    qkv_bias: bool
    config: dict[str, Any] = field(repr=False)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor; the output is tied to the embedding."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            yield f"{layer}.input_layernorm.weight", (self.hidden,)
            for name, width in (("q", q), ("k", kv), ("v", kv)):
                yield f"{layer}.self_attn.{name}_proj.weight", (width, self.hidden)
                if self.qkv_bias:
                    yield f"{layer}.self_attn.{name}_proj.bias", (width,)
            yield f"{layer}.self_attn.o_proj.weight", (self.hidden, q)
            yield f"{layer}.post_attention_layernorm.weight", (self.hidden,)
            yield f"{layer}.mlp.gate_proj.weight", (self.ffn, self.hidden)
            yield f"{layer}.mlp.up_proj.weight", (self.ffn, self.hidden)
            yield f"{layer}.mlp.down_proj.weight", (self.hidden, self.ffn)
        yield "model.norm.weight", (self.hidden,)

    def config_json(self) -> dict[str, Any]:
        """The whole of config.json."""
        sizes = {
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
        }
        return dict(sorted({**self.config, **sizes}.items()))


LLAMA = Shape(
    hidden=2048,
    ffn=8192,
    layers=16,
    heads=32,
    kv_heads=8,
    head_dim=64,
    vocab=128256,
    ordinary_tokens=128000,
    special_tokens=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *(f"<|reserved_special_token_{i}|>" for i in range(254)),
    ),
    pre_tokenizer="llama-bpe",
    qkv_bias=False,
    config={
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "head_dim": 64,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0",
        "use_cache": True,
    },
)
QWEN = Shape(
    hidden=896,
    ffn=4864,
    layers=24,
    heads=14,
    kv_heads=2,
    head_dim=64,
    vocab=151936,
    ordinary_tokens=151643,
    special_tokens=(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *(f"<|reserved_{i}|>" for i in range(19)),
    ),
    pre_tokenizer="qwen2",
    qkv_bias=True,
    config={
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
    },
)
SHAPES = {"llama-3.2-1b": LLAMA, "qwen2.5-0.5b": QWEN}


def make(
    name: str,
    layers: int | None = None,
    folder: Path | None = None,
    vocabulary: Path | None = None,
) -> Path:
    """The folder of a shape, made now unless a finished one is there.

    ``vocabulary`` is a GGUF file whose tokenizer it gets.
    """
    shape = SHAPES[name]
    if layers is not None:
        shape = replace(shape, layers=layers)
    suffix = "" if shape.layers == SHAPES[name].layers else f"-{shape.layers}-layers"
    target = folder or WORK / f"{name}{suffix}"
    if not is_complete(target, shape):
        build(target, shape, vocabulary=vocabulary)
    return target


def is_complete(folder: Path, shape: Shape) -> bool:
    """Whether the folder holds this shape; the configuration is written last."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(config == shape.config_json()) and (folder / "model.safetensors").is_file()


def build(folder: Path, shape: Shape, seed: int = 0, vocabulary: Path | None = None) -> None:
    """Write the folder, replacing what of it is there.

    Raises:
        SystemExit: the given tokenizer is not for a model of this vocabulary.
    """
    real = None if vocabulary is None else real_tokenizer(vocabulary, shape)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    write_weights(folder / "model.safetensors", shape, seed)
    bos, eos = shape.config["bos_token_id"], shape.config["eos_token_id"]
    first = shape.ordinary_tokens
    described = {
        "bos_token": shape.special_tokens[bos - first],
        "eos_token": shape.special_tokens[eos - first],
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    content, described = real or (tokenizer(shape), described)
    write_json(folder / "tokenizer.json", content, indent=None)
    write_json(folder / "tokenizer_config.json", described)
    write_json(folder / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos})
    write_json(folder / "config.json", shape.config_json())


def write_json(path: Path, content: object, indent: int | None = 2) -> None:
    """Write one JSON file as the field does."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", "utf-8")


def write_weights(path: Path, shape: Shape, seed: int) -> None:
    """Write the safetensors file, a few million weights at a time."""
    shapes = dict(shape.tensors())
    header, places = header_bytes(
        [(name, "BF16", dimensions) for name, dimensions in shapes.items()], {"format": "pt"}
    )
    total = max(end for _, end in places.values())
    with AtomicFile(path, force=True, size=total, sync=False) as file:
        file.write(header)
        for name, (_, end) in places.items():
            for part in weights(name, shapes[name], seed):
                file.write(float_to_bf16(part).astype("<u2"))
            if sys.stderr.isatty():
                print(f"\r{path}: {end / total:.0%}", end="", file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            print(file=sys.stderr)


def weights(name: str, shape: tuple[int, ...], seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """The weights of a tensor, in runs of rows; each tensor has its own random stream."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if len(shape) == 1:
        spread = rng.standard_normal(shape, np.float32)
        yield spread * np.float32(0.02) if "bias" in name else 1 + spread * np.float32(0.1)
        return
    rows, columns = shape
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        n = min(step, rows - start)
        scale = np.exp(rng.standard_normal((n, 1), np.float32) * np.float32(0.3))
        x = rng.standard_normal((n, columns), np.float32)
        x *= scale * np.float32(0.02)
        yield x


def tokenizer(shape: Shape) -> dict[str, Any]:
    """A tokenizer.json: bytes, all pairs of 64 characters, then pairs and one character more.

    Every token beyond the bytes is made by one merge of tokens before it, as in a trained one.
    """
    letters = [chr(c) for c in (*range(ord("a"), ord("z") + 1), *range(ord("A"), ord("Z") + 1))]
    letters = [BYTE_CHARACTERS[ord(" ")], *letters]
    letters += [c for c in BYTE_CHARACTERS[0x80:] if c not in letters][: 64 - len(letters)]
    pairs = [a + b for a, b in product(letters, repeat=2)]
    triples = product(pairs, letters)
    merges = [(a, b) for a, b in product(letters, repeat=2)]
    merges += islice(triples, shape.ordinary_tokens - len(BYTE_CHARACTERS) - len(merges))
    tokens = [*BYTE_CHARACTERS, *(a + b for a, b in merges)]
    entry = find(shape.pre_tokenizer, "synthetic tokenizer")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    added = [
        {
            "id": shape.ordinary_tokens + i,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, content in enumerate(shape.special_tokens)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None if entry.name == "llama-bpe" else {"type": "NFC"},
        "pre_tokenizer": describe(entry),
        "post_processor": post_processor(shape) or {**byte_level, "use_regex": False},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": entry.ignore_merges,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }


def real_tokenizer(vocabulary: Path, shape: Shape) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json of the tokenizer in a GGUF file."""
    definition = from_metadata(read_gguf(vocabulary))
    if len(definition.tokens) > shape.vocab:
        raise SystemExit(
            f"{vocabulary} has {len(definition.tokens)} tokens, the shape has room for "
            f"{shape.vocab}; give the vocabulary of such a model"
        )
    return to_hf_json(definition), to_hf_config(definition)


def post_processor(shape: Shape) -> dict[str, Any] | None:
    """What puts the beginning token before a text, for the models that have it."""
    if not find(shape.pre_tokenizer, "synthetic tokenizer").add_bos:
        return None
    bos = shape.special_tokens[shape.config["bos_token_id"] - shape.ordinary_tokens]
    special, a = (
        {"SpecialToken": {"id": bos, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    again = {"SpecialToken": {"id": bos, "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [special, a],
        "pair": [special, a, again, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            bos: {"id": bos, "ids": [shape.config["bos_token_id"]], "tokens": [bos]}
        },
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Make a Hugging Face folder with the shape of a real model, random weights."
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-1b")
    parser.add_argument("--layers", type=int, metavar="N", help="layers (default: the model's)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="GGUF", help="take its tokenizer, not a made-up one"
    )
    arguments = parser.parse_args()
    print(make(arguments.shape, arguments.layers, arguments.output, arguments.tokenizer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
