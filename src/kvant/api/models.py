"""Models by name: the store, and what a name in place of a path means."""

from __future__ import annotations

import os
from pathlib import Path

from kvant.builtin import DEMO, demo_path
from kvant.registry import Local, Progress, Step, Store

__all__ = ["quantizer", "store", "stored"]


def store(root: str | os.PathLike[str] | None = None) -> Store:
    """The store of models, able to quantise in `Store.create`.

    ``root`` is its folder; by default ``models`` in ``KVANT_HOME``, or ``~/.local/share/kvant``.
    """
    return Store(root, quantizer=quantizer, builtin={DEMO: demo_path()})


def quantizer(
    source: Path, adapter: Path | None, recipe: str, out: Path, progress: Progress
) -> None:
    """Write a quantised GGUF file for the store.

    Raises:
        As `kvant.quantize`.
    """
    from kvant.api.conversion import quantize

    def tell(done: int, total: int, name: str) -> None:
        progress(Step(f"quantizing model to {recipe}", "", done, total, name))

    quantize(source, recipe, out, lora=adapter, evidence=False, progress=tell)


def stored(source: str | os.PathLike[str]) -> Local | None:
    """The model of the store that a user named; None where a path, or nothing, has that name.

    Paths go first, so nothing that worked without a store changes its meaning by one.

    Raises:
        InputError: it is there, but not complete.
    """
    if not isinstance(source, str) or os.path.lexists(source) or source == DEMO:
        return None
    found = Store()
    return found.resolve(source) if source in found else None
