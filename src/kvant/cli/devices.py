"""``kvant devices``: known devices, and where each figure comes from."""

from __future__ import annotations

import argparse

from kvant.cli import show
from kvant.cli.options import Commands

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("devices", help="list known devices, for `kvant recommend`")
    parser.add_argument("name", nargs="?", metavar="NAME", help="one device, with its source")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.devices import Device, device_named, devices
    from kvant.units import size_text

    if arguments.name is None:
        found: tuple[Device, ...] = devices()
        if arguments.json:
            show.print_json({"devices": [d.to_json() for d in found]})
            return 0
        rows = [
            (
                d.name,
                d.kind,
                size_text(d.ram),
                size_text(d.usable),
                f"{d.bandwidth / 1e9:g} GB/s",
                d.format,
                d.title,
            )
            for d in found
        ]
        header = ("device", "kind", "memory", "for a model", "bandwidth", "format", "what")
        show.print_table(show.table(header, rows))
        return 0
    d = device_named(arguments.name)
    if arguments.json:
        show.print_json(d.to_json())
        return 0
    low, high = d.achieved
    for name, value in (
        ("device", d.title),
        ("kind", d.kind),
        ("memory", f"{size_text(d.ram)}, of which {size_text(d.usable)} for a model"),
        (
            "bandwidth",
            f"{d.bandwidth / 1e9:g} GB/s by specification, {low:.0%} to {high:.0%} of it achieved",
        ),
        ("processor", f"{d.cores} large cores at {d.ghz:g} GHz, {d.compute}" if d.cores else "GPU"),
        ("engine", d.engine),
        ("format", d.format),
        ("source", d.source),
        ("note", d.note),
    ):
        if value:
            show.line(f"{name:<11}{value}")
    return 0
