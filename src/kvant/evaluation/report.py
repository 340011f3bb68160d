"""The table and the picture of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvant.evaluation.chart import Axis, Chart, Point, Rule, Series
from kvant.evaluation.results import EvalResult
from kvant.evaluation.statistics import Estimate
from kvant.evaluation.table import Column, Table, estimate_cells
from kvant.units import NOTHING, size_text

__all__ = ["evaluation_table", "quality_chart", "quality_series"]

_GIGABYTES = 2_000_000_000


def evaluation_table(
    results: Sequence[EvalResult], extra: Sequence[Column] = (), *, runners: bool = False
) -> Table:
    """Name, size, bits per weight, perplexity and, where measured, divergence of each model.

    Args:
        results: of one run, so all on the same text.
        extra: further columns with one cell a result, placed after the name (the precision
            class, for example).
        runners: say what ran each model, and how fast it read the text.
    """
    columns = [
        Column("variant", tuple(result.name for result in results)),
        *extra,
        Column("size", tuple(size_text(result.bytes) for result in results), right=True),
        Column("bpw", tuple(_decimal(result.bpw) for result in results), right=True),
        Column(
            "perplexity",
            estimate_cells([Estimate(r.perplexity, r.perplexity_se) for r in results]),
        ),
    ]
    if any(result.kld is not None for result in results):
        kld = estimate_cells([_estimate(r.kld, r.kld_se) for r in results])
        same = estimate_cells([_estimate(r.same_top, r.same_top_se, 100.0) for r in results], "%")
        columns += [Column("KL divergence", kld), Column("same top token", same)]
    note = _note(results)
    if runners:
        columns += [
            Column("tokens/s", tuple(_rate(r.read_rate) for r in results), right=True),
            Column("runner", tuple(r.runtime or NOTHING for r in results)),
        ]
        note += _runner_note(results)
    return Table(tuple(columns), note)


def quality_series(name: str, results: Sequence[EvalResult]) -> Series:
    """Mean divergence against size in bytes, of those results that have both."""
    return Series(
        name,
        tuple(
            Point(r.bytes, r.kld, r.name, r.kld_se or 0.0)
            for r in results
            if r.bytes is not None and r.kld is not None
        ),
    )


def quality_chart(
    series: Sequence[Series],
    *,
    title: str = "Quality against size",
    subtitle: str = "",
    base: EvalResult | None = None,
) -> Chart:
    """The chart of mean KL divergence (log scale) against file size.

    Args:
        series: from ``quality_series``; their names are shown if there are several.
        title: heading.
        subtitle: what was measured, on what text.
        base: the model compared with; its size is marked.
    """
    largest = max((point.x for each in series for point in each.points), default=0.0)
    unit, scale = ("GB", 1e9) if largest >= _GIGABYTES else ("MB", 1e6)
    rules: tuple[Rule, ...] = ()
    if base is not None and base.bytes is not None:
        rules = (Rule("x", base.bytes / scale, f"{base.name}, {size_text(base.bytes)}"),)
    return Chart(
        title=title,
        subtitle=subtitle,
        x=Axis(f"file size, {unit}"),
        y=Axis("mean KL divergence from the base, nats a token", "log"),
        series=tuple(
            replace(each, points=tuple(replace(p, x=p.x / scale) for p in each.points))
            for each in series
        ),
        rules=rules,
        note="Bars: one standard error each way, where longer than the marker.",
        hint="↙ smaller and closer to the base",
    )


def _note(results: Sequence[EvalResult]) -> str:
    if not results:
        return ""
    first = results[0]
    note = (
        f"± is one standard error, over {first.chunks} chunks of {first.context} tokens "
        f"({first.tokens:,} tokens scored)."
    )
    bases = {result.base for result in results if result.base is not None}
    if len(bases) == 1:
        note += f" KL divergence from {bases.pop()}, in nats a token."
    return note


def _runner_note(results: Sequence[EvalResult]) -> str:
    note = ""
    if any(result.read_rate is not None for result in results):
        note = " tokens/s: reading this text, the models in turn; `kvant bench` measures speed."
    decoded = [r for r in results if r.runtime is not None and "dequantised" in r.runtime]
    if decoded:
        note += (
            " dequantised: the weights of the file as kvant decodes them, run by kvant in float32"
            + (
                "; vLLM itself was not run."
                if any(r.format == "vllm" for r in decoded)
                else ", not by the runtime the format is for."
            )
        )
    return note


def _rate(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _decimal(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _estimate(value: float | None, se: float | None, scale: float = 1.0) -> Estimate | None:
    return None if value is None or se is None else Estimate(scale * value, scale * se)
