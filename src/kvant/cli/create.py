"""``kvant create``: a model from a Modelfile."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kvant.cli import show
from kvant.cli.options import Commands, without_matrices
from kvant.errors import InputError, UsageError

if TYPE_CHECKING:
    from kvant.registry import Step

__all__ = ["add"]

_MOST = 8 << 20


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "create",
        help="make a model by a Modelfile",
        description="Make a model by a Modelfile (FROM, PARAMETER, TEMPLATE, SYSTEM, ADAPTER, "
        "LICENSE, MESSAGE). Its files are used where they lie, or quantised into the store.",
    )
    parser.add_argument("name", metavar="NAME", help="what the model is called")
    parser.add_argument(
        "-f", "--file", default="Modelfile", metavar="FILE", help="the Modelfile; - for stdin"
    )
    parser.add_argument(
        "-q",
        "--quantize",
        metavar="RECIPE",
        help="write a GGUF file by this recipe, such as Q4_K_M",
    )
    parser.add_argument(
        "--pull", action="store_true", help="pull the model that FROM names, if it is not here"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    without_matrices()
    from kvant.api.models import store
    from kvant.registry import NotInStoreError, parse_modelfile
    from kvant.units import size_text

    text, folder = _text(arguments.file)
    modelfile = parse_modelfile(text, "stdin" if arguments.file == "-" else arguments.file)
    models = store()
    told: list[str] = []
    with show.transfer_progress() as bar:

        def progress(step: Step) -> None:
            if step.status.startswith("note: "):
                told.append(step.status)
            else:
                bar(step)

        def make() -> object:
            return models.create(
                arguments.name,
                modelfile,
                quantize=arguments.quantize,
                folder=folder,
                progress=progress,
            )

        try:
            make()
        except NotInStoreError:
            if not arguments.pull:
                raise
            models.pull(modelfile.base, paths=False, progress=progress)
            make()
    entry = models.entry(arguments.name)
    for sentence in (*told, *(f"note: {note}" for note in models.show(arguments.name).notes)):
        show.note(sentence)
    show.note_builtin(entry.name)
    show.note(f"{size_text(entry.size)}, {entry.quantization or entry.format}")
    show.line(entry.name)
    return 0


def _text(name: str) -> tuple[str, Path]:
    """The Modelfile, and the folder its paths start from."""
    try:
        if name == "-":
            if sys.stdin is None:
                raise UsageError("Standard input is closed. Name a file with -f.")
            return sys.stdin.read(_MOST + 1), Path.cwd()
        path = Path(name)
        with path.open(encoding="utf-8") as file:
            return file.read(_MOST + 1), path.absolute().parent
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: expected text in UTF-8, got byte 0x{error.object[error.start]:02x}. "
            "Convert it first."
        ) from None
    except OSError as error:
        raise InputError(
            f"{name}: cannot be read: {error.strerror}. Name the Modelfile with -f FILE."
        ) from None
