"""Who runs next: continuous batching over a paged cache. Knows no model and no tensor library.

The caller owns the engine. It asks `Scheduler.schedule` for a step (which tokens of which requests,
in which blocks), runs it, and tells `Scheduler.complete` what came of it.
"""

from kvant.scheduler.blocks import BlockPool, block_keys
from kvant.scheduler.request import Entry, Request, State, Step
from kvant.scheduler.scheduler import Limits, NeverFitsError, QueueFullError, Scheduler

__all__ = [
    "BlockPool",
    "Entry",
    "Limits",
    "NeverFitsError",
    "QueueFullError",
    "Request",
    "Scheduler",
    "State",
    "Step",
    "block_keys",
]
