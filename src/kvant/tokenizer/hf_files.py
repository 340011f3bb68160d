"""The files of a Hugging Face folder that say something about its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvant.errors import FileFormatError
from kvant.files.config_json import parse_json, read_json
from kvant.files.source import quote
from kvant.tokenizer.reading import read_bytes

__all__ = [
    "TOKENIZER_FILES",
    "AddedToken",
    "Sources",
    "has_tokenizer",
    "load_sources",
    "read_object",
    "wrong",
]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt")
"""Files of which one is enough for a tokenizer."""

#: The largest published tokenizer.json of a Llama or Qwen takes 28 MB. Beyond ASCII, text may
#: take four bytes a character in memory, which is what the second limit counts.
MAX_TOKENIZER_BYTES = 48_000_000
MAX_TOKENIZER_MEMORY = 130_000_000
MAX_TOKENIZER_VALUES = 2_000_000
#: Keys cost most; tokens and the flags of added ones are about 310,000 there.
MAX_TOKENIZER_KEYS = 700_000


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is looked for in the text before anything else."""

    id: int
    content: str
    special: bool = False
    greedy: bool = False  # takes the spaces beside it, or stands for whole words only


@dataclass(frozen=True, slots=True)
class Sources:
    """What the files say, as parsed; an empty dict for a file that is not there."""

    folder: Path
    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any]
    special_tokens_map: dict[str, Any]
    added_tokens: dict[str, Any]
    config: dict[str, Any]
    generation_config: dict[str, Any]

    @property
    def tokenizer_path(self) -> Path:
        """Where tokenizer.json is."""
        return self.folder / "tokenizer.json"

    @property
    def model_path(self) -> Path:
        """Where tokenizer.model is."""
        return self.folder / "tokenizer.model"

    def listed_tokens(self) -> list[AddedToken]:
        """The added tokens of tokenizer.json, with the flags of tokenizer_config.json."""
        where = self.tokenizer_path
        entries = self.tokenizer.get("added_tokens") or []
        if not isinstance(entries, list):
            raise wrong(where, "added_tokens", "a list", entries)
        found = [_added(where, e, e.get("id") if isinstance(e, dict) else None) for e in entries]
        flags = {t.id: t for t in self.configured_tokens()}
        return [
            flags[t.id] if t.id in flags and flags[t.id].content == t.content else t for t in found
        ]

    def configured_tokens(self) -> list[AddedToken]:
        """The added tokens of tokenizer_config.json."""
        where = self.folder / "tokenizer_config.json"
        entries = self.tokenizer_config.get("added_tokens_decoder") or {}
        if not isinstance(entries, dict):
            raise wrong(where, "added_tokens_decoder", "an object", entries)
        return [_added(where, e, _number(where, key)) for key, e in entries.items()]

    def legacy_tokens(self) -> list[AddedToken]:
        """The tokens of added_tokens.json."""
        where = self.folder / "added_tokens.json"
        return [_added(where, {"content": c}, i) for c, i in self.added_tokens.items()]


def wrong(where: Path, key: str, expected: str, got: object) -> FileFormatError:
    """The error for a value of the wrong type."""
    return FileFormatError(
        f"{where}: {key!r} should be {expected}, got {quote(str(got), 60)}. Fetch the file again."
    )


def _number(where: Path, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise wrong(where, "added_tokens_decoder", "keyed by token ids", text)
    return int(text)


def _added(where: Path, entry: object, token: object) -> AddedToken:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str):
        raise wrong(where, "added tokens", "objects with a text 'content'", entry)
    if type(token) is not int or token < 0:
        raise wrong(where, "added tokens", "numbered from 0", token)
    return AddedToken(
        token,
        entry["content"],
        entry.get("special") is True,
        any(entry.get(k) is True for k in ("lstrip", "rstrip", "single_word")),
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` has a tokenizer that ``from_folder`` would read."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; an empty one where there is no such file."""
    if not path.exists():
        return {}
    return _as_object(path, read_json(path))


def _as_object(path: Path, found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise FileFormatError(
            f"{path}: expected a JSON object, got {type(found).__name__}. Fetch the file again."
        )
    return found


def _read_tokenizer(path: Path) -> dict[str, Any]:
    """tokenizer.json, within limits that keep a hostile one under 300 MB and about a second."""
    if not path.is_file():
        return {}

    def text() -> bytes:
        raw = read_bytes(path, MAX_TOKENIZER_BYTES)
        keys = raw.count(b":")
        if keys > MAX_TOKENIZER_KEYS:
            raise FileFormatError(
                f"{path}: expected at most {MAX_TOKENIZER_KEYS} keys, got up to {keys}. "
                "Fetch the file again."
            )
        return raw

    found = parse_json(text(), str(path), MAX_TOKENIZER_MEMORY, MAX_TOKENIZER_VALUES)
    return _as_object(path, found)


def load_sources(folder: Path) -> Sources:
    """Read the JSON files of ``folder`` that a tokenizer depends on.

    Raises:
        FileFormatError: one of them is not what it should be.
        InputError: one of them cannot be read.
    """
    return Sources(
        folder=folder,
        tokenizer=_read_tokenizer(folder / "tokenizer.json"),
        tokenizer_config=read_object(folder / "tokenizer_config.json"),
        special_tokens_map=read_object(folder / "special_tokens_map.json"),
        added_tokens=read_object(folder / "added_tokens.json"),
        config=read_object(folder / "config.json"),
        generation_config=read_object(folder / "generation_config.json"),
    )
