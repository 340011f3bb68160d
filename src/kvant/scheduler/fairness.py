"""Whose turn it is: users share by what they got, not by how much they ask for.

Each user has a counter of the tokens served, written ones counted twice; the waiting user with the
lowest counter is next (virtual token counters, Sheng et al., arXiv 2401.00588). A user who comes,
or comes back, starts at the lowest counter of those who are there: being away saves nothing up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from kvant.scheduler.request import Request

__all__ = ["READ", "WRITTEN", "FairQueue"]

READ = 1
WRITTEN = 2


class FairQueue:
    """Waiting requests, each user's in the order they came."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Request]] = {}
        self._served: dict[str, int] = {}
        self._active: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def arrive(self, request: Request) -> None:
        """A new request; its user is active until `leave` was called as often."""
        user = request.user
        if not self._active.get(user):
            others = [self._served[u] for u, n in self._active.items() if n]
            floor = min(others, default=0)
            self._served[user] = max(self._served.get(user, floor), floor)
        self._active[user] = self._active.get(user, 0) + 1
        self.push(request)

    def push(self, request: Request) -> None:
        """Put a request into the line."""
        self._waiting.setdefault(request.user, deque()).append(request)
        self._count += 1

    def remove(self, request: Request) -> None:
        """Take a request out of the line."""
        line = self._waiting[request.user]
        line.remove(request)
        if not line:
            del self._waiting[request.user]
        self._count -= 1

    def leave(self, user: str) -> None:
        """A request of ``user`` has ended."""
        self._active[user] -= 1
        if not self._active[user]:
            del self._active[user]
            if len(self._served) > 10_000:  # users who are gone need not be remembered for ever
                self._served = {u: n for u, n in self._served.items() if u in self._active}

    def serve(self, user: str, cost: int) -> None:
        """Count what ``user`` got."""
        self._served[user] = self._served.get(user, 0) + cost

    def turn(self) -> Iterator[Request]:
        """Waiting requests, whose turn it is first; each user's next one before anyone's second."""
        users = sorted(self._waiting, key=lambda u: (self._served.get(u, 0), u))
        lines = [list(self._waiting[u]) for u in users]
        for i in range(max(map(len, lines), default=0)):
            for line in lines:
                if i < len(line):
                    yield line[i]

    def __iter__(self) -> Iterator[Request]:
        for line in self._waiting.values():
            yield from line
