"""kvant verify: every flipped byte of data is found, and errors against the source are right."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.errors import DataError, InputError, KvantError, UsageError
from kvant.export.gguf.keys import CHECKSUMS, METADATA
from kvant.files.gguf import GgufFile, read_gguf
from oracles.models import LLAMA, QWEN2, make_folder

MICRO = {
    **LLAMA,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 260,
}


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of some ten kilobytes with F32, Q8_0 and Q4_0 tensors."""
    folder = tmp_path_factory.mktemp("micro")
    source = make_folder(folder / "Micro", MICRO)
    return kvant.quantize(source, "Q4_0", folder / "micro.gguf").paths[0]


def _flipped(path: Path, position: int, bit: int, out: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    out.write_bytes(data)
    return out


def _ranges(file: GgufFile) -> list[tuple[str, int, int]]:
    return [(t.name, t.offset, t.nbytes) for t in file.tensors.values()]


def test_checksums_are_xxh64_of_the_bytes(micro: Path) -> None:
    file = read_gguf(micro)
    data = micro.read_bytes()
    sums = [xxhash.xxh64_intdigest(data[at : at + n]) for _, at, n in _ranges(file)]
    assert file.get_array(CHECKSUMS).tolist() == sums


def test_a_good_file(micro: Path) -> None:
    found = kvant.verify(micro)
    assert found.ok
    assert found.checksums == "good"
    assert (found.findings, found.damaged, found.reconstruction) == ((), (), ())
    assert found.nbytes == micro.stat().st_size
    assert found.tensors == 12


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_flipped_bit_of_data_is_found(
    micro: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = read_gguf(micro)
    name, start, size = data.draw(st.sampled_from(_ranges(file)))
    position = start + data.draw(st.integers(0, size - 1))
    broken = _flipped(
        micro, position, data.draw(st.integers(0, 7)), tmp_path_factory.mktemp("f") / "m.gguf"
    )
    found = kvant.verify(broken, threads=2)
    assert not found.ok
    assert found.checksums == "bad"
    assert found.damaged == (name,)


def test_the_first_and_last_byte_of_every_tensor(micro: Path, tmp_path: Path) -> None:
    for name, start, size in _ranges(read_gguf(micro)):
        for position in (start, start + size - 1):
            broken = _flipped(micro, position, 0, tmp_path / "m.gguf")
            assert kvant.verify(broken).damaged == (name,)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_flipped_bit_of_the_header_is_found(
    micro: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = micro.read_bytes()
    file = read_gguf(micro)
    position = data.draw(st.integers(8, file.data_offset - 1))
    key = raw.index(METADATA.encode())
    if key - 8 <= position < key + len(METADATA) + 12 or position >= _entries_end(raw, file):
        return  # the checksum's own entry, which cannot cover itself, and zeros before the data
    broken = _flipped(
        micro, position, data.draw(st.integers(0, 7)), tmp_path_factory.mktemp("f") / "m.gguf"
    )
    with suppress(KvantError):
        assert not kvant.verify(broken).ok


def _entries_end(raw: bytes, file: GgufFile) -> int:
    """Where the last tensor's entry ends: after its name, dimensions, type and offset."""
    last = list(file.tensors.values())[-1]
    start = raw.rindex(last.name.encode(), 0, file.data_offset) + len(last.name)
    return start + 4 + 8 * len(last.shape) + 4 + 8


def test_truncated(micro: Path, tmp_path: Path) -> None:
    whole = micro.read_bytes()
    for size in (len(whole) - 40, read_gguf(micro).data_offset, 1000, 20, 0):
        (tmp_path / "m.gguf").write_bytes(whole[:size])
        with pytest.raises(InputError):
            kvant.verify(tmp_path / "m.gguf")


def test_appended_bytes_and_padding_are_told(micro: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(micro.read_bytes() + b"more")
    assert [f.kind for f in kvant.verify(path).findings] == ["trailing"]


def test_splits_are_checked_part_by_part(source: Path, tmp_path: Path) -> None:
    parts = kvant.quantize(source, "Q4_K_M", tmp_path / "m.gguf", split_size=300_000).paths
    file = read_gguf(parts[2])
    name, start, _ = _ranges(file)[0]
    with parts[2].open("r+b") as broken:
        broken.seek(start)
        byte = broken.read(1)[0]
        broken.seek(start)
        broken.write(bytes([byte ^ 1]))
    for path in parts:
        found = kvant.verify(path)
        assert found.damaged == (name,)
    os.remove(parts[1])
    with pytest.raises(InputError, match="missing"):
        kvant.verify(parts[0])


def test_a_file_without_checksums(micro: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(micro.read_bytes().replace(b"kvant.", b"other."))
    found = kvant.verify(path)
    assert found.ok
    assert found.checksums == "none"


def test_checksums_of_another_count_or_type(micro: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    raw = micro.read_bytes()
    at = raw.index(CHECKSUMS.encode()) + len(CHECKSUMS)
    assert raw[at : at + 16] == struct.pack("<IIQ", 9, 10, 12)
    path.write_bytes(raw[: at + 4] + struct.pack("<IQ", 11, 12) + raw[at + 16 :])  # signed
    with pytest.raises(InputError, match="one 64-bit checksum for each of the 12 tensors"):
        kvant.verify(path)


@pytest.mark.parametrize("recipe", ["Q2_K", "Q4_K_M", "Q5_0", "F16", "F32"])
@pytest.mark.parametrize("config", [LLAMA, {**QWEN2, "num_key_value_heads": 4}], ids=["l", "q"])
def test_reconstruction_errors(tmp_path: Path, recipe: str, config: dict[str, object]) -> None:
    folder = make_folder(tmp_path / "Model", config, dtype="BF16")
    (path,) = kvant.quantize(folder, recipe, tmp_path / "m.gguf").paths
    found = kvant.verify(path, folder)
    assert found.ok
    made, source = open_checkpoint(path), open_checkpoint(folder)
    assert [r.name for r in found.reconstruction] == list(source.weights)
    for r in found.reconstruction:
        x = source.weights[r.name].read_f32().astype(np.float64)
        error = made.weights[r.name].read_f32() - x
        assert r.packing == made.weights[r.name].stored.type.name
        assert r.source_type == "BF16"
        assert r.rmse == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)
        assert r.largest == pytest.approx(np.abs(error).max(), rel=1e-6)
        reference = np.sqrt((error**2).sum() / (x**2).sum())
        assert r.relative == pytest.approx(reference, rel=1e-6, abs=1e-12)
    worst = max(r.relative for r in found.reconstruction)
    assert worst < {"Q2_K": 0.4, "Q4_K_M": 0.1, "Q5_0": 0.1, "F16": 1e-5, "F32": 0}[recipe] + 1e-12


def test_reconstruction_of_a_zero_tensor(tmp_path: Path) -> None:
    from oracles.models import weights_of

    weights = weights_of(LLAMA)
    weights["model.layers.0.mlp.up_proj.weight"][:] = 0
    folder = make_folder(tmp_path / "Model", LLAMA, weights)
    (path,) = kvant.quantize(folder, "Q4_K_M", tmp_path / "m.gguf").paths
    found = {r.name: r for r in kvant.verify(path, folder).reconstruction}
    assert found["blk.0.ffn_up.weight"].relative == 0


def test_against_another_model(source: Path, micro: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not of one model"):
        kvant.verify(micro, source)
    other = make_folder(tmp_path / "Other", {**LLAMA, "num_hidden_layers": 3})
    (path,) = kvant.quantize(other, "Q8_0", tmp_path / "m.gguf").paths
    with pytest.raises(UsageError, match=r"blk\.2\."):
        kvant.verify(path, source)


def test_against_a_source_with_nan(tmp_path: Path) -> None:
    from oracles.models import weights_of

    good = make_folder(tmp_path / "good", LLAMA)
    (path,) = kvant.quantize(good, "Q8_0", tmp_path / "m.gguf").paths
    weights = weights_of(LLAMA)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    bad = make_folder(tmp_path / "bad", LLAMA, weights)
    with pytest.raises(DataError, match=r"blk\.1\.ffn_up\.weight.*nan at row 3, column 5"):
        kvant.verify(path, bad)
