"""``kvant optimize``: an ONNX model simplified, folded and fused for where it will run."""

from __future__ import annotations

import argparse

from kvant.cli import show
from kvant.cli.onnx_model import (
    add_onnx_options,
    bounds_of,
    data_of,
    options_of,
    print_onnx_report,
)
from kvant.cli.options import Commands, positive
from kvant.errors import UsageError

__all__ = ["add"]


def _shape(text: str) -> tuple[str, list[int]]:
    name, _, sizes = text.rpartition("=")
    try:
        return name, [positive(size) for size in sizes.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected INPUT=SIZE,SIZE,... such as input=1,3,224,224, got {text!r}"
        ) from None


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "optimize",
        help="simplify and fuse an ONNX model",
        description="Simplify an ONNX model, fold what is constant and fuse its operators for the "
        "place where it will run. Every step is checked by running the model before and after.",
    )
    parser.add_argument("source", metavar="MODEL.onnx", help="any ONNX model")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="file to write, or a folder (default: this one)"
    )
    parser.add_argument(
        "--for",
        dest="profile",
        choices=("cpu", "cuda", "npu"),
        default="cpu",
        help="cpu (default); cuda; npu: fixed shapes, standard operators, and full-integer QDQ "
        "where there is --calibrate DATA",
    )
    parser.add_argument(
        "--fp16", action="store_true", help="half precision inside; inputs and outputs stay"
    )
    parser.add_argument(
        "--shape",
        action="append",
        type=_shape,
        default=[],
        metavar="INPUT=SIZES",
        help="fix an input's shape, such as input=1,3,224,224; may be given several times",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="processors to use")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_onnx_options(parser, quantise=False)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.onnx_models import optimize_onnx

    shapes = dict(arguments.shape)
    if len(shapes) != len(arguments.shape):
        raise UsageError("--shape names an input twice.")
    with show.step_progress("optimize") as progress:
        report = optimize_onnx(
            arguments.source,
            arguments.output,
            profile=arguments.profile,
            fp16=arguments.fp16,
            shapes=shapes,
            data=data_of(arguments),
            options=options_of(arguments),
            bounds=bounds_of(arguments),
            strict=arguments.strict,
            external=arguments.external_data,
            force=arguments.force,
            threads=arguments.threads,
            progress=progress,
        )
    print_onnx_report(report, as_json=arguments.json)
    return 0
