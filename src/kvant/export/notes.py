"""What a report of any target says of the source."""

from __future__ import annotations

from kvant.checkpoint import Checkpoint
from kvant.quant.recipe import FLOATS

__all__ = ["source_notes"]

_LOSING = {"F32": (), "F16": ("F32",), "BF16": ("F32", "F16")}
"""By type, those that have digits it does not keep."""


def source_notes(checkpoint: Checkpoint, level: str | None, dtype: str) -> tuple[str, ...]:
    """Sentences: what was left aside, what is rounded, what was lost before.

    Args:
        checkpoint: the source.
        level: what it is quantised to; None for floats.
        dtype: of what is not quantised: ``F32``, ``F16`` or ``BF16``.
    """
    weights = checkpoint.weights.values()
    floats = {w.stored.stored_as for w in weights if level is None or len(w.shape) < 2}
    found = list(checkpoint.told)
    rounded = [kind for kind in _LOSING[dtype] if kind in floats]
    if rounded:
        found.append(
            f"Weights stored as {', '.join(rounded)} are rounded to {dtype}, which keeps fewer "
            f"digits; --dtype {rounded[0].lower()} keeps all."
        )
    stored = sorted({w.stored.stored_as for w in weights} - FLOATS)
    if stored and level is not None:
        found.append(
            f"The source is quantised already ({', '.join(stored)}): quantising it again adds to "
            "that loss. Use the original checkpoint if you can."
        )
    elif stored and checkpoint.gguf is not None:  # a folder's own note says it
        found.append(
            f"The source is quantised ({', '.join(stored)}): what that lost is not regained as "
            "floats."
        )
    return tuple(found)
