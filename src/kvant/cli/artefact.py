"""The report on a file that was written, or would be."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kvant.cli import show

if TYPE_CHECKING:
    from kvant.api.artefact import Artefact

__all__ = ["print_artefact"]


def print_artefact(artefact: Artefact, *, as_json: bool, recipe_file: str | None = None) -> None:
    """Print paths, size and packings; notes go to stderr, that on ``recipe_file`` too."""
    from kvant.units import size_text

    for sentence in artefact.notes:
        show.note(f"note: {sentence}")
    verb = "would write" if artefact.seconds is None else "wrote"
    if recipe_file is not None:
        show.note(f"{verb} the recipe {recipe_file}")
    if as_json:
        show.print_json(artefact.to_json())
        return
    if artefact.seconds is None:
        rows = [
            (
                t.name,
                " x ".join(map(str, t.shape)),
                t.source_type,
                t.packing if t.packing == t.wanted else f"{t.packing} (for {t.wanted})",
                f"{t.nbytes:,}",
            )
            for t in artefact.tensors
        ]
        show.print_table(show.table(("tensor", "shape", "source", "packing", "bytes"), rows))
        print()
    counts = Counter(t.packing for t in artefact.tensors)
    packings = ", ".join(f"{n} x {name}" for name, n in counts.most_common())
    for path in artefact.paths:
        show.line(f"{verb} {path}")
    print(
        f"{size_text(artefact.nbytes)} ({artefact.nbytes:,} bytes), "
        f"{artefact.bits_per_weight:.3f} bits per weight: {packings}"
    )
    for path in artefact.beside:
        show.note(f"beside it: {path}")
    if artefact.seconds:
        rate = artefact.parameters / artefact.seconds / 1e6
        show.note(f"{artefact.seconds:.1f} s, {rate:.0f} million weights per second")
