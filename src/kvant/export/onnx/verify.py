"""What was written, read back and compared with the source before it appears; see `readback`."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from kvant.checkpoint import Checkpoint
from kvant.export.onnx.read import dequantised
from kvant.export.readback import bound, check_bound, check_rounded, relative_error, sentence
from kvant.packing.groups import Groups

__all__ = ["check_onnx"]


def check_onnx(
    source: Checkpoint, folder: Path, grids: Mapping[str, Groups], dtype: str, *, threads: int
) -> str:
    """Compare every weight; returns a sentence for the report.

    Args:
        source: what was written.
        folder: where.
        grids: of each weight that is quantised.
        dtype: of all others, ``F32`` or ``F16``.
        threads: how many compare.

    Raises:
        OutputError: they differ by more than is allowed; names the tensor.
    """
    model = dequantised(source, folder)

    def compared(name: str) -> float:
        pair = source.weights[name], model.weights[name]
        if name not in grids:
            return relative_error(*pair, partial(check_rounded, name, dtype))
        error = relative_error(*pair)
        check_bound(name, grids[name], error)
        return error

    with ThreadPoolExecutor(max(1, threads)) as pool:
        errors = dict(zip(source.weights, pool.map(compared, source.weights), strict=True))
    found = [(error, n, bound(grids[n])) for n, error in errors.items() if n in grids]
    return sentence(len(errors) - len(found), found)
