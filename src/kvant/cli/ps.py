"""``kvant ps`` and ``kvant stop``: what a running server has loaded."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import TYPE_CHECKING, Any

from kvant.cli import show
from kvant.cli.options import Commands
from kvant.errors import InputError, UsageError
from kvant.server import DEFAULT_PORT

if TYPE_CHECKING:
    import urllib.error

__all__ = ["add", "ask_server"]

_SECONDS = 30
_HERE = f"http://127.0.0.1:{DEFAULT_PORT}"


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    ps = commands.add_parser("ps", help="models that a running server has loaded")
    ps.add_argument("--json", action="store_true", help="print as JSON")
    _add_server(ps)
    ps.set_defaults(run=_ps)
    stop = commands.add_parser("stop", help="let a running server give a model's memory back")
    stop.add_argument("name", metavar="NAME", help="as `kvant ps` shows it")
    _add_server(stop)
    stop.set_defaults(run=_stop)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        metavar="URL",
        default=os.environ.get("KVANT_SERVER", _HERE),
        help=f"where it is (default: $KVANT_SERVER, or {_HERE})",
    )


def ask_server(server: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """What a server answers; ``$KVANT_API_KEY`` is sent where it is set.

    Raises:
        InputError: it is not there, or refuses.
    """
    import urllib.error
    import urllib.request

    if not server.startswith(("http://", "https://")):
        server = f"http://{server}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.rstrip("/") + path, data)
    if data is not None:
        request.add_header("Content-Type", "application/json")
    key = os.environ.get("KVANT_API_KEY")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        raise InputError(f"{server}: {_message(error)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"{server}: no server answers ({reason}). Start one with `kvant serve`, or name it "
            "with --server."
        ) from None


def _message(error: urllib.error.HTTPError) -> str:
    try:
        found = json.loads(error.read(1 << 20))["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (OSError, ValueError, KeyError, TypeError):
        return f"it answers {error.code} {error.reason}."


def _ps(arguments: argparse.Namespace) -> int:
    found = ask_server(arguments.server, "/status")
    if arguments.json:
        show.print_json(found["models"])
        return 0
    if not found["models"]:
        show.note("No model is loaded.")
        return 0
    rows = [
        [
            str(m["name"]),
            f"{m['memory'] / 1e6:,.0f} MB",
            f"{m['context']:,}",
            str(m["running"]),
            str(m["waiting"]),
            _until(m["expires"]),
        ]
        for m in found["models"]
    ]
    header = ["name", "memory", "context", "running", "waiting", "until"]
    show.print_table(show.table(header, rows))
    return 0


def _until(expires: float | None) -> str:
    if expires is None:
        return "for ever"
    return f"{max(0, expires - time.time()):.0f} s from now"


def _stop(arguments: argparse.Namespace) -> int:
    loaded = [m["name"] for m in ask_server(arguments.server, "/status")["models"]]
    if arguments.name not in loaded and f"{arguments.name}:latest" not in loaded:
        raise UsageError(f"{arguments.name} is not loaded; loaded: {', '.join(loaded) or 'none'}.")
    body = {"model": arguments.name, "keep_alive": 0}
    ask_server(arguments.server, "/api/generate", body)
    show.note(f"{arguments.name} is unloaded when its answers are done.")
    return 0
