"""ggml's own quantisers and dequantisers, by ctypes, from the llama.cpp in the xllamacpp wheel.

The wheel's extension module exports ggml's C functions, so the judge is the code that wrote the
format, not a port of it. Importing this module needs NumPy only; `load` needs the wheel.
"""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.packing.types import BY_NAME
from kvant.quant.assign import NEED_IMPORTANCE

__all__ = ["DEQUANTISERS", "Ggml", "load"]

DEQUANTISERS = {
    "F16": "ggml_fp16_to_fp32_row",
    "BF16": "ggml_bf16_to_fp32_row",
    **{name: f"dequantize_row_{name.lower()}" for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")},
    **{
        name: f"dequantize_row_{name.lower()}"
        for name in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
    },
    **{name: f"dequantize_row_q{name[1]}_K" for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")},
    **{
        name: f"dequantize_row_{name.lower()}"
        for name in ("IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "Q1_0")
    },
}
"""The C function that decodes a row of each type."""


class Ggml:
    """ggml in this process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        chunk = library.ggml_quantize_chunk
        chunk.restype = ctypes.c_size_t
        chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3]
        chunk.argtypes += [ctypes.c_void_p]
        self._chunk = chunk

    def quantize(
        self,
        name: str,
        x: npt.NDArray[Any],
        importance: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Quantise rows [rows, columns] with ``ggml_quantize_chunk``.

        ``importance`` is [columns], what llama.cpp calls an importance matrix.
        """
        storage = BY_NAME[name]
        rows, columns = x.shape
        if columns % storage.block:
            raise ValueError(f"{columns} is not a multiple of {storage.block}")
        x = np.ascontiguousarray(x, np.float32)
        if importance is None and name in NEED_IMPORTANCE:  # it would end the process
            importance = np.ones(columns, np.float32)
        weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
        if weights is not None and weights.shape != (columns,):
            raise ValueError(f"importance is {weights.shape}, rows have {columns} columns")
        out = np.zeros((rows, storage.row_bytes(columns)), np.uint8)
        pointer = None if weights is None else weights.ctypes.data
        written = self._chunk(storage.id, x.ctypes.data, out.ctypes.data, 0, rows, columns, pointer)
        if written != out.nbytes:
            raise AssertionError(f"ggml wrote {written} bytes, not {out.nbytes}")
        return out

    def dequantize(self, name: str, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Decode rows [rows, row bytes] with ggml's own row function."""
        storage = BY_NAME[name]
        data = np.ascontiguousarray(data, np.uint8)
        out = np.empty((len(data), data.shape[1] // storage.block_bytes * storage.block), "<f4")
        decode = getattr(self._library, DEQUANTISERS[name])
        decode.restype = None
        decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        decode(data.ctypes.data, out.ctypes.data, out.size)
        return out


def load() -> Ggml:
    """ggml from the installed xllamacpp wheel.

    Raises:
        ImportError: the wheel, or the OpenMP library it needs, is not installed.
    """
    module = importlib.import_module("xllamacpp")
    folder = Path(str(module.__file__)).parent
    libraries = sorted(folder.glob("*.so"))
    if not libraries:
        raise ImportError(f"no shared library in {folder}")
    return Ggml(ctypes.CDLL(str(libraries[0])))
