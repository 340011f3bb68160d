"""How a model's states become the vector of a text, where the checkpoint says so.

Sources: ``modules.json`` and ``1_Pooling/config.json`` as sentence-transformers writes them;
``enum llama_pooling_type`` in llama.cpp's ``include/llama.h``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.config_json import read_json
from kvant.files.gguf import GgufFile
from kvant.files.source import quote

__all__ = ["POOLING_KEY", "POOLING_TYPES", "Pooling", "folder_pooling", "gguf_pooling"]

Pooling = Literal["mean", "cls", "last"]
"""The mean of all states, the first token's, or the last one's."""

POOLING_KEY = "pooling_type"
"""GGUF's key, after the architecture's name."""

POOLING_TYPES: dict[Pooling, int] = {"mean": 1, "cls": 2, "last": 3}

_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


def folder_pooling(folder: Path) -> Pooling | None:
    """The pooling of a sentence-transformers folder; None where there is none.

    Raises:
        FileFormatError: a file is damaged.
        UnsupportedError: a pooling kvant does not compute.
    """
    modules = folder / "modules.json"
    if not modules.exists():
        return None
    listed = read_json(modules)
    if not isinstance(listed, list) or not all(isinstance(m, Mapping) for m in listed):
        raise FileFormatError(
            f"{modules}: expected a list of modules, got something else. Fetch the file again."
        )
    found = [m.get("path") for m in listed if str(m.get("type")).endswith(".Pooling")]
    if not found:
        return None
    name = found[0]
    if not isinstance(name, str) or not name or set(name) & set("/\\:\0") or name.startswith("."):
        raise FileFormatError(
            f"{modules}: the pooling's path should be the name of a folder in this one, got "
            f"{quote(str(name), 60)}. Fetch the file again."
        )
    return _read(folder / name / "config.json")


def _read(path: Path) -> Pooling:
    values = read_json(path)
    if not isinstance(values, dict):
        raise FileFormatError(
            f"{path}: expected a JSON object, got {type(values).__name__}. Fetch the file again."
        )
    chosen = [key for key, value in values.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in _FLAGS:
        raise UnsupportedError(
            f"{path}: expected one of {', '.join(_FLAGS)} to be true, got "
            f"{quote(', '.join(chosen) or 'none', 120)}. kvant pools in no other way."
        )
    return _FLAGS[chosen[0]]


def gguf_pooling(file: GgufFile, prefix: str) -> Pooling | None:
    """The pooling of a GGUF file; None where it says none.

    Raises:
        FileFormatError: not a number.
        UnsupportedError: a pooling kvant does not compute.
    """
    key = f"{prefix}.{POOLING_KEY}"
    value = file.get_int(key, None)
    if value is None or value == 0:
        return None
    by_number = {number: name for name, number in POOLING_TYPES.items()}
    if value not in by_number:
        raise UnsupportedError(
            f"{file.path}: {key!r} should be from 0 to {max(by_number)}, got {value}. kvant pools "
            "in no other way."
        )
    return by_number[value]
