"""Evidence is checked: everything that can be computed again is, and set beside what is stated."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from kvant.api.evidence import beside, evidence_of, quality_of
from kvant.api.source import Source, open_source, threads_or_default, tokenizer_of
from kvant.checkpoint import Checkpoint, fingerprint
from kvant.errors import InputError, UsageError
from kvant.evidence import Evidence, Made, Quality, TextUsed, read_evidence

if TYPE_CHECKING:
    from kvant.evaluation import Progress

__all__ = ["TOLERANCES", "Check", "check_evidence"]

TOLERANCES: dict[str, tuple[float, float]] = {
    "perplexity": (0.002, 0.0),
    "perplexity_se": (0.02, 0.0),
    "kld": (0.02, 1e-6),
    "kld_se": (0.05, 1e-6),
    "kld_median": (0.02, 1e-6),
    "kld_p99": (0.05, 1e-6),
    "kld_max": (0.2, 1e-5),
    "same_top": (0.0, 0.002),
    "same_top_se": (0.05, 1e-4),
    "ln_ppl_ratio": (0.02, 0.0005),
    "ln_ppl_ratio_se": (0.05, 1e-4),
}
"""Figure -> how far it may be from the one stated: as a share of that, plus an absolute amount.

The same machine gives the same digits; other instruction sets round activations in another order,
which moves a mean divergence by some tenths of a per cent and single tokens by more."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing stated and what was found; ``ok`` is None where it could not be computed."""

    what: str
    stated: str
    found: str
    ok: bool | None

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {"what": self.what, "stated": self.stated, "found": self.found, "ok": self.ok}


def check_evidence(
    file: Source,
    against: Source | None = None,
    *,
    text: Source | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Check, ...]:
    """Compare what a file and the evidence beside it say with what is found.

    Sizes, bits per weight, hashes and how it was made are always compared; perplexity is measured
    again where the text is at hand (the built-in one, known by its hash, or ``text``), divergence
    where the base is (``against``). Speed belongs to the machine it was measured on and is not.

    Raises:
        InputError: a file cannot be read, or the evidence is damaged; or there is none.
        UsageError: ``text`` is not one that the evidence names.
    """
    path = Path(file)
    own = evidence_of(path)
    sidecar, _ = beside(path)
    stated: Evidence | None = read_evidence(sidecar) if sidecar.exists() else None
    if own.made is None and stated is None:
        raise InputError(
            f"{path}: carries no evidence, and there is no {sidecar.name} beside it: another tool "
            "wrote it. `kvant eval FILE --against BASE --record` makes some."
        )
    found: list[Check] = []
    if stated is not None:
        found += _facts(own, stated)
    else:
        found.append(Check(f"{sidecar.name} beside the file", "", "not there", None))
    base = None if against is None else open_source(against)
    if base is not None:
        found += _source(own, stated, base)
    qualities = own.quality if stated is None else stated.quality
    found += _measured(path, qualities, stated is None, base, text, threads, progress)
    return tuple(found)


def _facts(own: Evidence, stated: Evidence) -> Iterator[Check]:
    """What needs no model run: files, sizes, making, and the figures in the file itself."""
    yield _same("files", [f.name for f in stated.files], [f.name for f in own.files])
    for theirs, ours in zip(stated.files, own.files, strict=False):
        yield _same(f"bytes of {ours.name}", theirs.nbytes, ours.nbytes)
        yield _same(f"header of {ours.name}", theirs.header_sha256, ours.header_sha256)
    yield _same("bytes of all files", stated.sizes.nbytes, own.sizes.nbytes)
    yield _same("bits per weight", f"{stated.sizes.bpw:.6f}", f"{own.sizes.bpw:.6f}")
    for name in dict.fromkeys([*own.sizes.classes, *stated.sizes.classes]):
        yield _same(f"size of {name}", stated.sizes.classes.get(name), own.sizes.classes.get(name))
    if own.made is not None:
        yield from _making(own.made, stated.made)
    if own.quality:
        inside = own.quality[0].rounded()
        match = [
            q.rounded()
            for q in stated.quality
            if q.text.corpus_sha256 == inside.text.corpus_sha256 and _base(q) == _base(inside)
        ]
        yield _same(
            "figures in the file's metadata and beside it",
            _figures(inside),
            _figures(match[0]) if match else "none on that text",
        )


def _making(own: Made, stated: Made | None) -> Iterator[Check]:
    if stated is None:
        yield Check("how it was made", "unknown", own.recipe, False)
        return
    for name in (f.name for f in fields(Made)):
        if name not in ("versions", "source_name", "target"):
            yield _same(f"made: {name}", getattr(stated, name), getattr(own, name))
    yield _same("made: version", stated.versions.get("kvant"), own.versions.get("kvant"))


def _source(own: Evidence, stated: Evidence | None, base: Checkpoint) -> Iterator[Check]:
    made = own.made or (stated.made if stated is not None else None)
    if made is not None and made.source is not None:
        yield _same("fingerprint of the source", made.source, fingerprint(base))


def _base(quality: Quality) -> str | None:
    return None if quality.base is None else quality.base.fingerprint


def _figures(quality: Quality) -> str:
    return " ".join(f"{name}={getattr(quality, name)!r}" for name in TOLERANCES)


def _measured(
    path: Path,
    qualities: tuple[Quality, ...],
    rounded: bool,
    base: Checkpoint | None,
    text: Source | None,
    threads: int | None,
    progress: Progress | None,
) -> Iterator[Check]:
    """Every text the evidence names, measured again as far as text and base are at hand."""
    if not qualities:
        yield Check("quality", "nothing was measured", "", None)
    texts = _texts(text)
    if text is not None and not any(q.text.sha256 in texts for q in qualities):
        raise UsageError(
            f"{text}: the evidence of {path} names no text with this SHA-256. It was measured on: "
            + (", ".join(f"{q.text.name} ({q.text.sha256[:12]}…)" for q in qualities) or "nothing")
            + "."
        )
    for quality in qualities:
        content = texts.get(quality.text.sha256)
        label = f"on {quality.text.name}"
        if content is None:
            yield Check(f"quality {label}", "stated", "the text is not at hand; --text FILE", None)
            continue
        comparable = base is not None and _base(quality) == fingerprint(base)
        if quality.base is not None and not comparable:
            why = "no base; --against" if base is None else "the base named is another model"
            yield Check(f"divergence {label}", f"from {quality.base.name}", why, None)
        again = _again(path, quality.text, content, base if comparable else None, threads, progress)
        yield _same(f"token chunks {label}", quality.text.corpus_sha256, again.text.corpus_sha256)
        yield from _compare(quality, again, rounded, label)


def _texts(named: Source | None) -> dict[str, str]:
    """SHA-256 -> text, of those at hand."""
    from kvant.api.measurement import read_text

    texts = [read_text(None)] + ([] if named is None else [read_text(named)])
    return {hashlib.sha256(t.encode()).hexdigest(): t for t in texts}


def _again(
    path: Path,
    used: TextUsed,
    content: str,
    base: Checkpoint | None,
    threads: int | None,
    progress: Progress | None,
) -> Quality:
    from kvant.api.measurement import corpus_of, open_subject
    from kvant.checkpoint import open_checkpoint
    from kvant.evaluation import evaluate
    from kvant.runtimes import open_runner

    model = open_checkpoint(path)
    corpus = corpus_of(content, tokenizer_of(model), model, used.context, used.chunks)
    workers = threads_or_default(threads)
    opened = [model] if base is None else [base, model]
    first, *others = (open_subject(c, open_runner(c, threads=workers)) for c in opened)
    results = evaluate(first, others, corpus, threads=workers, progress=progress)
    return quality_of(results[-1], content, used.name, base)


def _compare(stated: Quality, found: Quality, rounded: bool, label: str) -> Iterator[Check]:
    """Each figure within its tolerance; rounded ones have half a unit of their last digit more."""
    for name, (relative, absolute) in TOLERANCES.items():
        theirs, ours = getattr(stated, name), getattr(found, name)
        if theirs is None or ours is None:
            continue
        room = abs(ours) * relative + absolute
        if rounded:
            ours_rounded = getattr(found.rounded(), name)
            room += abs(ours_rounded - ours) + 0.06 * (getattr(found, f"{name}_se", 0.0) or 0.0)
        ok = math.isclose(theirs, ours, rel_tol=0.0, abs_tol=room)
        yield Check(f"{name} {label}", f"{theirs:.7g}", f"{ours:.7g} (within {room:.2g})", ok)


def _same(what: str, stated: object, found: object) -> Check:
    return Check(what, _short(stated), _short(found), stated == found)


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 400 else f"{text[:400]}…"
