"""Evidence from JSON that anybody may have written: bounded, and every value by its type."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from kvant.errors import FileFormatError
from kvant.evidence.making import QUALITY_BYTES
from kvant.evidence.record import (
    VERSION,
    Base,
    Evidence,
    FileDigest,
    Made,
    Quality,
    Speed,
    TextUsed,
)
from kvant.evidence.sizes import CLASSES, ClassSize, Sizes
from kvant.files.config_json import parse_json, read_json
from kvant.files.source import quote, show

__all__ = ["read_evidence", "read_quality"]

_MOST_BYTES = 8_000_000
_MOST_VALUES = 100_000
_MOST_ENTRIES = 4096
_MOST_TEXT = 4000
_MOST_COUNT = 1 << 60

T = TypeVar("T")


def read_evidence(path: Path) -> Evidence:
    """The record in ``NAME.evidence.json``.

    Raises:
        FileFormatError: not JSON, too large, a value of the wrong type or out of range.
        InputError: no such file, or it may not be read.
    """
    return _evidence(_Object(read_json(path, _MOST_BYTES, _MOST_VALUES), str(path)))


def read_quality(text: str, where: str) -> Quality | None:
    """What stands under `kvant.evidence.QUALITY` in ``where``; None where it is blank.

    Raises:
        FileFormatError: it is not what kvant writes.
    """
    if not text.strip():
        return None
    what = f"{where}: metadata 'kvant.evidence'"
    return _quality(_Object(parse_json(text.encode(), what, 4 * QUALITY_BYTES, 200), what))


class _Object:
    """A JSON object whose values are asked for by type; what nobody asks for is passed over."""

    def __init__(self, value: object, where: str) -> None:
        self._where = where
        if not isinstance(value, Mapping):
            self._fail("", "an object", value)
        self._values: Mapping[str, object] = value

    def _fail(self, key: str, wanted: str, got: object) -> NoReturn:
        at = f" {quote(key)} should be" if key else " expected"
        raise FileFormatError(
            f"{self._where}:{at} {wanted}, got {show(got)}. The evidence was damaged or edited; "
            "make the file again."
        )

    def text(self, key: str) -> str:
        value = self._values.get(key)
        if not isinstance(value, str) or len(value) > _MOST_TEXT:
            self._fail(key, f"a text of at most {_MOST_TEXT} characters", value)
        return value

    def digest(self, key: str) -> str:
        value = self._values.get(key)
        if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
            self._fail(key, "64 hexadecimal digits", value)
        return value

    def count(self, key: str) -> int:
        value = self._values.get(key)
        if type(value) is not int or not 0 <= value <= _MOST_COUNT:
            self._fail(key, "a whole number from 0", value)
        return value

    def whole(self, key: str) -> int:
        value = self._values.get(key)
        if type(value) is not int or abs(value) >= 1 << 63:
            self._fail(key, "a whole number of 64 bits", value)
        return value

    def number(self, key: str) -> float:
        value = self._values.get(key)
        if type(value) is int and abs(value) < _MOST_COUNT:
            return float(value)
        if not isinstance(value, float) or not math.isfinite(value):
            self._fail(key, "a number", value)
        return value

    def maybe(self, key: str, read: Callable[[str], T]) -> T | None:
        """What ``read`` makes of a value that may be missing or null."""
        return None if self._values.get(key) is None else read(key)

    def inner(self, key: str) -> _Object:
        return _Object(self._values.get(key), f"{self._where}: {quote(key)}")

    def keys(self) -> list[str]:
        if len(self._values) > _MOST_ENTRIES:
            self._fail("", f"at most {_MOST_ENTRIES} entries", len(self._values))
        return list(self._values)

    def plain(self, key: str) -> Mapping[str, object]:
        value = self._values.get(key)
        if not isinstance(value, Mapping):
            self._fail(key, "an object", value)
        return value

    def entries(self, key: str) -> list[_Object]:
        value = self._list(key)
        return [_Object(v, f"{self._where}: {quote(key)}[{i}]") for i, v in enumerate(value)]

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._list(key)
        if not all(isinstance(v, str) and len(v) <= _MOST_TEXT for v in value):
            self._fail(key, "a list of texts", value)
        return tuple(value)

    def _list(self, key: str) -> list[Any]:
        value = self._values.get(key)
        if not isinstance(value, list) or len(value) > _MOST_ENTRIES:
            self._fail(key, f"a list of at most {_MOST_ENTRIES} entries", value)
        return value


def _evidence(o: _Object) -> Evidence:
    if (version := o.count("kvant_evidence")) != VERSION:
        o._fail("kvant_evidence", f"{VERSION}, the version this kvant reads", version)
    return Evidence(
        files=tuple(
            FileDigest(f.text("name"), f.count("bytes"), f.digest("header_sha256"))
            for f in o.entries("files")
        ),
        made=o.maybe("made", lambda key: _made(o.inner(key))),
        sizes=_sizes(o.inner("size")),
        quality=tuple(map(_quality, o.entries("quality"))),
        speed=tuple(map(_speed, o.entries("speed"))),
    )


def _made(o: _Object) -> Made:
    versions = o.inner("versions")
    return Made(
        recipe=o.text("recipe"),
        definition=o.maybe("definition", o.plain),
        overrides=o.texts("overrides"),
        method=o.maybe("method", o.text),
        effort=o.maybe("effort", o.text),
        importance=o.maybe("importance", o.digest),
        calibration=o.maybe("calibration", o.digest),
        seed=o.maybe("seed", o.whole),
        target=o.maybe("target", o.text),
        source=o.maybe("source", o.digest),
        source_name=o.maybe("source_name", o.text),
        versions={key: versions.text(key) for key in versions.keys()},  # noqa: SIM118 - no dict
    )


def _sizes(o: _Object) -> Sizes:
    classes = o.inner("classes")
    found = {}
    for name in classes.keys():  # noqa: SIM118 - no dict
        if name not in CLASSES:
            classes._fail(name, f"one of {', '.join(CLASSES)}", name)
        entry = classes.inner(name)
        packings = entry.inner("packings")
        found[name] = ClassSize(
            entry.count("weights"),
            entry.count("bytes"),
            {key: packings.count(key) for key in packings.keys()},  # noqa: SIM118
        )
    sizes = Sizes(o.count("bytes"), found)
    for key in ("tensor_bytes", "weights", "bpw"):
        if o.number(key) != getattr(sizes, key):
            o._fail(key, f"{getattr(sizes, key)!r}, what the classes add up to", o.number(key))
    return sizes


def _quality(o: _Object) -> Quality:
    text = o.inner("text")
    base = o.maybe("base", lambda key: o.inner(key))
    figures: dict[str, float | None] = {
        f.name: o.number(f.name)
        if f.name in ("perplexity", "perplexity_se")
        else o.maybe(f.name, o.number)
        for f in fields(Quality)
        if f.name not in ("text", "base")
    }
    return Quality(
        TextUsed(
            text.text("name"),
            text.digest("sha256"),
            text.digest("corpus_sha256"),
            text.count("context"),
            text.count("chunks"),
            text.count("tokens"),
        ),
        None if base is None else Base(base.text("name"), base.digest("fingerprint")),
        **figures,  # type: ignore[arg-type]  # the required ones were read as numbers
    )


def _speed(o: _Object) -> Speed:
    return Speed(
        machine=o.text("machine"),
        threads=o.count("threads"),
        isa=o.text("isa"),
        test=o.text("test"),
        tokens=o.count("tokens"),
        batch=o.count("batch"),
        depth=o.count("depth"),
        rate=o.number("rate"),
        share=o.number("share"),
        peak_rss_bytes=o.maybe("peak_rss_bytes", o.count),
    )
