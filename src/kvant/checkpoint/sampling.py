"""How its makers want a model sampled: generation_config.json, and ``general.sampling.*`` of GGUF.

Source: ``Metadata.load`` in llama.cpp's ``gguf-py/gguf/metadata.py`` and the types in its
``gguf_writer.py``. Runtimes take these as their defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from kvant.errors import FileFormatError
from kvant.files.config_json import read_json
from kvant.files.gguf import Value, float32, int32, string
from kvant.files.source import show

__all__ = ["sampling_of", "sampling_to_gguf"]

_PREFIX = "general.sampling."

#: Key of GGUF to the type it has there and the keys of generation_config.json, best first.
_KEYS: dict[str, tuple[type, tuple[str, ...]]] = {
    "sequence": (str, ("sequence",)),
    "top_k": (int, ("top_k",)),
    "top_p": (float, ("top_p",)),
    "min_p": (float, ("min_p",)),
    "xtc_probability": (float, ("xtc_probability",)),
    "xtc_threshold": (float, ("xtc_threshold",)),
    "temp": (float, ("temperature",)),
    "penalty_last_n": (int, ("penalty_last_n",)),
    "penalty_repeat": (float, ("penalty_repeat", "repetition_penalty")),
    "mirostat": (int, ("mirostat",)),
    "mirostat_tau": (float, ("mirostat_tau",)),
    "mirostat_eta": (float, ("mirostat_eta",)),
}
_EXPECTED = {str: "a text", int: "a whole number of 32 bits", float: "a number"}
_MAX_TEXT = 200
_FLOAT_MAX = 3.4e38


def sampling_of(folder: Path) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The metadata for a Hugging Face folder, and a note for each value that is left out.

    Raises:
        FileFormatError: generation_config.json is damaged.
        InputError: it may not be read.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return {}, ()
    found = read_json(path)
    if not isinstance(found, dict):
        raise FileFormatError(
            f"{path}: expected a JSON object, got {type(found).__name__}. Fetch the file again."
        )
    return sampling_to_gguf(found)


def sampling_to_gguf(config: Mapping[str, object]) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The metadata that says what ``config`` does, and notes; see `sampling_of`."""
    metadata: dict[str, Value] = {}
    notes: list[str] = []
    for key, (kind, names) in _KEYS.items():
        name = next((n for n in names if config.get(n) is not None), None)
        if name is None:
            continue
        value = _value(kind, config[name])
        if value is None:
            notes.append(
                f"generation_config.json: {name!r} should be {_EXPECTED[kind]}, got "
                f"{show(config[name])}; it was left out."
            )
        else:
            metadata[_PREFIX + key] = value
    return metadata, tuple(notes)


def _value(kind: type, value: object) -> Value | None:
    if kind is str:
        fits = isinstance(value, str) and value.isprintable() and 0 < len(value) <= _MAX_TEXT
        return string(value) if fits and isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if kind is float:
        return float32(value) if abs(value) <= _FLOAT_MAX and math.isfinite(value) else None
    whole = isinstance(value, int) or value.is_integer()
    return int32(int(value)) if whole and -(2**31) <= value < 2**31 else None
