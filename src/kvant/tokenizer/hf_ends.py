"""Which special tokens a Hugging Face folder names, and which it puts around a text.

The rules are those of ``SpecialVocab`` in gguf-py, so that the metadata comes out as llama.cpp's
converter writes it: tokenizer_config.json names tokens by text, config.json by id, and the post-
processor of tokenizer.json says which are put before and after a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvant.errors import UnsupportedError
from kvant.files.source import quote
from kvant.tokenizer.hf_files import Sources

__all__ = ["Ends", "read_ends"]

_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(slots=True)
class Ends:
    """Special tokens by name, flags, all ends of generation, and remarks for the report."""

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    end_ids: tuple[int, ...] = ()
    #: Whether tokenizer.json says what goes around a text, if only that nothing does.
    decided: bool = False
    notes: list[str] = field(default_factory=list)


def read_ends(sources: Sources, vocab: Mapping[str, int], vocab_size: int) -> Ends:
    """Find special tokens and what goes around a text.

    Args:
        sources: the folder's files.
        vocab: every token's id.
        vocab_size: ids from here on do not exist.

    Raises:
        FileFormatError: the files are not what they should be.
        UnsupportedError: the post-processor is of a kind no language model has.
    """
    ends = Ends(decided=bool(sources.tokenizer))
    texts = {k: _text(sources.tokenizer_config.get(f"{k}_token")) for k in _KINDS}
    texts["bos"] = texts["bos"] or texts["cls"]
    texts["eos"] = texts["eos"] or texts["sep"]
    for step in _steps(sources.tokenizer.get("post_processor")):
        kind = step.get("type")
        if kind == "ByteLevel":
            ends.add.setdefault("bos", False)
            ends.add.setdefault("eos", False)
        elif kind == "TemplateProcessing":
            _read_template(step, texts, ends)
        else:
            raise UnsupportedError(
                f"{sources.tokenizer_path}: a post-processor of kind {quote(str(kind))}; kvant "
                "carries TemplateProcessing and ByteLevel. Use a model of text generation."
            )
    for kind in ("bos", "eos", "sep"):
        flag = sources.tokenizer_config.get(f"add_{kind}_token")
        if isinstance(flag, bool):
            ends.add.setdefault(kind, flag)
    _resolve(sources, texts, vocab, vocab_size, ends)
    return ends


def _text(value: object) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _steps(post_processor: object) -> list[Mapping[str, Any]]:
    if not isinstance(post_processor, Mapping):
        return []
    parts = post_processor.get("processors", [post_processor])
    return [p for p in parts if isinstance(p, Mapping)] if isinstance(parts, list) else []


def _pieces(value: object) -> list[tuple[str, str]]:
    """A template as (kind, id) pairs: kind is "SpecialToken" or "Sequence"."""
    found: list[tuple[str, str]] = []
    for piece in value if isinstance(value, list) else []:
        for kind in ("SpecialToken", "Sequence"):
            body = piece.get(kind) if isinstance(piece, Mapping) else None
            if isinstance(body, Mapping) and isinstance(body.get("id"), str):
                found.append((kind, body["id"]))
    return found


def _read_template(step: Mapping[str, Any], texts: dict[str, str | None], ends: Ends) -> None:
    single = _pieces(step.get("single"))
    first = single[0][1] if len(single) > 1 and single[0][0] == "SpecialToken" else None
    last = single[-1][1] if len(single) > 1 and single[-1][0] == "SpecialToken" else None
    if len(single) > 1 + (first is not None) + (last is not None):
        ends.notes.append(
            "The tokenizer puts several tokens before or after a text; GGUF and llama.cpp put "
            "one at most."
        )
    if first is not None:
        texts["bos"] = texts["bos"] or first
        ends.add["bos"] = first in (texts["bos"], texts["cls"])
        if not ends.add["bos"]:
            ends.notes.append(
                f"The tokenizer puts {quote(first)} before a text, which is not the bos token; "
                "llama.cpp will put nothing."
            )
    if last is not None:
        if texts["eos"] not in (None, last):
            texts["eot"] = texts["eos"]
        texts["eos"] = last
        ends.add["eos"] = True
    _read_pair(_pieces(step.get("pair")), first, last, texts, ends)


def _read_pair(
    pair: list[tuple[str, str]],
    first: str | None,
    last: str | None,
    texts: dict[str, str | None],
    ends: Ends,
) -> None:
    """What goes between two texts decides whether llama.cpp adds a separator."""
    if pair and first is not None and pair[0] == ("SpecialToken", first):
        pair = pair[1:]
    if pair and last is not None and pair[-1] == ("SpecialToken", last):
        pair = pair[:-1]
    if len(pair) < 3 or (pair[0], pair[-1]) != (("Sequence", "A"), ("Sequence", "B")):
        return
    between = [token for kind, token in pair[1:-1] if kind == "SpecialToken"]
    separators = (texts["sep"], texts["eos"])
    separates = bool(between) and between[0] in separators and last is None
    if len(between) == 2 and between[1] in separators:
        separates = True
    ends.add["sep"] = separates
    if separates:
        texts["sep"] = texts["sep"] or texts["eos"]


def _resolve(
    sources: Sources,
    texts: Mapping[str, str | None],
    vocab: Mapping[str, int],
    vocab_size: int,
    ends: Ends,
) -> None:
    listed: dict[str, int] = {}
    for added in sources.listed_tokens():
        listed.setdefault(added.content, added.id)
    named = {k: listed.get(t) for k, t in texts.items() if t is not None}
    config = {k: _id(sources.config.get(f"{k}_token_id")) for k in _KINDS}
    mapped = {k: _text(sources.special_tokens_map.get(f"{k}_token")) for k in _KINDS}
    written = {k: t if t is not None else texts.get(k) for k, t in mapped.items()}
    later = {k: vocab.get(t) for k, t in written.items() if t is not None}
    generation = {k: _id(sources.generation_config.get(f"{k}_token_id")) for k in ("bos", "eos")}
    for source in (named, config, later, generation):
        for kind, token in source.items():
            if token is None or kind in ends.ids:
                continue
            if token < vocab_size:
                ends.ids[kind] = token
            else:
                ends.notes.append(
                    f"The {kind} token is {token}, but the model has {vocab_size} tokens; it is "
                    "left out."
                )
    every = [ends.ids.get("eos"), ends.ids.get("eot")]
    for values in (sources.generation_config, sources.config):
        value = values.get("eos_token_id")
        every += [_id(v) for v in (value[:64] if isinstance(value, list) else [value])]
    ends.end_ids = tuple(dict.fromkeys(i for i in every if i is not None and i < vocab_size))
    if "eos" not in ends.ids and ends.end_ids:
        ends.ids["eos"] = ends.end_ids[0]


def _id(value: object) -> int | None:
    """A token id; some configs have -1, or a list, where there is none."""
    return value if type(value) is int and value >= 0 else None
