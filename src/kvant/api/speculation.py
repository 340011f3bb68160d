"""What guesses tokens for a model: its own text, or a smaller model."""

from __future__ import annotations

import os
from typing import Literal, TypeAlias

from kvant.api.source import Source, open_source, tokenizer_of
from kvant.engine import Engine, load_engine
from kvant.engine.speculative import Drafter, DraftModel, Lookup, Speculator, check_vocabulary
from kvant.tokenizer.build import Tokenizer

__all__ = ["Speculate", "speculator"]

Speculate: TypeAlias = Source | Literal["ngram"] | None
"""``"ngram"``: what followed the same tokens before in the text; otherwise a smaller model of the
same vocabulary, as for `load`."""


def speculator(how: Speculate, engine: Engine, tokenizer: Tokenizer) -> Speculator | None:
    """What ``how`` names, for a model that is loaded.

    Raises:
        UsageError: the draft model has another vocabulary.
        InputError, NotEnoughMemoryError: it cannot be read, or does not fit beside the model.
    """
    if how is None:
        return None
    drafter: Drafter
    if isinstance(how, (str, os.PathLike)) and os.fspath(how) == "ngram":
        drafter = Lookup()
    else:
        checkpoint = open_source(how)
        check_vocabulary(tokenizer, tokenizer_of(checkpoint))
        tokens = min(checkpoint.config.max_position_embeddings, engine.kv.capacity_tokens)
        draft = load_engine(checkpoint, threads=engine.threads, kv_tokens=tokens)
        drafter = DraftModel(draft, engine.vocab_size)
    return Speculator(drafter)
