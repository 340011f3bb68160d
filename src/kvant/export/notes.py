"""What a report of any target says of the source."""

from __future__ import annotations

from kvant.checkpoint import Checkpoint
from kvant.quant.recipe import FLOATS

__all__ = ["source_notes"]


def source_notes(checkpoint: Checkpoint, level: str | None) -> tuple[str, ...]:
    """Sentences: what was left aside, and that a source which is quantised already loses twice.

    Args:
        checkpoint: the source.
        level: what it is quantised to; None for floats.
    """
    stored = sorted({w.stored.stored_as for w in checkpoint.weights.values()} - FLOATS)
    if not stored or (level is None and checkpoint.gguf is None):  # a folder's own note says it
        return checkpoint.told
    kinds = ", ".join(stored)
    if level is None:
        lost = f"The source is quantised ({kinds}): what that lost is not regained as floats."
    else:
        lost = (
            f"The source is quantised already ({kinds}): quantising it again adds to that loss. "
            "Use the original checkpoint if you can."
        )
    return (*checkpoint.told, lost)
