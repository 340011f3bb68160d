"""When a generation ends: strings and tokens that stop it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
        self._held = ""
        self.matched: str | None = None
        """The string that ended the text."""

    def add(self, piece: str) -> str:
        """The text that can be shown now that ``piece`` has come.

        Once `matched` is set, that is what stands before the stop string, and the text is over.
        """
        text = self._held + piece
        ends = [(text.index(s) + len(s), -len(s), s) for s in self._strings if s in text]
        if ends:
            end, _, self.matched = min(ends)
            self._held = ""
            return text[: end - len(self.matched)]
        keep = max(map(_overlap, [text] * len(self._strings), self._strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and, as the text ends here, is no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``string``."""
    longest = min(len(text), len(string) - 1)
    sizes: Iterable[int] = range(longest, 0, -1)
    return next((n for n in sizes if text.endswith(string[:n])), 0)
