"""A method applied through a model: each linear on the inputs that quantised layers give it.

Layer by layer: what a layer's linears are fed is collected (second moments), they are quantised,
put into the engine, and the layer is run again to feed the next. So later layers make up for what
earlier ones lost. Linears that share an input share its moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.calibration.hessian import SecondMoments
from kvant.calibration.layers import LayerWalk
from kvant.checkpoint import Checkpoint
from kvant.engine import Engine
from kvant.packing import get
from kvant.packing.groups import Groups
from kvant.quant.methods import Method, Problem, Quantised, applies

__all__ = ["Layerwise", "Progress", "quantise_grids", "quantise_layers"]

Bytes = npt.NDArray[np.uint8]
Progress = Callable[[int, int, str], None]

_PART = 1 << 24
"""Weights that a method is given at once, about."""


@dataclass(frozen=True, slots=True)
class Layerwise:
    """How to go through the layers."""

    method: Method
    within: bool = True
    """Collect inputs anew for each group of linears of a layer, with those before it quantised;
    otherwise once a layer."""


def quantise_layers(
    checkpoint: Checkpoint,
    engine: Engine,
    chunks: Sequence[npt.NDArray[np.int32]],
    packings: Mapping[str, str],
    how: Layerwise,
    *,
    threads: int,
    max_memory: int | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Bytes]]:
    """Quantise every plain linear of the layers, and the output matrix, in the model's order.

    The output matrix may be the embedding table as well.

    The engine is left with the quantised weights.

    Args:
        checkpoint: the model.
        engine: the same, loaded; its cache takes the longest chunk.
        chunks: token ids.
        packings: of each tensor by canonical name; what is not in it, or where no method applies,
            is left as it is.
        how: method and order.
        threads: processors to use; the bytes do not depend on it.
        max_memory: most bytes for hidden states in memory; the rest goes to a scratch file.
        scratch: folder of that file.
        progress: called with weights done, weights in all, and the tensor at hand.

    Yields:
        Name and packed rows, uint8 [rows, row bytes], rows in the canonical order.
    """
    found = quantise_grids(
        checkpoint,
        engine,
        chunks,
        packings,
        how,
        threads=threads,
        max_memory=max_memory,
        scratch=scratch,
        progress=progress,
    )
    for name, quantised in found:
        yield name, quantised.packed()


def quantise_grids(
    checkpoint: Checkpoint,
    engine: Engine,
    chunks: Sequence[npt.NDArray[np.int32]],
    grids: Mapping[str, str | Groups],
    how: Layerwise,
    *,
    threads: int,
    max_memory: int | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Quantised]]:
    """As `quantise_layers`, with codes and scales as they were chosen, also for groups.

    Of groups the engine gets half-precision floats, as it does not know them.
    """
    walk = LayerWalk(engine, list(chunks), max_memory=max_memory, folder=scratch)
    total = sum(w.stored.elements for n, w in checkpoint.weights.items() if n in grids)
    done = 0

    def quantised(names: Sequence[str], moments: SecondMoments) -> Iterator[tuple[str, Quantised]]:
        nonlocal done
        mean = moments.mean()
        weights = {}
        for name in names:
            if progress is not None:
                progress(done, total, name)
            weight = checkpoint.weights[name]
            found = _in_parts(how.method, Problem(grids[name], weight.read_f32(), mean, threads))
            weights[name] = _for_engine(found)
            done += weight.stored.elements
            yield name, found
        engine.replace(weights)

    def wanted(names: Sequence[str]) -> list[str]:
        return [
            n
            for n in names
            if n in grids and applies(grids[n]) and len(checkpoint.weights[n].shape) == 2
        ]

    while not walk.at_head:
        groups = [g for g in map(wanted, walk.groups) if g]
        for some in [[g] for g in groups] if how.within else [groups]:
            for group, moments in zip(some, _moments(walk, some), strict=True):
                yield from quantised(group, moments)
        walk.advance()
    if engine.encodes:
        return
    # A table that is the output matrix too is better off with what the head needs of it.
    tied = "output.weight" not in checkpoint.weights
    head = wanted(["token_embd.weight" if tied else "output.weight"])
    if head:
        moments = SecondMoments(engine.hidden_size)
        for x in walk.head_inputs():
            moments.add(x)
        yield from quantised(head, moments)


def _in_parts(method: Method, problem: Problem) -> Quantised:
    """A method over runs of rows, which do not depend on one another, where there are many.

    It holds several copies of its weights, and a vocabulary has the most. A part is at least so
    tall that finding the factor anew does not matter.
    """
    w = problem.weights
    height = max(_PART // w.shape[1], 4 * w.shape[1])
    if len(w) <= height:
        return method(problem)
    parts = [method(replace(problem, weights=w[i : i + height])) for i in range(0, len(w), height)]
    return Quantised(
        problem.packing,
        np.concatenate([p.codes for p in parts]),
        np.concatenate([p.scales for p in parts]),
        np.concatenate([p.values for p in parts]),
    )


def _for_engine(found: Quantised) -> _core.Weight:
    columns = found.values.shape[1]
    if isinstance(found.packing, Groups):
        rows = found.values.astype(np.float16).view(np.uint8)
        return _core.Weight.of_array(get("F16").storage.id, columns, rows)
    return _core.Weight.of_array(get(found.packing).storage.id, columns, found.packed())


def _moments(walk: LayerWalk, groups: Sequence[Sequence[str]]) -> list[SecondMoments]:
    """Second moments of the input of each group, collected in one pass over the layer."""
    found: list[SecondMoments | None] = [None] * len(groups)
    for batch in walk.inputs([g[0] for g in groups]):
        for i, group in enumerate(groups):
            x = batch[group[0]]
            moments = found[i] or SecondMoments(x.shape[1])
            moments.add(x)
            found[i] = moments
    return [m for m in found if m is not None]
