"""GGUF files as sources: quantised again with a warning, or copied where nothing changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.errors import DataError
from kvant.files.gguf import read_gguf
from kvant.packing import dequantize
from kvant.quant.pack import pack_rows
from oracles.models import LLAMA, make_folder

WARNING = "The source is quantised already"


@pytest.mark.parametrize("first", ["Q8_0", "Q4_K_M", "Q6_K", "Q5_1"])
def test_a_quantised_source(source: Path, tmp_path: Path, first: str) -> None:
    (old,) = kvant.quantize(source, first, tmp_path / "old.gguf").paths
    made = kvant.quantize(old, "Q3_K_S", tmp_path / "new.gguf")
    assert any(note.startswith(WARNING) for note in made.notes)
    before, after = read_gguf(old).tensors, read_gguf(made.paths[0]).tensors
    for name, tensor in after.items():
        stored = before[name].read()
        values = dequantize(before[name].type.name, stored)
        same = tensor.type == before[name].type
        columns = values.shape[1]
        packed = pack_rows("F32", tensor.type.name, values.view(np.uint8), columns)
        expected = stored if same else packed
        np.testing.assert_array_equal(tensor.read(), expected)
    assert kvant.verify(made.paths[0], old).ok


@pytest.mark.parametrize("recipe", ["Q8_0", "Q4_K_M", "Q2_K", "Q3_K_L", "Q4_0", "Q4_1", "Q5_0"])
def test_the_same_recipe_again_is_a_copy(source: Path, tmp_path: Path, recipe: str) -> None:
    (old,) = kvant.quantize(source, recipe, tmp_path / "old.gguf").paths
    again = kvant.quantize(old, recipe, tmp_path / "new.gguf")
    assert not any(note.startswith(WARNING) for note in again.notes)
    assert again.paths[0].read_bytes() == old.read_bytes()


def test_tensors_of_the_same_packing_are_copied(source: Path, tmp_path: Path) -> None:
    (old,) = kvant.quantize(source, "Q4_K_M", tmp_path / "old.gguf").paths
    made = kvant.quantize(old, "Q5_K_S", tmp_path / "new.gguf")
    assert f"{WARNING} (Q4_K, Q6_K)" in " ".join(made.notes)
    before, after = read_gguf(old).tensors, read_gguf(made.paths[0]).tensors
    same = [n for n in after if after[n].type == before[n].type]
    assert "output.weight" in same
    for name in same:
        np.testing.assert_array_equal(after[name].read(), before[name].read())


def test_unquantised_files_are_sources_like_folders(source: Path, tmp_path: Path) -> None:
    direct = kvant.quantize(source, "Q4_K_M", tmp_path / "direct.gguf").paths[0].read_bytes()
    for dtype in ("bf16", "f32"):
        (middle,) = kvant.convert(source, tmp_path / f"{dtype}.gguf", dtype=dtype).paths
        made = kvant.quantize(middle, "Q4_K_M", tmp_path / f"{dtype}-q.gguf")
        assert made.paths[0].read_bytes() == direct
        assert not any(note.startswith(WARNING) for note in made.notes)


def test_unquantising_keeps_what_the_file_says(source: Path, tmp_path: Path) -> None:
    (old,) = kvant.quantize(source, "Q4_K_M", tmp_path / "old.gguf").paths
    (new,) = kvant.convert(old, tmp_path / "new.gguf", dtype="f32").paths
    a, b = open_checkpoint(old), open_checkpoint(new)
    for name, weight in a.weights.items():
        np.testing.assert_array_equal(b.weights[name].read_f32(), weight.read_f32())
    keys = {k: v for k, v in read_gguf(old).metadata.items() if not k.startswith("kvant.")}
    kept = read_gguf(new).metadata
    for key in ("general.file_type", "general.quantization_version"):
        keys.pop(key)
    assert {k: kept[k] for k in keys} == keys
    assert kept["general.file_type"].value == 0
    assert "general.quantization_version" not in kept
    assert "kvant.method" not in kept


def test_a_source_whose_scales_are_broken(source: Path, tmp_path: Path) -> None:
    (old,) = kvant.quantize(source, "Q8_0", tmp_path / "old.gguf").paths
    tensor = read_gguf(old).tensors["blk.1.ffn_gate.weight"]
    with old.open("r+b") as file:  # the half-precision scale of row 2's second block
        file.seek(tensor.offset + 2 * tensor.row_bytes + 34)
        file.write(np.float16(np.nan).tobytes())
    for recipe in ("Q8_0", "Q4_K_M", "BF16"):
        with pytest.raises(DataError, match=r"blk\.1\.ffn_gate\.weight.*nan.*\[2, 32\]"):
            kvant.quantize(old, recipe, tmp_path / "new.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old.gguf"]


def test_a_file_of_llamas_original_tokenizer(shared_data: Path, tmp_path: Path) -> None:
    foreign = shared_data / "models" / "llama-2-tiny-random.gguf"
    made = kvant.quantize(foreign, "Q8_0", tmp_path)
    old, new = read_gguf(foreign).metadata, read_gguf(made.paths[0]).metadata
    for key, value in old.items():
        if key.startswith(("tokenizer.", "llama.")):
            assert new[key] == value
    assert kvant.verify(made.paths[0], foreign).ok


def test_a_folder_named_by_convention(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "Acme-Tiny-Instruct-v2", LLAMA, dtype="BF16")
    (path,) = kvant.quantize(folder, "Q8_0", tmp_path).paths
    assert path.name == "Acme-Tiny-1.4M-Instruct-v2-Q8_0.gguf"
    (again,) = kvant.quantize(path, "q4_k_m", tmp_path).paths
    assert again.name == "Acme-Tiny-1.4M-Instruct-v2-Q4_K_M.gguf"
