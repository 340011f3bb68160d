"""Reading tokenizer.model: the few fields of SentencePiece's protobuf that a definition needs.

Source: ``sentencepiece_model.proto`` of the SentencePiece project and the Protocol Buffers
encoding guide. Unknown fields are stepped over, as the format wants.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kvant.errors import FileFormatError, UnsupportedError
from kvant.tokenizer.definition import MAX_TOKENS, TokenType
from kvant.tokenizer.reading import read_bytes

__all__ = ["MODEL_TYPES", "Piece", "SentencePieceModel", "read_sentencepiece"]

#: The largest published models take 5 MB.
MAX_MODEL_BYTES = 16_000_000
#: How many fields a message may have, known or not, so that a file of tiny ones ends soon: a token
#: has three, and a trainer's notes some forty, of which the user's own symbols repeat.
MAX_PIECE_FIELDS = 4
MAX_OTHER_FIELDS = 100_000
#: ``TrainerSpec.ModelType``.
MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_F32 = struct.Struct("<f")
_AGAIN = "Fetch the file again."


class Piece(NamedTuple):
    """One token: its text with ``▁`` for a space, its score, what it is for."""

    text: str
    score: float
    type: TokenType


@dataclass(slots=True)
class SentencePieceModel:
    """What a tokenizer.model says. The flags have the format's own defaults."""

    pieces: list[Piece] = field(default_factory=list)
    model_type: int = 1
    has_character_map: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    whitespace_as_suffix: bool = False


class _BadMessageError(Exception):
    """The bytes are not a protobuf message of the kind expected."""


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at ``at`` and the position after it."""
    value = shift = 0
    while True:
        if at >= end:
            raise _BadMessageError(f"it ends inside a number at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise _BadMessageError(f"a number is longer than 64 bits at byte {at}")


def _fields(data: bytes, at: int, end: int, most: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, start, end) of each field; a varint's start is its value."""
    left = most
    while at < end:
        left -= 1
        if left < 0:
            raise _BadMessageError(f"a message has more than {most} fields")
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at, end)
            yield number, wire, value, at
            continue
        if wire == _BYTES:
            size, at = _varint(data, at, end)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _BadMessageError(f"field {number} has the unknown wire type {wire}")
        if number == 0 or size > end - at:
            raise _BadMessageError(
                f"field {number} at byte {at} has {size} bytes where {end - at} are left"
            )
        yield number, wire, at, at + size
        at += size


def _piece(data: bytes, start: int, end: int) -> Piece:
    # Nearly all are written so: the text in under 128 bytes, then the score.
    stop = start + 2 + data[start + 1] if end - start > 2 else start
    if stop + 5 == end and data[start] == 0x0A and data[start + 1] < 128 and data[stop] == 0x15:
        return Piece(
            data[start + 2 : stop].decode(), _F32.unpack_from(data, stop + 1)[0], TokenType.NORMAL
        )
    text, score, kind = "", 0.0, int(TokenType.NORMAL)
    for number, wire, at, past in _fields(data, start, end, MAX_PIECE_FIELDS):
        if number == 1 and wire == _BYTES:
            text = data[at:past].decode()
        elif number == 2 and wire == _FIXED32:
            score = _F32.unpack_from(data, at)[0]
        elif number == 3 and wire == _VARINT:
            kind = at
    if not TokenType.NORMAL <= kind <= TokenType.BYTE:
        raise _BadMessageError(f"a token has the unknown type {kind}")
    return Piece(text, score, TokenType(kind))


def _trainer(model: SentencePieceModel, data: bytes, start: int, end: int) -> None:
    for number, wire, value, _ in _fields(data, start, end, MAX_OTHER_FIELDS):
        if wire == _VARINT and number == 3:
            model.model_type = value
        elif wire == _VARINT and number == 24:
            model.whitespace_as_suffix = bool(value)


def _normalizer(model: SentencePieceModel, data: bytes, start: int, end: int) -> None:
    for number, wire, value, stop in _fields(data, start, end, MAX_OTHER_FIELDS):
        if wire == _BYTES and number == 2:
            model.has_character_map = stop > value
        elif wire == _VARINT and number == 3:
            model.add_dummy_prefix = bool(value)
        elif wire == _VARINT and number == 4:
            model.remove_extra_whitespaces = bool(value)
        elif wire == _VARINT and number == 5:
            model.escape_whitespaces = bool(value)


def _parse(data: bytes) -> SentencePieceModel:
    model = SentencePieceModel()
    for number, wire, start, end in _fields(data, 0, len(data), MAX_TOKENS + MAX_OTHER_FIELDS):
        if wire != _BYTES:
            continue
        if number == 1:
            if len(model.pieces) == MAX_TOKENS:
                raise _BadMessageError(f"it has more than {MAX_TOKENS} tokens")
            model.pieces.append(_piece(data, start, end))
        elif number == 2:
            _trainer(model, data, start, end)
        elif number == 3:
            _normalizer(model, data, start, end)
    if not model.pieces:
        raise _BadMessageError("it has no tokens")
    return model


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model of a BPE model.

    Raises:
        FileFormatError: not such a file, or damaged.
        UnsupportedError: a SentencePiece model of another kind than BPE.
        InputError: it cannot be read.
    """
    data = read_bytes(path, MAX_MODEL_BYTES)
    try:
        model = _parse(data)
    except _BadMessageError as error:
        raise FileFormatError(f"{path}: not a SentencePiece model: {error}. {_AGAIN}") from None
    except UnicodeDecodeError:
        raise FileFormatError(f"{path}: a token is not UTF-8. {_AGAIN}") from None
    kind = MODEL_TYPES.get(model.model_type, f"number {model.model_type}")
    if kind != "BPE":
        raise UnsupportedError(
            f"{path}: a SentencePiece model of kind {kind}; kvant and llama.cpp's language models "
            "read those of kind BPE. Use a model with such a tokenizer."
        )
    if model.whitespace_as_suffix or not model.escape_whitespaces:
        raise UnsupportedError(
            f"{path}: this SentencePiece model writes spaces in a way that GGUF cannot say "
            "(after words, or as they are). Use a model that marks them before words."
        )
    return model
