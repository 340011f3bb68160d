"""WordPiece tokenizers of Hugging Face folders, both ways: tokenizer.json or vocab.txt.

Hugging Face writes pieces inside a word with ``##`` before them; GGUF has it the other way round
and marks those that begin one.

Sources: ``BertModel.set_vocab`` in llama.cpp's converter; the documentation of the ``tokenizers``
library and the files it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.source import quote
from kvant.tokenizer.definition import MAX_TOKENS, SPACE, TokenizerDefinition, TokenType
from kvant.tokenizer.hf_files import Sources, wrong
from kvant.tokenizer.hf_vocab import Vocabulary, model_vocab
from kvant.tokenizer.reading import read_text
from kvant.tokenizer.wordpiece import MAX_WORD, normalizer_json

__all__ = ["VOCABULARY", "is_wordpiece", "read_wordpiece", "to_wordpiece_json"]

VOCABULARY = "vocab.txt"
"""The file of tokens, one a line, that came before tokenizer.json."""

_INSIDE = "##"
_MAX_VOCABULARY_BYTES = 16_000_000
_NAMES = ("cls", "sep", "unk", "pad", "mask")


def is_wordpiece(sources: Sources) -> bool:
    """Whether the folder's tokenizer is of this kind."""
    model = sources.tokenizer.get("model")
    if sources.tokenizer:
        return isinstance(model, Mapping) and model.get("type") == "WordPiece"
    return (sources.folder / VOCABULARY).is_file() and not sources.model_path.is_file()


def read_wordpiece(sources: Sources, vocab_size: int) -> TokenizerDefinition:
    """The tokenizer in tokenizer.json, or in vocab.txt.

    Raises:
        FileFormatError: a file is damaged.
        UnsupportedError: it does something that llama.cpp has nothing like.
    """
    if sources.tokenizer:
        vocab = model_vocab(sources, vocab_size)
        lowercase, strip_accents = _pipeline(sources)
    else:
        vocab = _lines(sources, vocab_size)
        config = sources.tokenizer_config
        lowercase = config.get("do_lower_case") is not False
        said = config.get("strip_accents")
        strip_accents = said if isinstance(said, bool) else lowercase
    special = _special(sources, vocab)
    found = Vocabulary(vocab_size)
    for text, token in vocab.items():
        found.put(token, text, TokenType.NORMAL)
    found.add(sources.listed_tokens())
    for token in special.values():
        found.types[token] = TokenType.CONTROL
    tokens = [_phantom(t, int(kind)) for t, kind in zip(found.tokens, found.types, strict=True)]
    ids = {"bos": special["cls"], "eos": special["sep"], **special}
    return TokenizerDefinition(
        model="bert",
        pre="default",
        tokens=tokens,
        token_types=found.types,
        special_ids=ids,
        lowercase=lowercase,
        strip_accents=strip_accents,
        notes=tuple(found.notes),
        where=str(sources.folder),
    )


def _phantom(text: str, kind: int) -> str:
    if kind != TokenType.NORMAL:
        return text
    return text.removeprefix(_INSIDE) if text.startswith(_INSIDE) else SPACE + text


def _lines(sources: Sources, vocab_size: int) -> dict[str, int]:
    path = sources.folder / VOCABULARY
    lines = read_text(path, _MAX_VOCABULARY_BYTES).removesuffix("\n").split("\n")
    if len(lines) > min(vocab_size, MAX_TOKENS):
        raise FileFormatError(
            f"{path}: expected at most the {vocab_size} tokens of config.json's vocab_size, got "
            f"{len(lines)} lines. Fetch both files again."
        )
    vocab: dict[str, int] = {}
    for i, line in enumerate(lines):
        token = line.removesuffix("\r")
        if vocab.setdefault(token, i) != i:
            raise FileFormatError(
                f"{path}: lines {vocab[token] + 1} and {i + 1} are both {quote(token)}; every "
                "token must be different. Fetch the file again."
            )
    return vocab


def _special(sources: Sources, vocab: Mapping[str, int]) -> dict[str, int]:
    """Ids of the special tokens; those around a text must be there."""
    model = sources.tokenizer.get("model") or {}
    found: dict[str, int] = {}
    for name in _NAMES:
        value = sources.tokenizer_config.get(f"{name}_token")
        value = value.get("content") if isinstance(value, Mapping) else value
        if name == "unk" and isinstance(model.get("unk_token"), str):
            value = model["unk_token"]
        text = value if isinstance(value, str) else f"[{name.upper()}]"
        if text in vocab:
            found[name] = vocab[text]
        elif name in ("cls", "sep", "unk"):
            raise FileFormatError(
                f"{sources.folder}: the tokenizer's {name} token {quote(text)} is not in its "
                "vocabulary. Fetch the files again."
            )
    texts = {token: text for text, token in vocab.items()}
    _check_ends(sources, texts[found["cls"]], texts[found["sep"]])
    return found


def _check_ends(sources: Sources, cls: str, sep: str) -> None:
    """A text stands between [CLS] and [SEP]: llama.cpp knows nothing else for this kind."""
    if not sources.tokenizer:
        return
    step = sources.tokenizer.get("post_processor")
    kind = step.get("type") if isinstance(step, Mapping) else None
    around: list[object] = []
    if isinstance(step, Mapping) and kind == "BertProcessing":
        around = [(step.get(name) or [None])[0] for name in ("cls", "sep")]
    elif isinstance(step, Mapping) and kind == "TemplateProcessing":
        single = step.get("single")
        for piece in single if isinstance(single, list) else []:
            body = next(iter(piece.values()), None) if isinstance(piece, Mapping) else None
            around.append(body.get("id") if isinstance(body, Mapping) else None)
        around = around[:1] + around[2:] if around[1:2] == ["A"] else around
    if around != [cls, sep]:
        raise UnsupportedError(
            f"{sources.tokenizer_path}: the tokenizer puts {quote(str(around), 80)} around a text, "
            f"expected {quote(cls)} and {quote(sep)}; llama.cpp has nothing else for WordPiece. "
            "Use a model whose tokenizer does so."
        )


def _pipeline(sources: Sources) -> tuple[bool, bool]:
    """(lowercase, strip accents) of tokenizer.json's normaliser."""
    where = sources.tokenizer_path
    model = sources.tokenizer["model"]
    prefix = model.get("continuing_subword_prefix")
    if prefix != _INSIDE:
        raise UnsupportedError(
            f"{where}: pieces inside a word begin with {quote(str(prefix), 40)}, expected "
            f"{_INSIDE}; GGUF has nothing else. Use a model with BERT's own tokenizer."
        )
    if model.get("max_input_chars_per_word", MAX_WORD) != MAX_WORD:
        raise UnsupportedError(
            f"{where}: words of up to {quote(str(model['max_input_chars_per_word']), 40)} "
            f"characters are cut, expected {MAX_WORD}; GGUF cannot say so. Use a model with BERT's "
            "own tokenizer."
        )
    normalizer = sources.tokenizer.get("normalizer")
    splitter = sources.tokenizer.get("pre_tokenizer")
    kinds = [s.get("type") if isinstance(s, Mapping) else None for s in (normalizer, splitter)]
    if kinds != ["BertNormalizer", "BertPreTokenizer"]:
        raise UnsupportedError(
            f"{where}: the tokenizer prepares text by {quote(str(kinds), 80)}, expected "
            "BertNormalizer and BertPreTokenizer; llama.cpp has nothing else for WordPiece. Use a "
            "model with BERT's own tokenizer."
        )
    assert isinstance(normalizer, Mapping)
    for key in ("clean_text", "handle_chinese_chars"):
        if normalizer.get(key, True) is not True:
            raise UnsupportedError(
                f"{where}: the normalizer's {key!r} should be true, got "
                f"{quote(str(normalizer[key]), 40)}; llama.cpp always does that."
            )
    lowercase, accents = normalizer.get("lowercase", True), normalizer.get("strip_accents")
    if not isinstance(lowercase, bool) or not isinstance(accents, (bool, type(None))):
        raise wrong(where, "normalizer", "an object with truth values", normalizer)
    return lowercase, lowercase if accents is None else accents


def to_wordpiece_json(d: TokenizerDefinition, vocab: Mapping[str, int]) -> dict[str, Any]:
    """The parts of tokenizer.json that are of this kind: model, normaliser, and what follows."""

    def inside(text: str, token: int) -> str:
        if d.token_types[token] != TokenType.NORMAL:
            return text
        return text.removeprefix(SPACE) if text.startswith(SPACE) else _INSIDE + text

    cls, sep, unknown = (d.token_id(name) for name in ("bos", "sep", "unk"))
    assert cls is not None
    assert sep is not None
    around = [(cls, 0), (sep, 0)]
    pieces = [{"SpecialToken": {"id": d.tokens[t], "type_id": n}} for t, n in around]
    first = [pieces[0], {"Sequence": {"id": "A", "type_id": 0}}, pieces[1]]
    second = [
        {"Sequence": {"id": "B", "type_id": 1}},
        {"SpecialToken": {"id": d.tokens[sep], "type_id": 1}},
    ]
    special = {
        d.tokens[t]: {"id": d.tokens[t], "ids": [t], "tokens": [d.tokens[t]]} for t, _ in around
    }
    return {
        "normalizer": normalizer_json(d),
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": first,
            "pair": first + second,
            "special_tokens": special,
        },
        "decoder": {"type": "WordPiece", "prefix": _INSIDE, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": d.tokens[unknown] if unknown is not None else "[UNK]",
            "continuing_subword_prefix": _INSIDE,
            "max_input_chars_per_word": MAX_WORD,
            "vocab": {inside(text, token): token for text, token in vocab.items()},
        },
    }
