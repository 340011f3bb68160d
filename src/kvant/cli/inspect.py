"""``kvant inspect``: what a model is, and what can be made of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvant.cli import show
from kvant.cli.options import Commands

if TYPE_CHECKING:
    from kvant.api.inspection import Inspection

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "inspect", help="show architecture, tokenizer, licence and the size of every recipe"
    )
    parser.add_argument("source", metavar="SRC", help="demo, a Hugging Face folder, a GGUF file")
    parser.add_argument(
        "--pre-tokenizer", metavar="NAME", help="llama.cpp's name of the pre-tokenizer"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.inspection import inspect

    found = inspect(arguments.source, pre_tokenizer=arguments.pre_tokenizer)
    if arguments.json:
        show.print_json(found.to_json())
    else:
        _print(found)
    return 0 if found.converts else 1


def _print(found: Inspection) -> None:
    from kvant.units import size_text

    info = found.info
    about = [
        ("model", info.name),
        ("path", str(found.path)),
        (
            "format",
            {"hf": "Hugging Face folder", "gguf": "GGUF", "onnx": "ONNX folder"}[found.format],
        ),
        ("architecture", found.architecture),
        ("parameters", f"{found.parameters:,}"),
        ("licence", info.license or "not stated"),
        ("languages", ", ".join(info.languages) or "not stated"),
    ]
    about += [
        ("stored as", f"{name}: {c.tensors} tensor{'s' * (c.tensors > 1)}, {size_text(c.nbytes)}")
        for name, c in found.storage.items()
    ]
    if found.tokenizer is None:
        about.append(("tokenizer", "none" if found.converts else "not read"))
    else:
        t = found.tokenizer
        about.append(
            ("tokenizer", f"{t.model}, {t.tokens:,} tokens, pre-tokenizer {t.pre_tokenizer}")
        )
        about.append(("special", ", ".join(f"{k} {v}" for k, v in t.special.items()) or "none"))
        about.append(("chat template", "yes" if t.chat_template else "no"))
    width = max(len(name) for name, _ in about)
    for name, value in about:
        show.line(f"{name:<{width}}  {value}")
    print()
    for name, setting in found.config.items():
        show.line(f"  {name:<{width + 12}}  {setting}")
    if found.converts:
        print("\nIt converts. Sizes of the files:\n")
        rows = [
            (
                r.recipe,
                r.precision_class,
                size_text(r.nbytes),
                f"{r.nbytes:,}",
                f"{r.bits_per_weight:.3f}",
                str(r.fell_back or ""),
            )
            for r in found.recipes
        ]
        show.print_table(show.table(("recipe", "class", "size", "bytes", "bpw", "fallbacks"), rows))
        if any(r.fell_back for r in found.recipes):
            print(
                "\nfallbacks: tensors whose rows do not fill blocks get 32-weight packings or F16"
            )
    else:
        print()
        show.line(f"It does not convert: {found.obstacle}")
    for sentence in found.notes:
        show.note(f"note: {sentence}")
    if found.ignored:
        show.note(f"note: config keys without effect: {', '.join(found.ignored)}")
    if found.unused:
        show.note(f"note: tensors that are not used: {', '.join(found.unused)}")
