"""The demo's figures as files: a table, numbers, and a picture of quality against size."""

from __future__ import annotations

import json
from pathlib import Path

from kvant.api.demonstration import DemoReport
from kvant.errors import OutputError
from kvant.evaluation.report import evaluation_table, quality_chart, quality_series
from kvant.evaluation.table import Column, Table
from kvant.files.atomic import write_atomic

__all__ = ["demo_table", "write_report"]


def demo_table(report: DemoReport) -> Table:
    """One line a level: precision class, size, bits per weight, perplexity, divergence."""
    classes = Column("class", ("full", *(row.precision_class for row in report.rows)))
    return evaluation_table([report.base, *(r.result for r in report.rows)], [classes])


def write_report(report: DemoReport, folder: Path, *, force: bool = False) -> list[Path]:
    """Write ``report.md``, ``report.json`` and ``quality.svg`` into ``folder``.

    Raises:
        OutputError: the folder cannot be made, or holds these files already and not ``force``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder cannot be made: {error.strerror}.") from None
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
    files = {
        "report.md": text,
        "report.json": json.dumps(report.to_json(), indent=2) + "\n",
        "quality.svg": chart.svg(),
    }
    for name, content in files.items():
        write_atomic(folder / name, content, force=force)
    return [folder / name for name in files]
