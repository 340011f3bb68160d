"""A table of costs: how much divergence each tensor adds in each way it may be stored.

Rounding adds to each linear's output an error that is small beside it. To second order in that
error, divergence is proportional to its mean square, and errors of different tensors add up, as
they are as good as independent. So for a tensor t and a packing p (or a grid of groups)

    cost(t, p) = c_t e(t, p)

where e is the relative error of `rounding` and c_t belongs to the tensor alone. c_t is measured
where the effect is large, at a packing of about three bits, and holds for finer ones, whose own
effect would drown in the engine's rounding of activations. docs/budgets.md has the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvant.calibration import Importance
from kvant.checkpoint import Checkpoint, Weight
from kvant.engine import load_engine
from kvant.errors import UsageError
from kvant.packing.groups import Groups
from kvant.quant.allocate import Choice, Item
from kvant.quant.candidate import Candidate
from kvant.tuning.candidates import matrices
from kvant.tuning.priors import prior
from kvant.tuning.probe import CONTEXT, STEP_TOKENS, Probe, Replacement, chunks_of
from kvant.tuning.rounding import packed_rows, relative_errors

__all__ = ["EffortName", "Sensitivity", "TensorCost", "measure_costs"]

Floats = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]
Choices = Mapping[str, Sequence[Candidate]]
EffortName = Literal["fast", "balanced", "best"]
"""What users type; `kvant.api.effort` says what each does to a file."""

_OPERATIONS = {"balanced": 1e14, "best": 4e14}
"""Multiplications and additions that measuring may take: some minutes on two cores."""

_CHUNKS = {"balanced": 32, "best": 96}
"""Chunks of text at most: beyond, a small model's figures only get slower, not better."""

_LEAST_CHUNKS = 2
_MEASURED_BITS = 3.4
_BEST_BITS = (2.7, 4.5)
_SLOW = 0.3


@dataclass(frozen=True, slots=True)
class TensorCost:
    """One tensor: what each way to store it (a packing, or a target's level) takes and costs.

    Attributes:
        name: canonical name.
        role: what it is in the graph.
        layer: None outside the layers.
        weights: how many.
        coefficient: divergence per relative error, nats a token.
        errors: relative error by packing.
        measured: divergence as measured, by packing; empty where it was estimated.
        nbytes: bytes by packing.
    """

    name: str
    role: str
    layer: int | None
    weights: int
    coefficient: float
    errors: Mapping[str, float]
    measured: Mapping[str, float]
    nbytes: Mapping[str, int]

    @property
    def costs(self) -> dict[str, float]:
        """Divergence by packing."""
        return {packing: self.coefficient * e for packing, e in self.errors.items()}

    def item(self) -> Item:
        """As `kvant.quant.allocate` wants it."""
        costs = self.costs
        return Item((self.name,), tuple(Choice(p, self.nbytes[p], costs[p]) for p in self.errors))

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "name": self.name,
            "role": self.role,
            "layer": self.layer,
            "weights": self.weights,
            "coefficient": self.coefficient,
            "errors": dict(self.errors),
            "measured": dict(self.measured),
        }


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The table, and how it was made."""

    effort: EffortName
    tensors: tuple[TensorCost, ...]
    tokens: int
    """Run for measuring; 0 where nothing was."""
    passes: float
    """How often the tokens went through the whole model, in all."""
    seconds: float

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "effort": self.effort,
            "tokens": self.tokens,
            "passes": self.passes,
            "seconds": self.seconds,
            "tensors": [t.to_json() for t in self.tensors],
        }


def measure_costs(
    checkpoint: Checkpoint,
    choices: Choices,
    *,
    effort: EffortName = "balanced",
    tokens: npt.NDArray[np.int32] | None = None,
    importance: Importance | None = None,
    plain: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> Sensitivity:
    """Find what each tensor costs in each way it may be stored.

    Args:
        checkpoint: the unquantised model.
        choices: of each matrix, by canonical name, fewest bytes first, the last one lossless.
        effort: ``fast`` runs nothing and takes coefficients that other models had; the others
            measure them, ``best`` on more text and at two packings.
        tokens: the text they are measured on, int32 [n]; not the one that variants are judged by.
        importance: how much each input of a linear matters; without it all count alike.
        plain: scales of groups follow their format's own formula, without a search.
        threads: processors to use.
        progress: called with what is done, steps done, steps in all.

    Raises:
        UsageError: the model is an encoder, and the effort is not ``fast``.
        NotEnoughMemoryError, InputError, DataError: as for `kvant.engine.load_engine`.
    """
    started = time.perf_counter()
    report = progress or (lambda what, done, total: None)
    table = _Table(checkpoint, choices, importance, plain, threads, report)
    table.find_errors()
    if effort == "fast":
        found = table.costs(table.priors(), {})
        return Sensitivity(effort, found, 0, 0.0, time.perf_counter() - started)
    assert tokens is not None
    groups, count = table.groups(effort)
    length = min(CONTEXT, checkpoint.config.max_position_embeddings)
    chunks = chunks_of(tokens, count, length)
    room = 2 * STEP_TOKENS  # blocks are not shared between chunks
    engine = load_engine(checkpoint, threads=threads, kv_tokens=room)
    if engine.encodes:
        raise UsageError(
            f"{checkpoint.path}: is an encoder, so there are no predictions to measure tensors by. "
            "Use --effort fast, which measures nothing."
        )
    bits = _BEST_BITS if effort == "best" else (_MEASURED_BITS,)
    measured = table.measure(Probe(checkpoint, engine, chunks), groups, bits)
    found = table.costs(table.coefficients(groups, measured), measured)
    passes = table.passes(groups) * len(bits)
    return Sensitivity(effort, found, chunks.size, passes, time.perf_counter() - started)


_Group = tuple[str, ...]
_Measured = dict[_Group, dict[str, float]]


class _Table:
    """The matrices of a checkpoint on their way to costs."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        choices: Choices,
        importance: Importance | None,
        plain: bool,
        threads: int,
        progress: Progress,
    ) -> None:
        self._importance, self._plain = importance, plain
        self._threads, self._progress = threads, progress
        self._refs = checkpoint.graph.weights
        self._matrices: dict[str, Weight] = matrices(checkpoint)
        self.weights = {name: checkpoint.weights[name] for name in choices}
        self._candidates = {name: {c.name: c for c in own} for name, own in choices.items()}
        self.errors: dict[str, dict[str, float]] = {}
        self._layers = checkpoint.config.num_hidden_layers
        self._tied = not any(r.role == "output" for r in self._refs.values())

    def reporter(self, what: str) -> Callable[[int, int], None]:
        """The progress of one part of the work."""
        return lambda done, total: self._progress(what, done, total)

    # -- what is measured together, and how much of it

    def groups(self, effort: EffortName) -> tuple[list[_Group], int]:
        """Tensors that are measured together, and on how many chunks, within the operations."""
        every = 1
        while True:
            groups = self._grouped(every)
            rounds = 2 if effort == "best" else 1
            chunk = 2 * self._parameters() * self.passes(groups) * CONTEXT * rounds
            count = int(_OPERATIONS[effort] / chunk)
            if count >= _LEAST_CHUNKS or every >= self._layers:
                return groups, min(max(count, _LEAST_CHUNKS), _CHUNKS[effort])
            every *= 2

    def _grouped(self, every: int) -> list[_Group]:
        """Tensors of one role in ``every`` neighbouring layers; the outermost layers alone."""
        groups: dict[tuple[str, int], list[str]] = {}
        for name in self.weights:
            if len(self._candidates[name]) < 2:
                continue
            ref = self._refs[name]
            layer = -1 if ref.layer is None else ref.layer
            inner = 0 < layer < self._layers - 1
            groups.setdefault((ref.role, layer // every if inner else ~layer), []).append(name)
        return [tuple(names) for names in groups.values()]

    def passes(self, groups: Sequence[_Group]) -> float:
        """How often the whole model's work is done to measure all groups once."""
        return sum(self._share_after(group) for group in groups)

    def _share_after(self, group: _Group) -> float:
        head = self._head_weights()
        per_layer = (self._parameters() - head) / self._layers
        refs = [self._refs[name] for name in group]
        if any(r.role == "token_embd" for r in refs):
            return 1.0
        first = min(self._layers if r.layer is None else r.layer for r in refs)
        return ((self._layers - first) * per_layer + head) / self._parameters()

    def _head_weights(self) -> int:
        role = "token_embd" if self._tied else "output"
        return next(
            w.stored.elements for n, w in self._matrices.items() if self._refs[n].role == role
        )

    def _parameters(self) -> int:
        """Weights a token is multiplied with."""
        return sum(
            w.stored.elements
            for n, w in self._matrices.items()
            if self._tied or self._refs[n].role != "token_embd"
        )

    # -- errors and coefficients

    def find_errors(self) -> None:
        """Relative errors of every tensor in each way it may be stored."""
        for done, (name, weight) in enumerate(self.weights.items()):
            self._progress("rounding", done, len(self.weights))
            own = self._candidates[name]
            found = relative_errors(
                weight,
                [c.grid for c in own.values()],
                self._weighing(name),
                threads=self._threads,
                plain=self._plain,
            )
            self.errors[name] = dict(zip(own, found.values(), strict=True))

    def _weighing(self, name: str) -> Floats | None:
        """A tensor's importance; of stacked experts the mean, which they hardly differ from."""
        known = None if self._importance is None else self._importance.for_tensor(name)
        return known.mean(0) if known is not None and known.ndim == 2 else known

    def priors(self) -> dict[str, float]:
        """Coefficients as other models had them."""
        return {
            name: prior(self._refs[name].role, self._refs[name].layer, self._layers, self._tied)
            for name in self.weights
        }

    def measure(self, probe: Probe, groups: Sequence[_Group], bits: Sequence[float]) -> _Measured:
        """Divergence of each group, stored as is nearest to ``bits`` a weight."""
        wanted = [
            (group, {name: self._nearest(name, b) for name in group})
            for group in groups
            for b in bits
        ]
        unique = list({(g, *p.values()): (g, p) for g, p in wanted}.values())
        found = probe.measure(
            [
                Replacement({n: self._candidates[n][c].grid for n, c in p.items()})
                for _, p in unique
            ],
            self._rows,
            progress=self.reporter("measuring tensors"),
        ).mean(1)
        measured: _Measured = {}
        for (group, chosen), kld in zip(unique, found.tolist(), strict=True):
            measured.setdefault(group, {})[chosen[group[0]]] = kld
        return measured

    def coefficients(self, groups: Sequence[_Group], measured: _Measured) -> dict[str, float]:
        """Divergence per relative error: the geometric mean over the packings measured."""
        found: dict[str, float] = {}
        for group in groups:
            ratios = []
            for packing, kld in measured[group].items():
                error = sum(self.errors[name].get(packing, 0.0) for name in group)
                if error > 0:
                    ratios.append(max(kld, 1e-12) / error)
            value = float(np.exp(np.mean(np.log(ratios)))) if ratios else 0.0
            found |= dict.fromkeys(group, value)
        scale = self._scale(found)
        return {n: found.get(n, p * scale) for n, p in self.priors().items()}

    def _scale(self, found: Mapping[str, float]) -> float:
        """What priors of tensors that could not be measured are multiplied with."""
        priors = self.priors()
        logs = [np.log(c / priors[n]) for n, c in found.items() if c > 0]
        return float(np.exp(np.mean(logs))) if logs else 1.0

    def costs(
        self, coefficients: Mapping[str, float], measured: _Measured
    ) -> tuple[TensorCost, ...]:
        """The rows of the table."""
        single = {group[0]: klds for group, klds in measured.items() if len(group) == 1}
        return tuple(
            TensorCost(
                name=name,
                role=self._refs[name].role,
                layer=self._refs[name].layer,
                weights=weight.stored.elements,
                coefficient=coefficients[name],
                errors=self.errors[name],
                measured=single.get(name, {}),
                nbytes={c.name: c.nbytes for c in self._candidates[name].values()},
            )
            for name, weight in self.weights.items()
        )

    def _nearest(self, name: str, bits: float) -> str:
        """The way a tensor may be stored that is nearest to so many bits a weight.

        One that takes long to search for has to be clearly nearer.
        """
        weights = self.weights[name].stored.elements

        def distance(one: Candidate) -> float:
            return abs(8 * one.nbytes / weights - bits) + (_SLOW if one.slow else 0.0)

        return min(list(self._candidates[name].values())[:-1], key=distance).name

    def _rows(self, name: str, grid: str | Groups) -> npt.NDArray[np.uint8]:
        importance = self._weighing(name)
        weight = self.weights[name]
        return packed_rows(weight, grid, importance, threads=self._threads, plain=self._plain)
