"""What a user names becomes a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kvant.builtin import DEMO, demo_path
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.engine.load import processors
from kvant.errors import InputError

if TYPE_CHECKING:
    from kvant.registry import Local
    from kvant.tokenizer.build import Tokenizer

__all__ = ["Source", "named", "open_source", "resolve", "threads_or_default", "tokenizer_of"]

_MOST_THREADS = 512  # more than the largest machines have; starting thousands takes seconds

Source = str | os.PathLike[str]
"""``demo``, a Hugging Face folder, a GGUF file (any shard of a split one), or, where no path has
that name, a model of the store: ``llama3.2:1b``."""


def open_source(source: Source, lora: Source | None = None) -> Checkpoint:
    """Open what the user named; see `kvant.checkpoint.open_checkpoint` for what it raises.

    ``lora`` is the folder of an adapter to merge into it (`kvant.checkpoint.adapter`).
    """
    local = named(source)
    checkpoint = open_checkpoint(resolve(source) if local is None else local.path)
    adapters = [Path(lora)] if lora is not None else []
    if local is not None and local.adapter is not None:
        adapters.insert(0, local.adapter)
    if adapters:
        from kvant.checkpoint.adapter import merge_adapter

        for adapter in adapters:
            checkpoint = merge_adapter(checkpoint, adapter)
    return checkpoint


def resolve(source: Source) -> Path:
    """The path behind what the user named; a file or folder called ``demo`` goes first.

    A model of the store is looked for where there is no such path.
    """
    if os.fspath(source) == DEMO and not Path(DEMO).exists():
        return demo_path()
    local = named(source)
    return Path(source) if local is None else local.path


def named(source: Source) -> Local | None:
    """The model of the store that the user named; None where it is a path."""
    if isinstance(source, str) and not os.path.lexists(source):
        from kvant.api.models import stored  # reads a database, so only where there is no path

        return stored(source)
    return None


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's tokenizer, ready to run.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    from kvant.tokenizer.build import build  # not needed by everyone who opens a source

    definition = checkpoint.tokenizer()
    if definition is None:
        raise InputError(
            f"{checkpoint.path}: has no tokenizer, so no text can be read with it. "
            "Add its tokenizer.json, or use a file that carries one."
        )
    return build(definition)


def threads_or_default(threads: int | None) -> int:
    """The number of threads asked for, or one for each processor this process may use."""
    if threads is not None:
        return min(max(1, threads), _MOST_THREADS)
    return processors()
