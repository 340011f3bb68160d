"""``kvant tune``: variants for several budgets beside presets, all measured, in one report."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvant.cli import show
from kvant.cli.budget import add_search, packings_of
from kvant.cli.options import Commands, positive

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "tune",
        help="variants for several budgets beside presets, measured, in one report",
        description="Make the best variant for each budget and presets to compare with, measure "
        "size, quality, speed and memory, and write a report: a page, a picture, numbers.",
    )
    parser.add_argument("source", metavar="SRC", help="demo, a Hugging Face folder, a GGUF file")
    parser.add_argument(
        "--report", metavar="DIR", required=True, help="folder for the report and all files"
    )
    parser.add_argument(
        "--budgets",
        type=_numbers,
        metavar="LIST",
        help="bits per weight (default: 2.5,3,4,5); what nothing can meet is left out, with a note",
    )
    parser.add_argument(
        "--presets",
        type=_names,
        metavar="LIST",
        help="presets to compare with (default: Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K)",
    )
    parser.add_argument(
        "--effort",
        choices=("fast", "balanced", "best"),
        default="balanced",
        help="fast measures no tensor, balanced takes minutes (default), best several times that",
    )
    add_search(parser.add_argument_group("search"))
    parser.add_argument(
        "--importance",
        metavar="FILE",
        help="importance of each input, from `kvant calibrate` or llama.cpp (imatrix)",
    )
    parser.add_argument(
        "--validation",
        metavar="FILE",
        help="UTF-8 text that everything is judged on (default: the built-in evaluation text)",
    )
    parser.add_argument(
        "--chunks", type=positive, metavar="N", help="judge on no more than its first N chunks"
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="what each variant goes on with; may be given several times",
    )
    parser.add_argument("--no-speed", action="store_true", help="leave out speed and memory")
    parser.add_argument(
        "--llama-cpp",
        metavar="DIR",
        help="folder with llama-quantize, to compare with its files of the same presets",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="processors to use")
    parser.add_argument("--force", action="store_true", help="replace files that are there already")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected numbers such as 2.5,3,4, got {text!r}"
        ) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.calibration import text_and_weight
    from kvant.api.tune import BUDGETS, PRESETS_SHOWN, PROMPTS, tune
    from kvant.api.tune_report import check_tune_folder, tune_table, write_tune_report

    folder = Path(arguments.report)
    check_tune_folder(folder, force=arguments.force)
    with show.step_progress("tune") as progress:
        report = tune(
            arguments.source,
            folder,
            budgets=BUDGETS if arguments.budgets is None else arguments.budgets,
            presets=PRESETS_SHOWN if arguments.presets is None else arguments.presets,
            effort=arguments.effort,
            packings=packings_of(arguments),
            texts=[text_and_weight(t) for t in arguments.text],
            importance=arguments.importance,
            validation=arguments.validation,
            chunks=arguments.chunks,
            prompts=PROMPTS if arguments.prompt is None else arguments.prompt,
            speed=not arguments.no_speed,
            llama_cpp=arguments.llama_cpp,
            threads=arguments.threads,
            force=arguments.force,
            progress=progress,
        )
    for sentence in report.notes:
        show.note(f"note: {sentence}")
    if arguments.json:
        show.print_json(report.to_json())
    else:
        show.print_table(tune_table(report))
        print()
        for pick in report.picks:
            show.line(f"{pick.budget}: {pick.name}. {pick.why}")
    for path in write_tune_report(report, folder, force=arguments.force):
        show.note(f"wrote {path}")
    return 0
