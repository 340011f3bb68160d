"""Encoders of texts: from a folder to GGUF, to vectors; transformers and llama.cpp give the same.

Bounds, with the largest that was measured in brackets, on what the cosine between two vectors lacks
to one. Against transformers 1e-7 (3e-9), against llama.cpp on F32 and F16 files 1e-6 (1e-8 and
3e-8): keys and values are kept in half precision. Quantised, against llama.cpp on the same file:
1e-4 (1.5e-5), because both round activations to 8 bits, each in its own way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.errors import ContextError, FileFormatError, UnsupportedError, UsageError
from kvant.files.gguf import read_gguf
from oracles.llama import Llama
from oracles.models import BERT, LLAMA, make_folder, write_pooling

SMALL = {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 300, "num_attention_heads": 2}
SHAPES: dict[str, dict[str, int]] = {"wide": {}, "small": SMALL}
TEXTS = [
    "Hello, is there anybody in there?",
    "a",
    "The quick brown fox jumps over the lazy dog. " * 5,
    "Ünïcode: 天 and words that nobody knows, 12345!",
    "",
]
MODES = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}


def folder_of(path: Path, mode: str | None = "mean_tokens", **changes: Any) -> Path:
    made = make_folder(path, {**BERT, **changes}, dtype="F16")
    return write_pooling(made, mode) if mode else made


def vectors(source: Path, **options: Any) -> np.ndarray:
    with kvant.load(source, threads=2) as model:
        found = model.embed(TEXTS, **options)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    return found


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = left.astype(np.float64), right.astype(np.float64)
    found: np.ndarray = (left * right).sum(1) / np.linalg.norm(left, axis=1)
    return found / np.linalg.norm(right, axis=1)


@pytest.mark.parity
@pytest.mark.parametrize("mode", MODES)
def test_as_transformers_pools(tmp_path: Path, mode: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path / "m", mode)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    peer = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            states = peer(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
        row = {"mean_tokens": states.mean(0), "cls_token": states[0], "lasttoken": states[-1]}
        expected.append(row[mode])
    found = vectors(folder)
    assert cosines(found, np.stack(expected)).min() > 1 - 1e-7
    assert np.array_equal(vectors(folder, pooling=MODES[mode]), found)


@pytest.mark.parity
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_llama_cpp_pools(tmp_path: Path, llama: Llama, mode: str, shape: str) -> None:
    folder = folder_of(tmp_path / "m", mode, **SHAPES[shape])
    expected = vectors(folder)
    for dtype in ("f32", "f16"):
        (path,) = kvant.convert(folder, tmp_path / f"{dtype}.gguf", dtype=dtype).paths
        with llama.open(path) as peer:
            ids = [peer.tokenize(text) for text in TEXTS]
            theirs = np.stack([peer.embedding(i) for i in ids])
        with kvant.load(path, threads=1) as model:
            assert [model.tokenizer.encode(text) for text in TEXTS] == ids
            ours = model.embed(TEXTS)
        assert np.array_equal(ours, expected)
        assert cosines(ours, theirs).min() > 1 - 1e-6


RECIPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "BF16")


@pytest.mark.parity
@pytest.mark.parametrize("recipe", RECIPES)
def test_quantised(tmp_path: Path, llama: Llama, recipe: str) -> None:
    folder = folder_of(tmp_path / "m")
    (path,) = kvant.quantize(folder, recipe, tmp_path / "m.gguf").paths
    assert kvant.verify(path, folder).ok
    ours = vectors(path)
    with llama.open(path) as peer:
        theirs = np.stack([peer.embedding(peer.tokenize(text)) for text in TEXTS])
    assert cosines(ours, theirs).min() > 1 - 1e-4
    lost = 1 - cosines(ours, vectors(folder)).min()
    assert 1e-7 < lost < {"2": 0.03, "3": 0.01}.get(recipe[1], 0.01)


def test_what_the_file_says(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", "cls_token")
    (path,) = kvant.quantize(folder, "Q4_K_M", tmp_path / "m.gguf").paths
    file = read_gguf(path)
    said = {key: value.value for key, value in file.metadata.items()}
    assert said["general.architecture"] == "bert"
    assert said["bert.attention.causal"] is False
    assert said["bert.pooling_type"] == 2
    assert said["tokenizer.ggml.model"] == "bert"
    assert said["tokenizer.ggml.token_type_count"] == 2
    assert file.get_strings("tokenizer.ggml.tokens")[2:7] == [
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "▁a",
        "▁b",
    ]
    kept = {n: t.type.name for n, t in file.tensors.items() if len(t.shape) == 2}
    assert kept["position_embd.weight"] == kept["token_types.weight"] == "F32"
    again = open_checkpoint(path)
    assert again.pooling == "cls"
    assert again.ignored == ()
    (other,) = kvant.quantize(path, "Q8_0", tmp_path / "other.gguf").paths
    assert open_checkpoint(other).pooling == "cls"
    assert kvant.inspect(path).architecture == "bert"


def test_names_of_other_releases(tmp_path: Path) -> None:
    """With the prefix of a model with a head, and norms named as in 2018, beside other heads."""
    from oracles.models import weights_of

    expected = vectors(folder_of(tmp_path / "bare"))
    weights = {f"bert.{n.removeprefix('bert.')}": w for n, w in weights_of(BERT).items()}
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): w
        for n, w in weights.items()
    }
    old["cls.predictions.bias"] = np.zeros(384, np.float32)
    old["bert.pooler.dense.weight"] = np.zeros((256, 256), np.float32)
    old["bert.embeddings.position_ids"] = np.zeros((1, 256), np.float32)
    config = {**BERT, "architectures": ["BertForMaskedLM"]}
    folder = make_folder(tmp_path / "old", config, old, dtype="F16")
    np.testing.assert_array_equal(vectors(folder), expected)


def test_texts_do_not_depend_on_each_other(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", **SMALL)
    expected = vectors(folder)
    with kvant.load(folder, threads=3) as model:
        for i, text in enumerate(TEXTS):
            assert np.array_equal(model.embed([text])[0], expected[i])
        many = model.embed(TEXTS[::-1] * 12)
        assert np.array_equal(many, np.tile(expected[::-1], (12, 1)))
        assert model.embed([]).shape == (0, 64)


def test_what_an_encoder_does_not_do(tmp_path: Path) -> None:
    with kvant.load(folder_of(tmp_path / "m", **SMALL)) as model:
        with pytest.raises(UnsupportedError, match="encodes texts and predicts no tokens"):
            model.generate("hello")
        with pytest.raises(ContextError):
            model.embed(["a " * 300])
        with pytest.raises(UsageError, match="'mean', 'cls' or 'last', got 'max'"):
            model.embed(["a"], pooling="max")  # type: ignore[arg-type]


def test_decoders_pool_as_they_say(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", LLAMA)
    mean = vectors_of_decoder(folder)
    last = vectors_of_decoder(folder, pooling="last")
    first = vectors_of_decoder(folder, pooling="cls")
    assert np.abs(mean - last).max() > 0.01
    assert np.abs(first - last).max() > 0.01
    write_pooling(folder, "lasttoken")
    assert np.array_equal(vectors_of_decoder(folder), last)
    (path,) = kvant.convert(folder, tmp_path / "m.gguf", dtype="f32").paths
    assert read_gguf(path).get_int("llama.pooling_type") == 3
    assert np.array_equal(vectors_of_decoder(path), last)


def vectors_of_decoder(source: Path, **options: Any) -> np.ndarray:
    with kvant.load(source, threads=2) as model:
        return model.embed([t for t in TEXTS if t], **options)


@pytest.mark.parametrize(
    ("modules", "pooling", "error", "words"),
    [
        ([], None, None, ""),
        ({"a": 1}, None, FileFormatError, "list of modules"),
        ([{"type": "x.Pooling", "path": "../up"}], None, FileFormatError, "name of a folder"),
        ([{"type": "x.Pooling", "path": 3}], None, FileFormatError, "name of a folder"),
        (None, {"pooling_mode_max_tokens": True}, UnsupportedError, "pools in no other way"),
        (None, {"pooling_mode_cls_token": False}, UnsupportedError, "got 'none'"),
        (
            None,
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            UnsupportedError,
            "pools in no other way",
        ),
        (None, [], FileFormatError, "JSON object"),
    ],
)
def test_poolings_that_are_refused(
    tmp_path: Path, modules: Any, pooling: Any, error: type[Exception] | None, words: str
) -> None:
    folder = folder_of(tmp_path / "m", **SMALL)
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if error is None:
        assert open_checkpoint(folder).pooling is None
        return
    with pytest.raises(error, match=words):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"hidden_act": "relu"}, UnsupportedError, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, UnsupportedError, "position_embedding_type"),
        ({"is_decoder": True}, UnsupportedError, "is_decoder"),
        ({"num_attention_heads": 3}, UnsupportedError, "add up to"),
        ({"type_vocab_size": 0}, FileFormatError, "type_vocab_size"),
        ({"type_vocab_size": 10**9}, FileFormatError, "type_vocab_size"),
        ({"max_position_embeddings": 10**12}, FileFormatError, "max_position_embeddings"),
        ({"layer_norm_eps": 0}, FileFormatError, "layer_norm_eps"),
        ({"architectures": ["BertForQuestionAnswering"]}, UnsupportedError, "model class"),
    ],
)
def test_configs_that_are_refused(
    tmp_path: Path, change: dict[str, object], error: type[Exception], words: str
) -> None:
    folder = folder_of(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({**BERT, **change}))
    with pytest.raises(error, match=words):
        open_checkpoint(folder)
