"""Any ONNX model quantised, optimised and compared: what `kvant quantize model.onnx` calls."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvant.errors import OutputError, UsageError
from kvant.files.source import quote
from kvant.onnxtools.compare import Bounds, Comparison, verdicts
from kvant.onnxtools.exporters import from_sklearn, from_torch
from kvant.onnxtools.job import DataSet, Job, Progress
from kvant.onnxtools.levels import OnnxOptions, level_named
from kvant.onnxtools.mixed import Kept
from kvant.onnxtools.model import open_model
from kvant.onnxtools.optimise import PROFILES, Profile, fix_shapes, optimise_for
from kvant.onnxtools.save import save_model
from kvant.onnxtools.shares import element_shares
from kvant.version import __version__

__all__ = [
    "Bounds",
    "DataSet",
    "OnnxOptions",
    "OnnxReport",
    "from_sklearn",
    "from_torch",
    "optimize_onnx",
    "quantize_onnx",
]


@dataclass(frozen=True, slots=True)
class OnnxReport:
    """What was made, what it cost, and what was done for it."""

    paths: tuple[Path, ...]
    """Files written, the model first."""
    level: str
    comparison: Comparison
    shares: dict[str, float]
    """Share of stored bytes by type, such as ``{"int8": 0.98, "float32": 0.02}``."""
    kept: tuple[Kept, ...]
    """Nodes in float, and why."""
    steps: tuple[str, ...]
    """What was done, in order."""
    notes: tuple[str, ...]
    """What was assumed of the data."""
    against: tuple[str, ...]
    """What speaks against it: slower, not smaller, worse."""
    seconds: float = field(compare=False, default=0.0)

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "paths": [str(path) for path in self.paths],
            "level": self.level,
            "comparison": self.comparison.to_json(),
            "shares": self.shares,
            "kept_in_float": [kept.to_json() for kept in self.kept],
            "steps": list(self.steps),
            "notes": list(self.notes),
            "against": list(self.against),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class _Output:
    """Where to, and under which conditions."""

    path: Path
    strict: bool
    external: bool | None
    force: bool
    smaller: bool
    """It is meant to be smaller."""
    started: float = field(default_factory=time.perf_counter)


def quantize_onnx(
    source: str | Path,
    level: str,
    out: str | Path | None = None,
    *,
    data: DataSet | None = None,
    options: OnnxOptions | None = None,
    keep_float: Sequence[str] = (),
    bounds: Bounds | None = None,
    strict: bool = False,
    external: bool | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> OnnxReport:
    """Quantise the ONNX model at ``source`` and compare it with what it was.

    Args:
        source: a .onnx file, its external data beside it.
        level: one of ``kvant.onnxtools.levels.LEVELS``: int8-static, int4, ...
        out: file or folder; by default ``NAME-LEVEL.onnx`` in the current folder.
        data: calibration and test data; int8-static needs some. Samples that do not calibrate
            compare.
        options: format, calibration and so on.
        keep_float: nodes, or types of nodes, that stay in float.
        bounds: what must hold on the data; nodes stay in float until it does.
        strict: refuse a variant that is slower, not smaller, or worse.
        external: weights in a second file; by default from 1.5 GB.
        force: replace existing files.
        threads: processors to use.
        progress: told what is done.

    Raises:
        InputError: the model or data cannot be used.
        UsageError: options that make no sense.
        UnsupportedError: nothing can be quantised, or the bounds cannot be held.
        OutputError: it cannot be written, or ``strict`` refused it.
        MissingExtraError: the extra ``onnx`` is not installed.
    """
    level = level_named(level)
    settings = (options or OnnxOptions()).checked(level)
    given = data or DataSet()
    if level == "int8-static" and given.data is None:
        raise UsageError(
            "int8-static needs calibration data: --calibrate DATA, a .npz file with arrays by "
            "input name, or a folder. int8-dynamic needs none."
        )
    path = _target(Path(source), out, level, force=force)
    output = _Output(path, strict, external, force, smaller=True)
    job = Job(open_model(source), level, settings, bounds or Bounds(), given, threads, progress)
    job.prepare(keep_float)
    job.quantise()
    return _written(job, level, output)


def optimize_onnx(
    source: str | Path,
    out: str | Path | None = None,
    *,
    profile: Profile = "cpu",
    fp16: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: DataSet | None = None,
    options: OnnxOptions | None = None,
    bounds: Bounds | None = None,
    strict: bool = False,
    external: bool | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> OnnxReport:
    """Optimise the ONNX model at ``source`` for ``profile``, and compare it with what it was.

    Args:
        source: a .onnx file, its external data beside it.
        out: file or folder; by default ``NAME-PROFILE.onnx`` in the current folder.
        profile: cpu, cuda or npu; npu becomes full-integer QDQ where ``data`` are given.
        fp16: weights and activations in half precision, too.
        shapes: fixed shapes of inputs, by name.
        data: to check each step and compare on; npu calibrates with it.
        options: of npu's quantisation.
        bounds: what must hold on the data.
        strict: refuse a result that is slower, worse, or (fp16, npu) not smaller.
        external: weights in a second file; by default from 1.5 GB.
        force: replace existing files.
        threads: processors to use.
        progress: told what is done.

    Raises:
        InputError: the model or data cannot be used.
        UsageError: options that make no sense, or a shape that npu needs.
        UnsupportedError: a step that the profile cannot do without is not possible.
        OutputError: it cannot be written, or ``strict`` refused it.
        MissingExtraError: the extra ``onnx`` is not installed.
    """
    if profile not in PROFILES:
        raise UsageError(f"--for is {', '.join(PROFILES)}; got {quote(str(profile))}.")
    if fp16 and profile == "npu":
        raise UsageError("--fp16 is for cpu and cuda; npu is made of integers (--calibrate).")
    given = data or DataSet()
    integer = profile == "npu" and given.data is not None
    making = "int8-static" if integer else "float16" if fp16 else profile
    settings = (options or OnnxOptions()).checked(making)
    if integer:
        settings = replace(settings, full_integer=True, format="qdq")
    label = f"{profile}-fp16" if fp16 else profile
    path = _target(Path(source), out, label, force=force)
    output = _Output(path, strict, external, force, smaller=integer or fp16)
    model = open_model(source)
    if shapes or profile == "npu":
        model = fix_shapes(model, shapes or {}, whole=profile == "npu")
    job = Job(model, making, settings, bounds or Bounds(), given, threads, progress)
    feeds = job.feeds()
    done = optimise_for(
        model,
        profile,
        feeds,
        half=fp16,
        threads=threads,
        base=job.base,
        opset_needed=settings.activations_opset,
    )
    job.adopt(done)
    if integer or fp16:
        job.quantise()
        job.steps.append("float16" if fp16 else "full-integer QDQ, by calibration")
    else:
        job.take()
        job.compare()
        if profile == "npu":
            job.steps.append("not quantised: that needs --calibrate DATA")
    return _written(job, label, output)


def _target(source: Path, out: str | Path | None, label: str, *, force: bool) -> Path:
    """The file to write; refused before any work when it, or its data, is there already."""
    path = Path(out) if out is not None else Path()
    if path.is_dir():
        path = path / f"{source.stem}-{label}.onnx"
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: expected a name that ends in .onnx, or a folder that exists.")
    for file in (path, path.with_name(path.name + ".data")):
        if file.exists() and not force:
            raise OutputError(f"{file}: exists already. Choose another name or pass --force.")
        if file.exists() and source.exists() and file.samefile(source):
            raise OutputError(f"{file}: is the source. Choose another name.")
    return path


def _written(job: Job, label: str, output: _Output) -> OnnxReport:
    """Compare, judge, write."""
    _stamp(job, label)
    found = job.comparison()
    against = verdicts(found, job.bounds, smaller=output.smaller)
    if output.strict and against:
        raise OutputError(f"{output.path}: not written, as --strict demands: {'; '.join(against)}.")
    paths = save_model(job.proto, output.path, force=output.force, external=output.external)
    return OnnxReport(
        paths,
        label,
        found,
        element_shares(job.proto),
        tuple(job.kept),
        tuple(job.steps),
        tuple(job.notes),
        tuple(against),
        time.perf_counter() - output.started,
    )


def _stamp(job: Job, label: str) -> None:
    """How it was made, into the model's metadata."""
    made: dict[str, Any] = {"version": __version__, "level": label, "steps": job.steps}
    made |= {"kept_in_float": [kept.node for kept in job.kept], "data": job.notes}
    kept = [entry for entry in job.proto.metadata_props if entry.key != "kvant"]
    del job.proto.metadata_props[:]
    job.proto.metadata_props.extend(kept)
    entry = job.proto.metadata_props.add()
    entry.key, entry.value = "kvant", json.dumps(made, sort_keys=True)
    job.proto.producer_name, job.proto.producer_version = "kvant", __version__
