"""``kvant pull``: have a model in the store."""

from __future__ import annotations

import argparse

from kvant.cli import show
from kvant.cli.options import Commands

__all__ = ["add", "pull_with_bar"]

_DESCRIPTION = """\
Have a model in the store, where it is called by name from then on:

  kvant pull llama3.2:1b                   from Ollama's registry
  kvant pull hf://org/repo:Q4_K_M          from Hugging Face: that GGUF file
  kvant pull hf://org/repo                 its usual GGUF file, or the folder of safetensors
  kvant pull oci://registry:5000/team/model:tag
  kvant pull ./model.gguf                  a file or folder, used where it lies

What is on this machine already is used in place, not copied. An interrupted pull goes on where it
stopped. What comes is compared with its digest; of Hugging Face's files those that it publishes a
SHA-256 of, so all weights.
"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "pull",
        help="get a model by name",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="NAME", help="a name, hf://, oci://, a file or folder")
    parser.add_argument("--name", metavar="NAME", dest="called", help="what to call it here")
    parser.add_argument(
        "--offline",
        action="store_true",
        help="use only what Hugging Face's cache and Ollama's folder have; no connection",
    )
    parser.add_argument("--json", action="store_true", help="print what it is as JSON")
    parser.set_defaults(run=_run)


def pull_with_bar(source: str, *, called: str | None = None, offline: bool = False) -> str:
    """Pull while a bar shows how far it is; returns the name in the store."""
    from kvant.api.models import store
    from kvant.units import size_text

    with show.transfer_progress() as progress:
        entry = store().pull(source, name=called, offline=offline, progress=progress)
    licence = f", licence {entry.license}" if entry.license else ""
    show.note(f"{entry.name}: {size_text(entry.size)}{licence}")
    return entry.name


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.models import store

    name = pull_with_bar(arguments.source, called=arguments.called, offline=arguments.offline)
    found = store()
    for note in found.show(name).notes:
        show.note(f"note: {note}")
    show.note_builtin(name)
    if arguments.json:
        from dataclasses import asdict

        show.print_json(asdict(found.entry(name)))
    else:
        show.line(name)
    return 0
