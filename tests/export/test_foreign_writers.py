"""GGUF files other tools wrote are sources like our own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.files.gguf import read_gguf
from oracles.llama_quantize import find_tool
from oracles.models import LLAMA, LLAMA3_ROPE, QWEN3, make_folder

pytestmark = pytest.mark.parity


def _rewrite(gguf: ModuleType, path: Path, out: Path, alignment: int, halves: bool) -> Path:
    """The same model by gguf-py: tensors in reverse order, vectors in F16 if ``halves``."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, arch)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "kvant.")) or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)
    for tensor in reversed(reader.tensors):
        data = np.array(tensor.data)
        if halves and data.ndim == 1 and tensor.name != "rope_freqs.weight":
            data = data.astype(np.float16)
        kind = None if data.dtype in (np.float32, np.float16) else tensor.tensor_type
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize(("alignment", "halves"), [(32, False), (64, True), (4096, False)])
@pytest.mark.parametrize("first", ["F16", "Q8_0"])
def test_files_of_gguf_py(
    gguf: ModuleType, tmp_path: Path, alignment: int, halves: bool, first: str
) -> None:
    config = {**LLAMA, "rope_scaling": LLAMA3_ROPE}
    folder = make_folder(tmp_path / "Tiny", config, dtype="F16")
    (ours,) = kvant.quantize(folder, first, tmp_path / "ours.gguf").paths
    theirs = _rewrite(gguf, ours, tmp_path / "theirs.gguf", alignment, halves)
    assert read_gguf(theirs).alignment == alignment
    assert kvant.verify(theirs).checksums == "none"
    assert kvant.verify(theirs).ok
    a = kvant.quantize(ours, "Q4_K_M", tmp_path / "a.gguf").paths[0]
    b = kvant.quantize(theirs, "Q4_K_M", tmp_path / "b.gguf").paths[0]
    made, again = read_gguf(a), read_gguf(b)
    assert again.alignment == 32
    assert list(made.tensors) == list(again.tensors)
    for name, tensor in made.tensors.items():
        np.testing.assert_array_equal(tensor.read(), again.tensors[name].read())
    assert made.metadata.keys() == again.metadata.keys()


@pytest.mark.skipif(find_tool() is None, reason="llama-quantize is not here (KVANT_LLAMA_BIN)")
@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q5_0", "Q8_0"])
def test_files_of_llama_quantize(tmp_path: Path, recipe: str) -> None:
    folder = make_folder(tmp_path / "Tiny", QWEN3, dtype="BF16")
    (full,) = kvant.convert(folder, tmp_path / "full.gguf").paths
    theirs = tmp_path / "theirs.gguf"
    tool = str(find_tool())
    subprocess.run([tool, str(full), str(theirs), recipe], capture_output=True, check=True)
    (ours,) = kvant.quantize(folder, recipe, tmp_path / "ours.gguf").paths
    one, other = open_checkpoint(ours), open_checkpoint(theirs)
    for name, weight in one.weights.items():
        stored = other.weights[name].stored
        assert stored.type == weight.stored.type
        if stored.type.block in (1, 32):  # plain formulas: the same bytes
            np.testing.assert_array_equal(weight.stored.read(), stored.read())
    # The tool copied the checksums of the file it read: they say nothing about the new one.
    assert kvant.verify(full).checksums == kvant.verify(ours).checksums == "good"
    assert kvant.verify(theirs).checksums == "stale"
    for path in (ours, theirs):
        assert kvant.verify(path, folder).ok
    error = {p: [r.rmse for r in kvant.verify(p, folder).reconstruction] for p in (ours, theirs)}
    assert sum(error[ours]) <= sum(error[theirs]) * (1 + 1e-6)
    keys = read_gguf(theirs).metadata
    mine = read_gguf(ours).metadata
    for key in ("general.file_type", "general.quantization_version"):
        assert keys[key] == mine[key]
    again = kvant.quantize(theirs, recipe, tmp_path / "again.gguf").paths[0]
    for name, tensor in read_gguf(again).tensors.items():
        np.testing.assert_array_equal(tensor.read(), read_gguf(theirs).tensors[name].read())
    assert kvant.verify(again).checksums == "good"
