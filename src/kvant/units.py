"""Numbers as people read them. Imports nothing."""

from __future__ import annotations

__all__ = ["NOTHING", "size_text"]

NOTHING = "–"
"""What stands where there is no number."""


def size_text(size: int | None) -> str:
    """A size in decimal units, as disks are sold and downloads shown."""
    if size is None:
        return NOTHING
    if size < 1_000_000:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.1f} MB" if size < 1_000_000_000 else f"{size / 1e9:.2f} GB"
