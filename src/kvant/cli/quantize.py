"""``kvant quantize``: a model becomes a quantised one, in the format its runtime loads."""

from __future__ import annotations

import argparse
from typing import Literal

from kvant.cli.artefact import print_artefact
from kvant.cli.budget import add_budgets, check_budgets, run_budget
from kvant.cli.onnx_model import add_onnx_options, is_onnx_model, run_onnx
from kvant.cli.options import (
    Commands,
    add_output,
    add_target,
    byte_size,
    positive,
    target_settings,
    without_matrices,
)
from kvant.cli.show import weight_progress
from kvant.errors import UsageError

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "quantize",
        help="write a quantised model",
        description="Write a quantised GGUF file: by a recipe in one pass and little memory, or "
        "the one that loses least within a budget, found by measuring. With --to, a folder for "
        "another runtime at one of its levels.",
    )
    parser.add_argument(
        "source", metavar="SRC", help="demo, a Hugging Face folder, a GGUF file, any ONNX model"
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="such as Q4_K_M (`kvant formats` lists all), or a recipe's file, which ends in .json; "
        "with --to one of that target's levels; for ONNX models int8-static, int8-dynamic, "
        "int8-weights, int4, int2 or float16",
    )
    add_target(parser, "mlx", "onnx", "vllm")
    parser.add_argument(
        "--dtype",
        type=str.lower,
        choices=("bf16", "f16", "f32"),
        help="with --to: type of what is not quantised, scales too (default: the source's)",
    )
    add_output(parser)
    parser.add_argument(
        "--tensor",
        action="append",
        default=[],
        metavar="REGEX=PACKING",
        help="packing (with --to: level) for tensors whose name has the expression; may be given "
        "several times",
    )
    parser.add_argument(
        "--importance",
        metavar="FILE",
        help="importance of each input, from `kvant calibrate` or llama.cpp (imatrix)",
    )
    parser.add_argument(
        "--effort",
        choices=("fast", "balanced", "best"),
        help="fast: each tensor by itself (default with RECIPE); balanced: minutes, layer by layer "
        "over a text, every weight's code chosen by what the layer gives (default with a budget); "
        "best: longer",
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
    parser.add_argument("--save-recipe", metavar="FILE", help="write the recipe as JSON, too")
    add_budgets(parser)
    parser.add_argument(
        "--evidence",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="measure what it cost, against SRC, before the file appears; with --no-evidence "
        "nothing is written beside the file (default: how it was made and its sizes)",
    )
    add_onnx_options(parser)
    parser.set_defaults(run=_run, late="recipe", refuse=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    if is_onnx_model(arguments):
        return run_onnx(arguments)
    budget = check_budgets(arguments)
    if arguments.to != "gguf":
        _refuse_of_gguf(arguments, budget=budget)
    if budget:
        return run_budget(arguments)
    effort: Literal["fast", "balanced", "best"] = arguments.effort or "fast"
    if effort == "fast":
        without_matrices()
    from kvant.api.calibration import text_and_weight
    from kvant.api.conversion import quantize

    with weight_progress(arguments.recipe) as progress:
        artefact = quantize(
            arguments.source,
            arguments.recipe,
            arguments.output,
            to=arguments.to,
            dtype=arguments.dtype,
            threads=arguments.threads,
            tensors=arguments.tensor,
            importance=arguments.importance,
            lora=arguments.lora,
            save_recipe=arguments.save_recipe,
            effort=effort,
            texts=[text_and_weight(text) for text in arguments.text],
            tokens=arguments.tokens,
            max_memory=arguments.max_memory,
            split_size=arguments.split_size,
            pre_tokenizer=arguments.pre_tokenizer,
            evidence=arguments.evidence,
            verify=arguments.verify,
            settings=target_settings(arguments.set),
            force=arguments.force,
            dry_run=arguments.dry_run,
            progress=progress,
        )
    print_artefact(artefact, as_json=arguments.json)
    return 0


def _refuse_of_gguf(arguments: argparse.Namespace, *, budget: bool) -> None:
    """Refuse options that only GGUF has a meaning for.

    Raises:
        UsageError: names the option.
    """
    given = {
        "--save-recipe": arguments.save_recipe and not budget,
        "--pre-tokenizer": arguments.pre_tokenizer,
        "--evidence": arguments.evidence,
    }
    for option, value in given.items():
        if value:
            raise UsageError(f"{option} is for GGUF files; leave it out with --to {arguments.to}.")
