"""From a definition to a tokenizer that runs, with the ids llama.cpp would give.

The ``tokenizers`` library does the merging. Cutting out special tokens and placing prefix spaces
is done here, because llama.cpp has its own way with both: the longest special token first, at any
place, and a prefix space after each.

Source: ``llama_vocab::impl::tokenize``, ``tokenizer_st_partition`` and ``token_to_piece`` in
llama.cpp's ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from kvant.errors import FileFormatError, UsageError
from kvant.files.config_json import collector_paused
from kvant.files.source import quote
from kvant.tokenizer import pretokenizers
from kvant.tokenizer.byte_alphabet import decode_bytes
from kvant.tokenizer.definition import (
    SPACE,
    TokenizerDefinition,
    TokenType,
    check_merges,
    split_merges,
)
from kvant.tokenizer.specials import always_control
from kvant.tokenizer.spm import ScoreMerger, merges_from_scores
from kvant.tokenizer.wordpiece import WordPieces

if TYPE_CHECKING:
    import tokenizers

__all__ = ["SPACE", "Tokenizer", "build", "byte_token", "vocabulary"]

_EMPTY_MODEL: dict[str, object] = {"type": "BPE", "vocab": {}, "merges": []}


def build(definition: TokenizerDefinition) -> Tokenizer:
    """A tokenizer that runs ``definition``.

    Raises:
        FileFormatError: merges need tokens that are not there.
        UnsupportedError: the pre-tokenizer is not known.
    """
    with collector_paused():  # hundreds of thousands of pairs, and no cycle among them
        return Tokenizer(definition)


def byte_token(byte: int) -> str:
    """The token that stands for one byte in a SentencePiece vocabulary."""
    return f"<0x{byte:02X}>"


def vocabulary(definition: TokenizerDefinition) -> dict[str, int]:
    """Token -> id, in the order of ids, with llama.cpp's names for empty tokens."""
    vocab = {t: i for i, t in enumerate(definition.tokens)}
    if "" in vocab:
        vocab = {t or f"[EMPTY_{i}]": i for i, t in enumerate(definition.tokens)}
    return vocab


class Tokenizer:
    """Text to ids and back. May be used by several threads at once."""

    def __init__(self, definition: TokenizerDefinition) -> None:
        d = self.definition = definition
        self.vocab_size = len(d.tokens)
        self.bos_id = d.token_id("bos")
        self.eos_id = d.token_id("eos")
        self._merge: Callable[[str], list[int]]
        self._by_score, self._by_words = d.model == "llama", d.model == "bert"
        vocab = vocabulary(d)
        if self._by_words:
            self._merge = WordPieces(d, vocab)
            add_bos, self._prefix = True, " "  # a word's piece is written with a space before it
        elif self._by_score:
            self._merge = _merger_by_score(d, vocab)
            add_bos = True
            self._prefix = " " if d.add_space_prefix in (None, True) else ""
        else:
            self._merge = _merger_of_bytes(d, vocab)
            add_bos = pretokenizers.find(d.pre, d.where).add_bos
            self._prefix = ""
        self._first = _ends(d, "bos", self.bos_id, add_bos if d.add_bos is None else d.add_bos)
        self._last = _ends(d, "eos", self.eos_id, bool(d.add_eos))
        if self._by_words:  # llama.cpp asks no flags for this kind
            self._first = _ends(d, "bos", self.bos_id, True)
            self._last = _ends(d, "sep", d.token_id("sep"), True)
        self._types = _effective_types(d, vocab)
        self._cut = _longest_first(d, self._types, {TokenType.USER_DEFINED})
        self._cut_all = _longest_first(
            d, self._types, {TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNKNOWN}
        )

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of ``text``.

        Args:
            text: any text without half surrogate pairs.
            add_special: put the tokens around it that the definition wants (mostly ``<s>``).
            parse_special: read control tokens written in the text as such. Only for text that
                is trusted, such as a rendered chat template.

        Raises:
            UsageError: the text is not valid Unicode.
        """
        ids = list(self._first) if add_special else []
        after_token = True
        for part in _partition(text, self._cut_all if parse_special else self._cut):
            if isinstance(part, int):
                ids.append(part)
            elif self._by_score:
                lead = self._prefix if after_token else ""
                ids += self._merge((lead + part).replace(" ", SPACE))
            else:
                ids += self._merge(part)
            after_token = isinstance(part, int)
        return ids + list(self._last) if add_special else ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD.

        Control tokens are left out unless ``special``. The space that ``encode`` puts before the
        text is taken away.

        Raises:
            UsageError: an id is not of this vocabulary.
        """
        raw = b"".join(self.token_bytes(i, special) for i in ids)
        if self._prefix and raw.startswith(b" "):
            raw = raw[1:]
        return raw.decode(errors="replace")

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """The bytes that ``token`` adds to a text; none for a control token unless ``special``.

        Raises:
            UsageError: there is no such token.
        """
        if not 0 <= token < self.vocab_size:
            raise UsageError(
                f"Token {token} does not exist; the vocabulary has ids 0 to {self.vocab_size - 1}."
            )
        text, kind = self.definition.tokens[token], self._types[token]
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            return text.encode() if special else b""
        if kind == TokenType.USER_DEFINED:
            return text.encode()
        if kind == TokenType.BYTE:
            return _byte_of(text)
        if kind != TokenType.NORMAL:
            return b""
        if self._by_score or self._by_words:
            return text.replace(SPACE, " ").encode()
        raw = decode_bytes(text)
        return text.encode() if raw is None else raw


def _ends(d: TokenizerDefinition, name: str, token: int | None, wanted: bool) -> tuple[int, ...]:
    if not wanted:
        return ()
    if token is None:
        raise FileFormatError(
            f"{d.where}: texts should have the {name} token around them, but the file does not say "
            "which it is. Convert the file again."
        )
    return (token,)


def _byte_of(text: str) -> bytes:
    try:
        return bytes([int(text[3:5], 16)])
    except ValueError:
        return b""


def _effective_types(d: TokenizerDefinition, vocab: dict[str, int]) -> list[int]:
    """The types llama.cpp works with, which for some texts are not the file's."""
    types: list[int] = d.token_types.tolist()
    for text in always_control(frozenset(d.special_ids), vocab.keys()):
        types[vocab[text]] = TokenType.CONTROL
    return types


def _longest_first(
    d: TokenizerDefinition, types: list[int], kinds: set[TokenType]
) -> list[tuple[str, int]]:
    found = [(d.tokens[i], i) for i, t in enumerate(types) if t in kinds and d.tokens[i]]
    return sorted(found, key=lambda pair: -len(pair[0].encode()))


def _partition(text: str, specials: list[tuple[str, int]]) -> list[str | int]:
    """``text`` with the ``specials`` in it as ids, each cut out wherever it stands, in order."""
    parts: list[str | int] = [text] if text else []
    for special, token in specials:
        if special not in text:
            continue
        parts = [p for part in parts for p in _cut_out(part, special, token)]
    return parts


def _cut_out(part: str | int, special: str, token: int) -> list[str | int]:
    if isinstance(part, int):
        return [part]
    out: list[str | int] = []
    for i, between in enumerate(part.split(special)):
        if i:
            out.append(token)
        if between:
            out.append(between)
    return out


def _library_tokenizer(
    d: TokenizerDefinition, vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any
) -> tokenizers.Tokenizer:
    """A tokenizer of the library with a BPE model and nothing around it."""
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers.models import BPE

    try:
        return LibraryTokenizer(BPE(vocab, merges, **options))
    except Exception as error:  # the library raises plain Exception
        check_merges(merges, vocab, d.where)
        raise FileFormatError(
            f"{d.where}: the tokenizers library refuses this vocabulary: {quote(str(error), 200)}. "
            "Fetch or convert the file again."
        ) from None


def _library_merger(library: tokenizers.Tokenizer) -> Callable[[str], list[int]]:
    def merge(text: str) -> list[int]:
        try:
            ids: list[int] = library.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise UsageError(
                "The text has half a surrogate pair, so it is not Unicode and has no tokens. "
                "Read it as UTF-8."
            ) from None
        return ids

    return merge


def _merger_of_bytes(d: TokenizerDefinition, vocab: dict[str, int]) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer as LibraryTokenizer

    entry = pretokenizers.find(d.pre, d.where)
    pairs = split_merges(d.merges or [], d.where)
    if len(set(pairs)) != len(pairs):
        # Given twice, a merge has its first rank for llama.cpp and its last for the library.
        pairs = list(dict.fromkeys(pairs))
    library = _library_tokenizer(d, vocab, pairs, ignore_merges=entry.ignore_merges)
    shell = {"pre_tokenizer": pretokenizers.describe(entry), "model": _EMPTY_MODEL}
    library.pre_tokenizer = LibraryTokenizer.from_str(json.dumps(shell)).pre_tokenizer
    return _library_merger(library)


def _merger_by_score(d: TokenizerDefinition, vocab: dict[str, int]) -> Callable[[str], list[int]]:
    scores = d.scores if d.scores is not None else np.zeros(len(vocab), np.float32)
    unknown = d.token_id("unk")
    found = merges_from_scores(vocab, scores, d.where)
    if not found.exact:
        tokens = {b: vocab.get(byte_token(b)) for b in range(256)}
        fallback = {b: i for b, i in tokens.items() if i is not None}
        return ScoreMerger(vocab, scores, fallback, unknown).encode
    library = _library_tokenizer(
        d,
        vocab,
        found.merges,
        byte_fallback=True,
        unk_token=None if unknown is None else list(vocab)[unknown],
    )
    return _library_merger(library)
