"""``kvant quantize``: a checkpoint becomes a quantised GGUF file."""

from __future__ import annotations

import argparse

from kvant.cli.artefact import print_artefact
from kvant.cli.options import Commands, add_output, byte_size, positive, without_matrices
from kvant.cli.show import weight_progress

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "quantize",
        help="write a quantised GGUF file",
        description="Write a quantised GGUF file, in one pass and little memory.",
    )
    parser.add_argument("source", metavar="SRC", help="demo, a Hugging Face folder, a GGUF file")
    parser.add_argument(
        "recipe", metavar="RECIPE", help="such as Q4_K_M; `kvant formats` lists all"
    )
    add_output(parser)
    parser.add_argument(
        "--tensor",
        action="append",
        default=[],
        metavar="REGEX=PACKING",
        help="packing for tensors whose name has the expression; may be given several times",
    )
    parser.add_argument(
        "--importance",
        metavar="FILE",
        help="importance of each input, from `kvant calibrate` or llama.cpp (imatrix)",
    )
    parser.add_argument(
        "--effort",
        choices=("fast", "balanced", "best"),
        default="fast",
        help="fast: each tensor by itself; balanced: minutes, layer by layer over a text, every "
        "weight's code chosen by what the layer gives; best: longer (default: fast)",
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="text for balanced and best, and its share; may be given several times (default: the "
        "built-in calibration text)",
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        metavar="N",
        help="tokens of all texts together (default: 65536, or as many as the texts have)",
    )
    parser.add_argument(
        "--max-memory",
        type=byte_size,
        metavar="SIZE",
        help="most memory for hidden states; the rest goes to a scratch file beside the output",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.effort == "fast":
        without_matrices()
    from kvant.api.calibration import text_and_weight
    from kvant.api.conversion import quantize

    with weight_progress(arguments.recipe) as progress:
        artefact = quantize(
            arguments.source,
            arguments.recipe,
            arguments.output,
            threads=arguments.threads,
            tensors=arguments.tensor,
            importance=arguments.importance,
            effort=arguments.effort,
            texts=[text_and_weight(text) for text in arguments.text],
            tokens=arguments.tokens,
            max_memory=arguments.max_memory,
            split_size=arguments.split_size,
            pre_tokenizer=arguments.pre_tokenizer,
            force=arguments.force,
            dry_run=arguments.dry_run,
            progress=progress,
        )
    print_artefact(artefact, as_json=arguments.json)
    return 0
