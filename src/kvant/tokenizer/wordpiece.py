"""WordPiece, BERT's kind of tokenizer: words are cut into the longest pieces the vocabulary has.

Pieces that begin a word carry ``▁``, as if a space stood there, and those inside a word carry
nothing: GGUF's way. Hugging Face marks those inside with ``##``; ``hf_wordpiece`` translates.

Sources: Devlin et al., arXiv 1810.04805; ``llm_tokenizer_wpm_session`` in llama.cpp's
``src/llama-vocab.cpp``; the documentation of the ``tokenizers`` library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

from kvant.errors import FileFormatError, UsageError
from kvant.tokenizer.definition import SPACE, TokenizerDefinition

__all__ = ["MAX_WORD", "WordPieces", "normalizer_json"]


MAX_WORD = 100
"""Characters of a word; longer ones are unknown, as transformers has it."""


class WordPieces:
    """Text to ids, without special tokens, as transformers does it.

    llama.cpp gives the same ids for most text. It differs where its tables of characters do: of a
    Korean syllable it keeps the first letter alone, it takes some rare marks for letters or drops
    them, and it cuts words of any length.
    """

    def __init__(self, definition: TokenizerDefinition, vocab: Mapping[str, int]) -> None:
        from tokenizers import Tokenizer as LibraryTokenizer

        d = definition
        shell = LibraryTokenizer.from_str(
            json.dumps(
                {
                    "normalizer": normalizer_json(d),
                    "pre_tokenizer": {"type": "BertPreTokenizer"},
                    "model": {"type": "BPE", "vocab": {}, "merges": []},
                }
            )
        )
        self._normalizer, self._splitter = shell.normalizer, shell.pre_tokenizer
        self._vocab = vocab
        self._sizes = sorted({len(text) for text in vocab if text}, reverse=True)
        unknown = d.token_id("unk")
        if unknown is None:
            raise FileFormatError(
                f"{d.where}: the file does not say which token stands for unknown words. Convert "
                "it again."
            )
        self._unknown = [unknown]
        self._known = lru_cache(1 << 14)(self._cut)

    def __call__(self, text: str) -> list[int]:
        """The ids of ``text``.

        Raises:
            UsageError: it is not valid Unicode.
        """
        try:
            words = self._splitter.pre_tokenize_str(self._normalizer.normalize_str(text))
        except (TypeError, UnicodeEncodeError):
            raise UsageError(
                "The text has half a surrogate pair, so it is not Unicode and has no tokens. "
                "Read it as UTF-8."
            ) from None
        return [
            token
            for word, _ in words
            for token in (self._known(word) if len(word) <= MAX_WORD else self._unknown)
        ]

    def _cut(self, word: str) -> list[int]:
        """The longest piece first, again and again; one unknown token where that fails."""
        text, at, found = SPACE + word, 0, []
        while at < len(text):
            left = len(text) - at
            sizes = (size for size in self._sizes if size <= left)
            size = next((s for s in sizes if text[at : at + s] in self._vocab), 0)
            if not size or (at and text[at] == SPACE):  # that begins words, and is none's inside
                return self._unknown
            found.append(self._vocab[text[at : at + size]])
            at += size
        return found


def normalizer_json(d: TokenizerDefinition) -> dict[str, object]:
    """How text is prepared, as tokenizer.json says it."""
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": d.strip_accents is not False,
        "lowercase": d.lowercase is not False,
    }
