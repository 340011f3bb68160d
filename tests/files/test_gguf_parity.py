"""GGUF against the field: the gguf package and llama.cpp's own reader, both ways."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_strategies import metadata, specs
from hypothesis import given, settings
from test_gguf_files import write

from attacks.build import small_gguf
from kvant.files import gguf as ours
from kvant.files.gguf import TensorSpec, Value, ValueType, header_bytes, read_gguf, read_gguf_split
from kvant.files.gguf_value import ITEM_DTYPES
from kvant.packing.types import BY_ID, BY_NAME

pytestmark = pytest.mark.parity

SAMPLE: dict[str, Value] = {
    "general.architecture": ours.string("llama"),
    "general.name": ours.string("Ünïcode 😀"),
    "llama.block_count": ours.uint32(2),
    "llama.rope.freq_base": ours.float32(10_000.1),
    "x.u8": ours.uint8(255),
    "x.i8": ours.int8(-128),
    "x.u16": ours.uint16(65_535),
    "x.i16": ours.int16(-32_768),
    "x.i32": ours.int32(-(2**31)),
    "x.u64": ours.uint64(2**64 - 1),
    "x.i64": ours.int64(-(2**63)),
    "x.f64": ours.float64(1e300),
    "x.true": ours.boolean(True),
    "x.false": ours.boolean(False),
    "tokenizer.ggml.tokens": ours.strings(["<s>", "", "Ġé", "😀"]),
    "tokenizer.ggml.scores": ours.array(ValueType.FLOAT32, [0.0, -1.5, -np.inf, 2.0]),
    "tokenizer.ggml.token_type": ours.array(ValueType.INT32, [3, 1, 1, 6]),
    "x.flags": ours.array(ValueType.BOOL, [True, False, True]),
}
TENSORS = [
    TensorSpec("token_embd.weight", BY_NAME["Q4_K"], (5, 512)),
    TensorSpec("blk.0.attn_norm.weight", BY_NAME["F32"], (3,)),
    TensorSpec("blk.0.ffn_down_exps.weight", BY_NAME["Q8_0"], (2, 3, 64)),
    TensorSpec("a.bf16", BY_NAME["BF16"], (2, 2, 2, 7)),
]


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = write(tmp_path / "m.gguf", SAMPLE, TENSORS, fill=3)
    reader = gguf.GGUFReader(path)
    for key, value in SAMPLE.items():
        field = reader.fields[key]
        contents = field.contents()
        if isinstance(value.value, np.ndarray):
            assert contents == value.value.tolist()
        else:
            assert contents == value.value
        assert field.types[0] == int(value.type)
        if value.item_type is not None:
            assert field.types[1] == int(value.item_type)
    assert [t.name for t in reader.tensors] == [t.name for t in TENSORS]
    for theirs, spec in zip(reader.tensors, TENSORS, strict=True):
        assert int(theirs.tensor_type) == spec.type.id
        assert tuple(reversed(theirs.shape.tolist())) == spec.shape
        assert theirs.n_bytes == spec.nbytes
        assert (theirs.data.view(np.uint8) == 3).all()
    file = read_gguf(path)
    assert reader.data_offset == file.data_offset
    assert [t.data_offset for t in reader.tensors] == [t.offset for t in file.tensors.values()]


def _package_file(gguf: Any, path: Path, **options: Any) -> dict[str, np.ndarray]:
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_string("general.name", "Ünïcode 😀")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("x.f32", 0.1)
    writer.add_float64("x.f64", 0.1)
    writer.add_bool("x.true", True)
    writer.add_int64("x.i64", -5)
    writer.add_uint64("x.u64", 2**63)
    writer.add_token_list(["<s>", "é", ""])
    writer.add_token_scores([0.0, -1.0, -2.0])
    writer.add_token_types([3, 1, 1])
    writer.add_array("x.flags", [True, False])
    rng = np.random.default_rng(0)
    tensors = {
        "token_embd.weight": rng.normal(size=(4, 64)).astype(np.float32),
        "a.f16": rng.normal(size=(2, 3, 5)).astype(np.float16),
        "b.norm": rng.normal(size=7).astype(np.float32),
    }
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    q8 = gguf.quants.quantize(tensors["token_embd.weight"], gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8", q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    tensors["q8"] = q8
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.parametrize("alignment", [None, 256])
def test_we_read_what_the_package_writes(tmp_path: Path, alignment: int | None) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer_options: dict[str, Any] = {}
    if alignment:
        original = gguf.GGUFWriter

        def aligned(*arguments: Any, **options: Any) -> Any:
            writer = original(*arguments, **options)
            writer.add_custom_alignment(alignment)
            return writer

        gguf_with = type("G", (), {**vars(gguf), "GGUFWriter": staticmethod(aligned)})
        tensors = _package_file(gguf_with, path, **writer_options)
    else:
        tensors = _package_file(gguf, path, **writer_options)
    file = read_gguf(path)
    assert file.alignment == (alignment or 32)
    assert file.get_str("general.architecture") == "llama"
    assert file.get_str("general.name") == "Ünïcode 😀"
    assert file.get_int("llama.block_count") == 2
    assert file.get_float("x.f32") == float(np.float32(0.1))
    assert file.get_float("x.f64") == 0.1
    assert file.get_bool("x.true") is True
    assert (file.get_int("x.i64"), file.get_int("x.u64")) == (-5, 2**63)
    assert file.get_strings("tokenizer.ggml.tokens") == ["<s>", "é", ""]
    assert file.get_array("tokenizer.ggml.scores").tolist() == [0, -1, -2]
    assert file.get_array("tokenizer.ggml.token_type").dtype == np.int32
    assert file.get_array("x.flags").tolist() == [True, False]
    assert list(file.tensors) == list(tensors)
    for name, values in tensors.items():
        assert file.tensors[name].read().tobytes() == values.tobytes()
    assert file.tensors["q8"].shape == (4, 64)
    assert ours.check_layout(file) == []
    # Our header of the same content is the package's, byte for byte.
    again = [TensorSpec(t.name, t.type, t.shape) for t in file.tensors.values()]
    header, offsets = header_bytes(file.metadata, again, file.alignment)
    assert header == path.read_bytes()[: len(header)]
    assert [len(header) + o for o in offsets] == [t.offset for t in file.tensors.values()]


def test_we_read_the_package_s_splits(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    tensors = _package_file(gguf, tmp_path / "m.gguf", split_max_tensors=2)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    file = read_gguf_split(tmp_path / names[1])
    assert file.get_str("general.name") == "Ünïcode 😀"
    for name, values in tensors.items():
        assert file.tensors[name].read().tobytes() == values.tobytes()


def test_types_agree_with_the_package() -> None:
    gguf = pytest.importorskip("gguf")
    for theirs, (block, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        mine = BY_ID[int(theirs)]
        if mine.name == "Q8_1":
            block_bytes = 36  # ggml's block_q8_1 has two float16; the package counts two float32
        assert (mine.name, mine.block, mine.block_bytes) == (theirs.name, block, block_bytes)


def test_real_files(shared_data: Path) -> None:
    """The small ones: the package takes many seconds for a large vocabulary."""
    gguf = pytest.importorskip("gguf")
    for path in sorted(shared_data.glob("*/*.gguf")):
        if path.stat().st_size > 1_000_000 and path.parent.name == "tokenizers":
            continue
        file = read_gguf(path)
        reader = gguf.GGUFReader(path)
        assert ours.check_layout(file) == []
        theirs = [k for k in reader.fields if not k.startswith("GGUF.")]
        assert list(file.metadata) == theirs
        for key in theirs:
            field, mine = reader.fields[key], file.metadata[key].value
            # The package is slow with long arrays: a sample of those.
            if isinstance(mine, (list, np.ndarray)):
                assert len(field.data) == len(mine)
                for i in range(0, len(mine), max(1, len(mine) // 50)):
                    assert field.contents(i) == mine[i]
            else:
                assert field.contents() == mine
        assert [(t.name, t.data_offset, t.n_bytes) for t in reader.tensors] == [
            (t.name, t.offset, t.nbytes) for t in file.tensors.values()
        ]


class LlamaCpp:
    """The C functions that read a GGUF header, from llama.cpp as xllamacpp ships it."""

    class _Parameters(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))

    def __init__(self) -> None:
        module = pytest.importorskip("xllamacpp")
        (library,) = Path(module.__file__).parent.glob("*.so")
        self._lib = ctypes.CDLL(str(library))
        for name, result, arguments in (
            ("init_from_file", ctypes.c_void_p, [ctypes.c_char_p, self._Parameters]),
            ("free", None, [ctypes.c_void_p]),
            ("get_version", ctypes.c_uint32, [ctypes.c_void_p]),
            ("get_alignment", ctypes.c_size_t, [ctypes.c_void_p]),
            ("get_data_offset", ctypes.c_size_t, [ctypes.c_void_p]),
            ("get_n_kv", ctypes.c_int64, [ctypes.c_void_p]),
            ("get_n_tensors", ctypes.c_int64, [ctypes.c_void_p]),
            ("get_key", ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_int64]),
            ("get_kv_type", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int64]),
            ("get_arr_type", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int64]),
            ("get_arr_n", ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_int64]),
            ("get_arr_data", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int64]),
            ("get_arr_str", ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t]),
            ("get_val_str", ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_int64]),
            ("get_val_data", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int64]),
            ("get_tensor_name", ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_int64]),
            ("get_tensor_type", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int64]),
            ("get_tensor_offset", ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_int64]),
            ("get_tensor_size", ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_int64]),
        ):
            function = getattr(self._lib, f"gguf_{name}")
            function.restype, function.argtypes = result, arguments

    def open(self, path: Path) -> int | None:
        """A handle, or None where llama.cpp refuses the file (and says why on stderr)."""
        result: int | None = self._lib.gguf_init_from_file(
            str(path).encode(), self._Parameters(True, None)
        )
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, f"gguf_{name}")


@pytest.fixture(scope="module")
def llama_cpp() -> LlamaCpp:
    return LlamaCpp()


def _compare(c: LlamaCpp, path: Path) -> None:
    """llama.cpp sees in the file what we see."""
    file = read_gguf(path)
    handle = c.open(path)
    assert handle, "llama.cpp refuses the file"
    assert c.get_version(handle) == file.version
    assert c.get_alignment(handle) == file.alignment
    assert c.get_n_kv(handle) == len(file.metadata)
    for i, (key, value) in enumerate(file.metadata.items()):
        assert c.get_key(handle, i) == key.encode().split(b"\0")[0]
        assert c.get_kv_type(handle, i) == value.type
        content = value.value
        if isinstance(content, str):
            assert c.get_val_str(handle, i) == content.encode().split(b"\0")[0]
        elif value.texts is not None:
            found = [c.get_arr_str(handle, i, j) for j in range(c.get_arr_n(handle, i))]
            assert found == [text.encode().split(b"\0")[0] for text in value.texts]
        elif isinstance(content, np.ndarray):
            assert c.get_arr_type(handle, i) == value.item_type
            assert c.get_arr_n(handle, i) == len(content)
            data = (
                ctypes.string_at(c.get_arr_data(handle, i), content.nbytes) if len(content) else b""
            )
            assert data == content.tobytes()
        else:
            dtype = ITEM_DTYPES[value.type]
            data = ctypes.string_at(c.get_val_data(handle, i), dtype.itemsize)
            assert data == np.array(content, dtype).tobytes()
    assert c.get_n_tensors(handle) == len(file.tensors)
    if file.tensors:
        assert c.get_data_offset(handle) == file.data_offset
    for i, tensor in enumerate(file.tensors.values()):
        assert c.get_tensor_name(handle, i) == tensor.name.encode()
        assert c.get_tensor_type(handle, i) == tensor.type.id
        assert c.get_tensor_offset(handle, i) == tensor.offset - file.data_offset
        assert c.get_tensor_size(handle, i) == tensor.nbytes
    c.free(handle)


def test_llama_cpp_reads_what_we_write(llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    for alignment in (8, 32, 4096):
        _compare(llama_cpp, write(tmp_path / f"{alignment}.gguf", SAMPLE, TENSORS, alignment))
    (tmp_path / "small.gguf").write_bytes(small_gguf())
    _compare(llama_cpp, tmp_path / "small.gguf")


@settings(deadline=None, max_examples=100)
@given(values=metadata, tensors=specs())
def test_llama_cpp_reads_whatever_we_write(
    llama_cpp: LlamaCpp,
    tmp_path_factory: pytest.TempPathFactory,
    values: dict[str, Value],
    tensors: list[TensorSpec],
) -> None:
    # C strings end at a NUL, so two names or keys may look the same to llama.cpp.
    if any("\0" in text for text in (*values, *(t.name for t in tensors))):
        return
    _compare(llama_cpp, write(tmp_path_factory.mktemp("c") / "m.gguf", values, tensors))


def test_llama_cpp_reads_real_files_as_we_do(llama_cpp: LlamaCpp, shared_data: Path) -> None:
    for path in sorted(shared_data.glob("*/*.gguf")):
        _compare(llama_cpp, path)
