"""What is known about an artefact: how it was made, what it weighs, what was measured.

::

    making.py    how: the part that stands in the file's own metadata
    sizes.py     bits per weight, by class of tensor
    record.py    the whole record, as NAME.evidence.json holds it
    card.py      the record as a model card
    reading.py   the record from JSON that anybody may have written

The record is data; measuring is `kvant.evaluation`'s, and `kvant.api.evidence` joins the two.
"""

from __future__ import annotations

from kvant.evidence.card import CARD_MARK, model_card
from kvant.evidence.making import QUALITY, QUALITY_BYTES, SOURCE, Making
from kvant.evidence.reading import read_evidence, read_quality
from kvant.evidence.record import (
    Base,
    Evidence,
    FileDigest,
    Made,
    Quality,
    Speed,
    TextUsed,
    quality_text,
    safe_name,
)
from kvant.evidence.sizes import ClassSize, Sizes, measure_sizes, tensor_class

__all__ = [
    "CARD_MARK",
    "QUALITY",
    "QUALITY_BYTES",
    "SOURCE",
    "Base",
    "ClassSize",
    "Evidence",
    "FileDigest",
    "Made",
    "Making",
    "Quality",
    "Sizes",
    "Speed",
    "TextUsed",
    "measure_sizes",
    "model_card",
    "quality_text",
    "read_evidence",
    "read_quality",
    "safe_name",
    "tensor_class",
]
