"""Evidence is recorded: when an artefact is written, and when it is measured later."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvant import _core
from kvant.api.source import Source, open_source
from kvant.checkpoint import Checkpoint, fingerprint, open_checkpoint
from kvant.checkpoint.hub import hub_id
from kvant.errors import InputError, KvantError, UsageError
from kvant.evidence import (
    CARD_MARK,
    QUALITY,
    SOURCE,
    Base,
    Evidence,
    FileDigest,
    Made,
    Quality,
    Speed,
    TextUsed,
    measure_sizes,
    model_card,
    quality_text,
    read_evidence,
    read_quality,
    safe_name,
)
from kvant.export.gguf.plan import Plan
from kvant.export.gguf.stream import Progress
from kvant.export.gguf.write import Completion
from kvant.files.atomic import write_atomic
from kvant.files.gguf import Value, read_gguf_split
from kvant.quant.presets import PRESETS
from kvant.version import __version__

if TYPE_CHECKING:
    from kvant.evaluation import EvalResult

__all__ = [
    "EVIDENCE_CHUNKS",
    "Recorder",
    "beside",
    "check_recordable",
    "evidence_chunks",
    "evidence_of",
    "made_of",
    "measures_by_default",
    "quality_of",
    "record_evidence",
    "record_quality",
    "record_results",
    "record_speed",
]

BUILTIN_TEXT = "kvant's built-in evaluation text"

EVIDENCE_CHUNKS = 64
"""Chunks of text that are measured when an artefact is written, unless the model is small."""

_SMALL = 50_000_000  # weights; the whole text takes such a model seconds

_EVIDENCE_MARK = '{\n  "kvant_evidence":'
_MARK_BYTES = 64


def measures_by_default(*, effort: str = "fast", budget: bool = False) -> bool:
    """Whether quality is measured when nobody says ``--evidence`` or ``--no-evidence``.

    Where calibration or a search took minutes, a minute more tells what they came to; ``fast``
    without a budget stays fast.
    """
    return budget or effort != "fast"


def beside(path: Path) -> tuple[Path, Path]:
    """Where the evidence and the card of a model file stand; shards have one of each together."""
    from kvant.files.gguf_split import split_stem

    stem = split_stem(path.name)
    return path.with_name(f"{stem}.evidence.json"), path.with_name(f"{stem}.md")


def evidence_chunks(checkpoint: Checkpoint) -> int | None:
    """How much of the text is measured when an artefact is written: None is all of it."""
    return None if checkpoint.parameters <= _SMALL else EVIDENCE_CHUNKS


@dataclass
class Recorder:
    """What one artefact's evidence comes to; ``completion`` is for `write_plan`."""

    completion: Completion
    quality: Quality | None = None
    notes: list[str] = field(default_factory=list)


def record_evidence(
    plan: Plan,
    path: Path,
    *,
    threads: int,
    measure: bool | None = None,
    target: str | None = None,
    progress: Progress | None = None,
) -> Recorder:
    """Prepare the evidence of an artefact that is about to be written.

    The evidence and the card stand beside the model and appear together with it. Quality is
    measured before the file gets its name, against the plan's source, on the built-in evaluation
    text. A measurement that cannot be made (no tokenizer, no memory) is a note, not an error: the
    work on the weights may have taken hours.

    Args:
        plan: what will be written.
        path: where; shards are named after it.
        threads: for measuring.
        measure: measure quality; by default where the plan has room for it.
        target: the budget the recipe was found for, as `Making` has it.
        progress: called with tokens done, tokens in all, and "measuring".
    """
    wanted = plan.reserved if measure is None else measure
    places = beside(path)
    checkpoint = plan.checkpoint

    def measured(draft: Path) -> str:
        try:
            recorder.quality = _measure(checkpoint, draft, threads, progress)
        except KvantError as error:
            recorder.notes.append(f"Quality was not measured: {error}")
        return quality_text(recorder.quality)

    def described(files: Sequence[FileDigest]) -> Sequence[str]:
        made = made_of(plan.shards[0].metadata, safe_name(checkpoint.path.name), here=True)
        found = Evidence(
            files=tuple(files),
            made=None if made is None else replace(made, target=target),
            sizes=measure_sizes((t.spec for t in plan.tensors), plan.size),
            quality=() if recorder.quality is None else (recorder.quality,),
        )
        card = model_card(found, checkpoint.info, base_model=hub_id(checkpoint))
        return found.text(), card

    recorder = Recorder(
        Completion(
            places,
            described,
            measured if wanted else None,
            frozenset(p for p in places if _leftover(p, path, plan)),
        )
    )
    return recorder


def _leftover(place: Path, path: Path, plan: Plan) -> bool:
    """Whether a file is kvant's own about a model that is no longer there."""
    names = plan.file_names(path.name)
    if any(os.path.lexists(path.parent / name) for name in names if "\0" not in name):
        return False
    return _begins(place, _EVIDENCE_MARK, CARD_MARK)


def _begins(place: Path, *marks: str) -> bool:
    try:
        with place.open("rb") as file:
            head = file.read(_MARK_BYTES).decode(errors="replace")
    except (OSError, ValueError):  # a name that no file can have is told when it is written
        return False
    return head.startswith(marks)


def _measure(
    base: Checkpoint, draft: Path, threads: int, progress: Progress | None
) -> Quality | None:
    from kvant.api.measurement import corpus_of, open_subject, read_text
    from kvant.api.source import tokenizer_of
    from kvant.evaluation import evaluate
    from kvant.runtimes import open_runner

    text = read_text(None)
    corpus = corpus_of(text, tokenizer_of(base), base, None, evidence_chunks(base))
    subjects = [
        open_subject(c, open_runner(c, threads=threads)) for c in (base, open_checkpoint(draft))
    ]
    report: Callable[[int, int], None] | None = None
    if progress is not None:
        tell = progress

        def report(done: int, total: int) -> None:
            tell(done, total, "measuring")

    _, result = evaluate(subjects[0], subjects[1:], corpus, threads=threads, progress=report)
    return quality_of(result, text, None, base)


def quality_of(
    result: EvalResult, text: str, text_name: str | None, base: Checkpoint | None
) -> Quality:
    """A result as the record keeps it; ``text_name`` None is the built-in evaluation text."""
    figures: dict[str, Any] = {
        name: getattr(result, name)
        for name in Quality.__dataclass_fields__
        if name not in ("text", "base")
    }
    return Quality(
        TextUsed(
            safe_name(text_name or BUILTIN_TEXT),
            hashlib.sha256(text.encode()).hexdigest(),
            result.corpus,
            result.context,
            result.chunks,
            result.tokens,
        ),
        None if base is None else Base(safe_name(base.path.name), fingerprint(base)),
        **figures,
    )


def made_of(
    metadata: Mapping[str, Value], source_name: str | None = None, *, here: bool = False
) -> Made | None:
    """How a file says it was made; None where kvant did not write it.

    ``here`` adds what of this machine's software took part: the sidecar names it, a model file
    does not, whose bytes should not depend on it.
    """

    def text(key: str) -> str | None:
        value = metadata.get(key)
        return value.value if value is not None and isinstance(value.value, str) else None

    recipe, version = text("kvant.recipe"), text("kvant.version")
    if recipe is None or version is None:
        return None
    overrides, seed = metadata.get("kvant.recipe.overrides"), metadata.get("kvant.seed")
    versions = {"kvant": version}
    if here:
        import numpy as np

        versions |= {"numpy": np.__version__, "core": f"{__version__} {_core.current_isa()}"}
    return Made(
        recipe=recipe,
        definition=_definition(recipe, text("kvant.recipe.definition")),
        overrides=tuple((overrides.texts or ()) if overrides is not None else ()),
        method=text("kvant.method"),
        effort=text("kvant.effort"),
        importance=text("kvant.importance.sha256"),
        calibration=text("kvant.calibration.sha256"),
        seed=seed.value if seed is not None and type(seed.value) is int else None,
        target=None,
        source=text(SOURCE),
        source_name=source_name,
        versions=versions,
    )


def _definition(recipe: str, written: str | None) -> Mapping[str, object] | None:
    """The recipe in full: a preset's name says it all, others are written out in the file."""
    from kvant.files.config_json import parse_json

    if written is None:
        preset = next((p.to_json() for p in PRESETS if p.name == recipe), None)
        return None if preset is None else dict(json.loads(json.dumps(preset)))
    found = parse_json(written.encode(), "metadata 'kvant.recipe.definition'", 4_000_000)
    return found if isinstance(found, dict) else None


def evidence_of(path: Path) -> Evidence:
    """What a GGUF file itself says, with all its shards: how it was made, its sizes, its hashes.

    Raises:
        InputError: it cannot be read, or is damaged.
    """
    file = read_gguf_split(path)
    parts = file.parts or (file,)
    stated = file.get_str(QUALITY, None)
    quality = None if stated is None else read_quality(stated, str(path))
    digests = tuple(_digest(part.path, part.size, part.data_offset) for part in parts)
    return Evidence(
        files=digests,
        made=made_of(file.metadata),
        sizes=measure_sizes(file.tensors.values(), file.size),
        quality=() if quality is None else (quality,),
    )


def record_quality(path: Path, found: Quality) -> tuple[Path, Path]:
    """Add a measurement to the evidence beside a GGUF file, and write its card anew.

    Raises:
        InputError: the evidence is damaged, or is that of another file.
        OutputError: it cannot be written.
    """
    return _rewrite(path, lambda e: e.with_quality(found))


def check_recordable(models: Sequence[Source]) -> None:
    """Refuse models whose evidence cannot be recorded, before minutes are spent on measuring.

    Raises:
        UsageError: one is no GGUF file.
    """
    for model in models:
        if Path(model).suffix != ".gguf":
            raise UsageError(
                f"{model}: --record keeps evidence beside GGUF files, got something else. "
                "Leave it out, or quantise the model first."
            )


def record_results(
    pairs: Sequence[tuple[Source, EvalResult]],
    against: Source | None,
    text: Source | None,
) -> tuple[Path, ...]:
    """Record results of one `kvant.evaluate`; gives the files that hold them.

    Args:
        pairs: each measured GGUF file with its result.
        against: the base they were compared with.
        text: as `kvant.evaluate` was given it.
    """
    from kvant.api.measurement import read_text

    content = read_text(text)
    name = None if text is None else Path(text).name
    base = None if against is None else open_source(against)
    return tuple(
        record_quality(Path(path), quality_of(result, content, name, base))[0]
        for path, result in pairs
    )


def record_speed(path: Path, found: tuple[Speed, ...]) -> tuple[Path, Path]:
    """Add tests of speed on one machine; otherwise as `record_quality`."""
    return _rewrite(path, lambda e: e.with_speed(found))


def _rewrite(path: Path, change: Callable[[Evidence], Evidence]) -> tuple[Path, Path]:
    own, places = evidence_of(path), beside(path)
    stated = own
    if places[0].exists():
        stated = read_evidence(places[0])
        if stated.files != own.files:
            raise InputError(
                f"{places[0]}: is the evidence of another file than {path} (sizes or hashes "
                "differ). Make it again, or delete the evidence."
            )
    found = change(stated)
    checkpoint = open_checkpoint(path)
    card = model_card(found, checkpoint.info, base_model=hub_id(checkpoint))
    write_atomic(places[0], found.text(), force=True)
    if not places[1].exists() or _begins(places[1], CARD_MARK):
        write_atomic(places[1], card, force=True)  # a card of somebody else's stays
    return places


def _digest(path: Path, size: int, header: int) -> FileDigest:
    from kvant.files.source import open_source, read_exactly

    with open_source(path) as (fd, _):
        raw = read_exactly(fd, path, 0, header)
    return FileDigest.of(path.name, size, raw)
