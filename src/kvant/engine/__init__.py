"""The engine: a checkpoint run natively, many sequences at once, over one paged cache.

::

    plan.py        the graph lowered to the native core's operations
    load.py        a checkpoint becomes an engine: memory counted, weights read into panels
    session.py     steps over a ragged batch; single layers, captures, replaced tensors
    kv_blocks.py   blocks of keys and values, and the sequences that hold them
"""

from kvant.engine.kv_blocks import KvBlocks, KvSequence
from kvant.engine.load import load_engine
from kvant.engine.session import Engine, Memory

__all__ = ["Engine", "KvBlocks", "KvSequence", "Memory", "load_engine"]
