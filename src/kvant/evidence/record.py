"""The record of an artefact, and its JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from kvant.evidence.making import QUALITY_BYTES
from kvant.evidence.sizes import Sizes

__all__ = [
    "FIGURES",
    "VERSION",
    "Base",
    "Evidence",
    "FileDigest",
    "Made",
    "Quality",
    "Speed",
    "TextUsed",
    "quality_text",
    "safe_name",
]

VERSION = 1
"""Of the JSON; stands under ``kvant_evidence``."""

FIGURES = {
    "perplexity": "perplexity_se",
    "kld": "kld_se",
    "kld_median": None,
    "kld_p99": None,
    "kld_max": None,
    "same_top": "same_top_se",
    "ln_ppl_ratio": "ln_ppl_ratio_se",
}
"""Every figure of quality, and the field of its standard error where it has one."""

_NAME_BYTES = 60
_DIGITS = 4  # significant ones of figures without a standard error


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file of the artefact. Its header holds a checksum of every tensor, so the header's hash
    stands for all of it."""

    name: str
    nbytes: int
    header_sha256: str

    @classmethod
    def of(cls, name: str, nbytes: int, header: bytes) -> FileDigest:
        """Of a file with this name (see `safe_name`), size, and bytes before its first tensor."""
        return cls(safe_name(name), nbytes, hashlib.sha256(header).hexdigest())


def safe_name(name: str) -> str:
    """A file name as text that UTF-8 can hold; names on Linux may be any bytes."""
    return name.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class Made:
    """How an artefact was made; what is not known, or does not apply, is None.

    ``definition`` and ``overrides`` are the recipe in full, ``source`` is the fingerprint of the
    model it was made from, ``versions`` what made it.
    """

    recipe: str
    definition: Mapping[str, object] | None
    overrides: tuple[str, ...]
    method: str | None
    effort: str | None
    importance: str | None
    calibration: str | None
    seed: int | None
    target: str | None
    source: str | None
    source_name: str | None
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TextUsed:
    """The text something was measured on: SHA-256 of its bytes and of its token chunks."""

    name: str
    sha256: str
    corpus_sha256: str
    context: int
    chunks: int
    tokens: int
    """Scored tokens."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model compared with."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured on one text: the fields of `kvant.EvalResult` that describe quality."""

    text: TextUsed
    base: Base | None
    perplexity: float
    perplexity_se: float
    kld: float | None = None
    kld_se: float | None = None
    kld_median: float | None = None
    kld_p99: float | None = None
    kld_max: float | None = None
    same_top: float | None = None
    same_top_se: float | None = None
    ln_ppl_ratio: float | None = None
    ln_ppl_ratio_se: float | None = None

    def rounded(self) -> Quality:
        """To the digits that standard errors leave meaning: two of theirs.

        Instruction sets differ in the last digits of a logit, and artefacts should not.
        """
        found: dict[str, float | None] = {}
        for name, se_name in FIGURES.items():
            value = getattr(self, name)
            se = getattr(self, se_name) if se_name else None
            found[name] = _rounded(value, se)
            if se_name:
                found[se_name] = None if se is None else _significant(se, 2)
        return replace(self, **found)  # type: ignore[arg-type]  # the required ones are numbers

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["text"] = asdict(self.text)
        plain["base"] = None if self.base is None else asdict(self.base)
        return plain


@dataclass(frozen=True, slots=True)
class Speed:
    """One test of speed on one machine; never recomputed, as it belongs to that machine."""

    machine: str
    threads: int
    isa: str
    test: str
    """``prompt`` or ``generate``."""
    tokens: int
    batch: int
    depth: int
    rate: float
    """Tokens a second."""
    share: float
    """Of the limit that the machine itself sets, 0 to 1."""
    peak_rss_bytes: int | None
    """Of the whole process, over all tests of that run."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything about one artefact. ``made`` is None where another tool wrote the file."""

    files: tuple[FileDigest, ...]
    made: Made | None
    sizes: Sizes
    quality: tuple[Quality, ...] = ()
    speed: tuple[Speed, ...] = ()

    def with_quality(self, found: Quality) -> Evidence:
        """With ``found``, in place of what was measured on the same chunks against that base."""
        key = (found.text.corpus_sha256, found.base)
        kept = tuple(q for q in self.quality if (q.text.corpus_sha256, q.base) != key)
        return replace(self, quality=(*kept, found))

    def with_speed(self, found: tuple[Speed, ...]) -> Evidence:
        """With ``found``, in place of what the same machine measured with as many threads."""
        machines = {(s.machine, s.threads) for s in found}
        kept = tuple(s for s in self.speed if (s.machine, s.threads) not in machines)
        return replace(self, speed=(*kept, *found))

    def to_json(self) -> dict[str, object]:
        """As plain data, what `kvant.evidence.read_evidence` reads."""
        made = None
        if self.made is not None:
            made = asdict(self.made)
            made["overrides"] = list(self.made.overrides)
        return {
            "kvant_evidence": VERSION,
            "files": [
                {"name": f.name, "bytes": f.nbytes, "header_sha256": f.header_sha256}
                for f in self.files
            ],
            "made": made,
            "size": self.sizes.to_json(),
            "quality": [q.to_json() for q in self.quality],
            "speed": [asdict(s) for s in self.speed],
        }

    def text(self) -> str:
        """The document that is written beside the file, newline at the end."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def quality_text(quality: Quality | None) -> str:
    """What stands under `kvant.evidence.QUALITY`: compact JSON, exactly `QUALITY_BYTES` long.

    None gives spaces: nothing was measured.
    """
    if quality is None:
        return " " * QUALITY_BYTES
    short = quality.rounded()
    text = replace(short.text, name=_clipped(short.text.name))
    base = None if short.base is None else replace(short.base, name=_clipped(short.base.name))
    plain = replace(short, text=text, base=base).to_json()
    found = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    if len(found) > QUALITY_BYTES:
        raise ValueError(f"the figures take {len(found)} bytes, at most {QUALITY_BYTES} fit")
    return found.ljust(QUALITY_BYTES)


def _clipped(name: str) -> str:
    """ASCII, and short enough to fit whatever else there is to say."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in name)
    return plain if len(plain) <= _NAME_BYTES else plain[: _NAME_BYTES - 3] + "..."


def _rounded(value: float | None, se: float | None) -> float | None:
    if value is None:
        return None
    if se is None or not se > 0:
        return _significant(value, _DIGITS)
    return round(value, 1 - math.floor(math.log10(_significant(se, 2))))


def _significant(value: float, digits: int) -> float:
    if not value or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
