"""A GGUF file as read: metadata with typed access, tensors, and where the data lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from kvant.errors import FileFormatError
from kvant.files.gguf_value import ITEM_DTYPES, Texts, Value, ValueType
from kvant.files.source import quote
from kvant.files.tensor import StoredTensor

__all__ = ["GgufFile"]

T = TypeVar("T")
D = TypeVar("D")

_MISSING: Any = object()
_FLOATS = frozenset({ValueType.FLOAT32, ValueType.FLOAT64})
_INTEGERS = frozenset(ITEM_DTYPES) - _FLOATS - {ValueType.BOOL}


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One GGUF file, or the merged view of a split one. Nothing but the header was read.

    ``data_offset`` is where the data section starts in ``path`` and ``size`` the bytes of the
    file. In a merged view ``path`` and ``data_offset`` are the first shard's, ``size`` is the sum,
    and ``parts`` holds each shard as read; otherwise ``parts`` is empty.
    """

    path: Path
    version: int
    alignment: int
    metadata: dict[str, Value]
    tensors: dict[str, StoredTensor]
    data_offset: int
    size: int
    parts: tuple[GgufFile, ...] = ()

    def _get(
        self, key: str, kind: str, fits: Callable[[Value], bool], default: Any = _MISSING
    ) -> Any:
        value = self.metadata.get(key)
        if value is None:
            if default is not _MISSING:
                return default
            raise FileFormatError(
                f"{self.path}: the metadata lacks {key!r}, expected {kind}. "
                "The file is incomplete; convert or fetch it again."
            )
        if not fits(value):
            got = value.type.name.lower()
            if value.item_type is not None:
                got = f"array of {value.item_type.name.lower()}"
            raise FileFormatError(
                f"{self.path}: metadata {quote(key)} should be {kind}, got {got}. "
                "Convert or fetch the file again."
            )
        return value.value

    @overload
    def get_str(self, key: str) -> str: ...
    @overload
    def get_str(self, key: str, default: D) -> str | D: ...
    def get_str(self, key: str, default: Any = _MISSING) -> Any:
        """The text under ``key``; ``default`` where there is none.

        Raises:
            FileFormatError: another type, or missing without a default; as for all of these.
        """
        return self._get(key, "a string", lambda v: v.type is ValueType.STRING, default)

    @overload
    def get_int(self, key: str) -> int: ...
    @overload
    def get_int(self, key: str, default: D) -> int | D: ...
    def get_int(self, key: str, default: Any = _MISSING) -> Any:
        """The integer under ``key``, of any width: writers differ in what they choose."""
        return self._get(key, "an integer", lambda v: v.type in _INTEGERS, default)

    @overload
    def get_float(self, key: str) -> float: ...
    @overload
    def get_float(self, key: str, default: D) -> float | D: ...
    def get_float(self, key: str, default: Any = _MISSING) -> Any:
        """The float under ``key``, of 32 or 64 bits."""
        return self._get(key, "a float", lambda v: v.type in _FLOATS, default)

    @overload
    def get_bool(self, key: str) -> bool: ...
    @overload
    def get_bool(self, key: str, default: D) -> bool | D: ...
    def get_bool(self, key: str, default: Any = _MISSING) -> Any:
        """The truth value under ``key``."""
        return self._get(key, "a bool", lambda v: v.type is ValueType.BOOL, default)

    @overload
    def get_strings(self, key: str) -> list[str]: ...
    @overload
    def get_strings(self, key: str, default: D) -> list[str] | D: ...
    def get_strings(self, key: str, default: Any = _MISSING) -> Any:
        """The texts under ``key``. An empty array of any type counts: it has no texts."""
        found = self._get(
            key,
            "an array of strings",
            lambda v: (
                v.type is ValueType.ARRAY and (v.item_type is ValueType.STRING or _length(v) == 0)
            ),
            default,
        )
        return list(found) if isinstance(found, (np.ndarray, Texts)) else found

    def count(self, key: str) -> int:
        """How many items the array under ``key`` has; 0 where there is no array."""
        value = self.metadata.get(key)
        return 0 if value is None or value.type is not ValueType.ARRAY else _length(value)

    @overload
    def get_array(self, key: str) -> npt.NDArray[Any]: ...
    @overload
    def get_array(self, key: str, default: D) -> npt.NDArray[Any] | D: ...
    def get_array(self, key: str, default: Any = _MISSING) -> Any:
        """The one-dimensional array of numbers or booleans under ``key``, in its own dtype."""
        return self._get(
            key,
            "an array of numbers",
            lambda v: v.type is ValueType.ARRAY and isinstance(v.value, np.ndarray),
            default,
        )


def _length(value: Value) -> int:
    return len(value.value) if isinstance(value.value, (np.ndarray, list, Texts)) else 1
