"""``kvant demo``: the main job on the built-in model."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvant.cli import show
from kvant.cli.options import Commands, positive

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "demo",
        help="quantise the built-in model to six levels and measure each",
        description="Quantise the built-in model to six levels, measure each, show a table.",
    )
    parser.add_argument(
        "--report", metavar="DIR", help="write table, figures and a picture into this folder"
    )
    parser.add_argument("--keep", metavar="DIR", help="keep the GGUF files in this folder")
    parser.add_argument("--force", action="store_true", help="replace files that are there already")
    parser.add_argument("--threads", type=positive, metavar="N", help="processors to use")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.demonstration import demo

    if arguments.report is not None:
        from kvant.api.report import check_report_folder

        check_report_folder(Path(arguments.report), force=arguments.force)
    with show.step_progress("demo") as progress:
        report = demo(
            keep=arguments.keep,
            force=arguments.force,
            threads=arguments.threads,
            progress=progress,
        )
    if arguments.json:
        show.print_json(report.to_json())
    else:
        from kvant.api.report import demo_table

        show.print_table(demo_table(report))
        show.note(f"{report.seconds:.1f} s in all")
    if arguments.report is not None:
        from kvant.api.report import write_report

        for path in write_report(report, Path(arguments.report), force=arguments.force):
            show.note(f"wrote {path}")
    return 0
