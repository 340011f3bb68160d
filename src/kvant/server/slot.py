"""A model that is loaded, being loaded, or about to go; and the time a request may wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeAlias

from kvant.server.engine_process import EngineProcess
from kvant.server.external import ExternalEngine
from kvant.server.jobs import DeadlineError
from kvant.server.library import Resolved

__all__ = ["AnyEngine", "Slot", "until"]

AnyEngine: TypeAlias = EngineProcess | ExternalEngine


@dataclass(eq=False)
class Slot:
    """A model that is loaded, or being loaded."""

    resolved: Resolved
    """What the engine runs."""
    newest: Resolved
    """What the name stands for now."""
    engine: AnyEngine | None = None
    asked: int = 0
    """Requests that use it or wait for it: it is not unloaded meanwhile."""
    used: float = field(default_factory=time.monotonic)
    expires: float | None = None
    keep_alive: float = 0.0
    timer: asyncio.TimerHandle | None = None
    seconds: float = 5.0
    """What an answer takes, averaged; for guesses at waiting times."""

    @property
    def name(self) -> str:
        """The model's."""
        return self.resolved.name

    @property
    def ready(self) -> bool:
        """Whether a model is loaded and its process lives."""
        return self.engine is not None and not self.engine.lost and self.engine.context > 0

    @property
    def leaves(self) -> float | None:
        """When it goes if nobody asks for it any more; while it is in use, that moves on."""
        if self.keep_alive < 0:
            return None
        return time.time() + self.keep_alive if self.asked else self.expires

    def serves(self, context: int | None) -> AnyEngine | None:
        """The engine, if it does as it is.

        One whose model was made anew meanwhile does while others use it.
        """
        engine = self.engine
        if engine is None or not self.ready:
            return None
        if context is not None and engine.context < context:
            return None
        return None if self.asked <= 1 and self.newest != self.resolved else engine


@contextlib.asynccontextmanager
async def until(ends: float, seconds: float) -> AsyncIterator[None]:
    """Bound what is awaited within, by the event loop's clock.

    Raises:
        DeadlineError: it was not done then, of ``seconds`` that there were.
    """
    bound = asyncio.timeout_at(ends)
    try:
        async with bound:
            yield
    except TimeoutError:
        if not bound.expired():
            raise
        raise DeadlineError(
            f"The request took longer than the {seconds:g} seconds it had. Ask for less, or allow "
            "more time."
        ) from None
