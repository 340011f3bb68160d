"""``kvant push``: send a model to a registry."""

from __future__ import annotations

import argparse

from kvant.cli import show
from kvant.cli.options import Commands

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "push",
        help="send a model to a registry",
        description="Send a model to an OCI registry; blobs that are there are not sent again. "
        "Credentials are those of `docker login`, or KVANT_REGISTRY_AUTH=HOST=USER:PASSWORD.",
    )
    parser.add_argument("name", metavar="NAME", help="a model of the store")
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="oci://registry/repository[:tag]; by default the name itself, where it has a registry",
    )
    parser.set_defaults(run=_run, late="target")


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.models import store

    with show.transfer_progress() as progress:
        sent = store().push(arguments.name, arguments.target, progress=progress)
    show.line(sent)
    return 0
