"""Which variant of a model for which device, and what this machine is."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvant import _core
from kvant.api.source import Source, open_source, resolve, threads_or_default
from kvant.checkpoint import Checkpoint, fingerprint
from kvant.devices import (
    USES,
    Advice,
    Device,
    Prediction,
    Variant,
    Wish,
    advise,
    device_named,
    devices,
    predict,
)
from kvant.devices.engines import Choice, choose
from kvant.devices.knowledge import Cited
from kvant.devices.machine import Machine, cpu_name, machine, total_memory, warnings_for
from kvant.engine.load import available_memory
from kvant.errors import InputError, UsageError
from kvant.evidence import Evidence, read_evidence
from kvant.export.gguf.plan import model_metadata, plan_export
from kvant.quant.presets import PRESETS
from kvant.quant.recipe import FLOATS

__all__ = [
    "HERE",
    "Doctor",
    "Recommendation",
    "device_named",
    "devices",
    "doctor",
    "engine_for",
    "predictions",
    "recommend",
]

HERE = "here"
"""What users type for the machine this runs on."""

_CONTEXT = 4096
_MOST_SIDECARS = 200
_BANDWIDTH_RUNS = 5


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The advice, for which model on which device."""

    model: str
    parameters: int
    device: str
    usable: int
    context: int
    use: str
    advice: Advice
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "device": self.device,
            "usable_bytes": self.usable,
            "context": self.context,
            "use": self.use,
            **self.advice.to_json(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Doctor:
    """This machine; ``bandwidth`` in bytes a second where it was measured."""

    machine: Machine
    bandwidth: float | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            **self.machine.to_json(),
            "bandwidth": self.bandwidth,
            "warnings": list(self.warnings),
        }


def engine_for(source: Source, found: Machine, asked: str = "auto") -> Choice:
    """Which engine `kvant serve` runs a model with on a machine, and why.

    Raises:
        InputError: there is no such model.
        MissingExtraError, UnsupportedError: nothing here runs it, or not what was asked for.
    """
    path = resolve(source)
    if not path.exists():
        raise InputError(f"{source}: no such file, folder or model. Check its name.")
    return choose(found, path, asked)


def recommend(
    source: Source,
    *,
    device: str | None = None,
    ram: int | None = None,
    context: int | None = None,
    use: str = "chat",
    min_speed: float | None = None,
) -> Recommendation:
    """Choose level, format and engine for a device, from exact sizes and predictions.

    No weight is read but the few that tell which model it is. Where measured files of this model
    stand beside it (``*.evidence.json``), their figures go before the rules.

    Args:
        source: ``demo``, a Hugging Face folder or a GGUF file.
        device: a name that `devices` knows, or ``"here"``.
        ram: bytes a model may take, instead of a device.
        context: tokens to keep; by default 4096, or what the model takes if that is less.
        use: ``chat``, ``code``, ``productivity`` or ``research``.
        min_speed: tokens a second that it has to write; needs a device.

    Raises:
        NothingFitsError: nothing fits, or nothing is fast enough; says what would help.
        UsageError: no such device or use; a context the model does not take.
        InputError: the model cannot be read.
    """
    if use not in USES:
        raise UsageError(f"--use should be one of {', '.join(USES)}, got {use!r}.")
    if (device is None) == (ram is None):
        raise UsageError("Say what it has to run on: either --device NAME or --ram SIZE.")
    if min_speed is not None and (device is None or not min_speed > 0):
        raise UsageError(
            "--min-speed is a number above 0, and needs --device: how fast a model is depends on "
            "the bandwidth of the memory."
        )
    checkpoint = open_source(source)
    most = checkpoint.config.max_position_embeddings
    tokens = min(_CONTEXT, most) if context is None else context
    if not 1 <= tokens <= most:
        raise UsageError(f"The context should be from 1 to {most}, which the model takes.")
    target = None if device is None else _here() if device == HERE else device_named(device)
    known, evidenced = _measured(checkpoint)
    found = predictions(checkpoint, tokens, target, evidenced)
    usable = target.usable if target is not None else int(ram or 0)
    wish = Wish(
        use=use,
        usable=usable,
        context=tokens,
        kind="other" if target is None else target.kind,
        min_speed=min_speed,
        engine="kvant" if target is None else target.engine,
        format="gguf" if target is None else target.format,
        room=_room(found, checkpoint, tokens, usable),
    )
    notes = []
    if target is not None and target.note:
        notes.append(target.note)
    if any(w.stored.type.name not in FLOATS for w in checkpoint.weights.values()):
        notes.append("The source is quantised already; start from the original if you can.")
    return Recommendation(
        model=checkpoint.info.name,
        parameters=checkpoint.parameters,
        device=f"{ram:,} bytes of memory" if target is None else target.title,
        usable=usable,
        context=tokens,
        use=use,
        advice=advise(wish, found, known),
        notes=tuple(notes),
    )


def predictions(
    checkpoint: Checkpoint,
    context: int,
    device: Device | None,
    evidenced: Mapping[str, Evidence] | None = None,
) -> list[Prediction]:
    """Memory and speed of every recipe of a model, and of measured files beside it.

    A model that is quantised already is predicted as it is, and at recipes of fewer bits.
    """
    threads = threads_or_default(None) if device is None else max(1, device.cores)
    model = model_metadata(checkpoint)
    stored = {name: w.stored for name, w in checkpoint.weights.items()}
    own = (
        []
        if checkpoint.gguf is None
        else [Variant.of("as it is", checkpoint, stored, checkpoint.gguf.size)]
    )
    quantised = any(t.type.name not in FLOATS for t in stored.values())
    variants = own if quantised else []
    for recipe in PRESETS:
        plan = plan_export(checkpoint, recipe, model=model)
        tensors = {t.name: t.spec for t in plan.tensors}
        variant = Variant.of(recipe.name, checkpoint, tensors, plan.size)
        if not quantised or variant.bpw < own[0].bpw:
            variants.append(variant)
    for name, evidence in (evidenced or {}).items():
        variants = [v for v in variants if v.recipe != name]
        variants.append(_of_evidence(name, checkpoint, evidence))
    return [
        predict(v, checkpoint, context=context, threads=threads, device=device) for v in variants
    ]


def _of_evidence(name: str, checkpoint: Checkpoint, evidence: Evidence) -> Variant:
    """A measured file as its evidence describes it, by class of tensor."""
    classes = evidence.sizes.classes
    tied = checkpoint.config.tie_word_embeddings
    used = [c for key, c in classes.items() if key != "embedding" or tied]
    packings: dict[str, int] = {}
    for c in used:
        tensors = sum(c.packings.values()) or 1
        for packing, count in c.packings.items():  # weights of a class, spread over its tensors
            packings[packing] = packings.get(packing, 0) + c.weights * count // tensors
    read = sum(c.nbytes for c in used)
    return Variant(name, evidence.sizes.nbytes, evidence.sizes.bpw, packings, read, read)


def _measured(checkpoint: Checkpoint) -> tuple[dict[str, Cited], dict[str, Evidence]]:
    """Divergences and evidence of files of this very model that stand beside it, by recipe."""
    known: dict[str, Cited] = {}
    evidenced: dict[str, Evidence] = {}
    own = fingerprint(checkpoint)
    for path, evidence in _evidence_beside(checkpoint.path):
        made = evidence.made
        for q in evidence.quality:
            if made is None or q.kld is None or q.base is None or q.base.fingerprint != own:
                continue
            name = made.recipe
            if name in known and known[name].kld <= q.kld:
                continue
            source = f"{path.name}: {q.text.name}, {q.text.tokens:,} tokens"
            known[name] = Cited(q.kld, checkpoint.info.name, source, measured_here=True)
            evidenced[name] = evidence
    return known, evidenced


def _evidence_beside(path: Path) -> Iterator[tuple[Path, Evidence]]:
    """Records in the model's folder and beside it; damaged ones are another command's matter."""
    folders = [path, path.parent] if path.is_dir() else [path.parent]
    for folder in folders:
        for sidecar in sorted(folder.glob("*.evidence.json"))[:_MOST_SIDECARS]:
            try:
                yield sidecar, read_evidence(sidecar)
            except InputError:
                continue


def _room(found: list[Prediction], checkpoint: Checkpoint, context: int, usable: int) -> int | None:
    """Tokens of context that fit with the smallest variant; None where not even a block does."""
    least = min(found, key=lambda p: p.memory.total).memory
    room = usable - (least.total - least.kv)
    each = least.kv // -(-context // _core.KV_BLOCK)
    blocks = room // each if each else 0
    return blocks * _core.KV_BLOCK if blocks > 0 else None


def _here() -> Device:
    """This machine as a device, its bandwidth measured now."""
    threads = threads_or_default(None)
    bandwidth, peaks = _limits(("int8",))
    return Device(
        name=HERE,
        title=f"this machine ({cpu_name()})",
        kind="here",
        ram=total_memory(),
        bandwidth=bandwidth,
        achieved=(0.8, 1.0),  # measured by reading in order; memory wanders on shared machines
        cores=threads,
        ghz=0.0,
        compute=_core.current_isa(),
        peak=peaks["int8"],
        os_share=1 - available_memory() / total_memory(),
        engine="kvant",
        format="gguf",
        source="measured now",
    )


def _limits(kinds: tuple[str, ...]) -> tuple[float, Mapping[str, float]]:
    from kvant.evaluation.limits import MachineLimits

    meter = MachineLimits(threads_or_default(None), kinds)
    seen = [meter.measure() for _ in range(_BANDWIDTH_RUNS)]
    peaks = {kind: statistics.median(s.peaks[kind] for s in seen) for kind in kinds}
    return statistics.median(s.bandwidth for s in seen), peaks


def doctor(*, measure: bool = False) -> Doctor:
    """Describe this machine; with ``measure``, how fast its memory is read (half a second)."""
    found = machine()
    bandwidth = _limits(())[0] if measure else None
    return Doctor(found, bandwidth, tuple(warnings_for(found)))
