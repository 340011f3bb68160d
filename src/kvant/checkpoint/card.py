"""A model card's front matter: the small part of YAML that model cards use.

Only text is made of it: a scalar is a string, a list is a list of strings, so Norwegian (``no``)
stays a language. Anything deeper (evaluation results, widgets) is passed over.
"""

from __future__ import annotations

import re
from pathlib import Path

from kvant.errors import KvantError
from kvant.files.source import open_source, read_exactly

__all__ = ["MAX_FRONT_MATTER", "Card", "parse_front_matter", "read_card"]

Card = dict[str, str | list[str]]

#: Bytes of a card that are looked at; long ones list some hundred evaluation results.
MAX_FRONT_MATTER = 256_000
_KEY = re.compile(r"([A-Za-z_][\w-]*):(?:\s+(.*))?")
_NULL = frozenset({"", "null", "~", "Null", "NULL"})


def read_card(folder: Path) -> Card:
    """The front matter of ``folder/README.md``; empty where there is none that can be read."""
    path = folder / "README.md"
    try:
        with open_source(path) as (fd, size):
            raw = read_exactly(fd, path, 0, min(size, MAX_FRONT_MATTER))
    except KvantError:
        return {}  # a card only describes; the model does not depend on it
    return parse_front_matter(raw.decode("utf-8", "replace"))


def parse_front_matter(text: str) -> Card:
    """Parse the block between two lines ``---`` at the start of ``text``."""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    card: Card = {}
    key: str | None = None  # the list being read belongs to it
    for line in lines[1:]:
        if line.rstrip() in ("---", "..."):
            return card
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if match := _KEY.fullmatch(line.rstrip()):
            key = match[1].lower()
            _add_value(card, key, _uncommented(match[2] or ""))
        elif key is not None and (item := _item(line, card.get(key))) is not None:
            found = card.setdefault(key, [])
            if isinstance(found, list):
                found.append(item)
        elif line[:1] not in (" ", "\t", "-"):
            key = None
    return {}  # the block never ends: not front matter


def _add_value(card: Card, key: str, value: str) -> None:
    if value in _NULL or value[0] in "|>{&*!":
        return
    if value.startswith("["):
        items = value.removeprefix("[").removesuffix("]").split(",")
        card[key] = [text for item in items if (text := _unquoted(item.strip()))]
    else:
        card[key] = _unquoted(value)


def _item(line: str, sofar: str | list[str] | None) -> str | None:
    """The text of ``- text``; None for anything deeper, or where a scalar was given already."""
    match = re.fullmatch(r"( {0,4}|\t)-\s+(.*)", line.rstrip())
    if match is None or isinstance(sofar, str):
        return None
    text = _uncommented(match[2])
    if text in _NULL or text[0] in "[{|>&*!" or (_KEY.fullmatch(text) and text[0] not in "'\""):
        return None
    return _unquoted(text)


def _uncommented(text: str) -> str:
    text = text.strip()
    if text[:1] in ("'", '"'):
        end = text.find(text[0], 1)
        return text[: end + 1] if end > 0 else text
    return re.split(r"\s#", text, maxsplit=1)[0].rstrip()


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
