"""Numbers as people read them. Imports nothing."""

from __future__ import annotations

__all__ = ["NOTHING", "count_text", "size_text"]

NOTHING = "–"
"""What stands where there is no number."""


def size_text(size: int | None) -> str:
    """A size in decimal units, as disks are sold and downloads shown."""
    if size is None:
        return NOTHING
    if size < 1_000_000:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.1f} MB" if size < 1_000_000_000 else f"{size / 1e9:.2f} GB"


def count_text(count: int) -> str:
    """A number of parameters as models are named by it: ``11.5M``, ``1.2B``."""
    if count < 1_000_000:
        return f"{count / 1e3:.0f}K"
    return f"{count / 1e6:.3g}M" if count < 1_000_000_000 else f"{count / 1e9:.3g}B"
