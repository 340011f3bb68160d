"""The target ``onnx``: a folder that onnxruntime and onnxruntime-genai run as it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from kvant.checkpoint import Checkpoint
from kvant.errors import UnsupportedError, UsageError
from kvant.export.folder import refuse_source
from kvant.export.notes import source_notes
from kvant.export.onnx.levels import LEVELS, assigned
from kvant.export.onnx.model import DATA_FILE, MODEL_FILE
from kvant.export.onnx.plan import OnnxPlan, plan_onnx, refuse_unsupported
from kvant.export.onnx.sidecar import sidecar_files
from kvant.export.onnx.verify import check_onnx
from kvant.export.onnx.weights import BlockRows, Job
from kvant.export.target import Level, TargetOptions, TargetResult, TensorLevel, find_level
from kvant.export.work import Task, run_tasks
from kvant.files.atomic import AtomicFile
from kvant.files.atomic_folder import AtomicFolder
from kvant.packing.groups import Groups

__all__ = ["TARGET", "OnnxTarget"]

_KINDS = {None: "FLOAT", "float32": "FLOAT", "float16": "FLOAT16"}


class OnnxTarget:
    """Writes ONNX.

    Settings: ``standard_ops``, only operators of the standard; ``float_activations``, products with
    blocks of integers take floats instead of eight-bit integers: slow, to compare weights alone.
    """

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
        refuse_source(checkpoint, out)
        files, more = sidecar_files(checkpoint, standard=plan.standard)
        files[MODEL_FILE] = plan.model
        kind = "F16" if plan.kind == "FLOAT16" else "F32"
        notes = (*source_notes(checkpoint, level, kind), *notes, *more)
        size = plan.data_size + sum(map(len, files.values()))
        names = (DATA_FILE, *files)
        if options.dry_run:
            return _result(out, plan, names, size, notes, None)
        with AtomicFolder(out, force=options.force, size=size) as folder:
            _fill(plan, folder.open(DATA_FILE), options)
            for name, content in files.items():
                folder.write(name, content)
            if options.verify:
                folder.finish_files()
                said = check_onnx(
                    checkpoint, folder.work, plan.grids, kind, threads=options.threads
                )
                notes = (*notes, said)
        return _result(out, plan, names, size, notes, time.perf_counter() - started)

    def plan(
        self, checkpoint: Checkpoint, level: str | None, options: TargetOptions
    ) -> tuple[OnnxPlan, tuple[str, ...]]:
        """What would be written, decided without reading a weight; raises as `write`."""
        settings = dict(options.settings)
        standard = _flag("standard-ops", settings.pop("standard_ops", False))
        floats = _flag("float-activations", settings.pop("float_activations", False))
        if settings:
            raise UsageError(
                f"Target onnx has no setting {next(iter(settings))!r}; it knows "
                "standard-ops and float-activations."
            )
        if options.dtype not in _KINDS:
            raise UnsupportedError(
                f"ONNX models of {options.dtype} have no kernels on processors; use --dtype f32 "
                "or f16."
            )
        if options.split_size is not None:
            raise UsageError("Target onnx writes one data file; leave --split-size away.")
        chosen = None if level is None else find_level(self, level).name
        refuse_unsupported(checkpoint)
        grids, notes = assigned(checkpoint.graph, chosen, options.overrides)
        plan = plan_onnx(
            checkpoint,
            grids,
            kind="FLOAT16" if options.dtype == "float16" else "FLOAT",
            standard=standard,
            float_activations=floats,
            importance=options.importance,
        )
        return plan, notes


def _flag(name: str, value: object) -> bool:
    """A setting that is true or false, perhaps as text."""
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise UsageError(f"Setting {name} of target onnx is true or false, got {value!r}.")
    return found


def _result(
    out: Path,
    plan: OnnxPlan,
    names: Sequence[str],
    size: int,
    notes: Sequence[str],
    seconds: float | None,
) -> TargetResult:
    return TargetResult(
        path=out,
        files=tuple(out / name for name in sorted(names)),
        nbytes=size,
        bits_per_weight=8 * sum(map(_nbytes, plan.jobs)) / plan.checkpoint.parameters,
        tensors=tuple(_tensor(job, plan) for job in plan.jobs if hasattr(job, "weight")),
        notes=tuple(notes),
        seconds=seconds,
    )


def _fill(plan: OnnxPlan, data: AtomicFile, options: TargetOptions) -> None:
    """All weights: first what is chosen layer by layer, then everything else."""
    jobs = {job.name: job for job in plan.jobs}
    total = sum(job.elements for job in plan.jobs)
    done = 0
    if options.layerwise is not None:
        # Whoever goes through columns block by block needs whole ones.
        linears = {
            n: j
            for n, j in jobs.items()
            if isinstance(j, BlockRows) and j.weight.stored.row_length % j.grid.block == 0
        }
        grids: dict[str, Groups] = {n: j.grid for n, j in linears.items()}
        for name, found in options.layerwise(grids):
            job = linears[name]
            job.place(np.asarray(found.codes), np.asarray(found.scales), 0, data.write_at)
            done += job.elements
            del jobs[name]
    tasks = (
        Task(
            partial(job.write, start, stop, data.write_at),
            job.elements * (stop - start) // job.rows,
            job.name,
        )
        for job in jobs.values()
        for start, stop in job.runs()
    )
    run_tasks(tasks, threads=options.threads, total=total, done=done, progress=options.progress)


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
