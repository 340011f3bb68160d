"""Every prefix and every changed byte of small valid files: a KvantError or success, quickly."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from attacks.build import small_gguf, small_safetensors
from attacks.fuzz import TARGETS, fuzz
from kvant.errors import FileFormatError, KvantError
from kvant.files.gguf import read_gguf
from kvant.files.safetensors import read_safetensors

SWEPT = ["gguf", "safetensors", "index", "config"]


@pytest.mark.parametrize("name", TARGETS)
def test_the_valid_file_is_read(name: str, tmp_path: Path) -> None:
    data, _, read = TARGETS[name]
    read(tmp_path, data)


@pytest.mark.parametrize("name", SWEPT)
def test_every_prefix_is_refused(name: str, tmp_path: Path) -> None:
    data, _, read = TARGETS[name]
    # Only the padding after the last tensor of a GGUF file may be missing.
    least = len(data) - 12 if name == "gguf" else len(data)
    for length in range(least):
        with pytest.raises(KvantError):
            read(tmp_path, data[:length])
    for length in range(least, len(data) + 1):
        read(tmp_path, data[:length])


@pytest.mark.parametrize("change", [0x01, 0x20, 0x80, 0xFF])
@pytest.mark.parametrize("name", SWEPT)
def test_every_changed_byte(name: str, change: int, tmp_path: Path) -> None:
    data, _, read = TARGETS[name]
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= change
        with contextlib.suppress(KvantError):
            read(tmp_path, bytes(changed))


def test_a_prefix_of_the_header_says_truncated(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    data = small_gguf()
    for length in (6, 30, 100, 500, len(data) - 13):
        path.write_bytes(data[:length])
        with pytest.raises(FileFormatError, match=r"truncated|expected at most"):
            read_gguf(path)
    path = tmp_path / "m.safetensors"
    data = small_safetensors()
    for length in (9, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(FileFormatError, match="truncated"):
            read_safetensors(path)


def test_random_mutations(tmp_path: Path) -> None:
    accepted, findings = fuzz(3_000, seed=1, folder=tmp_path)
    assert findings == []
    assert accepted > 50, "the mutations never leave a file readable: they test nothing deep"
