"""How a model wants to be sampled: what its files say, or what the field takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvant.checkpoint import Checkpoint
from kvant.engine.sampling import Sampling
from kvant.errors import FileFormatError, UsageError
from kvant.files.config_json import read_json

__all__ = ["FIELD_DEFAULTS", "default_sampling"]

#: llama.cpp's, for models that say nothing.
FIELD_DEFAULTS = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)

_HF_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def default_sampling(checkpoint: Checkpoint) -> Sampling:
    """What the model's publisher recommends, or `FIELD_DEFAULTS`.

    From ``generation_config.json`` (unless it says ``do_sample: false``, which is transformers'
    own default, not a recommendation) or a GGUF file's ``general.sampling.*``. Where one value is
    given, those that are not stay neutral, as in vLLM.

    Raises:
        FileFormatError: a value is not in its range.
    """
    found = _from_gguf(checkpoint) if checkpoint.gguf is not None else _from_folder(checkpoint)
    if not found:
        return FIELD_DEFAULTS
    try:
        return Sampling(**found)
    except UsageError as error:
        raise FileFormatError(
            f"{checkpoint.path}: recommended sampling: {error} Correct it there, or name your own."
        ) from None


def _from_folder(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.path / "generation_config.json"
    if not path.exists():
        return {}
    values = read_json(path)
    if not isinstance(values, Mapping) or values.get("do_sample") is False:
        return {}
    return {key: values[key] for key in _HF_KEYS if values.get(key) is not None}


def _from_gguf(checkpoint: Checkpoint) -> dict[str, Any]:
    file = checkpoint.gguf
    assert file is not None
    found: dict[str, Any] = {}
    for name, key in _GGUF_KEYS.items():
        value = file.get_int(key, None) if name == "top_k" else file.get_float(key, None)
        if value is not None:
            found[name] = value
    return found
