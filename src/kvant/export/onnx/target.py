"""The target ``onnx``: a folder that onnxruntime and onnxruntime-genai run as it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvant.checkpoint import Checkpoint
from kvant.errors import UnsupportedError, UsageError
from kvant.export.onnx.folder import new_folder, refuse_folder
from kvant.export.onnx.levels import LEVELS, assigned
from kvant.export.onnx.model import DATA_FILE, MODEL_FILE
from kvant.export.onnx.plan import OnnxPlan, plan_onnx
from kvant.export.onnx.sidecar import sidecar_files
from kvant.export.onnx.stream import stream
from kvant.export.onnx.weights import BlockRows, Job
from kvant.export.target import Level, TargetOptions, TargetResult, TensorLevel, find_level
from kvant.files.atomic import AtomicFile, write_atomic
from kvant.packing.groups import Groups

__all__ = ["TARGET", "OnnxTarget"]

_KINDS = {None: "FLOAT", "float32": "FLOAT", "float16": "FLOAT16"}


class OnnxTarget:
    """Writes ONNX. Settings: ``standard_ops`` (bool), only operators of the standard."""

    name = "onnx"

    def levels(self) -> Sequence[Level]:
        """See `Target.levels`."""
        return LEVELS

    def write(
        self, checkpoint: Checkpoint, out: Path, level: str | None, options: TargetOptions
    ) -> TargetResult:
        """See `Target.write`; without a dtype everything that is not quantised is float32."""
        started = time.perf_counter()
        plan, notes = self.plan(checkpoint, level, options)
        refuse_folder(out, checkpoint.files, force=options.force)
        files, more = sidecar_files(checkpoint, standard=plan.standard)
        with new_folder(out, force=options.force) as folder:
            with AtomicFile(folder / DATA_FILE, size=plan.data_size) as data:
                _fill(plan, data, options)
            write_atomic(folder / MODEL_FILE, plan.model)
            for name, content in files.items():
                write_atomic(folder / name, content)
        paths = tuple(sorted(path for path in out.iterdir() if path.is_file()))
        return TargetResult(
            path=out,
            files=paths,
            nbytes=sum(path.stat().st_size for path in paths),
            bits_per_weight=8 * sum(map(_nbytes, plan.jobs)) / checkpoint.parameters,
            tensors=tuple(_tensor(job, plan) for job in plan.jobs if hasattr(job, "weight")),
            notes=(*notes, *more),
            seconds=time.perf_counter() - started,
        )

    def plan(
        self, checkpoint: Checkpoint, level: str | None, options: TargetOptions
    ) -> tuple[OnnxPlan, tuple[str, ...]]:
        """What would be written, decided without reading a weight; raises as `write`."""
        settings = dict(options.settings)
        standard = bool(settings.pop("standard_ops", False))
        if settings:
            raise UsageError(f"Target onnx knows no setting {next(iter(settings))!r}.")
        if options.dtype not in _KINDS:
            raise UnsupportedError(
                f"ONNX models of {options.dtype} have no kernels on processors; use --dtype "
                "float32 or float16."
            )
        if options.split_size is not None:
            raise UsageError("Target onnx writes one data file; leave --split-size away.")
        chosen = None if level is None else find_level(self, level).name
        grids, notes = assigned(checkpoint.graph, chosen, options.overrides)
        plan = plan_onnx(
            checkpoint,
            grids,
            kind="FLOAT16" if options.dtype == "float16" else "FLOAT",
            standard=standard,
            importance=options.importance,
        )
        return plan, notes


def _fill(plan: OnnxPlan, data: AtomicFile, options: TargetOptions) -> None:
    """All weights: first what is chosen layer by layer, then everything else."""
    jobs = {job.name: job for job in plan.jobs}
    total = sum(job.elements for job in plan.jobs)
    done = 0
    if options.layerwise is not None:
        linears = {n: j for n, j in jobs.items() if isinstance(j, BlockRows)}
        grids: dict[str, Groups] = {n: j.grid for n, j in linears.items()}
        for name, found in options.layerwise(grids):
            job = linears[name]
            job.place(np.asarray(found.codes), np.asarray(found.scales), 0, data.write_at)
            done += job.elements
            del jobs[name]
    stream(
        list(jobs.values()),
        data.write_at,
        threads=options.threads,
        done=done,
        total=total,
        progress=options.progress,
    )


def _nbytes(job: Job) -> int:
    if isinstance(job, BlockRows):
        blobs = [job.codes, job.scales, *([job.zeros] if job.zeros else [])]
        return sum(blob.nbytes for blob in blobs)
    blob = getattr(job, "blob", None)
    return 0 if blob is None else int(blob.nbytes)


def _tensor(job: Job, plan: OnnxPlan) -> TensorLevel:
    stored = plan.checkpoint.weights[job.name].stored
    return TensorLevel(
        job.name, stored.shape, stored.stored_as, plan.levels[job.name], _nbytes(job)
    )


TARGET = OnnxTarget()
