"""The tokens of a Hugging Face folder: texts, types, scores or merges, by id.

The rules are those of llama.cpp's converter (``get_vocab_base`` and ``_create_vocab_sentencepiece``
in ``conversion/base.py``), so that the metadata comes out the same. Where that converter writes
placeholder scores, for SentencePiece-style tokenizers that come without tokenizer.model, the
scores are worked out from the merges instead: with placeholders llama.cpp gives other ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.source import quote
from kvant.tokenizer.build import SPACE, byte_token
from kvant.tokenizer.definition import MAX_MERGES, TokenType, check_merges, split_merges
from kvant.tokenizer.hf_files import AddedToken, Sources, wrong
from kvant.tokenizer.sentencepiece import SentencePieceModel
from kvant.tokenizer.specials import looks_special
from kvant.tokenizer.spm import scores_from_merges

__all__ = ["Vocabulary", "model_merges", "model_vocab", "of_bytes", "of_merges", "of_pieces"]

#: The converter's scores of added tokens, and of ids that no token has.
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


@dataclass(slots=True)
class Vocabulary:
    """Tokens by id, all ``size`` of them: what no token has is ``[PAD{id}]`` and unused."""

    size: int
    tokens: list[str] = field(init=False)
    types: npt.NDArray[np.int32] = field(init=False)
    scores: npt.NDArray[np.float32] = field(init=False)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = [f"[PAD{i}]" for i in range(self.size)]
        self.types = np.full(self.size, TokenType.UNUSED, np.int32)
        self.scores = np.full(self.size, _UNUSED_SCORE, np.float32)

    def put(self, token: int, text: str, kind: TokenType, score: float = 0.0) -> None:
        """Set one token whose id is known to be below ``size``."""
        self.tokens[token], self.types[token], self.scores[token] = text, kind, score

    def add(self, added: Iterable[AddedToken]) -> None:
        """Set added tokens; those beyond the model's size are left out and noted."""
        beyond: list[AddedToken] = []
        greedy = 0
        for token in added:
            if token.id >= self.size:
                beyond.append(token)
            elif token.special or looks_special(token.content):
                self.put(token.id, token.content, TokenType.CONTROL, _ADDED_SCORE)
            else:
                text = token.content.replace(SPACE, " ")
                self.put(token.id, text, TokenType.USER_DEFINED, _ADDED_SCORE)
            greedy += token.greedy
        if beyond:
            self.notes.append(
                f"{len(beyond)} added tokens are left out, such as {quote(beyond[0].content)}: "
                f"their ids are not below {self.size}, the number of tokens the model has."
            )
        if greedy:
            self.notes.append(
                f"{greedy} added tokens take the spaces beside them or match whole words only; "
                "GGUF cannot say so, and llama.cpp matches them as they are."
            )


def model_vocab(sources: Sources, vocab_size: int) -> dict[str, int]:
    """``model.vocab`` of tokenizer.json, checked: text -> id below ``vocab_size``.

    Raises:
        FileFormatError: not that.
    """
    where = sources.tokenizer_path
    vocab = _part(sources).get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise wrong(where, "model.vocab", "an object of tokens with their ids", vocab)
    for text, token in vocab.items():
        if type(token) is not int or not 0 <= token < vocab_size:
            raise FileFormatError(
                f"{where}: token {quote(text)} has the id {quote(str(token), 40)}, expected a "
                f"number below {vocab_size}, the vocab_size of the model. Fetch the files again; "
                "config.json and tokenizer.json may be of different models."
            )
    if len(set(vocab.values())) != len(vocab):
        seen: dict[int, str] = {}
        for text, token in vocab.items():
            if seen.setdefault(token, text) != text:
                raise FileFormatError(
                    f"{where}: tokens {quote(seen[token])} and {quote(text)} both have the id "
                    f"{token}. Fetch the file again."
                )
    return vocab


def model_merges(sources: Sources) -> list[str]:
    """``model.merges`` of tokenizer.json, in the form ``"left right"``.

    Raises:
        FileFormatError: not a list of pairs, in either of the two ways to write them.
    """
    where = sources.tokenizer_path
    merges = _part(sources).get("merges")
    if not isinstance(merges, list) or len(merges) > MAX_MERGES:
        raise wrong(where, "model.merges", f"a list of at most {MAX_MERGES}", merges)
    if all(type(m) is str for m in merges):
        return merges
    found: list[str] = []
    for merge in merges:
        if not (isinstance(merge, list) and len(merge) == 2 and all(type(s) is str for s in merge)):
            raise wrong(where, "model.merges", "a list of pairs of tokens", merge)
        left, right = merge
        if " " in left or " " in right:
            # The converter shifts such spaces to Ġ, which changes the token; rather say so.
            raise UnsupportedError(
                f"{where}: the merge {quote(str(merge))} has a space inside a token, which GGUF "
                "cannot say. Use a tokenizer that writes spaces as another character."
            )
        found.append(f"{left} {right}")
    return found


def _part(sources: Sources) -> Mapping[str, Any]:
    model = sources.tokenizer.get("model")
    if not isinstance(model, dict):
        raise wrong(sources.tokenizer_path, "model", "an object", model)
    return model


def of_bytes(sources: Sources, vocab: Mapping[str, int], size: int) -> Vocabulary:
    """The tokens of a byte-level tokenizer.json.

    Raises:
        FileFormatError: an added token contradicts the vocabulary.
    """
    found = Vocabulary(size)
    for text, token in vocab.items():
        found.put(token, text, TokenType.NORMAL)
    found.add(_merged(sources, vocab, sources.tokenizer_path))
    return found


def of_merges(
    sources: Sources, vocab: Mapping[str, int], merges: list[str], size: int
) -> Vocabulary:
    """The tokens of a SentencePiece-style tokenizer.json, with scores from its merges.

    Raises:
        FileFormatError: an added token contradicts the vocabulary.
        UnsupportedError: no scores have the order of the merges, or byte tokens are missing.
    """
    where = str(sources.tokenizer_path)
    missing = next((b for b in range(256) if byte_token(b) not in vocab), None)
    if missing is not None:
        raise UnsupportedError(
            f"{where}: the vocabulary has no token {byte_token(missing)}; llama.cpp needs one for "
            "each byte in a tokenizer of this kind. Use a tokenizer with byte fallback."
        )
    found = Vocabulary(size)
    by_id = dict(sorted(vocab.items(), key=lambda item: item[1]))
    pairs = split_merges(merges, where)
    check_merges(pairs, vocab, where)
    scores, notes = scores_from_merges(by_id, pairs, where)
    found.notes += notes
    for (text, token), score in zip(by_id.items(), scores.tolist(), strict=True):
        byte = _BYTE.fullmatch(text) is not None
        found.put(token, text, TokenType.BYTE if byte else TokenType.NORMAL, 0.0 if byte else score)
    found.add(_merged(sources, vocab, sources.tokenizer_path))
    return found


def of_pieces(sources: Sources, model: SentencePieceModel, size: int) -> Vocabulary:
    """The tokens of a tokenizer.model, and what the JSON files add to them."""
    found = Vocabulary(size)
    for i, piece in enumerate(model.pieces[:size]):
        # As in the converter: a piece the user defined is merged like any other, because after
        # one that is cut out of the text first llama.cpp would put a prefix space.
        plain = piece.type == TokenType.USER_DEFINED
        found.put(i, piece.text, TokenType.NORMAL if plain else piece.type, piece.score)
    if len(model.pieces) > size:
        found.notes.append(
            f"{len(model.pieces) - size} tokens of tokenizer.model are left out: the model has "
            f"only {size}."
        )
    for token in sources.legacy_tokens():
        if token.id < size:
            found.put(token.id, token.content, TokenType.USER_DEFINED, _ADDED_SCORE)
    configured = sources.configured_tokens()
    found.add(configured)
    # Newer folders list added tokens in tokenizer.json only; the converter does not look there.
    known = {t.id for t in configured}
    found.add(
        t
        for t in sources.listed_tokens()
        if t.id not in known and (t.id >= size or found.tokens[t.id] != t.content)
    )
    return found


def _merged(sources: Sources, vocab: Mapping[str, int], where: Path) -> list[AddedToken]:
    """The added tokens of both JSON files; one that is also in ``vocab`` has its id there."""
    listed = sources.listed_tokens()
    known = {t.id for t in listed}
    tokens = listed + [t for t in sources.configured_tokens() if t.id not in known]
    by_id = {i: text for text, i in vocab.items()}
    for token in tokens:
        if vocab.get(token.content, token.id) != token.id:
            raise FileFormatError(
                f"{where}: the added token {quote(token.content)} has the id {token.id}, but "
                f"{vocab[token.content]} in the vocabulary. Fetch the files again."
            )
        if by_id.get(token.id, token.content) != token.content:
            raise FileFormatError(
                f"{where}: the added token {quote(token.content)} has the id {token.id}, which is "
                f"{quote(by_id[token.id])} in the vocabulary. Fetch the files again."
            )
    return tokens
