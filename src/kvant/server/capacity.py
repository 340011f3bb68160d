"""How long a text may be, and how large a model's cache is."""

from __future__ import annotations

from kvant.errors import NotEnoughMemoryError, UsageError
from kvant.server.engine_process import Opened
from kvant.server.settings import Settings

__all__ = ["PROCESS_BYTES", "room_for"]

PROCESS_BYTES = 200 << 20
"""What a model's process takes besides weights and cache: Python, a tokenizer, a step's buffers."""
_KV_SHARE = 0.25
"""How much of what the weights leave one model's cache takes unless told otherwise."""
_TEXT_TOKENS = 1024
"""Room in the cache for every text that may run at once, unless told otherwise."""


def room_for(
    name: str, opened: Opened, wanted: int | None, settings: Settings, max_memory: int
) -> tuple[int, int]:
    """Context of a text, and tokens of the whole cache.

    Args:
        name: the model's, for messages.
        opened: what it takes.
        wanted: the context that was asked for.
        settings: of the server.
        max_memory: bytes that all models may take.

    Raises:
        UsageError: the model takes no such context.
        NotEnoughMemoryError: it does not fit; says what would help.
    """
    if wanted is not None and not 1 <= wanted <= opened.context:
        raise UsageError(
            f"{name} takes contexts of 1 to {opened.context:,} tokens, got {wanted:,}."
        )
    room = max_memory - opened.weights - PROCESS_BYTES
    fitting = int(max(0, room) / max(1.0, opened.token_bytes))
    if fitting < (wanted or 1):
        raise NotEnoughMemoryError(
            f"{name}: its weights take {opened.weights / 1e6:,.0f} MB and a context of "
            f"{wanted or 1:,} tokens {(wanted or 1) * opened.token_bytes / 1e6:,.0f} MB; all "
            f"models may take {max_memory / 1e6:,.0f} MB. Raise --max-memory, ask for a "
            "shorter context, or quantise the model to fewer bits."
        )
    tokens = settings.kv_tokens
    if tokens is None:
        context = wanted or opened.context
        many = settings.parallel * min(context, _TEXT_TOKENS)
        tokens = max(min(max(context, many), int(fitting * _KV_SHARE)), wanted or 1)
    tokens = min(tokens, fitting)
    return min(wanted or opened.context, tokens), tokens
