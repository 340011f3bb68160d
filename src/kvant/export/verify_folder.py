"""A folder that was written, read back and compared with its source before it appears.

Config and tensors are read as from any other folder; `readback` says what they must be.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path

import numpy as np

from kvant.arch import ModelConfig
from kvant.checkpoint import Checkpoint, Weight, open_checkpoint
from kvant.export.readback import (
    bound,
    broken,
    check_bound,
    check_rounded,
    relative_error,
    sentence,
)
from kvant.export.tensors import FloatTensor, GroupTensor, OutTensor

__all__ = ["check_folder", "config_difference"]


def check_folder(
    source: Checkpoint, folder: Path, tensors: Sequence[OutTensor], *, threads: int
) -> str:
    """Compare the model in ``folder`` with ``source``, given what was to be written.

    Returns:
        a sentence for the report.

    Raises:
        OutputError: they differ by more than is allowed; names the tensor.
        KvantError: the folder cannot be read as a model.
    """
    model = open_checkpoint(folder)
    odd = config_difference(model.config, source.config)
    if odd:
        raise broken(f"its config has {odd}")
    wanted: dict[str, OutTensor] = {}
    for tensor in tensors:
        wanted.setdefault(tensor.piece.canonical, tensor)
    names = list(source.weights)
    pairs = [(source.weights[n], model.weights[n], wanted[n]) for n in names]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        errors = dict(zip(names, pool.map(_compared, pairs), strict=True))
    grids = {n: t.grid for n in names if isinstance(t := wanted[n], GroupTensor)}
    return sentence(
        len(names) - len(grids), [(errors[n], n, bound(grid)) for n, grid in grids.items()]
    )


def _compared(pair: tuple[Weight, Weight, OutTensor]) -> float:
    source, written, tensor = pair
    if isinstance(tensor, FloatTensor):
        less = tensor.piece.values == "one less"
        check = partial(check_rounded, tensor.piece.canonical, tensor.dtype, less=less)
        return relative_error(source, written, check)
    error = relative_error(source, written)
    if isinstance(tensor, GroupTensor):
        check_bound(source.name, tensor.grid, error)
    return error


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
