"""``kvant quantize model.onnx``: options of any ONNX model, and their report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvant.cli import show
from kvant.cli.options import positive
from kvant.errors import UsageError

if TYPE_CHECKING:
    from kvant.api.onnx_models import OnnxReport
    from kvant.onnxtools.compare import Bounds
    from kvant.onnxtools.job import DataSet
    from kvant.onnxtools.levels import OnnxOptions

__all__ = [
    "add_onnx_options",
    "bounds_of",
    "data_of",
    "is_onnx_model",
    "options_of",
    "print_onnx_report",
    "run_onnx",
]

_SHARED = {"source", "recipe", "output", "threads", "force", "json", "run", "late", "refuse"}


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number, or one for each channel with commas, got {text!r}"
        ) from None


def add_onnx_options(parser: argparse.ArgumentParser, *, quantise: bool = True) -> None:
    """Options for ONNX models; ``quantise``: those of levels other than int8-static, too."""
    group = parser.add_argument_group("ONNX models (SRC ends in .onnx)")
    before = _dests(parser)
    group.add_argument(
        "--calibrate",
        metavar="DATA",
        help=".npz or .npy file with arrays by input name, or a folder of them or of images: to "
        "calibrate, and to compare before and after",
    )
    group.add_argument("--labels", metavar="NAME", help="array with the class of each sample")
    group.add_argument(
        "--samples", type=positive, metavar="N", help="how many calibrate (default: 256 or half)"
    )
    group.add_argument("--mean", type=_numbers, metavar="X[,X,X]", help="of images: subtracted")
    group.add_argument("--std", type=_numbers, metavar="X[,X,X]", help="of images: divided by")
    group.add_argument(
        "--calibration",
        choices=("minmax", "percentile", "entropy", "mse"),
        help="how a range follows from values (default: minmax)",
    )
    group.add_argument("--percentile", type=float, metavar="P", help="default: 99.99")
    group.add_argument("--activations", choices=("uint8", "int8", "uint16"), help="default: uint8")
    group.add_argument(
        "--per-channel",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a scale for each output channel of a weight (default)",
    )
    group.add_argument("--max-error", type=float, metavar="X", help="bound on the output error")
    group.add_argument("--max-loss", type=float, metavar="X", help="bound on accuracy lost, points")
    group.add_argument("--min-accuracy", type=float, metavar="X", help="bound on accuracy, percent")
    group.add_argument(
        "--strict",
        action="store_true",
        help="write nothing that is slower, worse, or not smaller",
    )
    group.add_argument(
        "--external-data",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="weights in OUT.data (default: from 1.5 GB)",
    )
    if quantise:
        _add_levels(group)
    parser.set_defaults(
        onnx_options=tuple(sorted(_dests(parser) - before)),
        plain={dest: parser.get_default(dest) for dest in _dests(parser)},
    )


def _add_levels(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--test", metavar="DATA", help="other data to compare on")
    group.add_argument(
        "--format",
        choices=("qdq", "qoperator"),
        help="standard operators around float ones, or integer and fused ones",
    )
    group.add_argument(
        "--reduce-range",
        action="store_true",
        help="weights in 7 bits, for x86 processors without VNNI",
    )
    group.add_argument("--block", type=int, metavar="N", help="weights a scale (default: 32)")
    group.add_argument("--symmetric", action="store_true", help="blocks without zero points")
    group.add_argument(
        "--keep-float",
        action="append",
        default=[],
        metavar="NODE",
        help="a node, or a type of node, that stays in float; may be given several times",
    )


def _dests(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions}


def is_onnx_model(arguments: argparse.Namespace) -> bool:
    """Whether the source is a single ONNX model; options for the other kind are refused.

    Raises:
        UsageError: an option has no meaning for this source.
    """
    onnx = str(arguments.source).lower().endswith(".onnx")
    allowed = _SHARED | {"onnx_options", "plain"} | set(arguments.onnx_options)
    for name, value in vars(arguments).items():
        given = value != arguments.plain.get(name) and not callable(value)
        wrong = name not in allowed if onnx else name in arguments.onnx_options
        if given and wrong:
            option = "--" + name.replace("_", "-")
            kind = "ONNX models (SRC ends in .onnx)" if not onnx else "language models"
            raise UsageError(f"{option} is for {kind}, not for {arguments.source}.")
    return onnx


def data_of(arguments: argparse.Namespace) -> DataSet:
    """Data as the options say."""
    from kvant.onnxtools.job import DataSet
    from kvant.onnxtools.sources import Normalise

    pixels = Normalise(arguments.mean or (), arguments.std or ())
    if arguments.std and 0.0 in arguments.std:
        raise UsageError("--std is divided by; it must not be 0.")
    return DataSet(
        arguments.calibrate,
        arguments.labels,
        arguments.samples,
        getattr(arguments, "test", None),
        pixels,
    )


def options_of(arguments: argparse.Namespace) -> OnnxOptions:
    """Options of a level; what is not given keeps its default."""
    from kvant.onnxtools.levels import OnnxOptions

    names = ["format", "per_channel", "calibration", "percentile", "activations", "block"]
    names += ["reduce_range", "symmetric"]
    given = {name: getattr(arguments, name, None) for name in names}
    return OnnxOptions(**{name: value for name, value in given.items() if value is not None})


def bounds_of(arguments: argparse.Namespace) -> Bounds:
    """What must hold."""
    from kvant.onnxtools.compare import Bounds

    return Bounds(arguments.max_error, arguments.max_loss, arguments.min_accuracy)


def run_onnx(arguments: argparse.Namespace) -> int:
    """Quantise, write, report."""
    from kvant.api.onnx_models import quantize_onnx
    from kvant.onnxtools.levels import LEVELS

    if arguments.recipe is None:
        raise UsageError(f"expected a level for an ONNX model: {', '.join(LEVELS)}.")
    with show.step_progress(arguments.recipe) as progress:
        report = quantize_onnx(
            arguments.source,
            arguments.recipe,
            arguments.output,
            data=data_of(arguments),
            options=options_of(arguments),
            keep_float=arguments.keep_float,
            bounds=bounds_of(arguments),
            strict=arguments.strict,
            external=arguments.external_data,
            force=arguments.force,
            threads=arguments.threads,
            progress=progress,
        )
    print_onnx_report(report, as_json=arguments.json)
    return 0


def print_onnx_report(report: OnnxReport, *, as_json: bool) -> None:
    """What was done on stderr, what came of it on stdout."""
    from kvant.files.source import printable
    from kvant.units import NOTHING, size_text

    for step in report.steps:
        show.note(f"did: {step}")
    for sentence in report.notes:
        show.note(f"data: {sentence}")
    for kept in report.kept:
        error = (
            "" if kept.error is None else f"; alone it costs an output error of {kept.error:.3g}"
        )
        show.note(f"in float: {kept.node} ({kept.why}{error})")
    for sentence in report.against:
        show.note(f"warning: {sentence}")
    if as_json:
        show.print_json(report.to_json())
        return
    found = report.comparison
    quality = found.quality
    rows: list[tuple[str, str, str]] = []
    rows.append(("size", size_text(found.bytes_before), size_text(found.bytes_after)))
    if quality is not None and quality.accuracy_before is not None:
        after = quality.accuracy_after or 0.0
        rows.append(("accuracy", f"{100 * quality.accuracy_before:.2f} %", f"{100 * after:.2f} %"))
    if quality is not None:
        label = "output error (made-up values)" if found.made_up else "output error"
        rows.append((label, NOTHING, f"{quality.output_error:.3g}"))
    if found.milliseconds_before is not None and found.milliseconds_after is not None:
        before, later = found.milliseconds_before, found.milliseconds_after
        rows.append(("a run", f"{before:.3g} ms", f"{later:.3g} ms"))
    show.print_table(show.table(("", "before", "after"), rows))
    for path in report.paths:
        print(f"wrote {printable(str(path))}")
    types = ", ".join(f"{100 * share:.1f} % {name}" for name, share in report.shares.items())
    print(f"stored as {types}")
    if quality is not None and not found.made_up:
        seen = "" if found.held_out else " that calibrated, too"
        show.note(f"compared on {quality.samples:,} samples{seen}; {report.seconds:.1f} s")
