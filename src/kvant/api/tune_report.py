"""What `tune` found as files: a page, a picture, numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kvant.api.tune import TuneReport, Variant
from kvant.errors import OutputError
from kvant.evaluation import EvalResult
from kvant.evaluation.chart import Axis, Chart, Point, Series
from kvant.evaluation.chart_png import chart_png
from kvant.evaluation.page import Charts, Page, Section, Texts
from kvant.evaluation.report import evaluation_table, quality_chart, quality_series
from kvant.evaluation.table import Column, Table
from kvant.files.atomic import write_atomic
from kvant.units import NOTHING, size_text

__all__ = ["FILES", "check_tune_folder", "tune_table", "write_tune_report"]

FILES = ("report.html", "report.json", "report.md", "quality.svg", "quality.png")

_MAKERS = {
    "kvant": "kvant, for a budget",
    "preset": "llama.cpp's presets, made by kvant without importance",
    "llama.cpp": "llama.cpp's presets, made by llama-quantize with importance",
}
_GIGABYTES = 2_000_000_000


def check_tune_folder(folder: Path, *, force: bool) -> None:
    """Say before minutes of work that a report is there already.

    Raises:
        OutputError: it is, and not ``force``.
    """
    for name in FILES:
        if not force and (folder / name).exists():
            raise OutputError(
                f"{folder / name}: exists already. Choose another folder or pass --force."
            )


def tune_table(report: TuneReport) -> Table:
    """One line a variant, the base first, then by size."""
    rows = [report.base, *report.variants]
    classes = Column("class", tuple(v.precision_class for v in rows))
    table = evaluation_table([replace(v.result, name=v.name) for v in rows], [classes])
    columns = list(table.columns)
    if any(v.generation_rate is not None for v in rows):
        columns += [
            Column("prompt tok/s", tuple(_rate(v.prompt_rate) for v in rows), right=True),
            Column("generation", tuple(_rate(v.generation_rate) for v in rows), right=True),
            Column("memory", tuple(size_text(v.memory_bytes) for v in rows), right=True),
        ]
    return replace(table, columns=tuple(columns))


def _rate(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def write_tune_report(report: TuneReport, folder: Path, *, force: bool = False) -> list[Path]:
    """Write the report's files into ``folder``, which is there.

    Raises:
        OutputError: a file exists and not ``force``, or cannot be written.
    """
    check_tune_folder(folder, force=force)
    quality = front_chart(report)
    table = tune_table(report)
    markdown = (
        f"# {report.model}: what fits, and what it costs\n\n{table.markdown()}\n"
        "![mean KL divergence against file size](quality.svg)\n\n"
        + "".join(f"- {p.budget}: **{p.name}**. {p.why}\n" for p in report.picks)
        + "".join(f"\n{note}\n" for note in report.notes)
    )
    contents: tuple[str | bytes, ...] = (
        tune_page(report).html(),
        json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n",
        markdown,
        quality.svg(),
        chart_png(quality),
    )
    for name, content in zip(FILES, contents, strict=True):
        write_atomic(folder / name, content, force=force)
    return [folder / name for name in FILES]


def front_chart(report: TuneReport) -> Chart:
    """Divergence against size, a series for each maker."""
    result = report.base.result
    return quality_chart(
        [
            replace(quality_series(label, [_short(v) for v in own]), joined=True)
            for label, own in _by_maker(report)
        ],
        title=f"{report.model}: what each size costs",
        subtitle=f"{result.tokens:,} scored tokens of text that nothing was calibrated on",
        base=result,
    )


def _by_maker(report: TuneReport) -> list[tuple[str, list[Variant]]]:
    groups = [(label, [v for v in report.variants if v.maker == m]) for m, label in _MAKERS.items()]
    return [(label, own) for label, own in groups if own]


def _short(variant: Variant) -> EvalResult:
    """The result under a name that is short enough for a chart whose legend says the maker."""
    name = variant.name.removeprefix("llama.cpp ").removeprefix("kvant-")
    name = name.replace("bpw", " bpw")
    return replace(variant.result, name=name)


def tune_page(report: TuneReport) -> Page:
    """The page."""
    base = report.base.result
    sections = [
        Section(
            "What to take",
            tuple(f"{pick.budget}: {pick.name}. {pick.why}" for pick in report.picks)
            + report.notes,
        ),
        Section("Quality and size", (Charts((front_chart(report),)), tune_table(report))),
    ]
    if report.base.generation_rate is not None:
        sections.append(Section("Speed and memory", (Charts(_speed_charts(report)), _SPEED_NOTE)))
    for prompt_number, prompt in enumerate(report.prompts):
        texts = tuple(
            (v.name, prompt, v.samples[prompt_number])
            for v in (report.base, *report.variants)
            if len(v.samples) > prompt_number
        )
        if texts:
            sections.append(Section(f"How each goes on with “{prompt}”", (Texts(texts),)))
    sections.append(Section("How it was found", _method(report)))
    return Page(
        f"{report.model}: what fits, and what it costs",
        f"{len(report.variants)} variants of {base.name}, judged by how far their predictions are "
        "from its own: mean KL divergence over "
        f"{base.tokens:,} tokens of text that nothing was calibrated on.",
        sections,
    )


_SPEED_NOTE = (
    "On the machine that made this page, on kvant's engine: one prompt, and one sequence that "
    "generates. Memory is weights, a step and the cache of what was timed."
)


def _method(report: TuneReport) -> tuple[str | Table, ...]:
    found = report.sensitivity
    if not found.tokens:
        how = "No tensor was measured: sensitivities are those other models had (effort fast)."
    else:
        how = (
            f"{len(found.tensors)} tensors were measured on {found.tokens:,} tokens of calibration "
            f"text, {found.passes:.1f} times the model's work on them, in {found.seconds:.0f} s "
            f"(effort {found.effort}): the model ran with each tensor rounded, and its predictions "
            "were compared with the original's."
        )
    dear = sorted(found.tensors, key=lambda t: -t.coefficient)[:12]
    table = Table(
        (
            Column("tensor", tuple(t.name for t in dear)),
            Column("weights", tuple(f"{t.weights:,}" for t in dear), right=True),
            Column("sensitivity", tuple(f"{t.coefficient:.4f}" for t in dear), right=True),
        ),
        "The most sensitive tensors: divergence, in nats a token, for a relative error of one.",
    )
    expected = [v for v in report.variants if v.expected_kld is not None]
    foretold = "; ".join(
        f"{v.name}: expected {v.expected_kld:.5f}, found {v.result.kld:.5f}" for v in expected
    )
    return (
        how,
        "The best mixture for a budget was then computed exactly, by dynamic programming over "
        f"bytes. {foretold}.",
        table,
        f"The whole took {report.seconds:.0f} s. report.json has every figure.",
    )


def _speed_charts(report: TuneReport) -> tuple[Chart, ...]:
    return (
        _chart_of(report, "Tokens a second, generating", lambda v: v.generation_rate),
        _chart_of(
            report,
            "Memory, MB",
            lambda v: None if v.memory_bytes is None else v.memory_bytes / 1e6,
        ),
    )


def _chart_of(report: TuneReport, what: str, of: Callable[[Variant], float | None]) -> Chart:
    every = [report.base, *report.variants]
    largest = max((v.result.bytes or 0) for v in every)
    unit, scale = ("GB", 1e9) if largest >= _GIGABYTES else ("MB", 1e6)
    groups: Sequence[tuple[str, Sequence[Variant]]] = [
        *_by_maker(report),
        (report.base.name, [report.base]),
    ]
    return Chart(
        title=what,
        x=Axis(f"file size, {unit}"),
        y=Axis(what),
        series=tuple(
            Series(
                label,
                tuple(
                    Point((v.result.bytes or 0) / scale, value, _short(v).name)
                    for v in own
                    if (value := of(v)) is not None
                ),
                joined=False,
            )
            for label, own in groups
        ),
    )
