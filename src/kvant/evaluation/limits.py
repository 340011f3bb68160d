"""What the machine can do at most, and what of it a model needs: the limits of speed.

A prompt is bound by arithmetic: each weight of a linear is multiplied and added once a token. One
sequence that is generated is bound by memory: every weight is read once a token, and the keys and
values of all tokens before. The limits are measured on the spot, in some 100 ms each, so that they
can stand between the runs they are compared with; shared machines wander from minute to minute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.checkpoint import Checkpoint
from kvant.files.decoded import DecodedTensor
from kvant.files.tensor import StoredTensor
from kvant.graph.ops import Embedding, Linear, Moe, Positions, Row

__all__ = ["BUFFER_BYTES", "Limit", "Limits", "MachineLimits", "Work"]

BUFFER_BYTES = 256 << 20
"""What bandwidth is measured over: far more than the caches two or three cores can reach."""

_SECONDS = 0.1
_CACHE_LINE = 64
_FLOAT_KINDS = {"BF16": "bf16", "F16": "float", "F32": "float"}


@dataclass(frozen=True, slots=True)
class Limits:
    """One measurement of the machine, with the threads that were asked for.

    ``bandwidth`` is in bytes a second, ``peaks`` in operations a second by kind of arithmetic
    (``int8``, ``bf16``, ``float``), where a multiplication and an addition are two.
    """

    bandwidth: float
    peaks: Mapping[str, float]

    @classmethod
    def between(cls, before: Limits, after: Limits) -> Limits:
        """The mean of two measurements, for what ran between them."""
        return cls(
            (before.bandwidth + after.bandwidth) / 2,
            {kind: (before.peaks[kind] + after.peaks[kind]) / 2 for kind in before.peaks},
        )

    def to_json(self) -> dict[str, float]:
        """As plain data, in the units above."""
        return {"bandwidth": self.bandwidth, **self.peaks}


class MachineLimits:
    """Measures the limits of this machine whenever asked; holds ``BUFFER_BYTES`` of memory."""

    def __init__(self, threads: int, kinds: Iterable[str], seconds: float = _SECONDS) -> None:
        """Prepare for measuring.

        Args:
            threads: that work together.
            kinds: peaks wanted; bf16 is float's where there are no bf16 products.
            seconds: for each limit.
        """
        self._threads, self._seconds = threads, seconds
        self._kinds = tuple(sorted(set(kinds)))
        self._buffer = _aligned(max(BUFFER_BYTES, threads << 21))

    def measure(self) -> Limits:
        """Measure now."""
        return Limits(
            _core.read_bandwidth(self._buffer, self._threads, self._seconds),
            {kind: self._peak(kind) for kind in self._kinds},
        )

    def _peak(self, kind: str) -> float:
        found = _core.arithmetic_peak(kind, self._threads, self._seconds)
        return found or _core.arithmetic_peak("float", self._threads, self._seconds)


@dataclass(frozen=True, slots=True)
class Limit:
    """Tokens a second that a machine cannot exceed, and what stops it: ``memory`` or a peak."""

    rate: float
    bound: str


@dataclass(frozen=True, slots=True)
class Work:
    """What a model makes the machine do.

    ``layers`` and ``output`` are numbers of weights that a token is multiplied with, by kind of
    arithmetic: int8 for packings, bf16 for BF16, float for other floats. Attention is left out,
    which makes the limit of long prompts a little too high. ``weight_bytes`` are read once a step,
    however many tokens it has; ``kv_bytes`` are those of one token of context. ``expert_bytes`` are
    the weights of all experts, of which a token uses ``expert_share``.
    """

    layers: Mapping[str, int]
    output: Mapping[str, int]
    weight_bytes: int
    kv_bytes: float
    expert_bytes: int = 0
    expert_share: float = 0.0

    @classmethod
    def of(cls, checkpoint: Checkpoint, kv_bytes: float, *, as_in_file: bool = False) -> Work:
        """The work of a checkpoint as kvant runs it: decoded weights are floats of 32 bits.

        With ``as_in_file`` codes count as what they are in the file, which their own runtime reads.
        """

        def size(stored: StoredTensor) -> int:
            return stored.file_bytes if as_in_file else stored.nbytes

        def kind_of(stored: StoredTensor) -> str:
            if as_in_file and isinstance(stored, DecodedTensor) and stored.quantised:
                return "int8"
            return _FLOAT_KINDS.get(stored.type.name, "int8")

        layers: Counter[str] = Counter()
        output: Counter[str] = Counter()
        read: dict[str, int] = {}
        experts, share = 0, 0.0
        for node in checkpoint.graph.nodes:
            if isinstance(node.op, (Embedding, Positions, Row)):  # a row a token: next to nothing
                continue
            if isinstance(node.op, Moe):
                share = node.op.used / node.op.experts
                for ref in node.op.weights:
                    stored = checkpoint.weights[ref.name].stored
                    kind = kind_of(stored)
                    if ref is node.op.router:
                        read[ref.name] = size(stored)
                        layers["float"] += stored.elements
                    else:
                        experts += size(stored)
                        layers[kind] += round(stored.elements * share)
                continue
            read |= {w.name: size(checkpoint.weights[w.name].stored) for w in node.op.weights}
            if isinstance(node.op, Linear):
                stored = checkpoint.weights[node.op.weight.name].stored
                kind = kind_of(stored)
                (output if node.layer is None else layers)[kind] += stored.elements
        return cls(dict(layers), dict(output), sum(read.values()), kv_bytes, experts, share)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of arithmetic in it."""
        return frozenset(self.layers) | frozenset(self.output)

    def prompt(self, limits: Limits) -> Limit:
        """The limit of reading a prompt, of which only the last token needs the output."""
        most = max(self.layers, key=self.layers.__getitem__)
        return Limit(1 / _seconds(self.layers, limits), most)

    def generation(self, limits: Limits, batch: int, depth: float) -> Limit:
        """The limit of generating: the tighter one of memory and arithmetic.

        Args:
            limits: of the machine.
            batch: sequences that get a token in each step.
            depth: tokens of context of each, in the mean.
        """
        moved = self.weight_bytes + batch * depth * self.kv_bytes
        # Of experts, those that any of the sequences chose, as if they chose by lot.
        moved += self.expert_bytes * (1 - (1 - self.expert_share) ** batch)
        reading = moved / limits.bandwidth
        everything = Counter(self.layers) + Counter(self.output)
        computing = batch * _seconds(everything, limits)
        if reading >= computing:
            return Limit(batch / reading, "memory")
        return Limit(batch / computing, max(everything, key=everything.__getitem__))


def _seconds(weights: Mapping[str, int], limits: Limits) -> float:
    """What multiplying one token with the weights takes at the peak."""
    return sum(2 * count / limits.peaks[kind] for kind, count in weights.items())


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    """``size`` bytes at a cache line, all written once, so that they really are in memory."""
    room = np.ones(size + _CACHE_LINE, np.uint8)
    start = -room.ctypes.data % _CACHE_LINE
    return room[start : start + size]
