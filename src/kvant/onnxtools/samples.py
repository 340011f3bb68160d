"""A data set matched with a model's inputs, and read one run at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvant.errors import DataError, InputError, UsageError
from kvant.files.source import quote
from kvant.onnxtools.columns import Column, Wanted, every
from kvant.onnxtools.model import Port
from kvant.onnxtools.sources import Normalise, columns_of

__all__ = ["Batch", "Part", "Samples", "open_samples"]

Array = npt.NDArray[Any]
_LABELS = ("labels", "label", "y", "targets", "target")


class Batch(NamedTuple):
    """What one run of the model is fed."""

    feeds: dict[str, Array]
    labels: Array | None
    """int64, one for each sample in the run."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """How rows of a column become an input."""

    column: Column
    port: Port
    row: tuple[int, ...]
    """Shape of a row once fitted."""
    whole: bool
    """A row is the whole input; otherwise rows are stacked."""

    def made(self, rows: list[Array], number: int) -> Array:
        values = rows[0] if self.whole else np.stack([r.reshape(self.row) for r in rows])
        if self.port.dtype.kind == "f" and values.dtype.kind == "f":
            bad = ~np.isfinite(values)
            if bad.any():
                raise DataError(
                    f"input {quote(self.port.name)}: sample {number} holds NaN or infinity. Remove "
                    "it from the data."
                )
        if values.dtype == self.port.dtype:
            return values
        cast = values.astype(self.port.dtype)
        if self.port.dtype.kind in "iu" and not np.array_equal(cast, values):
            raise DataError(
                f"input {quote(self.port.name)}: sample {number} does not fit into "
                f"{self.port.dtype}."
            )
        return cast


class Samples:
    """Samples for a model.

    Attributes:
        count: samples.
        batch: samples in one run: 1, or what the model's inputs fix.
        runs: whole batches.
        notes: what was assumed, for the report.
        labelled: whether the class of each sample is known.
    """

    def __init__(self, fits: list[_Fit], labels: Column | None, notes: list[str]) -> None:
        self._fits, self._labels, self.notes = fits, labels, notes
        self.count = fits[0].column.count
        fixed = {
            fit.port.shape[0]
            for fit in fits
            if not fit.whole and fit.port.shape and isinstance(fit.port.shape[0], int)
        }
        self.batch = int(next(iter(fixed), 1) or 1)
        self.runs = self.count // self.batch
        self.labelled = labels is not None
        if self.count % self.batch:
            notes.append(
                f"the model takes {self.batch} at once: {self.count % self.batch} samples at the "
                "end were left out"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs fed."""
        return tuple(fit.port.name for fit in self._fits)

    def part(self, runs: int) -> tuple[Part, Part]:
        """``runs`` of the runs, evenly spread, and all the others."""
        return Part(self, runs, True), Part(self, runs, False)

    def batches(self, wanted: Wanted = every) -> Iterator[Batch]:
        """The runs that are wanted, in order, each read when it is needed; others are not."""

        def row_wanted(index: int) -> bool:
            return wanted(index // self.batch)

        streams = [fit.column.rows(row_wanted) for fit in self._fits]
        labels = self._labels.rows(row_wanted) if self._labels is not None else None
        for run in filter(wanted, range(self.runs)):
            feeds = {}
            for fit, stream in zip(self._fits, streams, strict=True):
                rows = [next(stream) for _ in range(self.batch)]
                feeds[fit.port.name] = fit.made(rows, run * self.batch)
            truth = None
            if labels is not None:
                truth = np.asarray([int(next(labels).reshape(())) for _ in range(self.batch)])
            yield Batch(feeds, truth)


@dataclass(frozen=True, slots=True)
class Part:
    """Some runs of a data set, by a rule that needs no list: evenly spread, or the others."""

    samples: Samples
    chosen: int
    inside: bool

    @property
    def runs(self) -> int:
        """Runs in it."""
        return self.chosen if self.inside else self.samples.runs - self.chosen

    @property
    def count(self) -> int:
        """Samples in it."""
        return self.runs * self.samples.batch

    def batches(self, limit: int | None = None) -> Iterator[Batch]:
        """Its runs in order, at most ``limit``."""
        return islice(self.samples.batches(self._has), limit)

    def _has(self, run: int) -> bool:
        total = self.samples.runs
        here = run * self.chosen // total < (run + 1) * self.chosen // total
        return here == self.inside


def open_samples(
    data: str | Path | Mapping[str, Array],
    inputs: Sequence[Port],
    *,
    labels: str | None = None,
    normalise: Normalise | None = None,
) -> Samples:
    """Match ``data`` with the inputs of a model; no values are read yet.

    Args:
        data: as ``sources.columns_of`` takes it.
        inputs: of the model.
        labels: the array with the class of each sample; by default one called labels or y.
        normalise: for images.

    Raises:
        InputError: data do not match: the message says which input, what it expects, what is there.
    """
    columns, where = columns_of(data, inputs, normalise or Normalise())
    by_name = {column.name: column for column in columns}
    notes: list[str] = []
    truth = _find_labels(by_name, inputs, labels, where)
    rest = {name: column for name, column in by_name.items() if column is not truth}
    fits = []
    for port in inputs:
        column = rest.pop(port.name, None)
        if column is None and len(inputs) == 1 and len(rest) == 1:
            column = rest.popitem()[1]
            notes.append(f"array {quote(column.name)} is taken for input {quote(port.name)}")
        if column is None:
            found = ", ".join(f"{quote(c.name)} {_rows(c)}" for c in columns[:8])
            raise InputError(
                f"{where}: nothing for input {quote(port.name)}: expected {port.told()}, found "
                f"{found}. Name arrays as inputs are called."
            )
        fits.append(_fit(column, port, where, notes))
    if rest:
        notes.append("not used: " + ", ".join(quote(name) for name in sorted(rest)[:8]))
    _check_counts(fits, truth, where)
    return Samples(fits, truth, notes)


def _find_labels(
    columns: dict[str, Column], inputs: Sequence[Port], wanted: str | None, where: str
) -> Column | None:
    ports = {port.name for port in inputs}
    if wanted is not None:
        if wanted not in columns:
            raise InputError(
                f"{where}: no array {quote(wanted)} for the labels; found "
                f"{', '.join(quote(n) for n in list(columns)[:8])}."
            )
        found = columns[wanted]
    else:
        names = [n for n in _LABELS if n in columns and n not in ports]
        if not names:
            return None
        found = columns[names[0]]
    if found.dtype.kind not in "iub" or math.prod(found.shape) != 1:
        if wanted is None:
            return None
        raise InputError(
            f"{where}: labels {quote(found.name)} are {_rows(found)}; expected one whole number "
            "for each sample."
        )
    return found


def _fit(column: Column, port: Port, where: str, notes: list[str]) -> _Fit:
    kinds = (column.dtype.kind, port.dtype.kind)
    mismatch = InputError(
        f"{where}: input {quote(port.name)} expects {port.told()}, got rows of {_rows(column)}. "
        "Convert the array to what the model takes."
    )
    if kinds not in {("f", "f"), ("i", "f"), ("u", "f"), ("b", "f"), ("b", "b")} and not (
        kinds[0] in "iub" and kinds[1] in "iu"
    ):
        raise mismatch
    if kinds[1] == "f" and kinds[0] in "iu":
        notes.append(f"{column.dtype} values go into {quote(port.name)} as they are")
    shape = port.shape
    if shape is None:
        return _Fit(column, port, column.shape, False)
    if len(shape) == len(column.shape) + 1 and _matches(column.shape, shape[1:]):
        return _Fit(column, port, column.shape, False)
    if len(shape) == len(column.shape) and _matches(column.shape, shape):
        return _Fit(column, port, column.shape, True)
    inner = [d for d in shape[1:] if isinstance(d, int)]
    if len(inner) == len(shape) - 1 and _plain(column.shape) == _plain(inner) and shape:
        notes.append(f"rows {list(column.shape)} become {inner} for input {quote(port.name)}")
        return _Fit(column, port, tuple(inner), False)
    raise mismatch


def _matches(row: Sequence[int], shape: Sequence[int | str | None]) -> bool:
    return len(row) == len(shape) and all(
        not isinstance(want, int) or want == got for got, want in zip(row, shape, strict=True)
    )


def _plain(shape: Sequence[int]) -> list[int]:
    return [d for d in shape if d != 1]


def _rows(column: Column) -> str:
    return f"{column.dtype} {list(column.shape)} ({column.count:,} of them)"


def _check_counts(fits: list[_Fit], truth: Column | None, where: str) -> None:
    columns = [fit.column for fit in fits] + ([truth] if truth is not None else [])
    first = columns[0]
    for column in columns[1:]:
        if column.count != first.count:
            raise InputError(
                f"{where}: array {quote(column.name)} has {column.count:,} samples; expected "
                f"{first.count:,} as {quote(first.name)} has."
            )
    batches = {
        1 if fit.whole or not fit.port.shape else fit.port.shape[0]
        for fit in fits
        if fit.whole or (fit.port.shape and isinstance(fit.port.shape[0], int))
    }
    if len(batches) > 1:
        raise UsageError(
            f"{where}: inputs take different numbers of samples at once "
            f"({', '.join(map(str, sorted(map(str, batches))))}); fix the shapes: kvant optimize "
            "--shape."
        )
    batch = next(iter(batches), 1) or 1
    if first.count < int(batch or 1):
        raise InputError(
            f"{where}: {first.count} samples; input {quote(fits[0].port.name)} takes {batch} at "
            "once. Give more."
        )
