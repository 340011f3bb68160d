"""Split GGUF models: any shard opens all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvant.errors import FileFormatError
from kvant.files import gguf
from kvant.files.gguf import TensorSpec, header_bytes, read_gguf, read_gguf_split, split_name
from kvant.packing.types import BY_NAME

F32 = BY_NAME["F32"]


def write_split(
    folder: Path, tensors: dict[str, int], *, shards: int = 3, stem: str = "Some Model-Q8_0"
) -> list[Path]:
    """One shard a tensor, as gguf-split writes them; further shards hold nothing."""
    paths = []
    for i in range(shards):
        name = list(tensors)[i] if i < len(tensors) else None
        first = {
            "general.architecture": gguf.string("llama"),
            "tokenizer.ggml.tokens": gguf.strings(["a"]),
        }
        metadata = (first if i == 0 else {}) | {
            "split.no": gguf.uint16(i),
            "split.count": gguf.uint16(shards),
            "split.tensors.count": gguf.int32(len(tensors)),
        }
        specs = [] if name is None else [TensorSpec(name, F32, (8,))]
        header, _ = header_bytes(metadata, specs)
        data = b"" if name is None else np.full(8, tensors[name], "<f4").tobytes()
        paths.append(folder / split_name(stem, i, shards))
        paths[-1].write_bytes(header + data)
    return paths


@pytest.mark.parametrize("named", [0, 1, 2])
def test_merged_view(tmp_path: Path, named: int) -> None:
    paths = write_split(tmp_path, {"a": 1, "b": 2})
    file = read_gguf_split(paths[named])
    assert file.path == paths[0]
    assert [part.path for part in file.parts] == paths
    assert file.size == sum(path.stat().st_size for path in paths)
    assert list(file.tensors) == ["a", "b"]
    for name, value in (("a", 1), ("b", 2)):
        assert (file.tensors[name].read().view("<f4") == value).all()
    assert file.get_str("general.architecture") == "llama"
    assert file.get_int("split.count") == 3
    assert gguf.check_layout(file) == []


def test_shards_may_repeat_the_metadata(tmp_path: Path) -> None:
    """Some tools write every key into every shard; equal values are no contradiction."""
    paths = write_split(tmp_path, {"a": 1, "b": 2}, shards=2)
    metadata = read_gguf(paths[0]).metadata | {"split.no": gguf.uint16(1)}
    header, _ = header_bytes(metadata, [TensorSpec("b", F32, (8,))])
    paths[1].write_bytes(header + bytes(32))
    assert list(read_gguf_split(paths[0]).tensors) == ["a", "b"]


def test_one_shard_alone_is_readable_as_such(tmp_path: Path) -> None:
    paths = write_split(tmp_path, {"a": 1, "b": 2})
    assert list(read_gguf(paths[1]).tensors) == ["b"]
    paths[2].unlink()
    with pytest.raises(FileFormatError, match=rf"00003-of-00003\.gguf: .* {paths[0].name} needs"):
        read_gguf_split(paths[0])


def test_a_file_that_is_not_split(tmp_path: Path) -> None:
    header, _ = header_bytes({"split.count": gguf.uint16(1)}, [])
    path = tmp_path / "whole.gguf"
    path.write_bytes(header)
    file = read_gguf_split(path)
    assert file.parts == ()
    assert file.path == path
