"""The parts of a model's name, by the GGUF naming convention.

``Meta-Llama-3-8B-Instruct`` is a base name, a size label and a fine-tune. Published names follow
no grammar, so the rules here are the heuristics GGUF tools share: a name reads the same in every
one of them. Nothing but names depends on them.

Source: "GGUF naming convention" in ggml's ``docs/gguf.md``, and the cases that gguf-py tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["ModelName", "file_stem", "parse_model_id", "size_label", "title"]

_VERSION = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_ENCODING = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(r"(A|\d+x)?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl", re.IGNORECASE)
_FINETUNE = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_NOT_TITLED = re.compile(r"v\d+(\.\d+)*|\d.*")
_DIGITS = {"K": 3, "M": 6, "B": 9, "T": 12}
_UNITS = {unit: 10**digits for unit, digits in _DIGITS.items()}


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model id taken apart; None for what it does not have."""

    full: str
    organization: str | None = None
    basename: str | None = None
    size_label: str | None = None
    finetune: str | None = None
    version: str | None = None


@dataclass(slots=True)
class _Part:
    text: str
    kind: str | None  # "version", "encoding", "size", "finetune"
    base: bool = False


def parse_model_id(model_id: str, parameters: int = 0) -> ModelName:
    """Take apart ``organization/name`` or ``name``.

    A size label that is far from ``parameters`` (0: not known) is not this model's size but a
    context length or a token count, and counts as part of the fine-tune.
    """
    if " " in model_id:
        return ModelName(model_id)  # a title, not an id
    organization, slash, full = model_id.partition("/")
    if not slash:
        organization, full = "", model_id
    parts = [_part(text, i, parameters) for i, text in enumerate(filter(None, full.split("-")))]
    if any(p.kind == "size" and any(c.isdigit() for c in p.text) for p in parts):
        for part in parts:  # "mini" next to "7B" is a word of the name
            if part.kind == "size" and part.text.isalpha():
                part.kind = None
    _mark_base(parts)

    def joined(kind: str) -> str | None:
        return "-".join(p.text for p in parts if p.kind == kind and not p.base) or None

    size = "-".join(dict.fromkeys(p.text for p in parts if p.kind == "size")) or None
    finetune, version = joined("finetune"), joined("version")
    base = "-".join(p.text for p in parts if p.base) or None
    if not (size or finetune or version):
        base = None  # a single phrase: nothing says where the base name would end
    owner = None if organization.startswith(".") else organization or None
    return ModelName(full, owner, base, size, finetune, version)


def _part(text: str, index: int, parameters: int) -> _Part:
    if _VERSION.fullmatch(text):
        return _Part(text, "version")
    if _ENCODING.fullmatch(text):
        return _Part(text.upper(), "encoding")
    if index and _SIZE.fullmatch(text):
        return _size_part(text, parameters)
    if index and _FINETUNE.fullmatch(text):
        return _Part(text, "finetune")
    return _Part(text, None)


def _size_part(text: str, parameters: int) -> _Part:
    text = text.replace("_", ".")
    if text[-1].isdigit():  # 7b1 is 7.1B
        text = f"{text[:-2]}.{text[-1]}{text[-2]}"
    if text[-2].isdigit():
        text = text[:-1] + text[-1].upper()
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT])", text)
    if parameters and number:
        stated = float(number[1]) * _UNITS[number[2]]
        if abs(stated - parameters) > parameters * 7 // 8:
            return _Part(text[:-1] + text[-1].lower(), "finetune")
    return _Part(text, "size")


def _mark_base(parts: list[_Part]) -> None:
    """The base name: words and versions from the start, without a version at its end."""
    leading = 0
    for part in parts:
        if part.kind != "version" and not (part.kind is None and part.text[0].isalpha()):
            break
        part.base = True
        leading += 1
    for part in parts[leading:]:
        part.kind = part.kind or "finetune"
    for part in reversed(parts):
        if not (part.base and part.kind):
            break
        part.base = False


def title(text: str) -> str:
    """``my-llama-v2`` as a name for people: ``My Llama v2``."""
    words = text.replace("-", " ").split()
    return " ".join(
        word.title() if word.islower() and not _NOT_TITLED.fullmatch(word) else word
        for word in words
    )


def size_label(parameters: int) -> str:
    """A parameter count in at least two digits: ``5.7M``, ``1.2B``, ``70B``."""
    unit = next((u for u in "TBM" if parameters > _UNITS[u]), "K")
    scaled = parameters * float(f"1e-{_DIGITS[unit]}")  # rounds as the field's tools do
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{unit}"


def file_stem(name: ModelName, encoding: str) -> str:
    """The file name without ``.gguf``: ``Base-Size-Finetune-Version-Encoding``.

    Only letters, digits and ``. _ + -`` survive, so the name is one path component anywhere.
    """
    base = name.basename or name.full or "model"
    parts = [base, name.size_label, name.finetune, name.version, encoding]
    stem = "-".join(part for part in parts if part)
    stem = re.sub(r"[^\w.+-]+", "-", stem, flags=re.ASCII)
    return re.sub(r"-{2,}", "-", stem).strip(".-")[:200] or "model"
