"""``kvant formats``: every packing, recipe and level."""

from __future__ import annotations

import argparse

from kvant.cli import show
from kvant.cli.options import Commands

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("formats", help="list every packing, recipe and level")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.catalogue import formats
    from kvant.quant.nominal import NOMINAL_MODEL, nominal_bits_per_weight

    found = formats()
    if arguments.json:
        show.print_json(found.to_json())
        return 0
    print("Recipes (kvant quantize SRC RECIPE)\n")
    show.print_table(
        show.table(
            ("recipe", "class", "bpw", "base", "output", "good for"),
            [
                (
                    r.name,
                    r.precision_class,
                    f"{nominal_bits_per_weight(r):.2f}",
                    r.base,
                    r.output or r.base,
                    r.good_for,
                )
                for r in found.recipes
            ],
        )
    )
    print(f"\nbpw: bits per weight on {NOMINAL_MODEL}; `kvant inspect` states your model's size")
    print("\nPackings (--tensor 'REGEX=PACKING')\n")
    show.print_table(
        show.table(
            ("packing", "class", "bpw", "block", "layout", "good for"),
            [
                (
                    p.name,
                    p.precision_class,
                    f"{p.bits_per_weight:.4g}",
                    f"{p.block} in {p.storage.block_bytes} B",
                    p.block_layout,
                    p.good_for,
                )
                for p in found.packings
            ],
        )
    )
    for name, levels in found.targets.items():
        print(f"\nLevels of {name} (kvant quantize SRC LEVEL --to {name})\n")
        show.print_table(
            show.table(
                ("level", "class", "bpw", "group", "good for"),
                [
                    (
                        level.name,
                        level.precision_class,
                        f"{level.bits_per_weight:.4g}",
                        "row" if level.group is None else str(level.group),
                        level.good_for,
                    )
                    for level in levels
                ],
            )
        )
    return 0
