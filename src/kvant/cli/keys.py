"""``kvant key`` and ``kvant audit``: who may use the server, and who did."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime

from kvant.cli import show
from kvant.cli.options import Commands, positive
from kvant.cli.serve import seconds

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    _add_key(commands)
    _add_audit(commands)


def _add_key(commands: Commands) -> None:
    parser = commands.add_parser("key", help="keys for `kvant serve`: create, list, revoke")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key; it is shown once")
    create.add_argument("name", nargs="?", default="unnamed", help="whose it is")
    create.add_argument(
        "--role",
        choices=("user", "operator", "admin"),
        default="user",
        help="user asks models, operator also fetches and removes them (default: user)",
    )
    create.add_argument(
        "--models", nargs="+", metavar="PATTERN", help="models it may use, such as 'llama*'"
    )
    create.add_argument("--expires", type=seconds, metavar="TIME", help="ends in, such as 90d")
    create.add_argument("--rate", type=positive, metavar="N", help="requests in a minute")
    create.add_argument("--json", action="store_true", help="print as JSON")
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="all keys, without their secrets")
    listing.add_argument("--json", action="store_true", help="print as JSON")
    listing.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="end a key; running servers see it at once")
    revoke.add_argument("id", help="as `kvant key list` shows it")
    revoke.set_defaults(run=_revoke)


def _create(arguments: argparse.Namespace) -> int:
    from kvant.registry.store import kvant_home
    from kvant.server.keys import KeyFile

    ends = arguments.expires
    key, secret = KeyFile(kvant_home()).create(
        arguments.name,
        arguments.role,
        models=arguments.models,
        expires=None if ends is None or ends < 0 else time.time() + ends,
        requests_per_minute=arguments.rate,
    )
    if arguments.json:
        show.print_json({"id": key.id, "name": key.name, "role": key.role, "key": secret})
        return 0
    show.note(f"key {key.id} of {key.name}, {key.role}; it is not shown again:")
    show.line(secret)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from kvant.registry.store import kvant_home
    from kvant.server.keys import KeyFile

    keys, now = KeyFile(kvant_home()).all(), time.time()
    if arguments.json:
        show.print_json(
            [
                {
                    "id": k.id,
                    "name": k.name,
                    "role": k.role,
                    "models": k.models,
                    "created": k.created,
                    "expires": k.expires,
                    "state": k.state(now),
                }
                for k in keys
            ]
        )
        return 0
    if not keys:
        show.note("There are no keys. `kvant key create NAME` makes one.")
        return 0
    rows = [
        [k.id, k.name, k.role, " ".join(k.models or ("all",)), _day(k.expires), k.state(now)]
        for k in keys
    ]
    show.print_table(show.table(["id", "name", "role", "models", "expires", "state"], rows))
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    from kvant.registry.store import kvant_home
    from kvant.server.keys import KeyFile

    key = KeyFile(kvant_home()).revoke(arguments.id)
    show.note(f"key {key.id} of {key.name} is revoked.")
    return 0


def _add_audit(commands: Commands) -> None:
    parser = commands.add_parser("audit", help="the server's log of who asked what: show, verify")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    showing = actions.add_parser("show", help="its last lines")
    showing.add_argument("-n", type=positive, default=20, metavar="N", help="lines (default: 20)")
    showing.add_argument("--json", action="store_true", help="print lines as they are")
    showing.set_defaults(run=_show)
    checking = actions.add_parser("verify", help="check that no line was changed or taken out")
    checking.add_argument(
        "--head", metavar="HASH", help="the last hash as noted earlier, which must be in the log"
    )
    checking.set_defaults(run=_verify)


def _show(arguments: argparse.Namespace) -> int:
    import json
    from collections import deque

    from kvant.registry.store import kvant_home
    from kvant.server.audit import read_lines

    lines = deque(read_lines(kvant_home() / "audit.jsonl"), maxlen=arguments.n)
    for line in lines:
        if arguments.json:
            show.line(json.dumps(line))
            continue
        clock = datetime.fromtimestamp(line["time"], UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        rest = {k: v for k, v in line.items() if k not in _HIDDEN}
        said = " ".join(f"{k}={v}" for k, v in rest.items())
        show.line(f"{line['n']} {clock} {line['event']} {said}")
    return 0


_HIDDEN = {"n", "time", "event", "previous", "hash"}


def _verify(arguments: argparse.Namespace) -> int:
    from kvant.registry.store import kvant_home
    from kvant.server.audit import read_lines, verify

    path = kvant_home() / "audit.jsonl"
    count, last, broken = verify(path)
    for problem in broken[:20]:
        show.note(f"{path}: line {problem.line} {problem.why}.")
    head = arguments.head
    if head is not None and not any(line.get("hash") == head for line in read_lines(path)):
        show.note(f"{path}: no line has the hash {head}; lines are missing at the end.")
        return 1
    if broken:
        return 1
    show.line(f"{count} lines, unbroken; the last hash is {last}")
    return 0


def _day(stamp: float | None) -> str:
    return "never" if stamp is None else time.strftime("%Y-%m-%d", time.localtime(stamp))
