"""A GGUF file against its own checksums, and against the model it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from kvant.checkpoint import Checkpoint, Weight
from kvant.errors import InputError, UsageError
from kvant.export.gguf.keys import CHECKSUMS, METADATA, TABLE, metadata_checksum, table_checksum
from kvant.export.gguf.stream import Progress
from kvant.files.gguf import Finding, GgufFile, ValueType, check_layout
from kvant.files.source import open_source
from kvant.files.tensor import StoredTensor

__all__ = ["Reconstruction", "Verification", "verify_against", "verify_file"]

_RUN_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """How far a tensor is from its source.

    ``rmse`` is the root of the mean squared difference, ``relative`` that over the root mean
    square of the source (0 is exact, 1 is as bad as all zeros), ``largest`` the largest
    difference.
    """

    name: str
    packing: str
    source_type: str
    rmse: float
    relative: float
    largest: float


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify_file` found.

    ``checksums`` is "good", "bad", "none" (the file carries none: another tool wrote it) or
    "stale" (another tool made the file from one of ours and copied them); ``damaged`` names the
    tensors whose bytes do not have the checksum they should have.
    """

    path: Path
    tensors: int
    nbytes: int
    findings: tuple[Finding, ...]
    checksums: str
    damaged: tuple[str, ...]
    reconstruction: tuple[Reconstruction, ...] = ()

    @property
    def ok(self) -> bool:
        """No serious finding and no damaged tensor."""
        return not self.damaged and not any(f.serious for f in self.findings)

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "tensors": self.tensors,
            "bytes": self.nbytes,
            "checksums": self.checksums,
            "damaged": list(self.damaged),
            "findings": [
                {"path": str(f.path), "kind": f.kind, "serious": f.serious, "message": f.message}
                for f in self.findings
            ],
            "reconstruction": [asdict(r) for r in self.reconstruction],
        }


def verify_file(file: GgufFile, *, threads: int, progress: Progress | None = None) -> Verification:
    """Check layout and checksums of a file, all its shards included.

    Raises:
        FileFormatError: the file shrank while it was read.
        InputError: it cannot be read.
    """
    findings = check_layout(file)
    parts = file.parts or (file,)
    expected = [pair for part in parts for pair in _stated_checksums(part)]
    other_table = file.get_int(TABLE, None) not in (None, table_checksum(file.tensors.values()))
    damaged = _damaged(expected, threads, progress)
    if other_table and not damaged and expected:
        # The bytes are those kvant wrote, and what the header says of them is not.
        findings.append(_header_finding(file, "names, types or shapes of tensors"))
    elif not other_table and parts[0].get_int(METADATA, None) not in (
        None,
        metadata_checksum(parts[0].metadata),
    ):
        findings.append(_header_finding(file, "the metadata"))
    stale = other_table and bool(damaged)
    state = "none" if not expected else "stale" if stale else "bad" if damaged else "good"
    return Verification(
        file.path,
        len(file.tensors),
        file.size,
        tuple(findings),
        state,
        () if stale else tuple(damaged),
    )


def _damaged(
    expected: Sequence[tuple[StoredTensor, int]], threads: int, progress: Progress | None
) -> list[str]:
    """Names of the tensors whose bytes do not have the checksum stated for them."""
    total, done = sum(t.elements for t, _ in expected), 0
    damaged: list[str] = []
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(_checksum, [tensor for tensor, _ in expected])
        for (tensor, stated), got in zip(expected, found, strict=True):
            if got != stated:
                damaged.append(tensor.name)
            done += tensor.elements
            if progress is not None:
                progress(done, total, tensor.name)
    return damaged


def _header_finding(file: GgufFile, what: str) -> Finding:
    return Finding(
        file.path,
        "header",
        True,
        f"{file.path}: {what} are not as kvant wrote them; the header is damaged or was edited. "
        "Make the file again.",
    )


def _stated_checksums(part: GgufFile) -> list[tuple[StoredTensor, int]]:
    """Each tensor with the checksum that stands in its place, in file order."""
    value = part.metadata.get(CHECKSUMS)
    if value is None:
        return []
    if value.item_type is not ValueType.UINT64 or len(part.get_array(CHECKSUMS)) != len(
        part.tensors
    ):
        raise InputError(
            f"{part.path}: expected one 64-bit checksum for each of the {len(part.tensors)} "
            f"tensors under {CHECKSUMS}, got something else; the file was edited. Make it again."
        )
    stated = (int(checksum) for checksum in part.get_array(CHECKSUMS))
    return list(zip(part.tensors.values(), stated, strict=True))


def _runs(tensor: StoredTensor, step: int = 1) -> Iterator[tuple[int, int]]:
    rows = max(1, _RUN_BYTES // max(1, tensor.row_bytes * step)) * step
    for start in range(0, tensor.rows, rows):
        yield start, min(start + rows, tensor.rows)


def _checksum(tensor: StoredTensor) -> int:
    total = xxhash.xxh64()
    with open_source(tensor.path) as (fd, _):
        for start, stop in _runs(tensor):
            total.update(tensor.read_rows(fd, start, stop).data)
    return total.intdigest()


def verify_against(
    model: Checkpoint,
    source: Checkpoint,
    *,
    threads: int,
    progress: Progress | None = None,
) -> tuple[Reconstruction, ...]:
    """Compare every weight of ``model`` with ``source``, decoded, in bounded memory.

    Raises:
        UsageError: the two are not of one model.
        DataError: NaN or infinity in either.
    """
    _check_same_model(model, source)
    names = list(model.weights)
    total = sum(w.stored.elements for w in model.weights.values())
    done = 0
    results = []
    with ThreadPoolExecutor(threads) as pool:
        pairs = [(model.weights[n], source.weights[n]) for n in names]
        for result, (weight, _) in zip(
            pool.map(_compare, *zip(*pairs, strict=True)), pairs, strict=True
        ):
            results.append(result)
            done += weight.stored.elements
            if progress is not None:
                progress(done, total, weight.name)
    return tuple(results)


def _check_same_model(model: Checkpoint, source: Checkpoint) -> None:
    if list(model.weights) != list(source.weights):
        odd = sorted(set(model.weights) ^ set(source.weights))
        raise UsageError(
            f"{model.path} and {source.path} are not of one model: "
            f"{odd[0] if odd else 'the order of weights'} is not in both."
        )
    for name, weight in model.weights.items():
        if weight.shape != source.weights[name].shape:
            raise UsageError(
                f"{model.path} and {source.path} are not of one model: {name} has shape "
                f"{weight.shape} in one and {source.weights[name].shape} in the other."
            )


def _compare(weight: Weight, source: Weight) -> Reconstruction:
    squares = reference = largest = 0.0
    step = math.lcm(weight.row_step, source.row_step)
    with weight.open() as a, source.open() as b:
        for start, stop in _runs(source.stored, step):
            x: npt.NDArray[np.float32] = source.read_rows_f32(b, start, stop)
            error = weight.read_rows_f32(a, start, stop) - x
            squares += float(np.square(error, dtype=np.float64).sum())
            reference += float(np.square(x, dtype=np.float64).sum())
            largest = max(largest, float(np.abs(error).max()))
    count = max(1, weight.stored.elements)
    return Reconstruction(
        weight.name,
        weight.stored.type.name,
        source.stored.type.name,
        math.sqrt(squares / count),
        math.sqrt(squares / reference) if reference else float(squares > 0),
        largest,
    )
