"""A GGUF header seen through a buffer that slides over the file.

Every length is compared with what is left of the file before anything is allocated, and the
whole header with caps that keep a hostile file under 300 MB and a second.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from kvant._core import walk_texts
from kvant.errors import FileFormatError
from kvant.files.gguf_value import Texts
from kvant.files.source import read_exactly

__all__ = ["AGAIN", "MAX_HEADER_BYTES", "MAX_STRINGS", "MAX_STRING_BYTES", "Window"]

#: The largest published tokenizers (262,000 tokens, 580,000 merges) make headers of about 20 MB.
#: A byte of header becomes at most four bytes of Python text, so this keeps all text under 160 MB.
MAX_HEADER_BYTES = 40_000_000
#: A short text costs Python some 72 bytes: about 110 MB for as many as this, twice what is known.
MAX_STRINGS = 1_500_000
#: A chat template takes 20 kB, a licence text 40 kB.
MAX_STRING_BYTES = 4_000_000

AGAIN = "Fetch or convert the file again."

_U64 = struct.Struct("<Q")


class Window:
    """The header seen through a buffer that slides over the file.

    ``_buffer[_position:]`` is what has been read and not yet used; ``need`` makes it longer.
    """

    #: Large enough that a tokenizer is some ten reads, small beside everything else.
    SLICE = 1 << 20

    def __init__(self, fd: int, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._fd = fd
        self._base = 0
        self._buffer = b""
        self._position = 0
        self._strings_left = MAX_STRINGS

    @property
    def offset(self) -> int:
        """Where in the file the next byte to use lies."""
        return self._base + self._position

    @property
    def left(self) -> int:
        """Bytes of the file from there to its end."""
        return self.size - self.offset

    def fail(self, message: str) -> FileFormatError:
        """The error to raise; ``message`` follows the path."""
        return FileFormatError(f"{self.path}: {message}")

    def need(self, count: int, what: str) -> None:
        """Have ``count`` bytes in the buffer, or say that the file ends inside ``what``."""
        if len(self._buffer) - self._position >= count:
            return
        offset = self.offset
        if count > self.size - offset:
            raise self.fail(
                f"the file ends inside {what}: it needs {count} bytes at {offset}, "
                f"{self.size - offset} are left. It is truncated or damaged; fetch it again."
            )
        if offset + count > MAX_HEADER_BYTES:
            raise self.fail(
                f"the header goes on past {MAX_HEADER_BYTES} bytes at {what}; no real model's "
                f"does. {AGAIN}"
            )
        rest = self._buffer[self._position :]
        # The old buffer may be a large array's: let go of it before reading on.
        self._buffer = b""
        more = min(max(count - len(rest), self.SLICE), self.size - offset - len(rest))
        self._buffer = rest + read_exactly(self._fd, self.path, offset + len(rest), more)
        self._base, self._position = offset, 0

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer at the end of the file, without using them up."""
        self.need(min(count, self.left), "the header")
        return self._buffer[self._position : self._position + count]

    def take(self, count: int, what: str) -> bytes:
        """The next ``count`` bytes; ``what`` they are, for the error."""
        self.need(count, what)
        start = self._position
        self._position = start + count
        return self._buffer[start : self._position]

    def number(self, layout: struct.Struct, what: str) -> Any:
        """The next number, laid out as ``layout`` says."""
        self.need(layout.size, what)
        (value,) = layout.unpack_from(self._buffer, self._position)
        self._position += layout.size
        return value

    def text(self, what: str, most: int = MAX_STRING_BYTES) -> str:
        """A string: its length, then UTF-8 without a terminator."""
        length = self.number(_U64, what)
        if length > most:
            raise self.fail(
                f"the length of {what} is {length} bytes, expected at most {most}. {AGAIN}"
            )
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8. {AGAIN}") from None

    def texts(self, count: int, what: str) -> Texts:
        """``count`` strings in a row, checked but not decoded."""
        self._strings_left -= count
        if self._strings_left < 0:
            raise self.fail(
                f"{what} brings the texts in the header over {MAX_STRINGS}; "
                f"no real model has as many. {AGAIN}"
            )
        parts: list[bytes] = []
        done = 0
        while done < count:
            # One that may not be wholly in the buffer, with all the checks.
            text = self.text(f"item {done} of {what}").encode()
            parts += (_U64.pack(len(text)), text)
            start = self._position
            passed, self._position, valid = walk_texts(self._buffer, start, count - done - 1)
            parts.append(self._buffer[start : self._position])
            done += 1 + passed
            if not valid:
                raise self.fail(f"item {done} of {what} is not UTF-8. {AGAIN}")
        return Texts(b"".join(parts), count)
