"""A model's reasoning apart from its answer, while both are being written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Kind", "ReasoningSplitter", "Tags", "held"]

Kind: TypeAlias = Literal["reasoning", "text"]


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands around a model's reasoning.

    ``inside``: the prompt has already opened it, so that the text begins within.
    """

    open: str = "<think>"
    close: str = "</think>"
    inside: bool = False


def held(text: str, *marks: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of one of ``marks``."""
    for size in range(min(len(text), max(map(len, marks)) - 1), 0, -1):
        if any(len(m) > size and text.endswith(m[:size]) for m in marks):
            return size
    return 0


class ReasoningSplitter:
    """Splits a text that comes in pieces; the result does not depend on where they are cut.

    Reasoning is what stands between the tags at the beginning of the text; tags further on are
    text. White space around the reasoning is left out.
    """

    def __init__(self, tags: Tags) -> None:
        self._tags = tags
        self._place: Literal["before", "inside", "after", "text"] = (
            "inside" if tags.inside else "before"
        )
        self._held = ""
        self._begun = False

    def add(self, piece: str) -> list[tuple[Kind, str]]:
        """What of the text can be told apart now that ``piece`` has come."""
        self._held += piece
        found: list[tuple[Kind, str]] = []
        if self._place == "before":
            self._find_open()
        if self._place == "inside":
            self._read_inside(found)
        if self._place == "after":
            self._held = self._held.lstrip()
            if self._held:
                self._place = "text"
        if self._place == "text" and self._held:
            found.append(("text", self._held))
            self._held = ""
        return found

    def finish(self) -> list[tuple[Kind, str]]:
        """What was held back and, as the text ends here, is no tag."""
        kept, self._held = self._held, ""
        if self._place == "inside":
            kept = kept.rstrip()
        if not kept or self._place == "after":
            return []
        return [("reasoning" if self._place == "inside" else "text", kept)]

    def _find_open(self) -> None:
        start = self._held.lstrip()
        if start.startswith(self._tags.open):
            self._place = "inside"
            self._held = start[len(self._tags.open) :]
        elif not self._tags.open.startswith(start):
            self._place = "text"

    def _read_inside(self, found: list[tuple[Kind, str]]) -> None:
        if not self._begun:
            self._held = self._held.lstrip()
            # A model whose prompt opened the tag may write it once more.
            if self._tags.inside and self._held.startswith(self._tags.open):
                self._held = self._held[len(self._tags.open) :].lstrip()
            if not self._held or (self._tags.inside and self._tags.open.startswith(self._held)):
                return
            self._begun = True
        thought, tag, rest = self._held.partition(self._tags.close)
        if tag:
            if thought.rstrip():
                found.append(("reasoning", thought.rstrip()))
            self._place, self._held = "after", rest
            return
        ready = thought[: len(thought) - held(thought, self._tags.close)].rstrip()
        if ready:
            found.append(("reasoning", ready))
            self._held = thought[len(ready) :]
