"""``kvant bench``: how fast a model runs here, beside what the machine could do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvant.cli import show
from kvant.cli.options import Commands, positive
from kvant.cli.runners import add_runner, runner_choice
from kvant.errors import UsageError

if TYPE_CHECKING:
    from kvant.api.benchmark import BenchReport
    from kvant.evaluation.speed import SpeedResult

__all__ = ["add"]

_BOUND = {"memory": "memory bandwidth", "int8": "int8 peak", "bf16": "bf16 peak"}


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "bench",
        help="measure speed and memory, beside the machine's limits",
        description="Measure how fast a model reads prompts and generates, how much memory it "
        "needs, and what this machine could do at most, measured in turn.",
    )
    parser.add_argument("model", metavar="MODEL", help="demo, a folder, a GGUF file")
    parser.add_argument(
        "--prompt",
        type=_list_of(_from_zero),
        metavar="N,N",
        help="lengths of prompts (default: 128,512; 0: none)",
    )
    parser.add_argument(
        "--generate", type=positive, metavar="N", help="tokens to generate (default: 64)"
    )
    parser.add_argument(
        "--batch",
        type=_list_of(_from_zero),
        metavar="N,N",
        help="sequences that generate together (default: 1,4,16; 0: none)",
    )
    parser.add_argument(
        "--depth",
        type=_list_of(_from_zero),
        metavar="N,N",
        help="tokens of context before each test (default: 0)",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="processors to use (default: all)"
    )
    parser.add_argument(
        "--kv", choices=("f16", "q8_0"), default="f16", help="type of keys and values"
    )
    add_runner(parser)
    parser.add_argument(
        "--repeat", type=positive, default=3, metavar="N", help="runs of each test (default: 3)"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="add speed and memory on this machine to the evidence beside the model (a GGUF file)",
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _list_of(single: Callable[[str], int]) -> Callable[[str], tuple[int, ...]]:
    return lambda text: tuple(single(part) for part in text.split(","))


def _from_zero(text: str) -> int:
    if text.strip() == "0":
        return 0
    try:
        return positive(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}") from None


def _without_zero(numbers: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(n for n in numbers if n)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.benchmark import benchmark, record_benchmark

    if arguments.record:
        from kvant.api.evidence import check_recordable

        if arguments.runner:
            raise UsageError("--record is for kvant's own engine; give it without --runner.")
        check_recordable([arguments.model])
    with show.token_progress("bench") as progress:
        report = benchmark(
            arguments.model,
            prompts=_without_zero(arguments.prompt),
            generate=arguments.generate,
            batches=_without_zero(arguments.batch),
            depths=arguments.depth,
            threads=arguments.threads,
            kv_type=arguments.kv,
            repeat=arguments.repeat,
            runner=runner_choice(arguments.runner),
            progress=progress,
        )
    if arguments.record:
        show.note(f"recorded in {record_benchmark(report)}")
    if arguments.json:
        show.print_json(report.to_json())
        return 0
    _print(report)
    return 0


def _print(report: BenchReport) -> None:
    from kvant.units import size_text

    used = (
        f"{report.runtime}: {report.how}"
        if report.how
        else f"{report.isa}, keys and values in {report.kv_type}"
    )
    show.line(
        f"{report.name}: {size_text(report.bytes)} of weights, {report.threads} threads, {used}; "
        f"ready in {report.load_seconds:.2f} s"
    )
    print()
    energy = any(r.joules_per_token is not None for r in report.results)
    header = ["test", "depth", "tokens/s", "limit", "of limit", "set by", "first token"]
    rows = [_row(result, energy) for result in report.results]
    show.print_table(show.table([*header, *(["J/token"] if energy else [])], rows))
    print()
    limits = report.limits
    peaks = ", ".join(f"{kind} {peak / 1e12:.2f} TOPS" for kind, peak in limits.peaks.items())
    show.line(f"machine  {limits.bandwidth / 1e9:.1f} GB/s read, {peaks}")
    held = (
        ""
        if report.weights_bytes is None
        else f"weights {size_text(report.weights_bytes)}, keys and values "
        f"{size_text(report.kv_bytes)}, scratch {size_text(report.scratch_bytes)}; "
    )
    if report.peak_rss_bytes is not None:
        held += f"peak {size_text(report.peak_rss_bytes)}"
    show.line(f"memory   {held.removesuffix('; ')}")


def _row(result: SpeedResult, energy: bool) -> Sequence[str]:
    is_prompt = result.test == "prompt"
    name = f"prompt {result.tokens}" if is_prompt else f"generate {result.tokens}"
    return [
        name if result.batch == 1 else f"{name}, batch {result.batch}",
        str(result.depth),
        f"{result.rate:.1f}",
        f"{result.limit:.1f}",
        f"{result.share:.0%}",
        _BOUND.get(result.bound, f"{result.bound} peak"),
        _duration(result.seconds) if is_prompt else "",
        *([f"{result.joules_per_token:.3g}" if result.joules_per_token else "–"] if energy else []),
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
