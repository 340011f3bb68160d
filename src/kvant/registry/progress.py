"""What a pull, a push or a creation is at, as it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Progress", "Step", "silent"]


@dataclass(frozen=True, slots=True)
class Step:
    """One report. ``status`` is what Ollama's API says at that point.

    ``digest`` names the blob at hand, ``name`` its file where it has one; ``done`` and ``total``
    are its bytes. What is told about one blob goes up only, unless a transfer had to begin again.
    """

    status: str
    digest: str = ""
    done: int = 0
    total: int = 0
    name: str = ""


Progress: TypeAlias = Callable[[Step], None]
"""Called often, from the thread that works. What it raises ends the work cleanly: a pull can go on
later from where it was."""


def silent(step: Step) -> None:
    """Nobody watches."""
