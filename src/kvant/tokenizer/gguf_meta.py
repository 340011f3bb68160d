"""A tokenizer in GGUF metadata: the keys under ``tokenizer.``, both ways.

Sources: the GGUF specification ("Tokenizer"), ``gguf-py``'s ``SpecialVocab`` and ``GGUFWriter``
for what is written and in which order, ``llama_vocab::impl::load`` in llama.cpp for how it is read.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.gguf import (
    GgufFile,
    Value,
    ValueType,
    array,
    boolean,
    string,
    strings,
    uint32,
)
from kvant.files.source import quote
from kvant.tokenizer.definition import TokenizerDefinition, TokenType

__all__ = ["from_metadata", "to_metadata"]

Number = TypeVar("Number", np.int32, np.float32)

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_TEMPLATES = "tokenizer.chat_templates"

#: Special token -> its key. The specification misspells the separator, so all files do.
_ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "fim_pre": "fim_pre_token_id",
    "fim_suf": "fim_suf_token_id",
    "fim_mid": "fim_mid_token_id",
    "fim_pad": "fim_pad_token_id",
    "fim_rep": "fim_rep_token_id",
    "fim_sep": "fim_sep_token_id",
}
_FLAG_KEYS = {
    "add_bos": "add_bos_token",
    "add_eos": "add_eos_token",
    "add_sep": "add_sep_token",
    "add_space_prefix": "add_space_prefix",
    "remove_extra_whitespaces": "remove_extra_whitespaces",
    "lowercase": "normalizer.lowercase",
    "strip_accents": "normalizer.strip_accents",
}


def to_metadata(definition: TokenizerDefinition) -> dict[str, Value]:
    """The metadata of ``definition``, in the order in which converters write it."""
    d = definition
    out = {_PREFIX + "model": string(d.model), _PREFIX + "pre": string(d.pre)}
    out[_PREFIX + "tokens"] = strings(d.tokens)
    if d.scores is not None:
        out[_PREFIX + "scores"] = array(ValueType.FLOAT32, d.scores)
    out[_PREFIX + "token_type"] = array(ValueType.INT32, d.token_types)
    if d.merges is not None:
        out[_PREFIX + "merges"] = strings(d.merges)
    for name, token in d.special_ids.items():
        if name in _ID_KEYS:  # llama.cpp has no key for "cls"
            out[_PREFIX + _ID_KEYS[name]] = uint32(token)
    for name, key in _FLAG_KEYS.items():
        flag = getattr(d, name)
        if flag is not None:
            out[_PREFIX + key] = boolean(flag)
    for name, template in d.chat_templates.items():
        out[f"{_TEMPLATE}.{name}"] = string(template)
    if d.chat_templates:
        out[_TEMPLATES] = strings(d.chat_templates)
    if d.chat_template is not None:
        out[_TEMPLATE] = string(d.chat_template)
    return out


def from_metadata(file: GgufFile) -> TokenizerDefinition:
    """The tokenizer that the metadata of ``file`` holds.

    Raises:
        FileFormatError: keys are missing, of the wrong type, or contradict each other.
        UnsupportedError: a kind of tokenizer that kvant does not read.
    """
    where = str(file.path)
    model = file.get_str(_PREFIX + "model")
    if model not in ("gpt2", "llama", "bert"):
        raise UnsupportedError(
            f"{where}: the tokenizer is of kind {quote(model)}; kvant reads 'gpt2' (byte-level "
            "BPE), 'llama' (SentencePiece BPE) and 'bert' (WordPiece). Use a model with one of "
            "these."
        )
    tokens = file.get_strings(_PREFIX + "tokens")
    by_score = model == "llama"
    types = _numbers(file, "token_type", np.int32)
    scores = _numbers(file, "scores", np.float32) if by_score else None
    # What llama.cpp takes where the file is silent.
    if types is None:
        types = np.full(len(tokens), TokenType.NORMAL, np.int32)
    if scores is None and by_score:
        scores = np.zeros(len(tokens), np.float32)
    pre = "default" if model != "gpt2" else file.get_str(_PREFIX + "pre", None)
    notes = ("The file names no pre-tokenizer; llama.cpp takes 'default' then.",)
    ids = {n: file.get_int(_PREFIX + k, None) for n, k in _ID_KEYS.items()}
    special_ids = {n: i for n, i in ids.items() if i is not None}
    ends = (special_ids.get(n) for n in ("eos", "eot", "eom"))
    return TokenizerDefinition(
        model=model,
        pre="default" if pre is None else pre,
        tokens=tokens,
        token_types=types,
        scores=scores,
        merges=None if model != "gpt2" else file.get_strings(_PREFIX + "merges"),
        special_ids=special_ids,
        **{n: file.get_bool(_PREFIX + k, None) for n, k in _FLAG_KEYS.items()},
        chat_template=file.get_str(_TEMPLATE, None),
        chat_templates={
            key.removeprefix(_TEMPLATE + "."): file.get_str(key)
            for key in file.metadata
            if key.startswith(_TEMPLATE + ".")
        },
        end_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        notes=notes if pre is None else (),
        where=where,
    )


def _numbers(file: GgufFile, key: str, dtype: type[Number]) -> npt.NDArray[Number] | None:
    """The array under ``key`` as ``dtype``; None where there is none."""
    found = file.get_array(_PREFIX + key, None)
    if found is None:
        return None
    if dtype is np.int32 and found.dtype.kind not in "iu":
        raise FileFormatError(
            f"{file.path}: metadata {_PREFIX + key!r} should be an array of integers, got "
            f"{found.dtype}. Fetch or convert the file again."
        )
    # A number that does not fit becomes another one, and the definition checks the range.
    with np.errstate(over="ignore", invalid="ignore"):
        return found.astype(dtype)
