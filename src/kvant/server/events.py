"""What an answer consists of, as it is written: text, reasoning, tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["CallEnd", "CallPart", "CallStart", "Event", "Text", "Thought"]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of the reasoning before it."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; ``index`` counts the calls of an answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallPart:
    """A piece of its arguments, which are JSON in the end."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is complete; ``arguments`` are the parts together."""

    index: int
    id: str
    name: str
    arguments: str


Event: TypeAlias = Text | Thought | CallStart | CallPart | CallEnd
