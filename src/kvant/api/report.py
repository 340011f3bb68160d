"""The demo's figures as files: a table, numbers, and a picture of quality against size."""

from __future__ import annotations

import json
from pathlib import Path

from kvant.api.demonstration import DemoReport, make_folder
from kvant.errors import OutputError
from kvant.evaluation.report import evaluation_table, quality_chart, quality_series
from kvant.evaluation.table import Column, Table
from kvant.files.atomic import write_atomic

__all__ = ["check_report_folder", "demo_table", "write_report"]

_FILES = ("report.md", "report.json", "quality.svg")


def demo_table(report: DemoReport) -> Table:
    """One line a level: precision class, size, bits per weight, perplexity, divergence."""
    classes = Column("class", ("full", *(row.precision_class for row in report.rows)))
    return evaluation_table([report.base, *(r.result for r in report.rows)], [classes])


def check_report_folder(folder: Path, *, force: bool = False) -> None:
    """Make the folder of a report before the work of a minute is done for it.

    Raises:
        OutputError: it cannot be made, or holds a report already and not ``force``.
    """
    make_folder(folder)
    for name in _FILES:
        if not force and (folder / name).exists():
            raise OutputError(
                f"{folder / name}: exists already. Choose another folder or pass --force."
            )


def write_report(report: DemoReport, folder: Path, *, force: bool = False) -> list[Path]:
    """Write ``report.md``, ``report.json`` and ``quality.svg`` into ``folder``.

    Raises:
        OutputError: the folder cannot be made, or holds these files already and not ``force``.
    """
    check_report_folder(folder, force=force)
    base = report.base
    chart = quality_chart(
        [quality_series("kvant", [row.result for row in report.rows])],
        title="What each level costs",
        subtitle=f"built-in model, {base.tokens:,} scored tokens of text it never saw",
        base=base,
    )
    text = (
        "# The built-in model at six levels\n\n"
        f"{demo_table(report).markdown()}\n"
        "![mean KL divergence against file size](quality.svg)\n"
    )
    contents = (text, json.dumps(report.to_json(), indent=2) + "\n", chart.svg())
    for name, content in zip(_FILES, contents, strict=True):
        write_atomic(folder / name, content, force=force)
    return [folder / name for name in _FILES]
