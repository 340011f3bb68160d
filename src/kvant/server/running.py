"""An answer under way, as the server sees it, and who is told of its beginning and end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from kvant.server import scope as scopes
from kvant.server.engine_process import Stream
from kvant.server.jobs import Delta, Job, Timings

__all__ = ["Running", "Watcher"]


class Running:
    """An answer under way; see `kvant.server.jobs.Answer`."""

    def __init__(self, model: str, job: Job, stream: Stream, load: float) -> None:
        self.model, self.job, self._stream = model, job, stream
        self.began = time.perf_counter()
        self.timings: Timings = stream.timings
        self.timings.load = load
        scope = scopes.current.get()
        self.request_id = "" if scope is None else scope.request_id
        if scope is not None:
            scope.running.append(self)

    @property
    def chat_template(self) -> str | None:
        """What the conversation was written with; None for texts."""
        return self._stream.chat_template

    @property
    def prompt_tokens(self) -> int:
        """Tokens that were asked."""
        return self._stream.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Those of them that were found in the cache."""
        return self._stream.cached_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens written so far."""
        return self._stream.completion_tokens

    @property
    def outcome(self) -> str | None:
        """Why it ended; None while it runs."""
        return self._stream.outcome

    @property
    def first_token_seconds(self) -> float | None:
        """From its admission to its first delta."""
        return None if self._stream.first is None else self._stream.first - self.began

    def __aiter__(self) -> AsyncIterator[Delta]:
        """The deltas."""
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        """End it."""
        await self._stream.aclose()


class Watcher:
    """Hears what happens; metrics and the audit log are some."""

    def refused(self, model: str, user: str, reason: str) -> None:
        """A request was not admitted."""

    def ended(self, running: Running) -> None:
        """An answer has ended, in whatever way."""

    def embedded(self, model: str, user: str, tokens: int) -> None:
        """Vectors were made."""
