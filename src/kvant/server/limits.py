"""How often somebody may ask."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["Rates"]

_MOST_NAMES = 10_000


class Rates:
    """Buckets of tokens, one a user: a minute's worth may come at once, then they fill evenly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, name: str, per_minute: int) -> float:
        """Count a request: 0 where it may come now, or the seconds until one may."""
        now = self._clock()
        level, then = self._buckets.pop(name, (float(per_minute), now))
        level = min(float(per_minute), level + (now - then) * per_minute / 60)
        wait = 0.0 if level >= 1 else (1 - level) * 60 / per_minute
        self._buckets[name] = (level - 1 if not wait else level, now)
        if len(self._buckets) > _MOST_NAMES:
            self._buckets.popitem(last=False)
        return wait
