"""JSON that somebody else wrote: configs, indices, headers. Bounded, strict, one error each."""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from kvant.errors import FileFormatError
from kvant.files.source import open_source, quote, read_exactly, refuse_other_kinds

__all__ = ["MAX_DEPTH", "MAX_VALUES", "collector_paused", "parse_json", "read_json"]

#: Configs nest about five deep, tokenizers eight.
MAX_DEPTH = 64
#: A value costs Python up to some 300 bytes with its key, so this is about 150 MB. The largest
#: published index of shards has 210,000 entries.
MAX_VALUES = 500_000
_REMEDY = "Fetch the file again."


@contextmanager
def collector_paused() -> Iterator[None]:
    """Make many objects at once without the search for cycles going through them again and again.

    What JSON becomes has no cycles, and the search takes as long as everything else together.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_json(
    path: str | os.PathLike[str], max_bytes: int = 4_000_000, max_values: int = MAX_VALUES
) -> object:
    """Read one JSON file.

    Args:
        path: a regular file, UTF-8.
        max_bytes: the largest text to accept. Text beyond ASCII counts four times its size,
            because that is what Python may need to hold it.
        max_values: the most values to accept, counted from above as commas and opening brackets.

    Raises:
        FileFormatError: too large, not UTF-8, not JSON, nested deeper than ``MAX_DEPTH``, a key
            twice in one object, NaN or Infinity, a number beyond float64, half a surrogate pair.
        InputError: no such file, or it may not be read.
    """
    path = Path(path)
    return parse_json(_read(path, max_bytes), str(path), max_bytes, max_values)


def _read(path: Path, max_bytes: int) -> bytes:
    with open_source(path) as (fd, size):
        if size > max_bytes:
            raise FileFormatError(
                f"{path}: expected at most {max_bytes} bytes of JSON, got {size}. {_REMEDY}"
            )
        raw = read_exactly(fd, path, 0, size)
    if raw[:64].lstrip()[:1] not in (b"{", b"["):
        refuse_other_kinds(path, raw[:64], "JSON")
    return raw


def parse_json(raw: bytes, what: str, max_bytes: int, max_values: int = MAX_VALUES) -> object:
    """Parse JSON text within the limits of ``read_json``; ``what`` starts every message."""

    def fail(message: str) -> FileFormatError:
        return FileFormatError(f"{what}: {message}. {_REMEDY}")

    escaped = b"\\u" in raw
    cost = len(raw) if raw.isascii() and not escaped else 4 * len(raw)
    if cost > max_bytes:
        raise fail(f"expected JSON of at most {max_bytes} bytes in memory, got {cost}")
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if values > max_values:
        raise fail(f"expected at most {max_values} values, got up to {values}")
    try:
        text = raw.decode()
        del raw  # the caller keeps no other reference; a decorator would
        with collector_paused():
            value: object = json.loads(
                text,
                object_pairs_hook=_unique,
                parse_constant=_no_constant,
                parse_float=_finite,
            )
            _check_depth(value)
        if escaped:
            _check_text(value)
    except _BadJsonError as error:
        raise fail(str(error)) from None
    except UnicodeDecodeError as error:
        raise fail(f"expected UTF-8, got other bytes at {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise fail(f"not JSON at {where}: {error.msg}") from None
    except RecursionError:
        raise fail(f"nested deeper than {MAX_DEPTH}") from None
    except ValueError:  # Python's own limit for the digits of an integer
        raise fail("a number has thousands of digits") from None
    return value


class _BadJsonError(Exception):
    """Something JSON's grammar allows, or Python's parser does, and we do not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _BadJsonError(f"key {quote(key)} occurs twice in one object")
            seen.add(key)
    return found


def _no_constant(name: str) -> NoReturn:
    raise _BadJsonError(f"expected a number, got {name}, which is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _BadJsonError(f"the number {quote(text, 40)} does not fit 64 bits")
    return number


def _levels(value: object) -> Iterator[list[Any]]:
    """The values of each depth in turn, without recursion."""
    level = [value]
    while level:
        yield level
        # What json makes is exactly a dict or a list, never a subclass.
        objects = [v.values() for v in level if type(v) is dict]
        arrays = [v for v in level if type(v) is list]
        level = list(chain.from_iterable(chain(objects, arrays)))


def _check_depth(value: object) -> None:
    for depth, _ in enumerate(_levels(value)):
        if depth > MAX_DEPTH:
            raise _BadJsonError(f"nested deeper than {MAX_DEPTH}")


def _check_text(value: object) -> None:
    """Refuse half surrogate pairs: no UTF-8 file or terminal takes them later."""
    for level in _levels(value):
        for item in level:
            texts = item if isinstance(item, dict) else (item,)
            for text in texts:
                if isinstance(text, str) and not text.isascii():
                    try:
                        text.encode()
                    except UnicodeEncodeError:
                        raise _BadJsonError(
                            f"the text {quote(text)} has half a surrogate pair"
                        ) from None
