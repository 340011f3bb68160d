"""When a generation ends: strings and tokens that stop it."""

from __future__ import annotations

from collections.abc import Sequence

from kvant.errors import UsageError
from kvant.tokenizer.definition import TokenizerDefinition
from kvant.tokenizer.specials import END_TEXTS

__all__ = ["StopStrings", "end_tokens"]

_MOST_STRINGS = 64
_MOST_CHARS = 4096


def end_tokens(definition: TokenizerDefinition) -> frozenset[int]:
    """Tokens after which the model has nothing more to say.

    What the source names (end of text, of turn, of message; ``generation_config.json``'s list),
    and tokens that are such an end by their text, as in llama.cpp.
    """
    named = (definition.token_id(name) for name in ("eos", "eot", "eom"))
    by_text = (i for i, text in enumerate(definition.tokens) if text in END_TEXTS)
    return frozenset(i for i in (*named, *definition.end_ids, *by_text) if i is not None)


class StopStrings:
    """Watches a text that comes in pieces for strings that end it.

    Text is held back only while it may be the beginning of a stop string, and the result does not
    depend on where the pieces are cut: the string that is complete first wins, and the longest of
    several that are complete at the same character.

    Args:
        strings: a string or several; none of them empty.

    Raises:
        UsageError: an empty string, or too many or too long ones.
    """

    def __init__(self, strings: str | Sequence[str] = ()) -> None:
        self._strings = (strings,) if isinstance(strings, str) else tuple(strings)
        if "" in self._strings:
            raise UsageError("A stop string is empty; every text has one. Leave it out.")
        if len(self._strings) > _MOST_STRINGS or any(len(s) > _MOST_CHARS for s in self._strings):
            raise UsageError(
                f"Expected at most {_MOST_STRINGS} stop strings of at most {_MOST_CHARS} "
                f"characters, got {len(self._strings)} of up to "
                f"{max(map(len, self._strings))} characters. Use shorter ones."
            )
        self._watched = [_Watched(s) for s in self._strings]
        self._held = ""
        self.matched: str | None = None
        """The string that ended the text."""

    def add(self, piece: str) -> str:
        """The text that can be shown now that ``piece`` has come.

        Once `matched` is set, that is what stands before the stop string, and the text is over.
        """
        if not self._watched:
            return piece
        text = self._held + piece
        for end, char in enumerate(piece, len(self._held) + 1):
            for watched in self._watched:
                watched.add(char)
            done = [w.string for w in self._watched if w.begun == len(w.string)]
            if done:
                self.matched = max(done, key=len)
                self._held = ""
                return text[: end - len(self.matched)]
        keep = max(w.begun for w in self._watched)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and, as the text ends here, is no stop string."""
        held, self._held = self._held, ""
        return held


class _Watched:
    """A string that is looked for, and how much of it stands at the end of the text.

    Each character costs the same, however strings and text repeat themselves (Knuth, Morris and
    Pratt 1977): a client writes the strings, and everybody's text waits for what they cost. What is
    known of a string grows with the text that matches it, so one that is never met costs nothing.
    """

    __slots__ = ("_borders", "begun", "string")

    def __init__(self, string: str) -> None:
        self.string = string
        self.begun = 0
        # Of each beginning, the longest proper end that is a beginning too.
        self._borders = [0, 0]

    def add(self, char: str) -> None:
        """The text goes on with ``char``."""
        string, borders = self.string, self._borders
        at = self.begun
        while at and (at == len(string) or string[at] != char):
            at = borders[at]
        at += string[at] == char
        self.begun = at
        while len(borders) <= at:
            last = string[len(borders) - 1]
            border = borders[-1]
            while border and string[border] != last:
                border = borders[border]
            borders.append(border + (string[border] == last))
