"""How the weights of an artefact were rounded, as its metadata says it."""

from __future__ import annotations

from dataclasses import dataclass

from kvant.files.gguf import Value, int64, string, strings, uint64

__all__ = ["QUALITY", "QUALITY_BYTES", "SOURCE", "Making"]

SOURCE = "kvant.source.fingerprint"
"""Metadata key: which model the file was made from (`kvant.checkpoint.fingerprint`)."""

QUALITY = "kvant.evidence"
"""Metadata key: what was measured, as JSON padded with spaces to `QUALITY_BYTES`; there only where
measuring was wanted, and blank where it then could not be done."""

QUALITY_BYTES = 1024
"""Room for that JSON. It is set aside before the weights are written, so that the figures can be
filled in when the tensors are on disk, and no tensor moves."""


@dataclass(frozen=True, slots=True)
class Making:
    """What decided the codes besides the recipe, as the caller knows it.

    Attributes:
        effort: as typed: ``fast``, ``balanced`` or ``best``.
        method: one line; None for what follows from the packings (``scale search``).
        importance: SHA-256 of the importance file.
        calibration: SHA-256 of the calibration corpus.
        texts: names of its texts.
        tokens: how many of it were read.
        numpy: version of NumPy, where its matrix products decide codes.
        seed: of random choices, where any were made.
        target: the budget and how it was searched (``fit 650000000 bytes, balanced``), where there
            was one. It stands beside the file only: the recipe that was found gives the same
            bytes without it.
    """

    effort: str = "fast"
    method: str | None = None
    importance: str | None = None
    calibration: str | None = None
    texts: tuple[str, ...] = ()
    tokens: int | None = None
    numpy: str | None = None
    seed: int | None = None
    target: str | None = None

    def to_metadata(self) -> dict[str, Value]:
        """The keys that say so in a file, without those of what is not known."""
        texts = {
            "kvant.effort": self.effort,
            "kvant.method": self.method,
            "kvant.importance.sha256": self.importance,
            "kvant.calibration.sha256": self.calibration,
            "kvant.numpy.version": self.numpy,
        }
        keys = {key: string(text) for key, text in texts.items() if text is not None}
        if self.texts:
            keys["kvant.calibration.texts"] = strings(self.texts)
        if self.tokens is not None:
            keys["kvant.calibration.tokens"] = uint64(self.tokens)
        if self.seed is not None:
            keys["kvant.seed"] = int64(self.seed)
        return keys
