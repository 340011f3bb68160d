"""A folder that was written, read back and compared with its source before it appears.

Config and tensors are read as from any other folder, tensor by tensor and in runs of rows, so in a
memory that does not grow with the model. Every weight that is stored as a float must be the
source's, rounded once. Of quantised matrices the error is stated, and must be below what their
grid allows: a group's weights are within half a step of the levels, a step is the group's range
over the number of levels, and the range is at most the root of the group's length times twice the
root mean square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvant.arch import ModelConfig
from kvant.checkpoint import Checkpoint, Weight, open_checkpoint
from kvant.errors import OutputError
from kvant.export.tensors import FloatTensor, GroupTensor, OutTensor

__all__ = ["FolderCheck", "check_folder"]

Floats = npt.NDArray[np.float32]

RUN_WEIGHTS = 1 << 20

#: Of a weight's size: half a unit in the last place, and a little for values below the normal ones.
_ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
_LEAST = {"F32": 0.0, "F16": 2.0**-24, "BF16": 2.0**-133}
_MOST = 0.75
"""No bound is above this: rows or columns in a wrong order give an error of 1.4, zeros of 1."""


@dataclass(frozen=True, slots=True)
class FolderCheck:
    """What was compared. ``worst`` is the largest relative error (root of the mean square) of a
    quantised tensor, ``tensor`` its name, ``bound`` what was allowed for it."""

    exact: int
    quantised: int
    worst: float
    tensor: str
    bound: float

    @property
    def sentence(self) -> str:
        """For the report."""
        said = f"Verified: {self.exact} tensors read back are the source's to the last digit kept"
        if not self.quantised:
            return f"{said}."
        return (
            f"{said}; of {self.quantised} quantised ones the relative error is at most "
            f"{self.worst:.4f} ({self.tensor}), the bound for it {self.bound:.4f}."
        )


def check_folder(
    source: Checkpoint, folder: Path, tensors: Sequence[OutTensor], *, threads: int
) -> FolderCheck:
    """Compare the model in ``folder`` with ``source``, given what was to be written.

    Raises:
        OutputError: they differ by more than is allowed; names the tensor.
        KvantError: the folder cannot be read as a model.
    """
    model = open_checkpoint(folder)
    odd = config_difference(model.config, source.config)
    if odd:
        raise OutputError(_broken(f"its config has {odd}"))
    wanted: dict[str, OutTensor] = {}
    for tensor in tensors:
        wanted.setdefault(tensor.piece.canonical, tensor)
    pairs = [(model.weights[n], source.weights[n], wanted[n]) for n in source.weights]
    exact = quantised = 0
    worst = (0.0, "", _MOST)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for (weight, _, tensor), error in zip(pairs, pool.map(_compared, pairs), strict=True):
            if isinstance(tensor, GroupTensor):
                quantised += 1
                worst = max(worst, (error, weight.name, bound(tensor)))
            else:
                exact += 1
    return FolderCheck(exact, quantised, *worst)


def config_difference(found: ModelConfig, expected: ModelConfig) -> str:
    """The first field in which two configs differ, in words; empty where there is none.

    Numbers are compared in single precision, as GGUF holds them.
    """
    if type(found) is not type(expected):
        return f"the fields of {type(found).__module__}, expected {type(expected).__module__}"
    for name, value in vars(expected).items():
        if _single(vars(found)[name]) != _single(value):
            return f"{name} = {vars(found)[name]}, expected {value}"
    return ""


def _single(value: object) -> object:
    if isinstance(value, float):
        return float(np.float32(value))
    if is_dataclass(value) and not isinstance(value, type):
        return tuple(_single(getattr(value, f.name)) for f in fields(value))
    return tuple(map(_single, value)) if isinstance(value, tuple) else value


def bound(tensor: GroupTensor) -> float:
    """The most relative error of a tensor."""
    grid = tensor.grid
    if grid.levels == "E4M3":
        return 0.125
    steps = 5 if grid.levels == "E2M1" else grid.most
    return min(_MOST, math.sqrt(grid.block) / steps)


def _compared(pair: tuple[Weight, Weight, OutTensor]) -> float:
    weight, source, tensor = pair
    squares = reference = 0.0
    step = math.lcm(weight.row_step, source.row_step)
    rows, columns = source.stored.rows, source.stored.row_length
    height = max(1, RUN_WEIGHTS // (columns * step)) * step
    with weight.open() as a, source.open() as b:
        for start in range(0, rows, height):
            stop = min(rows, start + height)
            x = source.read_rows_f32(b, start, stop)
            error = weight.read_rows_f32(a, start, stop) - x
            if isinstance(tensor, FloatTensor):
                _check_rounded(tensor, x, error)
            squares += float(np.square(error, dtype=np.float64).sum())
            reference += float(np.square(x, dtype=np.float64).sum())
    relative = math.sqrt(squares / reference) if reference else float(squares > 0)
    if isinstance(tensor, GroupTensor) and relative > bound(tensor):
        raise OutputError(
            _broken(
                f"tensor {weight.name} differs from the source by {relative:.3f} of its size, "
                f"expected at most {bound(tensor):.3f}"
            )
        )
    return relative


def _check_rounded(tensor: FloatTensor, x: Floats, error: Floats) -> None:
    # Gains that are stored less one are rounded at that size, about one.
    size = np.abs(x) + (2.0 if tensor.piece.values == "one less" else 0.0)
    allowed = _ROUNDING[tensor.dtype] * size + _LEAST[tensor.dtype]
    if tensor.piece.values == "one less":
        allowed = allowed + 2.0**-23
    if not (np.abs(error) <= allowed).all():
        raise OutputError(
            _broken(
                f"tensor {tensor.piece.canonical} differs from the source by up to "
                f"{float(np.abs(error).max()):g}, more than rounding to {tensor.dtype} explains"
            )
        )


def _broken(what: str) -> str:
    return (
        f"What was written does not read back as it should: {what}. Nothing was kept. This is a "
        "fault of kvant's or of the disk's; --no-verify keeps the files."
    )
