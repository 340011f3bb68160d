"""Ranges of a model's activations over a data set, in memory that does not grow with it.

The model runs with its inner values as outputs, one run of the data at a time. A first pass keeps
the least and largest value of each; methods that clip need a second, which counts values in bins
between the two. onnxruntime's calibrators with histograms keep all activations of all samples, and
change bins as they go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import DataError, UnsupportedError
from kvant.files.source import quote
from kvant.onnxtools.model import OnnxModel, copy_of
from kvant.onnxtools.packages import onnx
from kvant.onnxtools.samples import Batch
from kvant.onnxtools.session import Array, Session
from kvant.onnxtools.thresholds import THRESHOLDS, Histogram, Method

__all__ = ["Range", "infer_types", "measure_ranges"]

BINS = 2048
_PIECE = 1 << 15
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Range:
    """The range that codes of a tensor shall cover, and the values that were seen."""

    low: float
    high: float
    least: float
    largest: float


def measure_ranges(
    model: OnnxModel,
    batches: Callable[[], Iterable[Batch]],
    runs: int,
    method: Method = "minmax",
    *,
    percentile: float = 99.99,
    codes: int = 256,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Range]:
    """Run the data through ``model`` and find a range for each of its float values.

    Args:
        model: shapes need not be known.
        batches: gives the data from the beginning, each time it is called.
        runs: how many batches that is, for progress.
        method: minmax, percentile, entropy or mse (see `thresholds`).
        percentile: share of values, in percent, that the range of ``percentile`` covers.
        codes: that a range is divided into.
        threads: processors to use.
        progress: told what is done, and how many of how many runs.

    Raises:
        DataError: a value is NaN or infinite for some sample.
        UnsupportedError: the model does not run, or has no float values.
    """
    watched = _watched(model)
    probe = _with_outputs(model.proto, watched)
    session = Session(probe, model.name, plain=True, threads=threads, apart=model.apart)
    present = [name for name in watched if name in set(session.outputs)]
    fed = [port.name for port in model.inputs if port.dtype.kind == "f"]
    passes = 1 if method == "minmax" else 2
    spans: dict[str, tuple[float, float]] = {}
    for number, (name, values) in _values(session, batches, present, fed):
        if not values.size:
            continue
        least, largest = float(values.min()), float(values.max())
        if not (np.isfinite(least) and np.isfinite(largest)):
            raise DataError(
                f"{model.name}: value {quote(name)} is NaN or infinite on sample {number}; no "
                "range holds that. Check the model and the data."
            )
        low, high = spans.get(name, (least, largest))
        spans[name] = (min(low, least), max(high, largest))
        if progress and name == present[-1]:
            progress("calibrating", number + 1, passes * runs)
    ranges = {n: Range(min(a, 0.0), max(b, 0.0), a, b) for n, (a, b) in spans.items()}
    if method == "minmax":
        return ranges
    counts = {n: np.zeros(BINS, np.int64) for n, r in ranges.items() if r.high > r.low}
    for number, (name, values) in _values(session, batches, present, fed):
        if name in counts and values.size:
            counts[name] += _binned(values, ranges[name])
        if progress and name == present[-1]:
            progress("calibrating", runs + number + 1, passes * runs)
    for name, count in counts.items():
        found = ranges[name]
        histogram = Histogram(count, found.low, found.high)
        found.low, found.high = THRESHOLDS[method](histogram, percentile, codes)
    return ranges


def _values(
    session: Session,
    batches: Callable[[], Iterable[Batch]],
    names: list[str],
    fed: list[str],
) -> Iterable[tuple[int, tuple[str, Array]]]:
    """Each float value of each run. One run's values are alive at a time."""
    for number, batch in enumerate(batches()):
        for name in fed:
            yield number, (name, batch.feeds[name])
        outputs = session.run(batch.feeds, names)
        for name in names:
            yield number, (name, outputs.pop(0))


def _binned(values: Array, found: Range) -> npt.NDArray[np.int64]:
    """Counts of ``values`` in the bins of ``found``; in pieces that stay in a cache."""
    flat = values.reshape(-1)
    scale = np.float32(BINS / (found.high - found.low))
    counts = np.zeros(BINS, np.int64)
    places, index = np.empty(_PIECE, np.float32), np.empty(_PIECE, np.intp)
    for begin in range(0, len(flat), _PIECE):
        piece = flat[begin : begin + _PIECE].astype(np.float32, copy=False)
        place, bin_of = places[: len(piece)], index[: len(piece)]
        np.subtract(piece, np.float32(found.low), out=place)
        np.multiply(place, scale, out=place)
        # The largest value ends the last bin; rounding may put the least before the first.
        np.clip(place, 0, BINS - 1, out=place)
        bin_of[:] = place
        counts += np.bincount(bin_of, minlength=BINS)
    return counts


def _watched(model: OnnxModel) -> list[str]:
    """Float values that nodes of the outermost graph make."""
    types = infer_types(model.proto)
    kinds = onnx().TensorProto
    floats = {kinds.FLOAT, kinds.FLOAT16}
    found = [
        name
        for node in model.proto.graph.node
        for name in node.output
        if name and types.get(name) in floats
    ]
    if not found:
        raise UnsupportedError(f"{model.name}: computes no float values; nothing to quantise.")
    return found


def infer_types(proto: Any) -> dict[str, int]:
    """Element types by name; shapes that onnx can infer are added to the model."""
    from kvant.onnxtools.save import externalised

    package = onnx()
    with externalised(proto, "weights", lambda data, offset: None):
        try:
            inferred = package.shape_inference.infer_shapes(proto)
        except Exception:  # a model may run whose shapes onnx cannot infer
            inferred = None
    if inferred is not None:
        infos = inferred.graph.value_info
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(infos)
    graph = proto.graph
    return {
        value.name: value.type.tensor_type.elem_type
        for values in (graph.input, graph.value_info, graph.output)
        for value in values
    }


def _with_outputs(proto: Any, names: list[str]) -> Any:
    package = onnx()
    probe = copy_of(proto)
    there = {value.name for value in probe.graph.output}
    known = {value.name: value for value in probe.graph.value_info}
    for name in dict.fromkeys(names):
        if name not in there:
            output = package.ValueInfoProto()
            output.name = name
            # Only the type: an inferred shape may be wrong where a model is odd.
            kind = known[name].type.tensor_type.elem_type
            output.type.tensor_type.elem_type = kind
            probe.graph.output.append(output)
    return probe


def as_tensors_data(ranges: Mapping[str, Range]) -> Any:
    """Ranges as onnxruntime's quantisers take them."""
    from kvant.onnxtools.packages import need

    calibrate = need("onnxruntime.quantization.calibrate")
    pairs = {
        name: (np.asarray(found.low, np.float32), np.asarray(found.high, np.float32))
        for name, found in ranges.items()
    }
    return calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, pairs)
