"""Coverage-guided fuzzing of everything that reads a stranger's file in Python.

``python tests/fuzz/readers.py TARGET FOLDER [libFuzzer options]`` (needs atheris); FOLDER keeps the
inputs that reached something new. Anything but success or a `KvantError` with a printable message
ends the run and leaves the input in a ``crash-`` file; so does an input that takes over a second,
or memory above 300 MB. Half of the changes to JSON are made to its values, so that they get past
the parser. scripts/fuzz runs all targets.
"""

from __future__ import annotations

import json
import math
import random
import resource
import struct
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[1]))

from attacks.build import (
    ARRAY,
    CONFIG,
    F32,
    FLOAT32,
    INT32,
    STRING,
    UINT32,
    architecture,
    array,
    gguf,
    kv,
    small_gguf,
    small_safetensors,
    tensor,
    text,
)
from kvant.checkpoint import open_checkpoint
from kvant.checkpoint.card import parse_front_matter
from kvant.errors import KvantError
from kvant.files.config_json import read_json
from kvant.files.gguf import check_layout, read_gguf_split
from kvant.files.safetensors import read_folder
from kvant.tokenizer.build import build
from kvant.tokenizer.gguf_meta import from_metadata
from kvant.tokenizer.hf import from_folder
from kvant.tokenizer.sentencepiece import read_sentencepiece

#: The most an input may take: processor seconds, and growth of the process in bytes.
SECONDS, MEMORY = 1.0, 300_000_000


def _gguf(folder: Path, data: bytes) -> None:
    path = folder / "m.gguf"
    path.write_bytes(data)
    file = read_gguf_split(path)
    check_layout(file)
    for stored in list(file.tensors.values())[:8]:
        stored.read()
    if "tokenizer.ggml.model" in file.metadata:
        build(from_metadata(file))
    open_checkpoint(path)


def _safetensors(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    for stored in list(read_folder(folder).tensors.values())[:8]:
        stored.read()


def _config(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    read_json(folder / "config.json")
    open_checkpoint(folder)


def _tokenizer(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    definition = from_folder(folder, 4096)
    build(definition).encode("Hello, <s> world\n 12")


def _sentencepiece(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.model").write_bytes(data)
    read_sentencepiece(folder / "tokenizer.model")


def _card(folder: Path, data: bytes) -> None:
    parse_front_matter(data.decode(errors="replace"))


TARGETS: dict[str, Callable[[Path, bytes], None]] = {
    "gguf": _gguf,
    "safetensors": _safetensors,
    "config": _config,
    "tokenizer": _tokenizer,
    "sentencepiece": _sentencepiece,
    "card": _card,
}


def seeds(target: str) -> list[bytes]:
    """Valid inputs to start from."""
    import kvant.builtin

    demo = Path(kvant.builtin.__file__).parent / "demo"
    if target == "gguf":
        return [small_gguf(), _model_gguf()]
    if target == "safetensors":
        return [small_safetensors()]
    if target == "config":
        return [json.dumps(CONFIG).encode(), (demo / "config.json").read_bytes()]
    if target == "card":
        return [(demo / "README.md").read_bytes()]
    if target == "tokenizer":
        whole = json.loads((demo / "tokenizer.json").read_bytes())
        vocab = dict(list(whole["model"]["vocab"].items())[:300])
        whole["model"].update(vocab=vocab, merges=[])
        return [json.dumps(whole).encode()]
    piece = b"\x0a\x03abc\x15\x00\x00\x80\xbf\x18\x01"
    return [b"\x0a" + bytes([len(piece)]) + piece + b"\x12\x04\x08\x01\x18\x02"]


def _model_gguf() -> bytes:
    """A model of one layer with a tokenizer, without the values of its weights."""
    names = {"embedding_length": 32, "block_count": 1, "feed_forward_length": 32}
    names |= {"attention.head_count": 2, "attention.head_count_kv": 1, "context_length": 64}
    names |= {"vocab_size": 8, "rope.dimension_count": 16}
    numbers = [kv(f"llama.{k}", UINT32, struct.pack("<I", v)) for k, v in names.items()]
    tokens = [text(t) for t in ("<unk>", "<s>", "</s>", "a", "b", "ab", "\u0120", "c")]
    eps = kv("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5))
    metadata = [
        architecture(),
        *numbers,
        eps,
        kv("tokenizer.ggml.model", STRING, text("gpt2")),
        kv("tokenizer.ggml.pre", STRING, text("gpt-2")),
        kv("tokenizer.ggml.tokens", ARRAY, array(STRING, 8, b"".join(tokens))),
        kv("tokenizer.ggml.token_type", ARRAY, array(INT32, 8, struct.pack("<8i", *[1] * 8))),
        kv("tokenizer.ggml.merges", ARRAY, array(STRING, 1, text("a b"))),
        kv("tokenizer.ggml.bos_token_id", UINT32, struct.pack("<I", 1)),
    ]
    shapes = {"token_embd": (32, 8), "output_norm": (32,), "blk.0.attn_norm": (32,)}
    shapes |= {"blk.0.ffn_norm": (32,), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (32, 16)}
    shapes |= {"blk.0.attn_v": (32, 16), "blk.0.attn_output": (32, 32)}
    shapes |= {f"blk.0.ffn_{n}": (32, 32) for n in ("gate", "up", "down")}
    tensors, offset = [], 0
    for name, shape in shapes.items():
        tensors.append(tensor(f"{name}.weight", shape, F32, offset))
        offset += 4 * math.prod(shape)
    return gguf(metadata, tensors, bytes(offset))


#: Where in an input the JSON begins.
_JSON = {"config": 0, "tokenizer": 0, "safetensors": 8}

_VALUES: list[object] = [None, True, False, 0, 1, -1, 2, 31, 256, 2**31, 2**53, 2**63, 2**64, 0.5]
_VALUES += [1e308, -0.0, "", "a", "\ud800", "F32", "U8", [], {}, [0], [[]], {"type": "x"}, "model"]


def change_json(data: bytes, max_size: int, seed: int) -> bytes:
    """Change the JSON in an input at one to four places, or its bytes."""
    rng = random.Random(seed)
    if rng.random() < 0.5:
        found: bytes = atheris.Mutate(data, max_size)
        return found
    skip = _JSON[sys.argv[1]]
    length = int.from_bytes(data[:8], "little") if skip else len(data)
    try:
        value = json.loads(data[skip : skip + length])
    except (ValueError, RecursionError):
        found = atheris.Mutate(data, max_size)
        return found
    for _ in range(rng.randint(1, 4)):
        value = _changed(value, rng)
    text = json.dumps(value).encode()
    if skip:
        text = len(text).to_bytes(8, "little") + text + data[skip + length :]
    return text[:max_size]


def _changed(value: Any, rng: random.Random) -> Any:
    """A copy with one thing changed somewhere inside."""
    inside = isinstance(value, (dict, list)) and len(value) > 0
    if not inside or rng.random() < 0.1:
        return rng.choice(_VALUES)
    places = list(value) if isinstance(value, dict) else range(len(value))
    at = rng.choice(places)
    copy = dict(value) if isinstance(value, dict) else list(value)
    match rng.randrange(8):
        case 0:
            del copy[at]
        case 1 if isinstance(copy, list):
            copy.insert(rng.randrange(len(copy) + 1), copy[at])
        case 1:
            copy[f"{at}{rng.choice('_x0')}"] = copy[at]
        case 2:
            copy[at] = copy[rng.choice(places)]
        case _:
            copy[at] = _changed(copy[at], rng)
    return copy


def peak_bytes() -> int:
    """The most memory the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def instrument() -> None:
    """Count what is reached in every function of the package.

    Not at import: an editable install has an importer of its own, which atheris does not see.
    """
    for name, module in list(sys.modules.items()):
        if not name.startswith("kvant"):
            continue
        for owner in (module, *(v for v in vars(module).values() if isinstance(v, type))):
            if getattr(owner, "__module__", owner.__name__) not in (name, None):
                continue
            for value in list(vars(owner).values()):
                for part in (value, getattr(value, "__func__", None), getattr(value, "fget", None)):
                    if isinstance(part, types.FunctionType) and part.__module__ == name:
                        atheris.instrument_func(part)


def main() -> None:
    """Entry point."""
    if sys.argv[1:] == ["--list"]:
        print(*TARGETS)
        return
    target, corpus = sys.argv[1], Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds(target)):
        (corpus / f"seed-{i}").write_bytes(seed)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    if target == "config":
        (folder / "model.safetensors").write_bytes(small_safetensors())
    if target == "tokenizer":
        (folder / "config.json").write_text(json.dumps(CONFIG))
    read = TARGETS[target]
    base = peak_bytes()

    def one(data: bytes) -> None:
        start = time.process_time()
        try:
            read(folder, data)
        except KvantError as error:
            if not str(error).isprintable():
                raise ValueError(f"unprintable message {str(error)!r}") from error
        assert time.process_time() - start < SECONDS, "took over a second"
        assert peak_bytes() - base < MEMORY, "took over 300 MB"

    for seed in seeds(target):  # what is imported late is there before it is instrumented
        one(seed)
    instrument()
    options = [sys.argv[0], str(corpus), *sys.argv[3:]]
    if target in _JSON:
        atheris.Setup(options, one, custom_mutator=change_json)
    else:
        atheris.Setup(options, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
