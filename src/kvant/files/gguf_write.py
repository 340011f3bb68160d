"""Building the header of a GGUF file: everything up to the data section, deterministic.

Version 3, little-endian. What this writes llama.cpp reads: tensor names of at most 63 bytes,
tensors in file order without holes, each padded to the alignment.

Source: the GGUF specification (ggml's ``docs/gguf.md``) and ``ggml/src/gguf.cpp``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvant.errors import UnsupportedError
from kvant.files.gguf_read import (
    DEFAULT_ALIGNMENT,
    MAX_ALIGNMENT,
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_KEY_BYTES,
    MAX_METADATA,
    MAX_STRING_BYTES,
    MAX_STRINGS,
    MAX_TENSORS,
)
from kvant.files.gguf_value import ITEM_DTYPES, Texts, Value, ValueType, uint32
from kvant.files.source import quote
from kvant.packing.types import StorageType

__all__ = [
    "LLAMA_CPP_NAME_BYTES",
    "TensorSpec",
    "header_bytes",
    "header_length",
    "metadata_bytes",
    "padded",
]

#: ggml keeps names in 64 bytes with a terminator.
LLAMA_CPP_NAME_BYTES = 63

#: Magic, version, and the two counts.
_FIXED_BYTES = 24

_LAYOUTS = {
    ValueType.UINT8: "<B",
    ValueType.INT8: "<b",
    ValueType.UINT16: "<H",
    ValueType.INT16: "<h",
    ValueType.UINT32: "<I",
    ValueType.INT32: "<i",
    ValueType.FLOAT32: "<f",
    ValueType.BOOL: "<?",
    ValueType.UINT64: "<Q",
    ValueType.INT64: "<q",
    ValueType.FLOAT64: "<d",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written: ``shape`` is row-major, the last entry is the row length."""

    name: str
    type: StorageType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data, without padding."""
        rows = 1
        for n in self.shape[:-1]:
            rows *= n
        return rows * self.type.row_bytes(self.shape[-1])


def padded(count: int, alignment: int) -> int:
    """``count`` rounded up to a multiple of ``alignment``."""
    return -(-count // alignment) * alignment


def header_bytes(
    metadata: Mapping[str, Value],
    tensors: Sequence[TensorSpec],
    alignment: int = DEFAULT_ALIGNMENT,
) -> tuple[bytes, list[int]]:
    """The bytes of a GGUF file before its data, and where each tensor goes.

    Keys and tensors keep their order, so the same input gives the same bytes. An alignment other
    than 32 is recorded as ``general.alignment`` if the metadata does not say it already.

    Args:
        metadata: key to value.
        tensors: in the order in which their data will follow.
        alignment: of the data section and of each tensor in it; a power of two.

    Returns:
        The header padded to the alignment, and for each tensor its offset counted from there.
        The data of a tensor must be followed by zeros up to the next one's offset; llama.cpp
        wants them after the last one too: ``padded(offsets[-1] + nbytes, alignment)`` in all.

    Raises:
        UnsupportedError: a name, text or count that GGUF or llama.cpp has no room for.
        ValueError: the call makes no sense (shape and type do not fit, alignment, a value whose
            type is not that of its content): a mistake of the caller.
    """
    if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(f"alignment {alignment} is not a power of two from 8 to {MAX_ALIGNMENT}")
    stated = metadata.get("general.alignment")
    if stated is None:
        if alignment != DEFAULT_ALIGNMENT:
            metadata = {**metadata, "general.alignment": uint32(alignment)}
    elif stated != uint32(alignment):
        raise ValueError(f"general.alignment is {stated.value!r}, the file's is {alignment}")
    _check_counts(metadata, tensors)
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    parts += [metadata_bytes(metadata)]
    offsets: list[int] = []
    end = 0
    for tensor in tensors:
        offsets.append(end)
        parts.append(_entry(tensor, end))
        end = padded(end + tensor.nbytes, alignment)
    header = b"".join(parts)
    if len(header) > MAX_HEADER_BYTES:
        raise UnsupportedError(
            f"the GGUF header takes {len(header)} bytes, at most {MAX_HEADER_BYTES} are written, "
            "because no reader expects more. Leave out the largest metadata."
        )
    return header.ljust(padded(len(header), alignment), b"\0"), offsets


def header_length(metadata_length: int, tensors: Sequence[TensorSpec]) -> int:
    """Bytes that ``header_bytes`` will give for metadata of so many bytes (`metadata_bytes`)."""
    entries = sum(len(_entry(tensor, 0)) for tensor in tensors)
    return padded(_FIXED_BYTES + metadata_length + entries, DEFAULT_ALIGNMENT)


def metadata_bytes(metadata: Mapping[str, Value]) -> bytes:
    """The bytes that ``metadata`` takes in a header; its length adds up over parts of it.

    Raises: as ``header_bytes``.
    """
    return b"".join(
        part
        for key, value in metadata.items()
        for part in (_text(key, "metadata key", MAX_KEY_BYTES), _value(key, value))
    )


def _check_counts(metadata: Mapping[str, Value], tensors: Sequence[TensorSpec]) -> None:
    names = {t.name for t in tensors}
    if len(names) != len(tensors):
        raise ValueError("two tensors have the same name")
    if "" in names or "" in metadata:
        raise ValueError("a name or key is empty")
    texts = sum(len(v.texts or ()) for v in metadata.values())
    if len(tensors) > MAX_TENSORS or len(metadata) > MAX_METADATA or texts > MAX_STRINGS:
        raise UnsupportedError(
            f"{len(tensors)} tensors, {len(metadata)} metadata keys and {texts} texts in arrays "
            f"are more than a GGUF file of kvant holds ({MAX_TENSORS}, {MAX_METADATA}, "
            f"{MAX_STRINGS}). Leave some out."
        )


def _text(text: str, what: str, most: int) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise UnsupportedError(
            f"the {what} {quote(text)} has half of a surrogate pair, which UTF-8 cannot hold. "
            "Repair it in the source."
        ) from None
    if len(raw) > most:
        raise UnsupportedError(
            f"the {what} {quote(text)} takes {len(raw)} bytes, GGUF files hold {most}. "
            "Shorten it in the source."
        )
    return struct.pack("<Q", len(raw)) + raw


def _texts(texts: list[str], what: str) -> bytes:
    """Many texts at once: vocabularies have hundreds of thousands."""
    try:
        raws = [text.encode() for text in texts]
        fine = max(map(len, raws), default=0) <= MAX_STRING_BYTES
    except UnicodeEncodeError:
        fine = False
    if not fine:
        return b"".join(_text(text, what, MAX_STRING_BYTES) for text in texts)  # names the culprit
    parts = [b""] * (2 * len(raws))
    parts[::2] = map(struct.Struct("<Q").pack, map(len, raws))
    parts[1::2] = raws
    return b"".join(parts)


def _value(key: str, value: Value) -> bytes:
    what = f"text under {key!r}"
    content = value.value
    head = struct.pack("<I", value.type)
    if value.type is ValueType.STRING and isinstance(content, str):
        return head + _text(content, what, MAX_STRING_BYTES)
    if value.type is ValueType.ARRAY and value.item_type is not None:
        if isinstance(content, (list, Texts, np.ndarray)):
            head += struct.pack("<IQ", value.item_type, len(content))
        if isinstance(content, Texts):
            return head + content.raw
        if isinstance(content, list) and value.item_type is ValueType.STRING:
            return head + _texts(content, what)
        if isinstance(content, np.ndarray) and content.dtype == ITEM_DTYPES.get(value.item_type):
            return head + content.tobytes()
    elif (layout := _LAYOUTS.get(value.type)) and isinstance(content, (bool, int, float)):
        try:
            return head + struct.pack(layout, content)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"{key}: {content!r} is no {value.type.name}: {error}") from None
    raise ValueError(f"{key}: a {type(content).__name__} is no value of type {value.type.name}")


def _entry(tensor: TensorSpec, offset: int) -> bytes:
    shape, block = tensor.shape, tensor.type.block
    if not 1 <= len(shape) <= MAX_DIMENSIONS or min(shape) < 1 or shape[-1] % block:
        raise ValueError(f"{tensor.name}: shape {shape} does not fit {tensor.type.name}")
    return _text(tensor.name, "tensor name", LLAMA_CPP_NAME_BYTES) + struct.pack(
        f"<I{len(shape)}QIQ", len(shape), *reversed(shape), tensor.type.id, offset
    )
