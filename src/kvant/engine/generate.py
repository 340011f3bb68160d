"""Prompts to texts, many at once, for a caller who waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvant.engine.batch import Batch, Limits, Request, check_length
from kvant.engine.constrain import Grammars
from kvant.engine.results import Piece
from kvant.engine.speculative import Speculator
from kvant.engine.steps import Steps
from kvant.errors import KvantError
from kvant.tokenizer.build import Tokenizer

__all__ = ["BATCH", "CHUNK", "Request", "check_length", "generate", "take_chunks"]

#: Tokens computed in one step: enough to keep the kernels busy, few enough that an interrupt is
#: heard soon.
CHUNK = 256
#: Requests that run at once.
BATCH = 16


def generate(
    engine: Steps,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    *,
    context: int,
    batch: int = BATCH,
    chunk: int = CHUNK,
    speculation: Speculator | None = None,
    grammars: Grammars | None = None,
) -> Iterator[tuple[int, Piece]]:
    """Continue all ``requests``; yields (index of the request, piece) as they come.

    Each request's last piece has a ``finish_reason``. Closing the iterator, or an error or
    interrupt in it, ends all of them and frees their blocks.

    Args:
        engine: runs the model.
        tokenizer: the model's.
        requests: any number; ``batch`` of them run at once, the others wait.
        context: most tokens of a prompt and its answer together.
        batch: most requests in a step.
        chunk: most tokens in a step, or ``batch`` where that is more.
        speculation: as in `Batch`.
        grammars: as in `Batch`.

    Raises:
        ContextError: a prompt does not fit; nothing has been generated.
        DataError: the model gives NaN or infinity.
        CacheFullError: the cache has no room for one request alone.
    """
    for request in requests:
        check_length(request.prompt, context)
    limits = Limits(batch, max(1, len(requests)), max(batch, chunk))
    work = Batch(
        engine,
        tokenizer,
        context=context,
        limits=limits,
        speculation=speculation,
        grammars=grammars,
    )
    try:
        index = {work.add(request): i for i, request in enumerate(requests)}
        while not work.idle:
            for number, piece in work.step():
                if isinstance(piece, KvantError):
                    raise piece
                yield index[number], piece
    finally:
        work.close()


def take_chunks(pending: Sequence[Sequence[int]], chunk: int) -> list[list[int]]:
    """What each text reads next: ``chunk`` tokens in all, first come, first served.

    A single token always passes: whoever is nearly done is not kept waiting by long texts.
    """
    taken: list[list[int]] = []
    left = chunk
    for tokens in pending:
        if len(tokens) == 1:
            taken.append(list(tokens))
            continue
        taken.append(list(tokens[:left]))
        left -= len(taken[-1])
    return taken
