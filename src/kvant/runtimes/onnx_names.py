"""Which file of a folder is the decoder's graph, and what its inputs and outputs are called."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvant.checkpoint.kind import onnx_files
from kvant.errors import FileFormatError, InputError, UnsupportedError
from kvant.files.config_json import read_json
from kvant.files.source import quote, show

__all__ = ["GENAI", "OnnxNames", "find_graph", "genai_model", "read_names"]

GENAI = "genai_config.json"
_MAX_LAYERS = 10_000
_DEFAULTS = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "position_ids": "position_ids",
    "past_key_names": "past_key_values.%d.key",
    "past_value_names": "past_key_values.%d.value",
    "logits": "logits",
    "present_key_names": "present.%d.key",
    "present_value_names": "present.%d.value",
}


@dataclass(frozen=True, slots=True)
class OnnxNames:
    """Inputs and outputs of a decoder; None for those it does not have.

    ``cache`` are pairs of an input and the output that is its next value.
    """

    input_ids: str
    attention_mask: str | None
    position_ids: str | None
    logits: str
    cache: tuple[tuple[str, str], ...]
    in_place: bool = False
    """Whether the graph can write keys and values into the buffer that it reads them from."""


def genai_model(folder: Path) -> Mapping[str, Any]:
    """What genai_config.json says of the model; empty where there is none."""
    return _genai(folder, "model")


def _genai(folder: Path, part: str) -> Mapping[str, Any]:
    path = folder / GENAI
    if not path.exists():
        return {}
    values = read_json(path)
    found = values.get(part, {}) if isinstance(values, dict) else None
    if not isinstance(found, dict):
        raise FileFormatError(f"{path}: expected an object with {part!r}. Fetch the file again.")
    return found


def find_graph(source: Path) -> Path:
    """The decoder's ``.onnx`` file of a folder, or the file itself.

    Raises:
        InputError: the folder has none, or several and nothing says which.
        FileFormatError: genai_config.json names a file outside the folder.
    """
    if source.suffix == ".onnx":
        return source
    decoder = genai_model(source).get("decoder")
    stated = decoder.get("filename") if isinstance(decoder, dict) else None
    if stated is not None:
        if not isinstance(stated, str) or Path(stated).name != stated:
            raise FileFormatError(
                f"{source / GENAI}: the decoder's file should be a name in this folder, got "
                f"{show(stated)}. Fetch the file again."
            )
        return source / stated
    found = onnx_files(source)
    plain = [path for path in found if path.name == "model.onnx"] or found
    if len(plain) == 1:
        return plain[0]
    names = ", ".join(quote(path.name) for path in found[:4]) or "none"
    raise InputError(
        f"{source}: expected one ONNX graph, or model.onnx, got {names}. Name the file itself."
    )


def read_names(path: Path, inputs: Collection[str], outputs: Collection[str]) -> OnnxNames:
    """What the inputs and outputs of the graph at ``path`` mean.

    Raises:
        UnsupportedError: it is not the graph of a language model, or has an input nobody knows.
    """
    decoder = genai_model(path.parent).get("decoder")
    names = dict(_DEFAULTS)
    for side in ("inputs", "outputs"):
        stated = decoder.get(side) if isinstance(decoder, dict) else None
        if isinstance(stated, dict):
            names |= {k: v for k, v in stated.items() if k in names and isinstance(v, str)}
    ids, logits = names["input_ids"], names["logits"]
    if ids not in inputs or logits not in outputs:
        raise UnsupportedError(
            f"{path}: expected a language model with the input {quote(ids)} and the output "
            f"{quote(logits)}, got {_some(inputs)} and {_some(outputs)}. Models of other kinds are "
            "measured on their own data."
        )
    cache = tuple(_cache(names, inputs, outputs))
    mask = names["attention_mask"] if names["attention_mask"] in inputs else None
    positions = names["position_ids"] if names["position_ids"] in inputs else None
    known = {ids, mask, positions, *(past for past, _ in cache)}
    if rest := [name for name in inputs if name not in known]:
        raise UnsupportedError(
            f"{path}: the graph has an input {quote(rest[0])} that kvant has nothing for, expected "
            "tokens, mask, positions and a cache of keys and values. Export it without."
        )
    shared = _genai(path.parent, "search").get("past_present_share_buffer") is True
    return OnnxNames(ids, mask, positions, logits, cache, shared and mask is not None)


def _cache(
    names: Mapping[str, str], inputs: Collection[str], outputs: Collection[str]
) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for layer in range(_MAX_LAYERS):
        found = [
            (
                names[f"past_{part}_names"].replace("%d", str(layer)),
                names[f"present_{part}_names"].replace("%d", str(layer)),
            )
            for part in ("key", "value")
        ]
        if not all(past in inputs and present in outputs for past, present in found):
            break
        if layer and found == pairs[-2:]:
            raise FileFormatError(
                f"{GENAI}: the names of keys and values say no layer, such as "
                f"{quote(names['past_key_names'])}; expected %d in each. Fetch the file again."
            )
        pairs += found
    return pairs


def _some(names: Collection[str]) -> str:
    listed = ", ".join(quote(name) for name in list(names)[:4])
    return listed + (" …" if len(names) > 4 else "") or "none"
