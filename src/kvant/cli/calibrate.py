"""``kvant calibrate``: how much each input of a model's linears matters, over texts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvant.cli import show
from kvant.cli.options import Commands, byte_size, positive

if TYPE_CHECKING:
    from kvant.api.calibration import CalibrationReport

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "calibrate",
        help="measure which inputs matter, for `quantize --importance`",
        description="Run a model over texts and write how much each input of its linears matters: "
        "a file for `kvant quantize --importance`, and for llama.cpp's tools (imatrix).",
    )
    parser.add_argument("source", metavar="SRC", help="demo, a Hugging Face folder, a GGUF file")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        default=".",
        help="file to write, or a folder; by default MODEL.importance in this folder. A name that "
        "ends in .dat gets llama.cpp's older format",
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="UTF-8 text, and its share of the tokens; may be given several times (default: the "
        "built-in calibration text)",
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        metavar="N",
        help="tokens of all texts together (default: 65536, or as many as the texts have)",
    )
    parser.add_argument("--chunk", type=positive, metavar="N", help="tokens a chunk (default: 512)")
    parser.add_argument(
        "--max-memory",
        type=byte_size,
        metavar="SIZE",
        help="most memory, such as 4G (default: what is free); a model that does not fit goes "
        "layer by layer",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="processors to use (default: all)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.calibration import calibrate, text_and_weight

    texts = [text_and_weight(text) for text in arguments.text]
    with show.token_progress("calibrate") as progress:
        report = calibrate(
            arguments.source,
            arguments.output,
            texts=texts,
            tokens=arguments.tokens,
            chunk=arguments.chunk,
            max_memory=arguments.max_memory,
            threads=arguments.threads,
            force=arguments.force,
            progress=progress,
        )
    _print(report, as_json=arguments.json)
    return 0


def _print(report: CalibrationReport, *, as_json: bool) -> None:
    for sentence in report.notes:
        show.note(f"note: {sentence}")
    if as_json:
        show.print_json(report.to_json())
        return
    from kvant.units import size_text

    found = report.importance
    rows = [(t.name, f"{t.weight:g}", f"{t.tokens:,}") for t in found.texts]
    show.print_table(show.table(("text", "share", "tokens"), rows))
    print()
    show.line(f"wrote {report.path}")
    print(
        f"{size_text(report.nbytes)} ({report.nbytes:,} bytes): inputs of {len(found.sums)} "
        f"tensors over {found.chunks:,} chunks of {found.chunk} tokens"
    )
    show.note(f"{report.seconds:.1f} s")
