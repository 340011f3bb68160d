"""What a user names becomes a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from kvant.builtin import DEMO, demo_path
from kvant.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Source", "open_source", "resolve", "threads_or_default"]

_MOST_THREADS = 512  # more than the largest machines have; starting thousands takes seconds

Source = str | os.PathLike[str]
"""``demo``, a Hugging Face folder, or a GGUF file (any shard of a split one)."""


def open_source(source: Source) -> Checkpoint:
    """Open what the user named; see `kvant.checkpoint.open_checkpoint` for what it raises."""
    return open_checkpoint(resolve(source))


def resolve(source: Source) -> Path:
    """The path behind what the user named; a file or folder called ``demo`` goes first."""
    if os.fspath(source) == DEMO and not Path(DEMO).exists():
        return demo_path()
    return Path(source)


def threads_or_default(threads: int | None) -> int:
    """The number of threads asked for, or one for each processor this process may use."""
    if threads is not None:
        return min(max(1, threads), _MOST_THREADS)
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
