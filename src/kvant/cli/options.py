"""Options that several commands share, and values people write with units."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from kvant.errors import UsageError

__all__ = [
    "Commands",
    "add_output",
    "add_target",
    "byte_size",
    "positive",
    "target_settings",
    "without_matrices",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def without_matrices() -> None:
    """Before NumPy is imported: this command multiplies no matrices.

    Its library for that starts a thread for every processor, which takes as long as reading 100 MB.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def byte_size(text: str) -> int:
    """``2G``, ``650MB``, ``1.5GiB``: decimal units, binary with an i."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 2G or 650MB, got {text!r}")
    number, unit, binary = match[1], match[2].upper(), match[3]
    scale = 1024 ** "KMGT".index(unit) * 1024 if binary and unit else _UNITS[unit]
    size = int(float(number) * scale)
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size above zero, got {text!r}")
    return size


def positive(text: str) -> int:
    """A whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return value


def add_target(parser: argparse.ArgumentParser, *names: str) -> None:
    """Options of commands that write for other runtimes too."""
    parser.add_argument(
        "--to",
        default="gguf",
        type=str.lower,
        choices=("gguf", *names),
        help="what to write: a GGUF file, or a folder for another runtime (default: gguf)",
    )
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="with --to: do not read back what was written and compare it with SRC",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="with --to: a setting that only this target has; may be given several times",
    )
    parser.add_argument(
        "--standard-ops",
        dest="set",
        action="append_const",
        const="standard-ops",
        help="with --to onnx: only operators of the ONNX standard, none of ONNX Runtime's own",
    )


def target_settings(texts: Sequence[str]) -> dict[str, object]:
    """``NAME=VALUE`` texts as settings; a name alone is true.

    Raises:
        UsageError: a text without a name.
    """
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f"--set {text!r}: expected NAME=VALUE.")
        found[name.replace("-", "_")] = value if equals else True
    return found


def add_output(parser: argparse.ArgumentParser, **overrides: Any) -> None:
    """Options of commands that write a model file."""
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="file to write, or a folder; by default the conventional name in this folder",
        **overrides,
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="processors to use (default: all)"
    )
    parser.add_argument(
        "--split-size",
        type=byte_size,
        metavar="SIZE",
        help="begin a new file before one passes this size, such as 2G",
    )
    parser.add_argument(
        "--pre-tokenizer",
        metavar="NAME",
        help="llama.cpp's name of the pre-tokenizer, if it cannot be determined",
    )
    parser.add_argument(
        "--lora", metavar="ADAPTER", help="folder of a PEFT adapter to merge into the weights"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--dry-run", action="store_true", help="show every tensor's packing, write nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
