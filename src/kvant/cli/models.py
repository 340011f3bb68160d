"""``kvant list``, ``show``, ``rm``, ``cp`` and ``store``: what is in the store."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kvant.cli import show
from kvant.cli.options import Commands

if TYPE_CHECKING:
    from kvant.registry import Shown

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    listing = commands.add_parser("list", aliases=["ls"], help="models in the store")
    listing.add_argument("filter", nargs="?", default="", metavar="TEXT", help="names that have it")
    listing.add_argument("--json", action="store_true", help="print them as JSON")
    listing.set_defaults(run=_list, late="filter")

    showing = commands.add_parser(
        "show",
        help="what the store knows of a model",
        description="What the store knows of a model. For a file or folder use `kvant inspect`.",
    )
    showing.add_argument("name", metavar="NAME", help="a model of the store")
    part = showing.add_mutually_exclusive_group()
    part.add_argument("--modelfile", action="store_true", help="as a Modelfile, to make it again")
    part.add_argument("--license", action="store_true", help="the texts of its licences")
    part.add_argument("--template", action="store_true", help="its chat template")
    part.add_argument("--system", action="store_true", help="its system message")
    part.add_argument("--parameters", action="store_true", help="its parameters")
    part.add_argument("--json", action="store_true", help="everything as JSON")
    showing.set_defaults(run=_show)

    removing = commands.add_parser("rm", help="remove models from the store")
    removing.add_argument("names", nargs="+", metavar="NAME", help="models of the store")
    removing.set_defaults(run=_remove)

    copying = commands.add_parser("cp", help="give a model a second name; nothing is copied")
    copying.add_argument("source", metavar="NAME", help="a model of the store")
    copying.add_argument("target", metavar="NEW", help="the new name")
    copying.set_defaults(run=_copy)

    keeping = commands.add_parser("store", help="check or clean the store, or say where it is")
    keeping.add_argument(
        "what",
        choices=("verify", "collect", "path"),
        help="verify: compare every byte with its digest; collect: remove what no model needs; "
        "path: print the folder",
    )
    keeping.set_defaults(run=_store)


def _list(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from kvant.api.models import store
    from kvant.units import NOTHING, count_text, size_text

    models = store()
    wanted = arguments.filter.casefold()
    found = [entry for entry in models.list() if wanted in entry.name.casefold()]
    for name in models.incomplete():
        show.note(f"note: {name} lacks a file it was used from in place. Pull it again.")
    if arguments.json:
        show.print_json([asdict(entry) for entry in found])
        return 0
    if not found and wanted:
        show.note(f"No model here has {arguments.filter!r} in its name.")
        return 0
    if not found:
        show.note("No models here. `kvant pull NAME` gets one, `kvant create` makes one.")
        return 0
    rows = [
        (
            entry.name,
            size_text(entry.size),
            entry.quantization or NOTHING,
            count_text(entry.parameters) if entry.parameters else NOTHING,
            entry.license or NOTHING,
            _age(entry.created),
            entry.digest[7:19],
        )
        for entry in found
    ]
    header = ("name", "size", "kind", "weights", "licence", "since", "digest")
    show.print_table(show.table(header, rows))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from kvant.api.models import store
    from kvant.errors import UsageError

    models = store()
    if arguments.name not in models and Path(arguments.name).exists():
        raise UsageError(
            f"{arguments.name} is a path, not a model of the store. `kvant inspect "
            f"{arguments.name}` describes it; `kvant pull {arguments.name}` gives it a name."
        )
    shown = models.show(arguments.name)
    if arguments.modelfile:
        print(show.shown(_head(shown) + str(shown.modelfile)), end="")
    elif arguments.license:
        _print(shown.license or shown.details.license, "It states no licence.")
    elif arguments.template:
        _print(shown.modelfile.template, "It has no template but the one in its files, if any.")
    elif arguments.system:
        _print(shown.modelfile.system, "It has no system message.")
    elif arguments.parameters:
        from kvant.registry.parameters import parameter_text

        said = parameter_text(shown.modelfile.parameters)
        _print("\n".join(f"{name:24} {text}" for name, text in said), "It has no parameters.")
    elif arguments.json:
        show.print_json(_as_json(shown))
    else:
        _describe(shown)
    for note in shown.notes:
        show.note(f"note: {note}")
    return 0


def _print(text: str | None, otherwise: str) -> None:
    """A text of the model on stdout; where there is none, that on stderr."""
    if text:
        print(show.shown(text))
    else:
        show.note(otherwise)


def _describe(shown: Shown) -> None:
    from kvant.registry.parameters import parameter_text
    from kvant.units import count_text, size_text

    entry, said = shown.entry, shown.modelfile
    facts = [
        ("name", entry.name),
        ("architecture", entry.family),
        ("weights", count_text(entry.parameters) if entry.parameters else ""),
        ("kind", entry.quantization or entry.format),
        ("context", f"{entry.context:,} tokens" if entry.context else ""),
        ("licence", entry.license),
        ("size", size_text(entry.size)),
        ("from", entry.source),
        ("since", entry.created),
        ("digest", entry.digest),
    ]
    for label, text in facts:
        if text:
            show.line(f"{label:14}{text}")
    for name, text in parameter_text(said.parameters):
        show.line(f"{'parameter':14}{name} {text}")
    if said.system:
        show.line(f"{'system':14}{said.system[:200]}")
    if said.template is not None:
        show.line(f"{'template':14}its own ({len(said.template)} characters; --template prints it)")
    for message in said.messages:
        show.line(f"{message.role:14}{message.content[:200]}")


def _as_json(shown: Shown) -> dict[str, object]:
    from dataclasses import asdict

    return {
        **asdict(shown.entry),
        "weights": shown.entry.parameters,
        "modelfile": str(shown.modelfile),
        "template": shown.modelfile.template,
        "system": shown.modelfile.system,
        "parameters": dict(shown.modelfile.parameters),
        "messages": [asdict(m) for m in shown.modelfile.messages],
        "license_text": shown.license,
        "layers": [
            {"mediaType": d.media_type, "digest": d.digest, "size": d.size, "name": d.title}
            for d in shown.manifest.layers
        ],
        "notes": list(shown.notes),
    }


def _head(shown: Shown) -> str:
    return f"# Modelfile of {shown.entry.name}, made by `kvant show --modelfile`.\n"


def _remove(arguments: argparse.Namespace) -> int:
    from kvant.api.models import store
    from kvant.units import size_text

    swept = store().remove(*arguments.names)
    for name in dict.fromkeys(arguments.names):
        show.line(f"removed {name}")
    if swept.busy:
        show.note("Somebody is adding to the store; `kvant store collect` gives the space back.")
    else:
        show.note(f"{size_text(swept.bytes)} given back")
    return 0


def _copy(arguments: argparse.Namespace) -> int:
    from kvant.api.models import store

    models = store()
    models.copy(arguments.source, arguments.target)
    name = models.entry(arguments.target).name
    show.note_builtin(name)
    show.line(name)
    return 0


def _store(arguments: argparse.Namespace) -> int:
    from kvant.api.models import store
    from kvant.units import size_text

    models = store()
    if arguments.what == "path":
        print(models.root)
        return 0
    if arguments.what == "collect":
        swept = models.collect()
        if swept.busy:
            show.note("Somebody is adding to the store; nothing was removed. Try again later.")
            return 1
        show.line(f"{swept.blobs} blobs removed, {size_text(swept.bytes)} given back")
        return 0
    with show.transfer_progress() as progress:
        found = models.verify(progress)
    for problem in found.problems:
        show.line(problem)
    state = f"{len(found.problems)} problems" if found.problems else "all is well"
    show.line(f"{found.models} models, {found.blobs} blobs, {size_text(found.bytes)} read: {state}")
    if found.unused:
        show.note(f"{found.unused} blobs that no model needs; `kvant store collect` removes them.")
    return 1 if found.problems else 0


def _age(created: str) -> str:
    """How long ago, as people say it."""
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return created[:20]
    seconds = (datetime.now(UTC) - then).total_seconds()
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
