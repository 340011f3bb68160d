"""Values of GGUF metadata: the thirteen types, one class, and constructors that check ranges.

Source: the GGUF specification (ggml's ``docs/gguf.md``), ``gguf_metadata_value_type``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from kvant._core import decode_texts

__all__ = [
    "ITEM_DTYPES",
    "Texts",
    "Value",
    "ValueType",
    "array",
    "boolean",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "string",
    "strings",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
]


class ValueType(IntEnum):
    """The type of a metadata value, by its number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


#: How the numbers of each fixed-size type lie in the file (little-endian).
ITEM_DTYPES: dict[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}


class Texts(Sequence[str]):
    """The texts of an array as they lie in a file: each its length in 8 bytes, then UTF-8.

    A vocabulary has hundreds of thousands, and who copies a file's metadata need not look at one
    of them; they are decoded when somebody does. ``raw`` has been checked to hold ``count``.
    """

    __slots__ = ("_count", "_list", "raw")

    def __init__(self, raw: bytes, count: int) -> None:
        self.raw = raw
        self._count = count
        self._list: list[str] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.decoded()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.decoded())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, Texts)):
            return NotImplemented
        return self.decoded() == list(other)

    __hash__ = None  # type: ignore[assignment]  # equal to a list, which has none

    def decoded(self) -> list[str]:
        """All of them; not to be changed."""
        if self._list is None:
            self._list = decode_texts(self.raw, self._count)
        return self._list


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One metadata value with the type it has in the file.

    ``value`` is a bool, int, float or str; for an array a one-dimensional numpy array of the
    item type's dtype, or a list of str (or `Texts`), and then ``item_type`` says which. Two values
    are equal when they would be written as the same bytes, so a NaN equals itself.
    """

    type: ValueType
    value: bool | int | float | str | npt.NDArray[Any] | list[str] | Texts
    item_type: ValueType | None = None

    def _content(self) -> object:
        if isinstance(self.value, np.ndarray):
            return self.value.tobytes()
        if isinstance(self.value, float):
            return struct.pack("<d", self.value)
        return self.value.decoded() if isinstance(self.value, Texts) else self.value

    @property
    def texts(self) -> Sequence[str] | None:
        """The texts of an array of them; None for everything else."""
        return self.value if isinstance(self.value, (list, Texts)) else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value):
            return NotImplemented
        return (self.type, self.item_type, self._content()) == (
            other.type,
            other.item_type,
            other._content(),
        )

    __hash__ = None  # type: ignore[assignment]  # arrays and lists are not hashable


def _integer(kind: ValueType, value: int) -> Value:
    limits = np.iinfo(ITEM_DTYPES[kind])
    number = int(value)
    if not limits.min <= number <= limits.max:
        raise ValueError(f"{number} does not fit {kind.name}")
    return Value(kind, number)


def uint8(value: int) -> Value:
    """An unsigned 8-bit value; ValueError where it does not fit, as for all integers here."""
    return _integer(ValueType.UINT8, value)


def int8(value: int) -> Value:
    """A signed 8-bit value."""
    return _integer(ValueType.INT8, value)


def uint16(value: int) -> Value:
    """An unsigned 16-bit value."""
    return _integer(ValueType.UINT16, value)


def int16(value: int) -> Value:
    """A signed 16-bit value."""
    return _integer(ValueType.INT16, value)


def uint32(value: int) -> Value:
    """An unsigned 32-bit value, what llama.cpp expects for nearly every count."""
    return _integer(ValueType.UINT32, value)


def int32(value: int) -> Value:
    """A signed 32-bit value."""
    return _integer(ValueType.INT32, value)


def uint64(value: int) -> Value:
    """An unsigned 64-bit value."""
    return _integer(ValueType.UINT64, value)


def int64(value: int) -> Value:
    """A signed 64-bit value."""
    return _integer(ValueType.INT64, value)


def float32(value: float) -> Value:
    """A float rounded to 32 bits, so that it compares equal to itself read back."""
    with np.errstate(over="ignore"):
        return Value(ValueType.FLOAT32, float(np.float32(value)))


def float64(value: float) -> Value:
    """A 64-bit float."""
    return Value(ValueType.FLOAT64, float(value))


def boolean(value: bool) -> Value:
    """True or false."""
    return Value(ValueType.BOOL, bool(value))


def string(value: str) -> Value:
    """A text, stored as UTF-8."""
    return Value(ValueType.STRING, str(value))


def strings(values: Iterable[str]) -> Value:
    """An array of texts."""
    return Value(ValueType.ARRAY, list(values), ValueType.STRING)


def array(item_type: ValueType, values: Sequence[Any] | npt.NDArray[Any]) -> Value:
    """An array of numbers, booleans or texts of ``item_type``.

    Raises:
        ValueError: not one-dimensional, or an integer does not fit ``item_type``.
    """
    if item_type is ValueType.STRING:
        return strings(values)
    dtype = ITEM_DTYPES.get(item_type)
    if dtype is None:
        raise ValueError("GGUF arrays of arrays are not written: llama.cpp does not read them")
    source = np.asarray(values, dtype if len(values) == 0 else None)
    if source.ndim != 1:
        raise ValueError(f"expected a one-dimensional array, got shape {source.shape}")
    with np.errstate(over="ignore"):
        items = np.ascontiguousarray(source.astype(dtype))
    if items.dtype.kind in "iub" and not np.array_equal(items, source):
        raise ValueError(f"the values do not all fit {item_type.name}")
    return Value(ValueType.ARRAY, items, item_type)
