"""``kvant verify``: is a file sound, and how far is it from its source?"""

from __future__ import annotations

import argparse

from kvant.cli import show
from kvant.cli.options import Commands, positive

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "verify", help="check structure and checksums, and weights against their source"
    )
    parser.add_argument("file", metavar="FILE", help="a GGUF file")
    parser.add_argument(
        "--against", metavar="SRC", help="the source: reconstruction error of every tensor"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="processors to use")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.verification import verify

    with show.weight_progress("verify") as progress:
        found = verify(
            arguments.file, arguments.against, threads=arguments.threads, progress=progress
        )
    if arguments.json:
        show.print_json(found.to_json())
        return 0 if found.ok else 1
    if found.reconstruction:
        rows = [
            (
                r.name,
                r.source_type,
                r.packing,
                f"{r.relative:.3e}",
                f"{r.rmse:.3e}",
                f"{r.largest:.3e}",
            )
            for r in found.reconstruction
        ]
        show.print_table(
            show.table(("tensor", "source", "packing", "relative", "rmse", "largest"), rows)
        )
        print()
    for finding in found.findings:
        show.line(f"{'error' if finding.serious else 'untidy'}: {finding.message}")
    for name in found.damaged:
        show.line(f"error: tensor {name} does not have the checksum it was written with")
    checksums = {
        "good": "all checksums good",
        "bad": f"{len(found.damaged)} bad checksums",
        "none": "no checksums in the file (another tool wrote it)",
        "stale": "no checksums of this file (another tool made it from one of kvant's)",
    }[found.checksums]
    verdict = "sound" if found.ok else "damaged"
    print(f"{found.path}: {verdict}; {found.tensors} tensors, {found.nbytes:,} bytes, {checksums}")
    return 0 if found.ok else 1
