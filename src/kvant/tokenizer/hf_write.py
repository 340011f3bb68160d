"""A definition as the files of a Hugging Face folder: tokenizer.json and tokenizer_config.json.

What comes out computes what the definition says, so a tokenizer that went from a folder to GGUF
and back gives the same ids; it is not the same file byte for byte.

Source: the documentation of the ``tokenizers`` library and the files it writes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvant.errors import UnsupportedError
from kvant.tokenizer import pretokenizers
from kvant.tokenizer.build import SPACE, vocabulary
from kvant.tokenizer.definition import TokenizerDefinition, TokenType, split_merges
from kvant.tokenizer.hf_wordpiece import to_wordpiece_json
from kvant.tokenizer.spm import merges_from_scores

__all__ = ["to_hf_config", "to_hf_json"]

_MARK_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def to_hf_json(definition: TokenizerDefinition) -> dict[str, Any]:
    """The content of tokenizer.json.

    Tokens that only pad the vocabulary (``[PAD{i}]`` at id i, unused) are left out.

    Raises:
        UnsupportedError: the pre-tokenizer is not known, or the scores cannot be said as merges.
        FileFormatError: a merge has no two sides.
    """
    d = definition
    vocab = {
        t: i
        for t, i in vocabulary(d).items()
        if t != f"[PAD{i}]" or d.token_types[i] != TokenType.UNUSED
    }
    if d.model == "bert":
        head = {"version": "1.0", "truncation": None, "padding": None}
        return {**head, "added_tokens": _added_tokens(d), **to_wordpiece_json(d, vocab)}
    parts = _by_score(d, vocab) if d.model == "llama" else _of_bytes(d, vocab)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(d),
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _post_processor(d),
        "decoder": parts["decoder"],
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": parts["unk_token"],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": d.model == "llama",
            "ignore_merges": parts["ignore_merges"],
            "vocab": vocab,
            "merges": parts["merges"],
        },
    }


def to_hf_config(definition: TokenizerDefinition) -> dict[str, Any]:
    """The content of tokenizer_config.json: special tokens by name, flags, the chat template."""
    d = definition
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if d.model == "bert":
        config |= {"tokenizer_class": "BertTokenizer", "do_lower_case": d.lowercase is not False}
        config |= {
            "strip_accents": d.strip_accents is not False,
            "cls_token": d.tokens[d.token_id("bos") or 0],
        }
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        token = d.token_id(name)
        if token is not None:
            config[f"{name}_token"] = d.tokens[token]
    for name, flag in (("bos", d.add_bos), ("eos", d.add_eos)):
        if flag is not None:
            config[f"add_{name}_token"] = flag
    config["clean_up_tokenization_spaces"] = False
    if d.chat_templates:
        named = {"default": d.chat_template, **d.chat_templates}
        config["chat_template"] = [
            {"name": n, "template": t} for n, t in named.items() if t is not None
        ]
    elif d.chat_template is not None:
        config["chat_template"] = d.chat_template
    return config


def _added_tokens(d: TokenizerDefinition) -> list[dict[str, Any]]:
    kinds = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    return [
        {
            "id": i,
            "content": d.tokens[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": bool(d.token_types[i] != TokenType.USER_DEFINED),
        }
        for i in np.flatnonzero(np.isin(d.token_types, kinds)).tolist()
    ]


def _of_bytes(d: TokenizerDefinition, vocab: dict[str, int]) -> dict[str, Any]:
    entry = pretokenizers.find(d.pre, d.where)
    return {
        "normalizer": None,
        "pre_tokenizer": pretokenizers.describe(entry),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "unk_token": None,
        "ignore_merges": entry.ignore_merges,
        "merges": [list(pair) for pair in dict.fromkeys(split_merges(d.merges or [], d.where))],
    }


def _by_score(d: TokenizerDefinition, vocab: dict[str, int]) -> dict[str, Any]:
    scores = d.scores if d.scores is not None else np.zeros(len(d.tokens), np.float32)
    kept = np.fromiter(vocab.values(), np.int64, len(vocab))
    found = merges_from_scores(vocab, scores[kept], d.where)
    if not found.exact:
        raise UnsupportedError(
            f"{d.where}: no list of merges, as tokenizer.json has, does what the scores of this "
            "tokenizer do (mostly because many are equal). Use the tokenizer.json the model came "
            "with."
        )
    prefix = d.add_space_prefix is not False
    unknown = d.token_id("unk")
    marks: list[dict[str, Any]] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders: list[dict[str, Any]] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*marks, _MARK_SPACES]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "unk_token": None if unknown is None else d.tokens[unknown],
        "ignore_merges": False,
        "merges": [list(pair) for pair in found.merges],
    }


def _post_processor(d: TokenizerDefinition) -> dict[str, Any] | None:
    """Put the tokens around a text that llama.cpp would put there."""
    by_default = d.model == "llama" or pretokenizers.find(d.pre, d.where).add_bos
    add_bos = by_default if d.add_bos is None else d.add_bos
    bos = d.token_id("bos") if add_bos else None
    eos = d.token_id("eos") if d.add_eos else None
    if bos is None and eos is None:
        return None if d.model == "llama" else _BYTE_LEVEL_POST

    def around(sequence: str, number: int) -> list[dict[str, Any]]:
        pieces = [] if bos is None else [("SpecialToken", d.tokens[bos])]
        pieces.append(("Sequence", sequence))
        pieces += [] if eos is None else [("SpecialToken", d.tokens[eos])]
        return [{kind: {"id": text, "type_id": number}} for kind, text in pieces]

    special = {
        d.tokens[i]: {"id": d.tokens[i], "ids": [i], "tokens": [d.tokens[i]]}
        for i in (bos, eos)
        if i is not None
    }
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": special,
    }


_BYTE_LEVEL_POST = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
