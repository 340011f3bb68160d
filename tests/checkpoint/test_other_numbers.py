"""Numbers that Hugging Face stores differently: transposed, less one; and bare models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvant
from checkpoint.small_models import CONFIGS, random_weights, write_folder
from kvant.checkpoint import open_checkpoint
from kvant.checkpoint.names import HF_VALUES_OF
from kvant.checkpoint.transforms import OneLess, Transposed, canonical
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.tensor import StoredTensor
from kvant.packing import convert_rows, dequantize
from kvant.packing.types import BY_NAME

GPT2 = CONFIGS["gpt2"]


def _stored(tmp_path: Path, values: np.ndarray, kind: str) -> StoredTensor:
    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), np.float32)
    packed = convert_rows("F32", kind, rows.view(np.uint8), rows.shape[1])
    path = tmp_path / f"w-{kind}"
    path.write_bytes(b"head" + packed.tobytes())
    return StoredTensor("w", BY_NAME[kind], values.shape, path, 4)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_any_rows_of_a_transposed_matrix(tmp_path: Path, kind: str) -> None:
    values = np.arange(35, dtype=np.float32).reshape(5, 7)
    turned = canonical(_stored(tmp_path, values, kind), "transposed")
    assert isinstance(turned, Transposed)
    assert turned.shape == (7, 5)
    assert not turned.in_place
    np.testing.assert_array_equal(dequantize(kind, turned.read()), values.T)
    out = np.full(1000, 7, np.uint8)
    with turned.path.open("rb") as file:
        for start, stop in ((0, 1), (2, 6), (6, 7), (3, 3)):
            rows = turned.read_rows(file.fileno(), start, stop, out)
            assert rows.size == 0 or np.shares_memory(rows, out)
            np.testing.assert_array_equal(dequantize(kind, rows), values.T[start:stop])


def test_a_transposed_matrix_in_a_file_cut_short(tmp_path: Path) -> None:
    turned = canonical(_stored(tmp_path, np.ones((5, 7)), "F32"), "transposed")
    with turned.path.open("r+b") as file:
        file.truncate(40)
    with pytest.raises(FileFormatError, match="ends inside tensor 'w'"):
        turned.read()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_gains_less_one_are_added_to_in_single_precision(tmp_path: Path, kind: str) -> None:
    stored = _stored(tmp_path, np.array([0.25, -0.5, 3.0, 2.0**-9]), kind)
    gains = canonical(stored, "one less")
    assert isinstance(gains, OneLess)
    assert gains.type.name == "F32"
    expected = [[1.25, 0.5, 4.0, 1 + 2.0**-9]]
    np.testing.assert_array_equal(gains.read().view(np.float32), expected)
    out = np.empty(100, np.uint8)
    with stored.path.open("rb") as file:
        rows = gains.read_rows(file.fileno(), 0, 1, out)
    np.testing.assert_array_equal(rows.view(np.float32), expected)
    assert np.shares_memory(rows, out)


def test_biases_and_what_is_as_it_is_stay(tmp_path: Path) -> None:
    stored = _stored(tmp_path, np.ones(4), "F32")
    assert canonical(stored, "as they are") is stored
    assert canonical(stored, "transposed") is stored


@pytest.mark.parametrize("name", HF_VALUES_OF)
def test_a_file_has_the_canonical_numbers(tmp_path: Path, name: str) -> None:
    source = open_checkpoint(write_folder(tmp_path / "m", CONFIGS[name]))
    (path,) = kvant.convert(tmp_path / "m", tmp_path / "m.gguf", dtype="f32").paths
    made = open_checkpoint(path)
    for weight in source.weights.values():
        values = weight.read_f32()
        np.testing.assert_array_equal(made.weights[weight.name].read_f32(), values)
        stored = made.weights[weight.name].stored.read().view(np.float32)
        np.testing.assert_array_equal(stored.reshape(values.shape), values)


def _bare(weights: dict[str, Any]) -> dict[str, Any]:
    """As the model without its head is saved, with the buffers of old versions."""
    made = {name.removeprefix("transformer."): values for name, values in weights.items()}
    for layer in range(2):
        made[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.float32))
        made[f"h.{layer}.attn.masked_bias"] = np.array([-1e4], np.float32)
    return made


def test_a_bare_model_is_the_same_model(tmp_path: Path) -> None:
    weights = random_weights(GPT2)
    whole = open_checkpoint(write_folder(tmp_path / "whole", GPT2, weights))
    bare = open_checkpoint(write_folder(tmp_path / "bare", GPT2, _bare(weights)))
    assert bare.parameters == whole.parameters
    for name, weight in whole.weights.items():
        np.testing.assert_array_equal(bare.weights[name].read_f32(), weight.read_f32())
    (note,) = bare.notes
    assert note.startswith("4 stored rope frequencies or masks")


def test_what_a_bare_model_has_besides_is_refused(tmp_path: Path) -> None:
    weights = _bare(random_weights(GPT2)) | {"h.0.crossattention.c_attn.weight": np.ones((4, 4))}
    weights = {n: w.astype(np.float32) for n, w in weights.items()}
    with pytest.raises(UnsupportedError, match="crossattention"):
        open_checkpoint(write_folder(tmp_path / "m", GPT2, weights))
