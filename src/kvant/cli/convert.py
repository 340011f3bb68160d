"""``kvant convert``: a checkpoint becomes an unquantised GGUF file, or a folder."""

from __future__ import annotations

import argparse

from kvant.cli.artefact import print_artefact
from kvant.cli.options import (
    Commands,
    add_output,
    add_target,
    target_settings,
    without_matrices,
)
from kvant.cli.show import weight_progress

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("convert", help="write an unquantised model")
    parser.add_argument(
        "source", metavar="SRC", help="demo, a Hugging Face or MLX folder, a GGUF file"
    )
    parser.add_argument(
        "--dtype",
        type=str.lower,
        choices=("bf16", "f16", "f32"),
        help="type of weight matrices, of everything in folders (default: bf16 in GGUF, the "
        "source's in folders)",
    )
    add_target(parser, "hf", "mlx", "onnx", "vllm")
    add_output(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    without_matrices()
    from kvant.api.conversion import convert

    with weight_progress(arguments.dtype or arguments.to) as progress:
        artefact = convert(
            arguments.source,
            arguments.output,
            to=arguments.to,
            dtype=arguments.dtype,
            lora=arguments.lora,
            threads=arguments.threads,
            split_size=arguments.split_size,
            pre_tokenizer=arguments.pre_tokenizer,
            verify=arguments.verify,
            settings=target_settings(arguments.set),
            force=arguments.force,
            dry_run=arguments.dry_run,
            progress=progress,
        )
    print_artefact(artefact, as_json=arguments.json)
    return 0
