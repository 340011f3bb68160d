"""Tool calls in what a model writes, found while it is being written.

Families write them differently, and all are read by one reader, which starts from the openers that
a model's chat template mentions:

=====================  =====================================================================
Hermes, Qwen, SmolLM3  ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``
Qwen3-Coder            ``<tool_call><function=f><parameter=p>v</parameter></function>``
Mistral                ``[TOOL_CALLS] [{"name": ..., "arguments": {...}}]``
Mistral, later         ``[TOOL_CALLS]f[ARGS]{...}``
Llama 3                ``<|python_tag|>{"name": ..., "parameters": {...}}; {...}``
Granite, Phi-4         ``<|tool_call|>[{"name": ..., "arguments": {...}}]``
others                 the same JSON as the whole answer
=====================  =====================================================================

What looks like a call and names no tool of the request is text.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from kvant.server.events import CallEnd, CallPart, CallStart, Event, Text
from kvant.server.json_scan import ObjectScan
from kvant.server.reasoning import held

__all__ = [
    "NamedCallReader",
    "ToolCallReader",
    "new_call_id",
]

_CLOSERS = ("</tool_call>", "<|/tool_call|>", "</function_call>", "[/TOOL_CALLS]", "<|eom_id|>")
_KEYS = frozenset({"name", "arguments", "parameters", "type", "id"})
_XML_END = "</function>"
_XML_NAME = re.compile(r"<function=([^>\s]+)\s*>")
_XML_VALUE = re.compile(r"<parameter=([^>\s]+)\s*>\n?(.*?)\n?</parameter>", re.S)
_NAME_MARKS = re.compile(r"\[(?:ARGS|CALL_ID)\]\w*")
_ALPHABET = string.ascii_letters + string.digits
_MOST_NAME = 256


NewId: TypeAlias = Callable[[], str]


def new_call_id(prefix: str = "call_", *, short: bool = False) -> str:
    """An id for a call; Mistral's templates take only nine letters and digits."""
    size = 9 if short else 24
    return ("" if short else prefix) + "".join(secrets.choice(_ALPHABET) for _ in range(size))


class ToolCallReader:
    """Finds calls in a text that comes in pieces.

    Args:
        tools: name of each tool to the JSON schema of its arguments.
        openers: texts that begin a call.
        bare: an answer may also begin with a call as it is.
        new_id: names calls.
    """

    def __init__(
        self,
        tools: Mapping[str, Mapping[str, Any]],
        openers: Sequence[str],
        *,
        bare: bool,
        new_id: NewId = new_call_id,
    ) -> None:
        self._tools = tools
        self._openers = tuple(openers)
        self._bare = bare
        self._new_id = new_id
        self._place: Literal["begin", "text", "call", "after"] = "begin"
        self._buffer = ""
        self._call: _Call | None = None
        self._opened = ""
        self.count = 0

    def add(self, piece: str) -> list[Event]:
        """What has become clear with ``piece``."""
        self._buffer += piece
        events: list[Event] = []
        while self._advance(events):
            pass
        return events

    def finish(self) -> list[Event]:
        """The text ends here: what was held back, and the end of a call that was begun."""
        events: list[Event] = []
        if self._call is not None:
            events += self._call.finish()
            if not self._call.started:
                _text(events, self._opened + self._call.raw)
            self._call = None
        elif self._place != "after" or self._buffer.strip():
            _text(events, self._buffer)
        self._buffer = ""
        return events

    def _advance(self, events: list[Event]) -> bool:
        """One move; whether another may follow."""
        match self._place:
            case "begin":
                return self._begin(events)
            case "text":
                return self._text(events)
            case "call":
                return self._read_call(events)
            case "after":
                return self._after()

    def _begin(self, events: list[Event]) -> bool:
        start = self._buffer.lstrip()
        if not start:
            return False
        if self._bare:
            named = [n for n in self._tools if "[TOOL_CALLS]" in self._openers]
            if start[0] in "{[" and not any(o.startswith(start[:2]) for o in self._openers):
                return self._open(len(self._buffer) - len(start), "")
            if any(start.startswith((n + "{", n + "[ARGS]", n + "[CALL_ID]")) for n in named):
                return self._open(len(self._buffer) - len(start), "")
            if any((n + "[CALL_ID]").startswith(start) for n in named):
                return False
        if any(o.startswith(start) and o != start for o in self._openers):
            return False
        self._place = "text"
        return True

    def _text(self, events: list[Event]) -> bool:
        found = [(self._buffer.index(o), o) for o in self._openers if o in self._buffer]
        if found:
            at, opener = min(found)
            before = self._buffer[:at].rstrip()
            _text(events, before)
            return self._open(at, opener, self._buffer[len(before) : at])
        keep = held(self._buffer, *self._openers) if self._openers else 0
        # White space before a call is not part of the text.
        keep += len(self._buffer[: len(self._buffer) - keep]) - len(
            self._buffer[: len(self._buffer) - keep].rstrip()
        )
        _text(events, self._buffer[: len(self._buffer) - keep])
        self._buffer = self._buffer[len(self._buffer) - keep :]
        return False

    def _open(self, at: int, opener: str, space: str = "") -> bool:
        self._opened = space + opener if opener else self._buffer[:at]
        self._buffer = self._buffer[at + len(opener) :]
        self._call = _Call(self._tools, self._new_id, self.count)
        self._place = "call"
        return True

    def _read_call(self, events: list[Event]) -> bool:
        call = self._call
        assert call is not None
        used = call.add(self._buffer, events)
        self._buffer = self._buffer[used:]
        if call.state == "going":
            return False
        found, self.count, self._call = call.index > self.count, call.index, None
        if call.state == "failed":
            _text(events, ("" if found else self._opened) + call.raw)
            self._place = "text"
        else:
            self._place = "after"
        return bool(self._buffer)

    def _after(self) -> bool:
        """After a call: closers and white space are dropped, another call or text follows."""
        start = self._buffer.lstrip()
        closer = next((c for c in _CLOSERS if start.startswith(c)), "")
        if closer:
            self._buffer = start[len(closer) :]
            return True
        if not start or any(m.startswith(start) for m in (*_CLOSERS, *self._openers)):
            return False
        if self._bare and start[0] in ";{":
            rest = start.lstrip("; \n")
            if not rest:
                return False
            if rest[0] == "{":
                self._buffer = rest
                return self._open(0, "")
        self._place = "text"
        return True


class NamedCallReader:
    """An answer that was made to be the arguments of one tool."""

    def __init__(self, name: str, new_id: NewId = new_call_id) -> None:
        self._name = name
        self._id = new_id()
        self._parts: list[str] = []
        self.count = 0

    def add(self, piece: str) -> list[Event]:
        """The piece is part of the arguments."""
        events: list[Event] = []
        if not self.count:
            self.count = 1
            events.append(CallStart(0, self._id, self._name))
        self._parts.append(piece)
        events.append(CallPart(0, piece))
        return events

    def finish(self) -> list[Event]:
        """The arguments are complete."""
        if not self.count:
            return []
        return [CallEnd(0, self._id, self._name, "".join(self._parts))]


class _Call:
    """What stands between an opener and its closer: one call, or a list of them."""

    def __init__(self, tools: Mapping[str, Mapping[str, Any]], new_id: NewId, index: int) -> None:
        self._tools = tools
        self._new_id = new_id
        self.index = index
        self.state: Literal["going", "done", "failed"] = "going"
        self.raw = ""
        self.started = False
        self._place: Literal["lead", "object", "between", "xml", "name"] = "lead"
        self._listed = False
        self._scan = ObjectScan()
        self._word = ""
        self._whole: str | None = None
        self._id = self._name = ""
        self._sent = 0

    def add(self, text: str, events: list[Event]) -> int:
        """Take ``text``; how much of it belongs here."""
        at = 0
        while at < len(text) and self.state == "going":
            if self._place == "object":
                used = self._scan.add(text[at:])
                self.raw += text[at : at + used]
                at += used
                self._object(events)
            else:
                char = text[at]
                at += 1
                self.raw += char
                if self._place == "lead":
                    at -= self._lead(char)
                elif self._place == "between":
                    self._between(char)
                elif self._place == "xml":
                    self._xml(char, events)
                else:
                    at -= self._named(char)
        return at

    def finish(self) -> list[Event]:
        """The text ended within."""
        if not self.started or self._place != "object":
            return []
        start = self._arguments_start()
        sent = self._scan.raw[start : start + self._sent] if start is not None else ""
        return [CallEnd(self.index, self._id, self._name, sent)]

    def _lead(self, char: str) -> int:
        if char == "{":
            self._begin_object()
            return 1
        if char == "[" and not self._listed:
            self._listed = True
        elif char == "<":
            self._place, self._word = "xml", char
        elif char.isalnum() or char == "_":
            self._place, self._word = "name", char
        elif not char.isspace():
            self.state = "failed"
        return 0

    def _begin_object(self) -> None:
        """The brace is read again, by the scan."""
        self.raw = self.raw[:-1]
        self._place, self._scan, self._sent = "object", ObjectScan(), 0

    def _named(self, char: str) -> int:
        """A name, then its arguments."""
        if char != "{":
            self._word += char
            if len(self._word) > _MOST_NAME:
                self.state = "failed"
            return 0
        name = _NAME_MARKS.sub("", self._word).strip()
        if name not in self._tools:
            self.state = "failed"
            return 0
        self._whole = name
        self._begin_object()
        return 1

    def _between(self, char: str) -> None:
        if char == ",":
            self._place = "lead"
        elif char == "]":
            self.state = "done"
        elif not char.isspace():
            # What follows a broken list is not lost: it is text.
            self.state = "done"

    def _arguments_start(self) -> int | None:
        if self._whole is not None:
            return 0
        found = [
            self._scan.members[k][0] for k in ("arguments", "parameters") if k in self._scan.members
        ]
        return found[0] if found else None

    def _object(self, events: list[Event]) -> None:
        scan = self._scan
        if not self.started:
            name = self._whole or scan.value("name")
            if name is None and not scan.complete:
                if not _KEYS.issuperset(scan.members):
                    self.state = "failed"  # the answer is some other object
                return
            if not isinstance(name, str) or name not in self._tools:
                self.state = "failed"
                return
            self._name = name
            start = self._arguments_start()
            if start is None and not scan.complete:
                return
            if start is not None and scan.size <= start:
                return
            self._id, self.started = self._new_id(), True
            events.append(CallStart(self.index, self._id, name))
        self._send(events)
        if scan.complete:
            self._end(events)

    def _send(self, events: list[Event]) -> None:
        """Arguments so far; a text that holds JSON waits until it is complete."""
        start = self._arguments_start()
        if start is None:
            return
        raw = self._scan.raw
        end = self._arguments_end()
        if raw[start] != "{":
            return
        ready = raw[start : len(raw) if end is None else end]
        if len(ready) > self._sent:
            events.append(CallPart(self.index, ready[self._sent :]))
            self._sent = len(ready)

    def _arguments_end(self) -> int | None:
        if self._whole is not None:
            return self._scan.size if self._scan.complete else None
        ends = [
            self._scan.members[k][1] for k in ("arguments", "parameters") if k in self._scan.members
        ]
        return ends[0] if ends else None

    def _end(self, events: list[Event]) -> None:
        start, end = self._arguments_start(), self._arguments_end()
        if self._sent and start is not None and end is not None:
            arguments = self._scan.raw[start:end]
        else:
            value = self._scan.value("arguments") or self._scan.value("parameters") or {}
            arguments = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            events.append(CallPart(self.index, arguments))
        self._ended(events, arguments)

    def _ended(self, events: list[Event], arguments: str) -> None:
        events.append(CallEnd(self.index, self._id, self._name, arguments))
        self.index += 1
        self.raw, self.started, self._whole = "", False, None
        self._place = "between"
        if not self._listed:
            self.state = "done"

    def _xml(self, char: str, events: list[Event]) -> None:
        self._word += char
        start = "<function="
        if not (self._word.startswith(start) or start.startswith(self._word)):
            self.state = "failed"
        if not self._word.endswith(_XML_END):
            return
        named = _XML_NAME.match(self._word)
        if named is None or named[1] not in self._tools:
            self.state = "failed"
            return
        self._name, self._id = named[1], self._new_id()
        properties = self._tools[self._name].get("properties")
        known = properties if isinstance(properties, Mapping) else {}
        values = {k: _typed(v, known.get(k)) for k, v in _XML_VALUE.findall(self._word)}
        arguments = json.dumps(values, ensure_ascii=False)
        events.append(CallStart(self.index, self._id, self._name))
        events.append(CallPart(self.index, arguments))
        self._ended(events, arguments)


def _typed(text: str, schema: object) -> object:
    """A value that was written as text, by its schema."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string":
        return text
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found


def _text(events: list[Event], text: str) -> None:
    if text:
        events.append(Text(text))
