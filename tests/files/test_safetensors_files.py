"""Safetensors files and folders: round trips, dtypes, shards, links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from file_strategies import array_files, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.build import entry, safetensors, small_safetensors
from kvant.errors import FileFormatError, InputError, OutputError, UnsupportedError
from kvant.files.safetensors import (
    header_bytes,
    read_folder,
    read_safetensors,
    read_sharded,
    write_safetensors,
)

Arrays = dict[str, npt.NDArray[Any]]


@settings(deadline=None, max_examples=200)
@given(tensors=array_files, metadata=st.dictionaries(texts, texts, max_size=3))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, tensors: Arrays, metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    write_safetensors(path, tensors, metadata=metadata, sync=False)
    file = read_safetensors(path)
    assert file.metadata == metadata
    assert file.tensors.keys() | file.other.keys() == tensors.keys()
    for name, stored in file.tensors.items():
        values = tensors[name]
        assert stored.shape == values.shape
        assert stored.read().tobytes() == values.tobytes()
    for name, other in file.other.items():
        assert other.shape == tensors[name].shape
        assert tensors[name].size == 0 or tensors[name].dtype.kind in "ub"
    # Order of the mapping does not matter.
    again = path.with_name("again")
    backwards = dict(reversed(tensors.items()))
    write_safetensors(again, backwards, metadata=dict(reversed(metadata.items())), sync=False)
    assert again.read_bytes() == path.read_bytes()


def test_layout_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {
        "b": np.arange(3, dtype=np.int8),
        "a": np.zeros((2, 2), np.float16),
        "c": np.ones(1, np.float32),
    }
    write_safetensors(path, tensors, metadata={"format": "pt"})
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    assert json.loads(raw[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"},
        "c": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [4, 12]},
        "b": {"dtype": "I8", "shape": [3], "data_offsets": [12, 15]},
    }
    assert len(raw) == 8 + length + 15


def test_bf16(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    bits = np.arange(12, dtype=np.uint16).reshape(3, 4)
    write_safetensors(path, {"w": bits, "u": bits}, bf16=["w"])
    file = read_safetensors(path)
    assert file.tensors["w"].type.name == "BF16"
    assert (file.tensors["w"].read().view(np.uint16) == bits).all()
    assert file.other["u"].dtype == "U16"
    with pytest.raises(ValueError, match="cannot be stored"):
        write_safetensors(tmp_path / "x", {"w": bits.astype(np.float32)}, bf16=["w"])


def test_arrays_as_they_come(tmp_path: Path) -> None:
    """Not contiguous, of the other byte order, or read-only: the numbers count."""
    path = tmp_path / "model.safetensors"
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"t": base.T, "s": base[::2, 1::2], "b": base.astype(">f4")}
    write_safetensors(path, tensors)
    for name, stored in read_safetensors(path).tensors.items():
        assert (stored.read().view("<f4") == tensors[name].reshape(stored.rows, -1)).all()
    with pytest.raises(ValueError, match="complex64"):
        write_safetensors(tmp_path / "x", {"c": np.zeros(1, np.complex64)})
    with pytest.raises(OutputError, match="exists already"):
        write_safetensors(path, tensors)


def test_every_dtype_of_the_format(tmp_path: Path) -> None:
    """Unknown and sub-byte dtypes are kept aside, with their sizes checked where known."""
    dtypes = {"F4": 4, "F6_E2M3": 6, "F8_E4M3": 8, "F8_E8M0": 8, "C64": 64, "U32": 32, "F3_NEW": 3}
    header, position = {}, 0
    for name, bits in dtypes.items():
        header[name] = entry(name, [8], [position, position + bits])
        position += bits
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(header, bytes(position)))
    file = read_safetensors(path)
    assert file.tensors == {}
    assert {t.dtype for t in file.other.values()} == set(dtypes)


def test_header_bytes_checks_its_caller() -> None:
    for tensors in ([("a", "F32", (1,)), ("a", "F32", (2,))], [("", "F32", (1,))]):
        with pytest.raises(ValueError, match="cannot be stored"):
            header_bytes(tensors)
    with pytest.raises(ValueError, match="cannot be stored"):
        header_bytes([("a", "F4", (3,))])


def test_header_bytes_for_streaming(tmp_path: Path) -> None:
    tensors = [("b", "BF16", (2, 3)), ("a", "F32", (5,)), ("c", "U8", (3,))]
    header, places = header_bytes(tensors, {"format": "pt"})
    assert list(places) == ["a", "b", "c"]
    path = tmp_path / "model.safetensors"
    path.write_bytes(header + bytes(20 + 12 + 3))
    file = read_safetensors(path)
    assert file.tensors["a"].offset == places["a"][0] == len(header)
    assert file.tensors["b"].offset == places["b"][0]
    assert places["c"][1] == path.stat().st_size


def shards(folder: Path, unlisted: bool = False) -> None:
    files = {"model-00001-of-00002.safetensors": "a", "model-00002-of-00002.safetensors": "b"}
    for number, (name, tensor) in enumerate(files.items()):
        tensors = {tensor: np.full((2, 2), number, np.float32)}
        if unlisted:
            tensors[f"extra.{number}"] = np.zeros(1, np.float32)
        write_safetensors(folder / name, tensors)
    index = {"metadata": {"total_size": 32}, "weight_map": {t: n for n, t in files.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_sharded(tmp_path: Path) -> None:
    shards(tmp_path)
    folder = read_folder(tmp_path)
    assert [path.name[6:11] for path in folder.files] == ["00001", "00002"]
    assert {n: t.read().view("<f4")[0, 0] for n, t in folder.tensors.items()} == {"a": 0, "b": 1}
    assert folder.unlisted == ()
    assert read_sharded(tmp_path) == folder.tensors


def test_unlisted_tensors_are_named_and_left_out(tmp_path: Path) -> None:
    shards(tmp_path, unlisted=True)
    folder = read_folder(tmp_path)
    assert list(folder.tensors) == ["a", "b"]
    assert folder.unlisted == ("extra.0", "extra.1")


def test_the_single_file_wins(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(small_safetensors())
    assert read_folder(tmp_path).tensors.keys() == {"a", "b", "d"}


def test_links_as_in_a_cache(tmp_path: Path) -> None:
    """Hugging Face's cache keeps blobs under their hash and links to them."""
    (tmp_path / "blobs").mkdir()
    shards(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for path in (tmp_path / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert list(read_folder(snapshot).tensors) == ["a", "b"]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder"):
        read_folder(tmp_path / "nowhere")


def test_pickles_beside_safetensors_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\3\4")
    with pytest.raises(UnsupportedError, match="never loads one"):
        read_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(small_safetensors())
    assert read_folder(tmp_path).tensors


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(small_safetensors())
    file = read_safetensors(path)
    scalar = file.tensors["d"]
    assert (scalar.shape, scalar.elements, scalar.nbytes) == ((), 1, 8)
    assert file.other["e"].shape == (0, 7)
    assert file.metadata == {"format": "pt"}


def test_a_damaged_index_is_not_replaced_by_guessing(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(FileFormatError, match="not JSON"):
        read_folder(tmp_path)
