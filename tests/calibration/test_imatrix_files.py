"""Importance files: both formats back and forth, and as hostile as they may be."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvant.calibration import (
    Importance,
    Text,
    importance_bytes,
    read_importance,
    write_importance,
)
from kvant.errors import InputError, KvantError, OutputError
from kvant.files.gguf import TensorSpec, Value, header_bytes, padded, read_gguf, string
from kvant.packing.types import BY_NAME

RNG = np.random.default_rng(5)
PLAIN = RNG.gamma(0.5, 100, 64).astype(np.float32)
EXPERTS = RNG.gamma(0.5, 100, (3, 32)).astype(np.float32)
EXPERTS[1] = 0

FULL = Importance(
    {"blk.0.ffn_up.weight": PLAIN, "blk.0.exps.weight": EXPERTS, "blk.0.a.weight": PLAIN},
    {
        "blk.0.ffn_up.weight": np.array([1024]),
        "blk.0.exps.weight": np.array([700, 0, 3]),
        "blk.0.a.weight": np.array([1024]),
    },
    chunk=512,
    chunks=2,
    datasets=("chat.txt", "kode på norsk.txt"),
    texts=(Text("chat.txt", 2.0, 512), Text("kode på norsk.txt", 1.0, 512)),
    model="ab" * 32,
    model_name="Tiny",
    corpus="cd" * 32,
    version="1.2",
)


def same(a: Importance, b: Importance) -> None:
    assert set(a.sums) == set(b.sums)
    for name in a.sums:
        np.testing.assert_array_equal(a.sums[name], b.sums[name])
        np.testing.assert_array_equal(a.seen[name], b.seen[name])


def test_gguf_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "a.importance"
    write_importance(path, FULL)
    found = read_importance(path)
    same(found, FULL)
    for field in ("chunk", "chunks", "datasets", "texts", "model", "model_name", "corpus"):
        assert getattr(found, field) == getattr(FULL, field)
    assert (found.version, found.file) == ("1.2", "a.importance")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert importance_bytes(found) == importance_bytes(FULL) == path.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write_importance(path, FULL)


def test_gguf_is_laid_out_as_llama_cpp_does(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_importance(path, FULL)
    file = read_gguf(path)
    assert file.get_str("general.type") == "imatrix"
    assert file.get_int("imatrix.chunk_count") == 2
    assert file.get_int("imatrix.chunk_size") == 512
    assert file.get_strings("imatrix.datasets") == ["chat.txt", "kode på norsk.txt"]
    assert {n: t.shape for n, t in file.tensors.items()} == {
        "blk.0.a.weight.in_sum2": (64,),
        "blk.0.a.weight.counts": (1,),
        "blk.0.exps.weight.in_sum2": (3, 32),
        "blk.0.exps.weight.counts": (3, 1),
        "blk.0.ffn_up.weight.in_sum2": (64,),
        "blk.0.ffn_up.weight.counts": (1,),
    }


def test_the_older_format_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    write_importance(path, FULL)
    found = read_importance(path)
    assert (found.datasets, found.chunks, found.chunk) == (("chat.txt",), 2, 0)
    assert found.model == found.version == ""
    for name in ("blk.0.a.weight", "blk.0.ffn_up.weight"):
        np.testing.assert_allclose(found.moments[name], FULL.moments[name], rtol=1e-6)
    # Experts are one long row there; the one that saw nothing counts alike.
    flat = found.moments["blk.0.exps.weight"].reshape(3, 32)
    np.testing.assert_allclose(flat[0], FULL.moments["blk.0.exps.weight"][0], rtol=1e-6)
    assert (flat[1] == 1).all()


def test_the_older_format_without_its_end(tmp_path: Path) -> None:
    """What tools of 2024 wrote ends after the entries."""
    raw = struct.pack("<ii", 1, 1) + b"x" + struct.pack("<iiff", 4, 2, 4.0, 8.0)
    (tmp_path / "old.dat").write_bytes(raw)
    found = read_importance(tmp_path / "old.dat")
    assert found.moments["x"].tolist() == [1, 2]
    assert (found.chunks, found.datasets) == (0, ())


# ---- hostile ------------------------------------------------------------------------------------


def gguf(
    tensors: dict[str, tuple[tuple[int, ...], str, list[float]]], kind: str = "imatrix"
) -> bytes:
    metadata: dict[str, Value] = {"general.type": string(kind)}
    specs = [TensorSpec(n, BY_NAME[t], shape) for n, (shape, t, _) in tensors.items()]
    head, _ = header_bytes(metadata, specs)
    dtypes = {"F32": np.float32, "F16": np.float16}
    blobs = [np.array(v, dtypes[t]).tobytes() for _, t, v in tensors.values()]
    return head + b"".join(b.ljust(padded(len(b), 32), b"\0") for b in blobs)


def pair(
    sums: list[float], counts: list[float], kind: str = "F32"
) -> dict[str, tuple[tuple[int, ...], str, list[float]]]:
    return {
        "a.in_sum2": ((len(sums),), kind, sums),
        "a.counts": ((len(counts), 1), "F32", counts),
    }


NAN, INF = float("nan"), float("inf")
GGUF: dict[str, tuple[bytes, str]] = {
    "a model": (gguf(pair([1, 2], [1]), kind="model"), "general.type is 'imatrix', got 'model'"),
    "no entries": (gguf({"a.counts": ((1,), "F32", [1])}), "of no pair"),
    "no counts": (gguf({"a.in_sum2": ((2,), "F32", [1, 2])}), "has sums, but no counts"),
    "half floats": (gguf(pair([1, 2], [1], "F16")), "is F16, expected F32"),
    "odd experts": (gguf(pair([1, 2, 3], [1, 1])), "3 sums and 2 counts"),
    "nan": (gguf(pair([1, NAN], [1])), "sum of squares nan"),
    "infinity": (gguf(pair([INF, 1], [1])), "sum of squares inf"),
    "negative": (gguf(pair([-1, 1], [1])), r"sum of squares -1\.0"),
    "negative count": (gguf(pair([1, 1], [-5])), r"numbers from 0, got -5\.0"),
    "nan count": (gguf(pair([1, 1], [NAN])), "numbers from 0, got nan"),
    "huge count": (gguf(pair([1, 1], [3e38])), "numbers from 0, got"),
    "strange tensor": (
        gguf({**pair([1, 1], [1]), "b": ((1,), "F32", [1])}),
        "'b' is one of no pair",
    ),
}


@pytest.mark.parametrize("name", GGUF)
def test_hostile_gguf(tmp_path: Path, name: str) -> None:
    raw, message = GGUF[name]
    path = tmp_path / "bad.importance"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message) as caught:
        read_importance(path)
    assert str(path) in str(caught.value)


def legacy(*parts: bytes | int) -> bytes:
    return b"".join(p if isinstance(p, bytes) else struct.pack("<i", p) for p in parts)


ONE = (1, b"x", 1, 1, struct.pack("<f", 2))
LEGACY: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ends inside the number of entries"),
    "text": (b"A text, which is no importance file at all, only letters.", "got something else"),
    "no entries": (legacy(0, 0, 0, 0, 0), "got something else"),
    "many entries": (legacy(40_000, *ONE), "got something else"),
    "negative": (legacy(-1, *ONE), "got something else"),
    "one too many": (legacy(2, *ONE, bytes(17)), "has the name ''"),
    "twice": (legacy(2, *ONE, *ONE), "has the name 'x'"),
    "long name": (legacy(1, 1 << 30, bytes(20)), "claims 1073741824 bytes"),
    "negative name": (legacy(1, -4, bytes(20)), "claims -4 bytes"),
    "many values": (legacy(1, 1, b"x", 1, 1 << 30, bytes(20)), "ends inside 'x': 1073741824"),
    "no values": (legacy(1, 1, b"x", 1, 0, bytes(20)), "claims 0 values"),
    "negative calls": (legacy(1, 1, b"x", -1, 1, bytes(20)), "values of -1 chunks"),
    "nan": (legacy(1, 1, b"x", 1, 1, struct.pack("<f", NAN)), "sum of squares nan"),
    "rest": (legacy(1, *ONE, 1, 1, b"t", b"more"), "4 bytes follow the end"),
}


@pytest.mark.parametrize("name", LEGACY)
def test_hostile_older_files(tmp_path: Path, name: str) -> None:
    raw, message = LEGACY[name]
    path = tmp_path / "bad.dat"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message) as caught:
        read_importance(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_cut_anywhere(tmp_path: Path, suffix: str) -> None:
    """No cut file is taken for a whole one, but an older one at the end of its entries."""
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    write_importance(whole, FULL)
    raw = whole.read_bytes()
    entries = len(raw) - (8 + len("chat.txt")) if suffix == "dat" else -1
    padding = 32 if suffix == "gguf" else 0  # after the last tensor
    for length in {*range(0, len(raw) - padding, 7), *range(len(raw) - 60, len(raw) - padding)}:
        path.write_bytes(raw[:length])
        if length in (entries, entries + 4):
            read_importance(path)
            continue
        with pytest.raises(KvantError, match=r"cut\."):
            read_importance(path)


def test_damaged_anywhere(tmp_path: Path) -> None:
    """Whatever a byte becomes: importance that can be used, or one error."""
    path = tmp_path / "damaged"
    for legacy_format in (False, True):
        raw = importance_bytes(FULL, legacy=legacy_format)
        rng = np.random.default_rng(1)
        for _ in range(400):
            damaged = bytearray(raw)
            damaged[int(rng.integers(len(raw)))] = int(rng.integers(256))
            path.write_bytes(damaged)
            _usable_or_refused(lambda: read_importance(path))


def _usable_or_refused(read: Callable[[], Importance]) -> None:
    try:
        found = read()
    except KvantError:
        return
    for name in found.sums:
        values = found.for_tensor(name)
        assert values is not None
        assert np.isfinite(values).all()
        assert (values > 0).all()


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_importance(tmp_path / "none")
    with pytest.raises(InputError, match="got a folder"):
        read_importance(tmp_path)
