"""GGUF headers written and read back; typed access; what the writer refuses."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from file_strategies import metadata, specs
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.build import gguf as raw_gguf
from attacks.build import kv, small_gguf, tensor, text
from kvant.errors import FileFormatError, InputError, UnsupportedError
from kvant.files import gguf
from kvant.files.gguf import TensorSpec, Value, ValueType, header_bytes, read_gguf
from kvant.packing.types import BY_NAME

F32, Q4_K = BY_NAME["F32"], BY_NAME["Q4_K"]


def write(
    path: Path,
    values: dict[str, Value],
    tensors: list[TensorSpec],
    alignment: int = 32,
    fill: int = 0,
) -> Path:
    """A file with data of ``fill`` bytes, padded after the last tensor too."""
    header, offsets = header_bytes(values, tensors, alignment)
    total = gguf.padded(offsets[-1] + tensors[-1].nbytes, alignment) if tensors else 0
    data = bytearray(total)
    for spec, offset in zip(tensors, offsets, strict=True):
        data[offset : offset + spec.nbytes] = bytes([fill]) * spec.nbytes
    path.write_bytes(header + data)
    return path


@settings(deadline=None, max_examples=200)
@given(values=metadata, tensors=specs(), alignment=st.sampled_from([8, 32, 64, 4096]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    values: dict[str, Value],
    tensors: list[TensorSpec],
    alignment: int,
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write(path, values, tensors, alignment)
    file = read_gguf(path)
    stated = file.metadata.pop("general.alignment", None)
    assert stated == (None if alignment == 32 else gguf.uint32(alignment))
    assert list(file.metadata.items()) == list(values.items())
    assert (file.version, file.alignment, file.size) == (3, alignment, path.stat().st_size)
    assert list(file.tensors) == [spec.name for spec in tensors]
    for spec in tensors:
        stored = file.tensors[spec.name]
        assert (stored.type, stored.shape, stored.nbytes) == (spec.type, spec.shape, spec.nbytes)
        assert stored.offset % alignment == 0
    assert gguf.check_layout(file) == []
    # The same input, the same bytes.
    assert header_bytes(values, tensors, alignment) == header_bytes(values, tensors, alignment)


def test_every_kind_of_value(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small_gguf())
    file = read_gguf(path)
    assert file.get_str("general.architecture") == "llama"
    assert [file.get_int(f"a.{kind}") for kind in ("u8", "i8", "u16", "i16", "u64")] == [
        7,
        -7,
        7,
        -7,
        1 << 40,
    ]
    assert file.get_float("a.f32") == 0.5
    assert file.get_bool("a.bool") is True
    assert file.get_strings("t.tokens") == ["a", "", "ĝé😀"]
    scores = file.get_array("t.scores")
    assert scores.dtype == np.float32
    assert scores.tolist() == [0.0, -1.0]
    assert file.get_array("t.flags").tolist() == [False, True]
    assert file.get_array("t.flags").dtype == np.bool_
    q = file.tensors["blk.0.attn_q.weight"]
    assert (q.type.name, q.shape, q.rows, q.row_bytes) == ("Q8_0", (3, 32), 3, 34)
    assert (q.read() == 0x11).all()
    assert q.read().shape == (3, 34)


def test_typed_access_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small_gguf())
    file = read_gguf(path)
    for read, key in (
        (file.get_int, "general.architecture"),
        (file.get_int, "a.bool"),
        (file.get_int, "a.f32"),
        (file.get_str, "a.u8"),
        (file.get_float, "a.u8"),
        (file.get_bool, "a.u8"),
        (file.get_strings, "t.scores"),
        (file.get_array, "t.tokens"),
        (file.get_array, "a.u8"),
    ):
        with pytest.raises(FileFormatError, match=rf"metadata '{key}' should be an? "):
            read(key)
        with pytest.raises(FileFormatError, match="should be"):
            read(key, None)
    with pytest.raises(FileFormatError, match=r"lacks 'no\.such', expected a string"):
        file.get_str("no.such")
    assert file.get_str("no.such", "x") == "x"
    assert file.get_array("no.such", None) is None


def test_an_empty_array_has_no_texts(tmp_path: Path) -> None:
    values = {"a": gguf.array(ValueType.INT32, [])}
    file = read_gguf(write(tmp_path / "m.gguf", values, []))
    assert file.get_strings("a") == []


def test_strings_across_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that straddle the window's slices are read like any others."""
    rng = np.random.default_rng(0)
    words = ["é" * int(n) for n in rng.integers(0, 40, 3_000)] + ["x" * 5_000, "", "end"]
    values = {"t": gguf.strings(words), "n": gguf.array(ValueType.INT64, range(2_000))}
    path = write(tmp_path / "m.gguf", values, [])
    for size in (1, 8, 100, 4_096):
        monkeypatch.setattr("kvant.files.gguf_window.Window.SLICE", size)
        file = read_gguf(path)
        assert file.get_strings("t") == words
        assert file.get_array("n").tolist() == list(range(2_000))


def test_version_2_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    data = bytearray(small_gguf())
    data[4] = 2
    path.write_bytes(data)
    assert read_gguf(path).version == 2


def test_without_tensors_no_padding_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    path.write_bytes(raw_gguf())
    file = read_gguf(path)
    assert file.tensors == {}
    assert gguf.check_layout(file) == []


def test_holes_and_any_order_are_allowed(tmp_path: Path) -> None:
    """The specification allows them; llama.cpp does not, so ``check_layout`` says so."""
    path = tmp_path / "m.gguf"
    path.write_bytes(raw_gguf(None, [tensor("b", offset=512), tensor("a")], bytes(768)))
    file = read_gguf(path)
    assert list(file.tensors) == ["b", "a"]
    assert [f.kind for f in gguf.check_layout(file)] == ["order", "gap"]


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_gguf(tmp_path / "m.gguf")
    with pytest.raises(InputError, match="got a folder"):
        read_gguf(tmp_path)
    with pytest.raises(InputError, match="cannot be opened"):
        read_gguf(tmp_path / "a\0b")


def test_reading_only_the_header(tmp_path: Path) -> None:
    """A file with terabytes of data is read at once: its data are never touched."""
    path = tmp_path / "m.gguf"
    path.write_bytes(raw_gguf(None, [tensor("a", (1 << 20, 1 << 20))], bytes(32)))
    os.truncate(path, (1 << 42) + 4096)
    assert read_gguf(path).tensors["a"].nbytes == 1 << 42


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gguf.uint8(256), "does not fit UINT8"),
        (lambda: gguf.uint32(-1), "does not fit UINT32"),
        (lambda: gguf.int64(1 << 63), "does not fit INT64"),
        (lambda: gguf.array(ValueType.UINT8, [1, 300]), "do not all fit"),
        (lambda: gguf.array(ValueType.INT32, [1.5]), "do not all fit"),
        (lambda: gguf.array(ValueType.INT32, np.zeros((2, 2))), "one-dimensional"),
        (lambda: gguf.array(ValueType.ARRAY, [1]), "arrays of arrays"),
    ],
)
def test_constructors_check(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_constructors() -> None:
    assert gguf.float32(0.1) == Value(ValueType.FLOAT32, float(np.float32(0.1)))
    assert gguf.float32(float("nan")) == gguf.float32(float("nan"))
    assert gguf.boolean(True).type is ValueType.BOOL
    assert gguf.strings(("a", "b")) == gguf.array(ValueType.STRING, ["a", "b"])
    assert gguf.array(ValueType.FLOAT32, [1, 2]) != gguf.array(ValueType.FLOAT32, [1, 3])
    assert gguf.array(ValueType.UINT8, [1]) != gguf.array(ValueType.INT8, [1])
    assert gguf.string("a") != "a"


@pytest.mark.parametrize(
    ("values", "tensors", "alignment", "message"),
    [
        ({}, [], 33, "not a power of two"),
        ({"general.alignment": gguf.uint32(64)}, [], 32, "the file's is 32"),
        ({"": gguf.uint8(1)}, [], 32, "empty"),
        ({}, [TensorSpec("a", F32, (2,)), TensorSpec("a", F32, (2,))], 32, "same name"),
        ({}, [TensorSpec("a", F32, ())], 32, "does not fit F32"),
        ({}, [TensorSpec("a", F32, (1, 1, 1, 1, 1))], 32, "does not fit F32"),
        ({}, [TensorSpec("a", F32, (0,))], 32, "does not fit F32"),
        ({}, [TensorSpec("a", Q4_K, (4, 128))], 32, "does not fit Q4_K"),
        ({"a": Value(ValueType.UINT8, 256)}, [], 32, "is no UINT8"),
        ({"a": Value(ValueType.FLOAT32, 1e300)}, [], 32, "is no FLOAT32"),
        ({"a": Value(ValueType.STRING, 1)}, [], 32, "no value of type STRING"),
        ({"a": Value(ValueType.ARRAY, ["a"], ValueType.INT8)}, [], 32, "no value of type ARRAY"),
        (
            {"a": Value(ValueType.ARRAY, np.zeros(2, "f8"), ValueType.FLOAT32)},
            [],
            32,
            "no value of type ARRAY",
        ),
    ],
)
def test_the_writer_checks_its_caller(
    values: dict[str, Value], tensors: list[TensorSpec], alignment: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        header_bytes(values, tensors, alignment)


@pytest.mark.parametrize(
    ("values", "tensors", "message"),
    [
        ({"a": gguf.string("\ud800")}, [], "surrogate"),
        ({"k" * 70_000: gguf.uint8(1)}, [], "at most|hold 65535"),
        ({"a": gguf.string("x" * 5_000_000)}, [], "hold 4000000"),
        ({f"a{i}": gguf.string("x" * 3_999_999) for i in range(11)}, [], "header takes"),
        ({}, [TensorSpec("n" * 64, F32, (2,))], "hold 63"),
        ({}, [TensorSpec(str(i), F32, (2,)) for i in range(50_001)], "Leave some out"),
    ],
)
def test_the_writer_refuses_what_no_reader_takes(
    values: dict[str, Value], tensors: list[TensorSpec], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        header_bytes(values, tensors)


def test_layout_findings(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    two = [tensor("n" * 70, (5,)), tensor("a", (5,), offset=96)]
    data = bytearray(b"\1" * 20 + bytes(76) + b"\2" * 20 + bytes(12))
    data[25] = 7
    path.write_bytes(raw_gguf(None, two, bytes(data)) + b"extra")
    found = gguf.check_layout(read_gguf(path))
    assert [(f.kind, f.serious) for f in found] == [
        ("name", True),
        ("gap", True),
        ("padding", False),
        ("trailing", False),
    ]
    assert "64 bytes" in found[1].message
    assert "5 bytes" in found[3].message
    path.write_bytes(raw_gguf(None, two[1:], bytes(96 + 20)))
    assert [f.kind for f in gguf.check_layout(read_gguf(path))] == ["gap", "end"]


def test_layout_of_a_made_up_file(tmp_path: Path) -> None:
    """``check_layout`` does not lean on the reader having refused overlaps already."""
    path = tmp_path / "m.gguf"
    path.write_bytes(raw_gguf(None, [tensor("a"), tensor("b", offset=256)], bytes(512)))
    file = read_gguf(path)
    a, b = file.tensors.values()
    moved = type(b)(b.name, b.type, b.shape, b.path, a.offset + 8)
    made_up = type(file)(
        path, 3, 32, file.metadata, {"a": a, "b": moved}, file.data_offset, file.size
    )
    assert {f.kind for f in gguf.check_layout(made_up)} >= {"alignment", "overlap"}


def test_a_file_cut_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small_gguf())
    q = read_gguf(path).tensors["blk.0.attn_q.weight"]
    path.write_bytes(small_gguf()[:-64])
    with pytest.raises(FileFormatError, match="ends inside tensor 'blk"):
        q.read()
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        q.read()


def test_alignment_counts_for_the_data(tmp_path: Path) -> None:
    metadata = [kv("general.alignment", 4, struct.pack("<I", 64)), kv("k", 8, text("v"))]
    path = tmp_path / "m.gguf"
    path.write_bytes(raw_gguf(metadata, [tensor("a", (3,))], bytes(64), alignment=64))
    file = read_gguf(path)
    assert file.data_offset % 64 == 0
    assert file.tensors["a"].offset == file.data_offset
