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

    made = quantize(source, recipe, out, lora=adapter, evidence=False, progress=tell)
    for sentence in made.notes:
        progress(Step(f"note: {sentence}"))


def stored(name: str) -> Local | None:
    """The model of the user's store called ``name``; None where there is none.

    Raises:
        InputError: it is there, but not complete.
    """
    found = Store()
    return found.resolve(name) if name in found else None
