"""The engine: a checkpoint run natively, many sequences at once, over one paged cache.

::

    plan.py        the graph lowered to the native core's operations
    load.py        a checkpoint becomes an engine: memory counted, weights read into panels
    steps.py       steps over a ragged batch
    session.py     the engine: steps; single layers, captures, replaced tensors
    kv_blocks.py   blocks of keys and values, and the sequences that hold them
    sampling.py    from a row of logits to the next token
    stopping.py    strings and tokens that end a text
    detokenize.py  tokens to text as they come, never half a character
    batch.py       requests that come and go, in one batch over the scheduler
    answer.py      one request's answer as it is written
    generate.py    prompts to texts, many at once, for a caller who waits
    pooled.py      hidden states of texts, pooled: what embeddings are made of
    results.py     what a generation gives: pieces, whole texts, usage

docs/engine.md explains it, and what to write for a new packing.
"""

from kvant.engine.kv_blocks import KvBlocks, KvSequence
from kvant.engine.load import load_engine
from kvant.engine.session import Engine, Memory

__all__ = ["Engine", "KvBlocks", "KvSequence", "Memory", "load_engine"]
