"""One JSON object as it is being written: where it ends, and where its members' values stand."""

from __future__ import annotations

import json
from typing import Literal

__all__ = ["ObjectScan"]

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class ObjectScan:
    """Follows one object, character by character, from its opening brace.

    Models write line breaks into strings as they are, which JSON does not allow; they are escaped
    here, so that ``raw`` is JSON.

    Attributes:
        raw: what has come.
        members: key to where its value begins in ``raw``, and where it ends (None while it goes
            on).
        complete: whether the object has ended.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.size = 0
        self.members: dict[str, tuple[int, int | None]] = {}
        self.complete = False
        self._depth = 0
        self._quoted = self._escaped = False
        self._expects: Literal["key", "colon", "value", "comma"] = "key"
        self._key_start = 0
        self._key = ""

    @property
    def raw(self) -> str:
        """What has come, as JSON."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def value(self, key: str) -> object | None:
        """A member's value, once it is complete; None before, and if it is not JSON."""
        start, end = self.members.get(key, (0, None))
        if end is None:
            return None
        try:
            found: object = json.loads(self.raw[start:end])
        except (ValueError, RecursionError):
            return None
        return found

    def add(self, text: str) -> int:
        """Take ``text``; how many of its characters belong to the object."""
        for at, char in enumerate(text):
            if self.complete:
                return at
            self._step(char)
        return len(text)

    def _step(self, char: str) -> None:
        place = self.size
        kept = _ESCAPES.get(char, char) if self._quoted else char
        self._parts.append(kept)
        self.size += len(kept)
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._quoted = False
                self._string_ended()
            return
        if char == '"':
            self._quoted = True
            if self._depth == 1 and self._expects == "key":
                self._key_start = place
            else:
                self._value_begins(place)
        elif char in "{[":
            self._value_begins(place)
            self._depth += 1
        elif char in "}]":
            self._closed(char, place)
        elif self._depth == 1 and char == ":" and self._expects == "colon":
            self._expects = "value"
        elif self._depth == 1 and char == ",":
            self._value_ends(place)
            self._expects = "key"
        elif not char.isspace():
            self._value_begins(place)

    def _value_begins(self, place: int) -> None:
        if self._depth == 1 and self._expects == "value":
            self.members[self._key] = (place, None)
            self._expects = "comma"

    def _value_ends(self, place: int) -> None:
        start, end = self.members.get(self._key, (0, 0))
        if end is None:
            self.members[self._key] = (start, place)

    def _string_ended(self) -> None:
        if self._depth != 1:
            return
        if self._expects == "key":
            try:
                self._key = str(json.loads(self.raw[self._key_start :]))
            except ValueError:
                self._key = ""
            self._expects = "colon"
        else:
            self._value_ends(self.size)

    def _closed(self, char: str, place: int) -> None:
        self._depth -= 1
        if self._depth == 1:
            self._value_ends(place + 1)
        elif self._depth <= 0:
            self._value_ends(place)
            self.complete = True
