"""One model, one level: data shared out, the variant made, held to its bounds and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvant.errors import UnsupportedError, UsageError
from kvant.files.source import quote
from kvant.onnxtools.blocks import block_nodes, make_blocks, opset_needed
from kvant.onnxtools.compare import Bounds, Comparison, Quality, latencies, measure_quality
from kvant.onnxtools.half import (
    ends_the_process,
    half_nodes,
    make_half,
    make_half_weights,
    overflowing,
)
from kvant.onnxtools.inner import all_nodes
from kvant.onnxtools.integer import (
    dynamic_nodes,
    make_dynamic,
    make_static,
    static_nodes,
    unranged_nodes,
)
from kvant.onnxtools.levels import WEIGHT_BITS, OnnxOptions
from kvant.onnxtools.madeup import MadeUp, make_up
from kvant.onnxtools.mixed import Kept, hold_bounds, measure_sensitivity
from kvant.onnxtools.model import OnnxModel
from kvant.onnxtools.prepare import Preparation, load_session
from kvant.onnxtools.ranges import Range, measure_ranges
from kvant.onnxtools.samples import Batch, Part, Samples, open_samples
from kvant.onnxtools.session import Array, Session
from kvant.onnxtools.shares import stored_bytes
from kvant.onnxtools.sources import Normalise

__all__ = ["DataSet", "Job", "Progress"]

Progress = Callable[[str, int, int], None]
Data = str | Path | Mapping[str, Array]
_CALIBRATE = 256
"""Samples that calibrate, unless told; at most half of the set."""
_PROBES = 16
"""Runs on which a node's sensitivity is measured."""
_MADE_UP = 4
"""Runs on values made up, where there are no data."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """Data of a user, and what is to be done with it."""

    data: Data | None = None
    labels: str | None = None
    """The array with the class of each sample."""
    samples: int | None = None
    """How many calibrate."""
    test: Data | None = None
    """Other data to compare on."""
    normalise: Normalise | None = None


class Job:
    """A variant in the making.

    Args:
        model: the original.
        level: one of `levels.LEVELS`.
        options: of the level.
        bounds: what must hold.
        data: to calibrate and compare on.
        threads: processors to use.
        progress: told what is done.

    Attributes:
        steps: what was done, in order.
        notes: what was assumed of the data.
        kept: nodes in float.
        proto: the variant, once made.
        base: the original, loaded.

    Raises:
        InputError: data do not match the model, or it does not run.
        UsageError: a bound without data, or on accuracy without labels.
    """

    def __init__(
        self,
        model: OnnxModel,
        level: str,
        options: OnnxOptions,
        bounds: Bounds,
        data: DataSet,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.level, self.options, self.bounds = model, level, options, bounds
        self.threads, self.progress = threads, progress
        self.steps: list[str] = list(model.notes)
        self.notes: list[str] = []
        self.kept: list[Kept] = []
        self.proto: Any = None
        self.quality: Quality | None = None
        self._prepared = model
        self._calibration: Part | None = None
        self._tests: Part | None = None
        self._held_out = True
        self._weights_alone = False
        self._ranges: dict[str, Range] = {}
        self.base = load_session(model, threads)
        self._use(data)
        self._made: MadeUp | None = None
        if self._tests is None and self._calibration is None:
            self._made = make_up(model, self.base)

    def _use(self, given: DataSet) -> None:
        inputs = self.model.inputs

        def opened(data: Data) -> Samples:
            found = open_samples(data, inputs, labels=given.labels, normalise=given.normalise)
            self.notes += [note for note in found.notes if note not in self.notes]
            return found

        if given.data is not None:
            found = opened(given.data)
            taken = _runs_for(found, given.samples, alone=given.test is not None)
            self._calibration, rest = found.part(taken)
            if self.level == "int8-static":
                self._held_out = bool(rest.runs)
                self._tests = rest if rest.runs else self._calibration
            else:  # nothing is fitted to data: all of them compare
                self._tests = found.part(found.runs)[0]
        if given.test is not None:
            found = opened(given.test)
            self._tests, self._held_out = found.part(found.runs)[0], True
        fitted = self._calibration if self.level == "int8-static" else None
        if fitted is not None and self._tests is not None:
            others = f"{self._tests.count:,} others" if self._held_out else "the same"
            self.notes.append(f"{fitted.count:,} samples calibrate, {others} compare")
        if self.bounds and self._tests is None:
            raise UsageError("a bound needs data to hold on: --calibrate or --test DATA.")
        labelled = self._tests is not None and self._tests.samples.labelled
        if self.bounds.needs_labels and not labelled:
            raise UsageError(
                "a bound on accuracy needs labels: an array `labels` in the data, one class for "
                "each sample. --max-error needs none."
            )

    def feeds(self) -> Mapping[str, Array] | None:
        """One run's values: of the data, or made up; None: the model takes none of those."""
        part = self._calibration or self._tests
        if part is not None:
            return next(iter(part.batches(1))).feeds
        return None if self._made is None or self._made.refused else self._made.feeds()

    def prepare(self, keep_float: Sequence[str] = ()) -> None:
        """Simplify, and reach the opset that the level needs.

        Args:
            keep_float: nodes, or types of nodes, that the user wants in float.

        Raises:
            UsageError: no node or type is called so.
            UnsupportedError: the opset cannot be reached.
        """
        done = Preparation(self.model, self.feeds(), self.threads, self.base)
        done.simplify()
        if done.raise_opset(self._least_opset()):
            done.simplify()  # the converter leaves constants to fold
        self.adopt(done)
        self._check_names(keep_float)
        nodes = list(all_nodes(self._prepared.proto.graph))
        asked = [n.name for n in nodes if n.name in keep_float or n.op_type in keep_float]
        left = {n.name for n in nodes} | {n.op_type for n in nodes}
        gone = [name for name in keep_float if name not in left]
        if gone:
            self.notes.append(
                f"gone after simplification, so not kept in float: {', '.join(map(quote, gone))}"
            )
        self.kept += [Kept(name, None, "asked for") for name in asked]

    def _check_names(self, names: Sequence[str]) -> None:
        known = {
            name
            for model in (self.model, self._prepared)
            for node in all_nodes(model.proto.graph)
            for name in (node.name, node.op_type)
        }
        for name in names:
            if name not in known:
                raise UsageError(
                    f"--keep-float {quote(name)}: no node or type of node of {self.model.name} is "
                    "called so. Its report names nodes, types are such as Conv."
                )

    def adopt(self, done: Preparation) -> None:
        """Go on from what a preparation reached."""
        self._prepared = done.model
        self.steps += done.did

    def take(self) -> None:
        """What was adopted is the variant."""
        self.proto = self._prepared.whole()

    def _least_opset(self) -> int:
        if self.level in WEIGHT_BITS:
            standard = self.options.format == "qdq"
            return opset_needed(WEIGHT_BITS[self.level], standard=standard)
        return self.options.activations_opset

    def quantise(self) -> None:
        """Make the variant; with bounds, keep nodes in float until they hold.

        Raises:
            UnsupportedError: there is nothing to quantise, or the bounds cannot be held.
        """
        rest = 0
        if self.level == "int8-static":
            rest = len(unranged_nodes(self._prepared, self.options))
        if not rest and not self._candidates() and self.level != "float16":
            raise self._nothing()
        if self.level == "int8-static":
            if self._calibration is None:
                raise UsageError("int8-static needs calibration data: --calibrate DATA.")
            self._ranges = self._measured(self._calibration)
            if rest:
                self.steps.append(
                    f"{rest} nodes (in inner graphs, embeddings, LSTM or GRU): weights in 8 bits, "
                    "activations in float, as no ranges are known or of use there"
                )
        elif self.level == "float16":
            self._find_overflow()
        fixed = [kept.node for kept in self.kept]
        self.proto = self._make(fixed)
        kinds = [
            [n.op_type for n in all_nodes(proto.graph)]
            for proto in (self.proto, self._prepared.proto)
        ]
        if kinds[0] == kinds[1] and self.level != "float16":
            raise self._nothing()
        self.compare()
        if self.quality is None or not self.bounds.missed(self.quality):
            return
        candidates = [name for name in self._candidates() if name not in fixed]
        sensitivity = measure_sensitivity(
            candidates, lambda keep: self._make([*fixed, *keep]), self._probe, self.progress
        )
        self.proto, self.quality, found = hold_bounds(
            sensitivity, fixed, self._make, self._compared, self.bounds, self.progress
        )
        self.kept += found
        self.steps.append(
            f"{len(found)} of {len(candidates)} nodes kept in float so that the bound holds"
        )

    def _nothing(self) -> UnsupportedError:
        return UnsupportedError(
            f"{self.model.name}: {self.level} changes none of its nodes: none is a MatMul, Gemm, "
            "Gather, Conv, LSTM or GRU with 256 or more constant float weights that is not kept "
            "in float. kvant optimize may still make it faster."
        )

    def compare(self) -> None:
        """Measure the variant's quality on the test data, or on values made up."""
        if self._tests is not None:
            self.quality = self._compared(self.proto)
        elif self._made is not None and not self._made.refused:
            batches = [Batch(self._made.feeds(seed), None) for seed in range(_MADE_UP)]
            self.quality = measure_quality(self.base, self._session(self.proto), batches)
            self.notes.append(
                f"none given: compared on {_MADE_UP} runs of made-up values ({self._made.told()})"
            )

    def _measured(self, part: Part) -> dict[str, Range]:
        return measure_ranges(
            self._prepared,
            part.batches,
            part.runs,
            self.options.calibration,
            percentile=self.options.percentile,
            codes=self.options.codes,
            threads=self.threads,
            progress=self.progress,
        )

    def _find_overflow(self) -> None:
        part = self._calibration or self._tests
        if part is not None:
            self._ranges = self._measured(part)
        else:
            self.steps.append("no data: values that overflow float16 were not looked for")
        kept = {known.node for known in self.kept}
        for name in overflowing(self._prepared, self._ranges):
            if name not in kept:
                self.kept.append(Kept(name, None, "overflows float16"))

    def _candidates(self) -> list[str]:
        if self.level == "int8-static":
            return static_nodes(self._prepared, self.options)
        if self.level == "int8-dynamic":
            return dynamic_nodes(self._prepared)
        if self.level == "float16":
            return half_nodes(self._prepared)
        return block_nodes(self._prepared)

    def _make(self, keep: Sequence[str]) -> Any:
        if self.level == "int8-static":
            made = make_static(self._prepared, self._ranges, self.options, keep)
        elif self.level == "int8-dynamic":
            made = make_dynamic(self._prepared, self.options, keep)
        elif self.level == "float16":
            made = self._half(keep)
        else:
            made = make_blocks(self._prepared, WEIGHT_BITS[self.level], self.options, keep)
        return made

    def _half(self, keep: Sequence[str]) -> Any:
        if not self._weights_alone:
            try:
                made = make_half(self._prepared, keep)
                if not ends_the_process(made):
                    return made
                why = "onnxruntime ends when it loads this model in float16"
            except UnsupportedError as error:
                why = str(error)
            self._weights_alone = True
            self.steps.append(
                f"{why.rstrip('.')}: weights alone are in float16, computation is in float32"
            )
        return make_half_weights(self._prepared, keep)

    def _session(self, proto: Any) -> Session:
        return Session(proto, f"{self.model.name} as {self.level}", threads=self.threads)

    def _compared(self, proto: Any) -> Quality:
        assert self._tests is not None
        total = self._tests.runs

        def told(done: int) -> None:
            if self.progress:
                self.progress("comparing", done, total)

        found = measure_quality(self.base, self._session(proto), self._tests.batches(), told)
        if self.bounds.needs_labels and found.accuracy_after is None:
            raise UsageError(
                f"a bound on accuracy needs classes: the first output of {self.model.name} is "
                "neither a class for each sample nor a row of scores. --max-error needs none."
            )
        return found

    def _probe(self, proto: Any) -> float:
        part = self._calibration or self._tests
        assert part is not None
        found = measure_quality(self.base, self._session(proto), part.batches(_PROBES))
        return found.output_error

    def comparison(self) -> Comparison:
        """Before and after: size, quality as measured, latency.

        Raises:
            InputError: ONNX Runtime cannot load the variant.
        """
        after = self._session(self.proto)
        times: tuple[float | None, float | None] = (None, None)
        feeds = self.feeds()
        if feeds is not None:
            times = latencies(self.base, after, feeds)
        size = stored_bytes(self.proto)
        made_up = self._made is not None
        return Comparison(
            self.model.nbytes, size, self.quality, *times, self._held_out, made_up=made_up
        )


def _runs_for(found: Samples, wanted: int | None, *, alone: bool) -> int:
    """Runs of the model that calibrate."""
    if wanted is not None:
        if not 1 <= wanted <= found.count:
            raise UsageError(
                f"--samples is 1 to {found.count:,}, the samples in the data; got {wanted:,}."
            )
        return min(found.runs, -(-wanted // found.batch))
    most = found.runs if alone else max(1, found.runs // 2)
    return max(1, min(most, _CALIBRATE // found.batch))
