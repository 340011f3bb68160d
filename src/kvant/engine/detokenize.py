"""Tokens to text as they come, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from kvant.tokenizer.build import Tokenizer

__all__ = ["TokenDecoder"]

_UTF8 = codecs.getincrementaldecoder("utf-8")


class TokenDecoder:
    """Decodes the continuation of a prompt, token by token.

    Tokens are bytes, and a character may need several of them. What `add` returns is whole
    characters; at most three bytes wait for their next token, and `finish` ends the wait. Bytes
    that can be no character become U+FFFD, the same ones as if all were decoded at once. Control
    tokens have no text.

    SentencePiece tokenizers put a space before a text and after a control token, which is not part
    of it. Where the prompt ends in such a place, the space is taken away again; elsewhere it is
    what stands between the prompt's last word and the next.

    Args:
        tokenizer: the model's.
        prompt: the ids before the first one to decode.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._bytes = tokenizer.token_bytes
        self._utf8 = _UTF8(errors="replace")
        d = tokenizer.definition
        added = d.model == "llama" and d.add_space_prefix in (None, True)
        self._skip_space = added and not (len(prompt) and tokenizer.token_bytes(prompt[-1]))

    def add(self, token: int) -> str:
        """The characters that ``token`` completes.

        Raises:
            UsageError: there is no such token.
        """
        raw = self._bytes(token)
        if self._skip_space and raw:
            self._skip_space = False
            raw = raw.removeprefix(b" ")
        return self._utf8.decode(raw)

    def finish(self) -> str:
        """What is left when no token follows: U+FFFD where a character was begun."""
        return self._utf8.decode(b"", final=True)
