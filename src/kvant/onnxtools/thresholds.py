"""From a histogram of a tensor's values to the range its codes should cover.

Clipping a few large values makes the steps of all others finer. The methods differ in what they
call best; each keeps zero in the range, as zero must have a code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["THRESHOLDS", "Histogram", "Method", "entropy", "mse", "percentile"]

Method = Literal["minmax", "percentile", "entropy", "mse"]
_TRIALS = 64

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Values counted in equal bins from ``low`` (at most 0) to ``high`` (at least 0)."""

    counts: Counts
    low: float
    high: float

    @property
    def width(self) -> float:
        """Of a bin."""
        return (self.high - self.low) / len(self.counts)

    def edge(self, index: int) -> float:
        """Where bin ``index`` begins."""
        return self.low + index * self.width


def percentile(histogram: Histogram, percent: float, codes: int = 256) -> tuple[float, float]:
    """The range without the ``100 - percent`` percent of values farthest out, half at each end.

    ``codes`` is not used.
    """
    share = np.cumsum(histogram.counts) / max(1, histogram.counts.sum())
    cut = (100.0 - percent) / 200.0
    first = int(np.searchsorted(share, cut, side="right"))
    last = int(np.searchsorted(share, 1.0 - cut, side="left"))
    return min(histogram.edge(first), 0.0), max(histogram.edge(last + 1), 0.0)


def entropy(histogram: Histogram, percent: float = 0.0, codes: int = 256) -> tuple[float, float]:
    """The range whose quantised distribution diverges least from the clipped one (KL).

    NVIDIA's calibration (S. Migacz, "8-bit inference with TensorRT", GTC 2017), for a range that
    need not be symmetric: a threshold cuts both ends at the same distance from zero, and ``codes``
    cover what is left; all, where there are more codes than bins. ``percent`` is not used.
    """
    best, chosen = np.inf, (histogram.low, histogram.high)
    counts = _without_zeros(histogram)
    for first, last in _cuts(histogram):
        if last - first < codes:
            continue
        divergence = _divergence(counts, first, last, codes)
        if divergence < best:
            best, chosen = divergence, (histogram.edge(first), histogram.edge(last))
    return min(chosen[0], 0.0), max(chosen[1], 0.0)


def _without_zeros(histogram: Histogram) -> Counts:
    """Zeros of a ReLU outweigh all else; their bin gets its neighbours' count, as NVIDIA does."""
    counts = histogram.counts.copy()
    zero = min(int(-histogram.low / histogram.width), len(counts) - 1)
    beside = counts[max(0, zero - 1) : zero + 2].tolist()
    beside.remove(counts[zero])
    counts[zero] = max(beside)
    return counts


def _cuts(histogram: Histogram) -> list[tuple[int, int]]:
    """First bin and end of each range tried, from the narrowest to all."""
    bins = len(histogram.counts)
    reach = max(-histogram.low, histogram.high)
    cuts = []
    for trial in range(_TRIALS // 4, 2 * _TRIALS + 1):
        limit = reach * trial / (2 * _TRIALS)
        first = int(np.floor((max(histogram.low, -limit) - histogram.low) / histogram.width + 1e-9))
        last = int(np.ceil((min(histogram.high, limit) - histogram.low) / histogram.width - 1e-9))
        cuts.append((max(0, first), min(bins, last)))
    return cuts


def _divergence(counts: Counts, first: int, last: int, codes: int) -> float:
    """KL divergence of the clipped distribution from its form in ``codes``."""
    inside = counts[first:last].astype(np.float64)
    clipped = inside.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    size = len(inside)
    code = np.arange(size) * codes // size
    filled = clipped > 0
    total = np.bincount(code, inside, codes)
    holders = np.bincount(code, filled, codes)
    spread = np.divide(total, holders, out=np.zeros(codes), where=holders > 0)
    quantised = np.where(filled, spread[code], 0.0)
    if quantised.sum() == 0:
        return np.inf
    p, q = clipped / clipped.sum(), quantised / quantised.sum()
    # A filled bin whose code holds nothing inside would be infinite: only outliers made it so.
    q = np.where(filled, np.maximum(q, 1e-9), q)
    return float((p[filled] * np.log(p[filled] / q[filled])).sum())


def mse(histogram: Histogram, percent: float = 0.0, codes: int = 256) -> tuple[float, float]:
    """The range whose ``codes`` have the least mean squared error, rounding and clipping together.

    Each end is moved in turn over 64 places, twice. ``percent`` is not used.
    """
    centres = histogram.low + (np.arange(len(histogram.counts)) + 0.5) * histogram.width
    used = histogram.counts > 0
    counts: Floats = histogram.counts[used].astype(np.float64)
    places: Floats = np.asarray(centres[used], np.float64)
    low, high = histogram.low, histogram.high
    shares = [step / _TRIALS for step in range(1, _TRIALS + 1)]
    for _ in range(2):
        if histogram.high > 0:
            errors = [_error(counts, places, low, histogram.high * s, codes) for s in shares]
            high = histogram.high * shares[int(np.argmin(errors))]
        if histogram.low < 0:
            errors = [_error(counts, places, histogram.low * s, high, codes) for s in shares]
            low = histogram.low * shares[int(np.argmin(errors))]
    return low, high


def _error(counts: Floats, centres: Floats, low: float, high: float, codes: int) -> float:
    step = (high - low) / (codes - 1)
    if step <= 0:
        return np.inf
    rounded = low + np.rint((np.clip(centres, low, high) - low) / step) * step
    # Rounding within a bin adds the same to every range; only what differs is compared.
    return float((counts * (centres - rounded) ** 2).sum())


THRESHOLDS: dict[str, Callable[[Histogram, float, int], tuple[float, float]]] = {
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
"""By method; minmax needs no histogram."""
