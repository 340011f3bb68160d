"""The option that says what runs a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from kvant.errors import UsageError

if TYPE_CHECKING:
    from kvant.runtimes import RunnerChoice

__all__ = ["add_runner", "runner_choice"]


def add_runner(parser: argparse.ArgumentParser) -> None:
    """The option that says what runs a model."""
    parser.add_argument(
        "--runner",
        action="append",
        default=[],
        metavar="NAME",
        help="what runs the models: native, reference, onnxruntime, mlx, llama.cpp; or a format's: "
        "FORMAT=NAME, repeatable, with gguf, hf, onnx, mlx, vllm (default: the usual one of each)",
    )


def runner_choice(given: Sequence[str]) -> RunnerChoice:
    """What ``--runner`` says.

    Raises:
        UsageError: there is no such runner or format, or several are given for all models.
    """
    from kvant.checkpoint.kind import FORMAT_NAMES
    from kvant.runtimes.choice import check_choice

    chosen: dict[Any, Any] = {}
    for text in given:
        left, equals, right = text.partition("=")
        name = right if equals else left
        check_choice(name)
        if not equals:
            if len(given) > 1:
                raise UsageError(
                    f"--runner {name} is for all models; give nothing beside it, or FORMAT=NAME "
                    "for each format."
                )
            return cast("RunnerChoice", name)
        if left not in FORMAT_NAMES:
            raise UsageError(
                f"There is no format {left!r}; choose one of {', '.join(FORMAT_NAMES)}."
            )
        chosen[left] = name
    return chosen or None
