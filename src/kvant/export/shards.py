"""A folder of safetensors files, planned to the byte before a weight is read, then filled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import UsageError
from kvant.export.companions import json_bytes
from kvant.files.atomic import AtomicFile
from kvant.files.atomic_folder import AtomicFolder
from kvant.files.safetensors import header_bytes
from kvant.files.safetensors_read import BITS

__all__ = ["Shard", "Sink", "TensorOut", "index_bytes", "plan_shards"]


@dataclass(frozen=True, slots=True)
class TensorOut:
    """A tensor of the output: its name, its dtype as safetensors calls it, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its name, its header, where in it the data of each tensor begin, its size."""

    file: str
    header: bytes
    offsets: Mapping[str, int]
    size: int


def plan_shards(
    tensors: Sequence[TensorOut], most: int, metadata: Mapping[str, str]
) -> tuple[Shard, ...]:
    """Tensors in order, a new file whenever the next one would make it pass ``most`` bytes.

    One file is called ``model.safetensors``, of several each ``model-00001-of-00003.safetensors``.

    Raises:
        UsageError: a tensor alone is larger than ``most``.
    """
    groups: list[list[TensorOut]] = [[]]
    filled = 0
    for tensor in tensors:
        if tensor.nbytes > most:
            raise UsageError(
                f"--split-size {most} bytes is less than tensor {tensor.name} takes "
                f"({tensor.nbytes} bytes); a tensor cannot be split. Allow at least that."
            )
        if groups[-1] and filled + tensor.nbytes > most:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    shards = []
    for number, group in enumerate(groups, 1):
        name = "model.safetensors"
        if len(groups) > 1:
            name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        header, places = header_bytes([(t.name, t.dtype, t.shape) for t in group], metadata)
        end = max((end for _, end in places.values()), default=len(header))
        shards.append(Shard(name, header, {n: begin for n, (begin, _) in places.items()}, end))
    return tuple(shards)


def index_bytes(shards: Iterable[Shard], metadata: Mapping[str, object]) -> bytes:
    """The content of model.safetensors.index.json."""
    homes = {name: shard.file for shard in shards for name in shard.offsets}
    return json_bytes({"metadata": dict(metadata), "weight_map": dict(sorted(homes.items()))})


class Sink:
    """Files of planned shards, written by position from any number of threads."""

    def __init__(self, folder: AtomicFolder, shards: Sequence[Shard]) -> None:
        self._places: dict[str, tuple[AtomicFile, int]] = {}
        for shard in shards:
            file = folder.open(shard.file)
            file.write_at(shard.header, 0)
            if shard.size > len(shard.header):
                file.write_at(b"\0", shard.size - 1)  # the file has its size from the start
            for name, offset in shard.offsets.items():
                self._places[name] = (file, offset)

    def write(self, name: str, at: int, data: npt.NDArray[Any]) -> None:
        """Bytes of tensor ``name`` from its byte ``at`` on."""
        file, offset = self._places[name]
        file.write_at(np.ascontiguousarray(data), offset + at)
