"""Safetensors against the field's package, both ways, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from file_strategies import array_files, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.build import small_safetensors
from attacks.safetensors_cases import CASES
from kvant.files.safetensors import read_safetensors, write_safetensors

pytestmark = pytest.mark.parity

Arrays = dict[str, npt.NDArray[Any]]


@settings(deadline=None, max_examples=200)
@given(tensors=array_files, metadata=st.dictionaries(texts, texts, max_size=1))
def test_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, tensors: Arrays, metadata: dict[str, str]
) -> None:
    """With one metadata key at most: the package writes several in random order."""
    package = pytest.importorskip("safetensors.numpy")
    folder = tmp_path_factory.mktemp("safetensors")
    contiguous = {name: np.ascontiguousarray(v).reshape(v.shape) for name, v in tensors.items()}
    package.save_file(contiguous, folder / "theirs", metadata=metadata or None)
    write_safetensors(folder / "ours", tensors, metadata=metadata, sync=False)
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


@settings(deadline=None, max_examples=100)
@given(tensors=array_files, metadata=st.dictionaries(texts, texts, max_size=3))
def test_both_read_both(
    tmp_path_factory: pytest.TempPathFactory, tensors: Arrays, metadata: dict[str, str]
) -> None:
    package = pytest.importorskip("safetensors")
    path = tmp_path_factory.mktemp("safetensors") / "m.safetensors"
    write_safetensors(path, tensors, metadata=metadata, sync=False)
    file = read_safetensors(path)
    with package.safe_open(path, framework="numpy") as theirs:
        assert (theirs.metadata() or {}) == file.metadata == metadata
        assert set(theirs.keys()) == set(tensors)
        for name, values in tensors.items():
            found = theirs.get_tensor(name)
            assert found.dtype == values.dtype
            assert found.shape == values.shape
            assert found.tobytes() == values.tobytes()
            if name in file.tensors:
                assert file.tensors[name].read().tobytes() == values.tobytes()


def test_bf16_from_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("safetensors.torch")
    weights = torch.arange(24, dtype=torch.float32).reshape(4, 6).to(torch.bfloat16)
    package.save_file({"w": weights}, tmp_path / "theirs")
    bits = weights.view(torch.uint16).numpy()
    write_safetensors(tmp_path / "ours", {"w": bits}, bf16=["w"])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert (read_safetensors(tmp_path / "theirs").tensors["w"].read().view("<u2") == bits).all()
    assert torch.equal(package.load_file(tmp_path / "ours")["w"], weights)


#: What the package lets pass and we do not, each with our reason.
STRICTER = {
    "safetensors-name-twice": "the format forbids it; the package takes the last one",
    "safetensors-info-list": "a list is not what the format describes",
    "safetensors-shape-65": "neither torch nor numpy has as many dimensions",
    "safetensors-extra-field": "a field we do not know may change the meaning",
    "safetensors-name-empty": "no weight can be asked for by it",
}


def test_where_we_are_stricter(tmp_path: Path) -> None:
    """What of the corpus we refuse, the package refuses too, but for a few with reasons."""
    package = pytest.importorskip("safetensors")
    passed = set()
    for name, case in CASES.items():
        if not name.startswith("safetensors-"):
            continue
        (tmp_path / name).mkdir()
        path = case(tmp_path / name) / "model.safetensors"
        try:
            with package.safe_open(path, framework="numpy") as file:
                file.keys()
            passed.add(name)
        except Exception:
            continue
    assert passed <= set(STRICTER)


def test_we_refuse_what_the_package_refuses(tmp_path: Path) -> None:
    """Every changed byte of a header: what we read, the package reads too."""
    package = pytest.importorskip("safetensors")
    valid = small_safetensors()
    path = tmp_path / "m.safetensors"
    laxer = []
    for place in range(8, 8 + int.from_bytes(valid[:8], "little")):
        for change in (0x01, 0x02, 0x10, 0x80):
            data = bytearray(valid)
            data[place] ^= change
            path.write_bytes(data)
            try:
                file = read_safetensors(path)
            except Exception:
                continue
            try:
                with package.safe_open(path, framework="numpy") as theirs:
                    assert set(theirs.keys()) == file.tensors.keys() | file.other.keys()
            except AssertionError:
                raise
            except Exception:
                laxer.append(bytes(data[8:]))
    # Dtypes the package does not know yet are kept aside as being of no use; else nothing.
    known = {"F32", "BF16", "U8", "I64", "F16"}
    for data in laxer:
        path.write_bytes(len(data[:-43]).to_bytes(8, "little") + data)
        assert {t.dtype for t in read_safetensors(path).other.values()} - known
