"""``kvant``: parse, run one command, turn errors into one line and an exit status.

Exit status: 0 done; 1 an error, or a check that did not hold; 2 a command line that makes no
sense; 3 a limit that `kvant eval` was given was missed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvant.cli import (
    bench,
    calibrate,
    convert,
    create,
    demo,
    devices,
    doctor,
    evaluate,
    formats,
    inspect,
    keys,
    models,
    optimize,
    ps,
    pull,
    push,
    quantize,
    recommend,
    run,
    serve,
    show,
    tune,
    verify,
)
from kvant.errors import KvantError
from kvant.version import __version__

__all__ = ["main"]

_COMMANDS = (
    *(demo, run, formats, inspect, convert),
    *(calibrate, quantize, optimize, tune, evaluate, bench, verify),
    *(pull, models, create, push),
    *(recommend, devices, doctor),
    *(serve, ps, keys),
)

_EXAMPLES = """\
examples:
  kvant demo                                    everything on the built-in model
  kvant run demo "Once upon a time"             continue a text; without one, chat
  kvant inspect ~/models/Llama-3.2-1B           what it is, and the size of every recipe
  kvant quantize ~/models/Llama-3.2-1B Q4_K_M   a GGUF file at four bits
  kvant eval Llama-3.2-1B-Q4_K_M.gguf --against ~/models/Llama-3.2-1B
"""


class _Parser(argparse.ArgumentParser):
    """A parser that takes options as they are documented: an abbreviation may change meaning.

    The parsers of commands are made of this class too, but do not inherit the setting by itself.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def parse_known_args(  # type: ignore[override]  # argparse's overloads say the same
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse, but an optional argument named ``late`` may stand after options too.

        argparse gives it up as missing as soon as the argument before it has been read.
        """
        found, rest = super().parse_known_args(args, namespace)
        late = getattr(found, "late", None)
        if late and len(rest) == 1 and rest[0][:1] != "-" and getattr(found, late) is None:
            setattr(found, late, rest.pop())
        return found, rest


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kvant",
        description="Convert, quantise and run language models, and measure what it cost.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kvant {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    _prepare_streams()
    try:
        arguments = _parser().parse_args(argv)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        if argv is None:
            _finished()
        return status
    except KvantError as error:
        show.note(f"kvant: {error}")
        return 1
    except KeyboardInterrupt:
        print("kvant: interrupted; nothing was left half written.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()  # the reader went away (`kvant formats | head`): no error
        return 0
    except OSError as error:
        # What rooms read and write is a KvantError by now: standard output, or a scratch folder.
        where = f"{error.filename}: " if error.filename else "writing the output failed: "
        show.note(f"kvant: {where}{error.strerror or error}.")
        _drop_output()
        return 1
    except MemoryError:
        print(
            "kvant: there is not enough memory for this; close other programs or use fewer "
            "--threads.",
            file=sys.stderr,
        )
        return 1


def _finished() -> None:
    """The work is done and said: an interrupt while Python winds up changes nothing any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _prepare_streams() -> None:
    """Let nothing a command prints be an error: neither a closed stream nor a letter."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # started with it closed
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open to the end
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """What is still buffered for standard output goes nowhere, also when Python exits."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # not a file of the system (a test's buffer)
        sys.stdout = io.StringIO()
