"""Tables of text cells, written for a terminal or as Markdown."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from kvant.evaluation.statistics import Estimate
from kvant.files.source import printable
from kvant.units import NOTHING

__all__ = ["Column", "Table", "decimals_for", "estimate_cells"]

_ASCII = str.maketrans({"±": "+/-", "–": "-", "─": "-", "×": "x", "…": "..."})
# Beyond this a column would be mostly zeros; JSON has all digits.
_MAX_DECIMALS = 7
_NOTE_WIDTH = 72
# An underscore within a word is no markup on GitHub, and names such as Q4_K_M stay readable.
_MARKDOWN = re.compile(r"[\\|`*<\[]|(?<!\w)_|_(?!\w)")


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and the cells under it. Cells may be padded inside, to align their parts."""

    title: str
    cells: tuple[str, ...]
    right: bool = False
    """Numbers stand to the right."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length, and a note to stand below them."""

    columns: tuple[Column, ...]
    note: str = ""

    def text(self, *, ascii_only: bool = False) -> str:
        """Aligned columns under a ruled heading; plain text without colour, newline at the end.

        With ``ascii_only`` the signs of kvant's own are spelled in ASCII; names are not touched.
        """

        def clean(text: str) -> str:
            return printable(text.translate(_ASCII) if ascii_only else text)

        columns = []
        for column in self.columns:
            cells = [clean(text) for text in (column.title, *column.cells)]
            width = max(map(_width, cells))
            pads = [" " * (width - _width(cell)) for cell in cells]
            pairs = zip(cells, pads, strict=True)
            padded = [pad + cell if column.right else cell + pad for cell, pad in pairs]
            columns.append([padded[0], clean("─") * width, *padded[1:]])
        lines = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
        if self.note:
            lines += ["", *textwrap.wrap(clean(self.note), max(_width(lines[1]), _NOTE_WIDTH))]
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """A GitHub-style table, newline at the end."""
        titles = [_markdown(column.title) for column in self.columns]
        rules = ["---:" if column.right else "---" for column in self.columns]
        rows = zip(*([_markdown(cell) for cell in c.cells] for c in self.columns), strict=True)
        lines = ["| " + " | ".join(line) + " |" for line in (titles, rules, *rows)]
        if self.note:
            lines += ["", _markdown(self.note)]
        return "\n".join(lines) + "\n"


def decimals_for(se: float) -> int:
    """Decimals that show two significant digits of a standard error."""
    if not se > 0:
        return 1
    return min(max(1 - math.floor(math.log10(se)), 0), _MAX_DECIMALS)


def estimate_cells(estimates: Sequence[Estimate | None], unit: str = "") -> tuple[str, ...]:
    """Cells ``value ± error unit``, aligned at the decimal points and at the sign."""
    values: list[str | None] = []
    errors: list[str | None] = []
    for estimate in estimates:
        places = 0 if estimate is None else decimals_for(estimate.se)
        values.append(None if estimate is None else f"{estimate.value:.{places}f}")
        errors.append(None if estimate is None else f"{estimate.se:.{places}f}")
    tail = f" {unit}" if unit else ""
    return tuple(
        NOTHING if estimate is None else f"{value} ± {error}{tail}"
        for estimate, value, error in zip(
            estimates, _aligned(values), _aligned(errors), strict=True
        )
    )


def _aligned(numbers: Sequence[str | None]) -> list[str]:
    """The numbers padded on both sides, so that their decimal points stand in one place."""
    split = [number.partition(".") if number else ("", "", "") for number in numbers]
    before = max((len(whole) for whole, _, _ in split), default=0)
    after = max((len(point + rest) for _, point, rest in split), default=0)
    return [whole.rjust(before) + (point + rest).ljust(after) for whole, point, rest in split]


def _width(text: str) -> int:
    """Columns of a terminal that ``text`` takes."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) != 0 for char in text)


def _markdown(text: str) -> str:
    text = " ".join(printable(text).split())
    return _MARKDOWN.sub(r"\\\g<0>", text)
