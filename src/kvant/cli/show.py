"""What commands print: tables, sizes, JSON on stdout; notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from kvant.evaluation.table import Table
    from kvant.registry import Step

__all__ = [
    "line",
    "note",
    "note_builtin",
    "print_json",
    "print_table",
    "shown",
    "step_progress",
    "table",
    "token_progress",
    "transfer_progress",
    "weight_progress",
]


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    if not _knows(text, sys.stdout):
        text = json.dumps(value, indent=2, allow_nan=False)
    print(text)


def line(text: str) -> None:
    """One line on stdout; names in it may come from hostile files."""
    from kvant.files.source import printable

    print(printable(text))


def shown(text: str) -> str:
    """A text of a model or its files as it may reach a terminal: without controls that would steer
    it. As it is where it goes into a file or pipe."""
    if not sys.stdout.isatty():
        return str(text)
    return "".join(
        c if c.isprintable() or c in "\n\t" or ord(c) > 0x9F else f"\\x{ord(c):02x}" for c in text
    )


def note(text: str) -> None:
    """One line for the person watching, as careful as `line`."""
    from kvant.files.source import printable

    if not _knows("±", sys.stderr):
        text = text.replace("±", "+/-")
    print(printable(text), file=sys.stderr)


def note_builtin(name: str) -> None:
    """Say what a model's name alone means, where that is another model."""
    from kvant.builtin import DEMO

    if name.casefold() == f"{DEMO}:latest":
        note(f"note: `{DEMO}` alone is the built-in model; this one is called {name}.")


def print_table(table: Table) -> None:
    """A table on stdout, in ASCII where the terminal knows no more."""
    print(table.text(ascii_only=not _knows("±–─", sys.stdout)), end="")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of rows; columns of numbers stand to the right."""
    from kvant.evaluation.table import Column, Table

    columns = zip(header, *rows, strict=True)
    return Table(
        tuple(
            Column(title, tuple(cells), right=all(not c or c[0].isdigit() for c in cells))
            for title, *cells in columns
        )
    )


def _knows(text: str, stream: TextIO) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


@contextmanager
def weight_progress(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar over weights, with rate and time left, while stderr is a terminal."""
    with _bar(label, "w") as update:
        yield lambda done, total, name: update(done, total, name)


@contextmanager
def token_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over tokens."""
    with _bar(label, "tok") as update:
        yield lambda done, total: update(done, total, "")


@contextmanager
def step_progress(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar over whatever is being counted, under a text that says what it is."""
    with _bar(label, "") as update:
        yield lambda what, done, total: update(done, total, what)


@contextmanager
def transfer_progress() -> Iterator[Callable[[Step], None]]:
    """A bar over the bytes of whatever is pulled, pushed or made, while stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from tqdm import tqdm

    from kvant.files.source import printable

    bar = tqdm(unit="B", unit_scale=True, leave=False, dynamic_ncols=True)
    at = ""

    def update(step: Step) -> None:
        nonlocal at
        if step.status + step.digest != at or step.done < bar.n:
            at = step.status + step.digest
            bar.reset(total=step.total or None)
            bar.set_description_str(printable(step.status, 40), refresh=False)
            bar.set_postfix_str(printable(step.name, 40), refresh=False)
        bar.update(step.done - bar.n)

    try:
        yield update
    finally:
        bar.close()


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    if not sys.stderr.isatty():
        yield lambda done, total, name: None
        return
    from tqdm import tqdm

    from kvant.files.source import printable

    bar = tqdm(desc=label, unit=unit, unit_scale=True, leave=False, dynamic_ncols=True)

    def update(done: int, total: int, name: str) -> None:
        if done < bar.n:  # another count begins
            bar.reset()
        bar.total = total
        bar.set_postfix_str(printable(name, 60), refresh=False)
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        bar.close()
