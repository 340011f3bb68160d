"""A model's parameters, as Ollama names them: how it is sampled, where it stops, how long it reads.

Source: docs/modelfile.md and api/types.go of ollama/ollama. Those that tune Ollama's own runner
change nothing here; they are kept, and named in a note. Others are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvant.errors import UsageError
from kvant.files.source import quote, show

__all__ = ["IDLE", "Parameters", "parameter_text", "parse_parameter", "split_parameters"]

Value = int | float | bool | str | tuple[str, ...]

_SAMPLING: Final[dict[str, tuple[type[int] | type[float], str]]] = {
    "temperature": (float, "temperature"),
    "top_k": (int, "top_k"),
    "top_p": (float, "top_p"),
    "min_p": (float, "min_p"),
    "repeat_penalty": (float, "repetition_penalty"),
    "presence_penalty": (float, "presence_penalty"),
    "frequency_penalty": (float, "frequency_penalty"),
    "seed": (int, "seed"),
}
"""Ollama's name to type and to the field of `kvant.Sampling`."""

_OTHERS: Final[dict[str, type[int] | type[float]]] = {"num_ctx": int, "num_predict": int}

IDLE: Final = frozenset(
    [
        "f16_kv",
        "logits_all",
        "low_vram",
        "main_gpu",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "num_batch",
        "num_gpu",
        "num_gqa",
        "num_keep",
        "num_thread",
        "numa",
        "penalize_newline",
        "repeat_last_n",
        "rope_frequency_base",
        "rope_frequency_scale",
        "tfs_z",
        "typical_p",
        "use_mlock",
        "use_mmap",
        "vocab_only",
        "draft_num_predict",
    ]
)
"""What Ollama knows and what makes no difference here."""

_MOST_STOPS = 64


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is asked of a model where the one who asks says nothing.

    ``sampling`` are fields of `kvant.Sampling`; ``stop`` strings that end a text; ``context`` and
    ``max_tokens`` in tokens, None for no wish. ``idle`` are those without effect.
    """

    sampling: Mapping[str, Any]
    stop: tuple[str, ...]
    context: int | None
    max_tokens: int | None
    idle: tuple[str, ...]


def parse_parameter(name: str, text: str) -> Value:
    """The value of one parameter, from text.

    Raises:
        UsageError: there is no such parameter, or it takes no such value.
    """
    name = name.lower()
    if name == "stop":
        return text
    if name in IDLE:
        return text
    kind = _SAMPLING[name][0] if name in _SAMPLING else _OTHERS.get(name)
    if kind is None:
        known = ", ".join(sorted([*_SAMPLING, *_OTHERS, "stop"]))
        raise UsageError(f"There is no parameter {quote(name)}. Expected one of {known}.")
    try:
        value: int | float = kind(text)
    except (ValueError, OverflowError):
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"Parameter {name} should be {what}, got {quote(text)}.")
    if name == "num_ctx" and not 1 <= int(value) <= 1 << 30:
        raise UsageError(f"Parameter num_ctx should be tokens from 1, got {quote(text)}.")
    if name in ("top_k", "seed") and abs(int(value)) > 1 << 63:
        raise UsageError(f"Parameter {name} is out of range: {quote(text)}.")
    return value


def normal(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parameters from JSON (a layer of a model, a request), checked: stops as a list.

    Raises:
        UsageError: as `parse_parameter`.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        name = str(name).lower()
        if name == "stop":
            stops = [value] if isinstance(value, str) else value
            if (
                not isinstance(stops, (list, tuple))
                or len(stops) > _MOST_STOPS
                or not all(isinstance(s, str) for s in stops)
            ):
                raise UsageError(
                    f"{where}: parameter stop should be up to {_MOST_STOPS} texts, got "
                    f"{show(value)}."
                )
            found["stop"] = [s for s in stops if s]
        elif isinstance(value, (str, int, float, bool)):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            whole = isinstance(value, float) and value.is_integer() and name not in IDLE
            if whole and name in ("top_k", "seed", *_OTHERS):
                text = str(int(value))
            found[name] = value if name in IDLE else parse_parameter(name, text)
        else:
            raise UsageError(
                f"{where}: parameter {quote(name)} should be a number, got {show(value)}."
            )
    return found


def split_parameters(values: Mapping[str, Any]) -> Parameters:
    """Sort parameters, as a store keeps them, by what they are for.

    Ollama's ``-1`` for a length means none; ``seed 0`` is a seed like any other.
    """
    sampling = {_SAMPLING[n][1]: v for n, v in values.items() if n in _SAMPLING}
    if sampling.get("top_k", 0) < 0:
        sampling["top_k"] = 0
    if sampling.get("seed", 0) < 0:  # Ollama: another one each time
        del sampling["seed"]
    predict = values.get("num_predict")
    return Parameters(
        sampling=sampling,
        stop=tuple(values.get("stop", ())),
        context=values.get("num_ctx"),
        max_tokens=predict if predict is not None and predict > 0 else None,
        idle=tuple(sorted(n for n in values if n in IDLE)),
    )


def parameter_text(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Name and text of each value, a line for each stop."""
    for name in sorted(values):
        value = values[name]
        if name == "stop":
            yield from (("stop", text) for text in value)
        elif isinstance(value, bool):
            yield name, str(value).lower()
        else:
            yield name, repr(value) if isinstance(value, float) else str(value)
