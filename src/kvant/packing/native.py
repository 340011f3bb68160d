"""The packings in the core: the same four parts and whole rows, fast, without the interpreter lock.

Functions here check shapes and types by way of the core and allocate the results; everything else
is the core's. Results equal the NumPy specification's bit for bit.
"""

from __future__ import annotations

import os

import numpy as np

from kvant import _core
from kvant.errors import UnsupportedError, UsageError
from kvant.packing.half import to_half
from kvant.packing.spec import SCALES, Bytes, Codes, Floats, Scales
from kvant.packing.types import BY_NAME, StorageType

__all__ = [
    "BadWeight",
    "convert_rows",
    "decode",
    "dequantize",
    "encode",
    "encode_groups",
    "fit",
    "layout",
    "quantize",
    "quantize_weighed",
    "unlayout",
    "use_isa",
]


_LARGEST_HALF = np.float32(65504)


class BadWeight(ValueError):  # noqa: N818 - not for the user: callers know the tensor and say so
    """A weight the target cannot hold: not finite, or beyond half precision."""

    def __init__(self, row: int, column: int, value: float) -> None:
        super().__init__(f"weight [{row}, {column}] is {value}")
        self.row, self.column, self.value = row, column, value


def use_isa(name: str) -> None:
    """Use the kernels of one instruction set ("scalar", "avx2", "avx512") instead of the best.

    Raises:
        UsageError: this processor or build does not have it.
    """
    if not _core.select_isa(name):
        raise UsageError(
            f"KVANT_ISA is {name!r}, but this machine runs {', '.join(_core.isas())}; "
            "choose one of those or leave it unset."
        )


if _forced := os.environ.get("KVANT_ISA"):  # for tests and for reports about one kind of processor
    use_isa(_forced)


def _storage(name: str) -> StorageType:
    storage = BY_NAME.get(name)
    if storage is None or storage.id not in _KNOWN:
        raise UnsupportedError(
            f"Weights of type {name!r} cannot be read or written; "
            f"kvant knows {', '.join(t.name for t in BY_NAME.values() if t.id in _KNOWN)}."
        )
    return storage


_KNOWN = frozenset(
    BY_NAME[name].id
    for name in (
        *("F32", "F16", "BF16"),
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
        *("IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "Q1_0"),
    )
)


def known(name: str) -> bool:
    """Whether the core reads and writes this storage type."""
    storage = BY_NAME.get(name)
    return storage is not None and storage.id in _KNOWN


def dequantize(name: str, data: Bytes) -> Floats:
    """Decode rows: uint8 [rows, row bytes] of type ``name`` -> float32 [rows, row length].

    Raises:
        UnsupportedError: the type is not one kvant decodes.
    """
    storage = _storage(name)
    columns = data.shape[1] // storage.block_bytes * storage.block
    out = np.empty((data.shape[0], columns), np.float32)
    _core.dequantize(storage.id, data, out)
    return out


def convert_rows(
    source: str,
    target: str,
    data: Bytes,
    columns: int,
    importance: Floats | None = None,
    out: Bytes | None = None,
) -> Bytes:
    """Convert rows of ``columns`` weights from one type to another, through float32.

    ``importance`` is float32 [columns], >= 0 and of the order of one; without it all weights of a
    row count alike. The result is uint8 [rows, row bytes], in ``out`` if given (flat, large
    enough). Releases the interpreter lock; uses one thread.

    Raises:
        BadWeight: a weight is NaN or infinite, or beyond 65504 where the target keeps halves.
        UnsupportedError: a type kvant does not know.
    """
    s, t = _storage(source), _storage(target)
    shape = (data.shape[0], t.row_bytes(columns))
    size = shape[0] * shape[1]
    out = np.empty(shape, np.uint8) if out is None else out[:size].reshape(shape)
    bad = _core.quantize(s.id, t.id, data, out, columns, importance)
    if bad is not None:
        raise BadWeight(*bad)
    return out


def quantize(name: str, x: Floats, importance: Floats | None = None) -> Bytes:
    """Quantise float32 rows [rows, columns] to uint8 [rows, row bytes]; see `convert_rows`."""
    x = np.ascontiguousarray(x, np.float32)
    return convert_rows("F32", name, x.view(np.uint8), x.shape[1], importance)


def quantize_weighed(
    name: str,
    x: Floats,
    weights: Floats,
    out: Bytes | None = None,
    *,
    keep_energy: bool = False,
) -> Bytes:
    """Quantise float32 rows with a weight for every single error, both [rows, columns].

    The scales of least error shrink what they store, the more so the fewer bits there are. With
    ``keep_energy`` d is drawn out again until sum w y^2 is sum w x^2 in each block: more error in
    each weight, less of it in one direction.

    The result is uint8 [rows, row bytes], in ``out`` if given (flat, large enough).

    Raises:
        BadWeight: a weight is NaN or infinite, or beyond 65504.
    """
    storage = _storage(name)
    with np.errstate(invalid="ignore"):
        fine = np.abs(x) <= _LARGEST_HALF
    if not fine.all():
        row, column = np.argwhere(~fine)[0]
        raise BadWeight(int(row), int(column), float(x[row, column]))
    blocks = np.ascontiguousarray(x).reshape(-1, storage.block)
    weights = np.ascontiguousarray(weights).reshape(blocks.shape)
    scales = fit(name, blocks, weights)
    codes = encode(name, blocks, scales, weights)
    if keep_energy:
        y = decode(name, codes, scales)
        energy = np.einsum("ij,ij,ij->i", weights, blocks, blocks)
        kept = np.einsum("ij,ij,ij->i", weights, y, y)
        some = (kept > 0) & np.isfinite(energy)
        factor = np.sqrt(np.where(some, energy / np.where(some, kept, 1), 1)).astype(np.float32)
        scales["d"] = to_half(scales["d"] * factor)
    packed = layout(name, codes, scales)
    if out is None:
        return packed.reshape(len(x), -1)
    found = out[: packed.size].reshape(len(x), -1)
    found[...] = packed.reshape(found.shape)
    return found


def fit(name: str, x: Floats, importance: Floats | None = None) -> Scales:
    """Scales of blocks ``x`` [blocks, block]; ``importance`` has the same shape."""
    scales = np.zeros(len(x), SCALES)
    _core.fit(_storage(name).id, x, importance, _bytes_of(scales))
    return scales


def encode(name: str, x: Floats, scales: Scales, importance: Floats | None = None) -> Codes:
    """Codes of blocks ``x`` under fixed ``scales``.

    ``importance``, of the same shape, matters where weights share a code (IQ1, IQ2, IQ3).
    """
    codes = np.empty(x.shape, np.uint8)
    if importance is None:
        _core.encode(_storage(name).id, x, _bytes_of(scales), codes)
    else:
        _core.encode_weighted(_storage(name).id, x, importance, _bytes_of(scales), codes)
    return codes


def encode_groups(
    name: str, x: Floats, scales: Floats, low: Bytes, importance: Floats | None = None
) -> Codes:
    """Codes of groups ``x`` [groups, 4 or 8] of a codebook packing (IQ1, IQ2, IQ3).

    Each is encoded under its own scale (float32 [groups]: what levels are multiplied with) and
    shift (``low`` [groups], bytes, not zero where IQ1_S shifts down). For methods that go through a
    row group by group and correct what comes after.
    """
    codes = np.empty(x.shape, np.uint8)
    _core.encode_groups(_storage(name).id, x, importance, scales, low.reshape(-1, 1), codes)
    return codes


def decode(name: str, codes: Codes, scales: Scales) -> Floats:
    """Weights that ``codes`` under ``scales`` stand for."""
    y = np.empty(codes.shape, np.float32)
    _core.decode(_storage(name).id, codes, _bytes_of(scales), y)
    return y


def layout(name: str, codes: Codes, scales: Scales) -> Bytes:
    """Bytes of the blocks as they stand in a file."""
    storage = _storage(name)
    out = np.empty((len(codes), storage.block_bytes), np.uint8)
    _core.layout(storage.id, codes, _bytes_of(scales), out)
    return out


def unlayout(name: str, data: Bytes) -> tuple[Codes, Scales]:
    """Codes and scales of packed blocks [blocks, block bytes]."""
    storage = _storage(name)
    codes = np.empty((len(data), storage.block), np.uint8)
    scales = np.zeros(len(data), SCALES)
    _core.unlayout(storage.id, data, codes, _bytes_of(scales))
    return codes, scales


def _bytes_of(scales: Scales) -> Bytes:
    return scales.view(np.uint8).reshape(len(scales), SCALES.itemsize)
