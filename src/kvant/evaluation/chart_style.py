"""Colours, type and marker shapes of a chart, for light and dark pages."""

from __future__ import annotations

from typing import Literal

__all__ = ["COLOURS", "LABEL_SIZE", "SHAPES", "TEXT_SIZE", "Theme", "marker", "style"]

Theme = Literal["auto", "light", "dark"]

TEXT_SIZE = 13.0
LABEL_SIZE = 13.0

_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif"

# Page, ink, quiet ink, grid, then the series. All text has a contrast of 4.5 and more with the
# page; the markers' shapes tell series apart where colours cannot.
_LIGHT = ("#ffffff", "#1c2128", "#59636e", "#e4e8ec")
_LIGHT_SERIES = ("#1f6feb", "#bc4c00", "#1a7f4b", "#8250df", "#bf3989", "#0b7285")
_DARK = ("#14181d", "#e8ecf1", "#9aa4af", "#2b323a")
_DARK_SERIES = ("#6cb0ff", "#ffa657", "#56d38a", "#c297ff", "#ff8fc8", "#4fd1e0")

COLOURS = len(_LIGHT_SERIES)
SHAPES = 5


def style(theme: Theme) -> str:
    """The style sheet. Plain classes only: not every renderer knows custom properties."""
    common = (
        f".kvant-chart text{{font-family:{_FONT};font-size:{TEXT_SIZE:g}px}}"
        ".kvant-chart .title{font-size:19px;font-weight:600}"
        ".kvant-chart .label{font-weight:500}"
        # A seam in the colour of the page keeps texts readable over lines.
        ".kvant-chart .label,.kvant-chart .inner{paint-order:stroke;stroke-width:3px;"
        "stroke-linejoin:round}"
        ".kvant-chart .note{font-size:12px}"
        ".kvant-chart .middle{text-anchor:middle}"
        ".kvant-chart .end{text-anchor:end}"
        ".kvant-chart .grid{stroke-width:1}"
        ".kvant-chart .axis{stroke-width:1}"
        ".kvant-chart .rule{stroke-width:1.2;stroke-dasharray:5 4}"
        ".kvant-chart .path{fill:none;stroke-width:1.8;opacity:.55;stroke-linejoin:round}"
        ".kvant-chart .bar{stroke-width:1.5}"
        ".kvant-chart .leader{stroke-width:.8}"
        ".kvant-chart .mark{stroke-width:1.3}"
    )
    light, dark = _colours(_LIGHT, _LIGHT_SERIES), _colours(_DARK, _DARK_SERIES)
    if theme == "light":
        return common + light
    if theme == "dark":
        return common + dark
    return f"{common}{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _colours(base: tuple[str, ...], series: tuple[str, ...]) -> str:
    page, ink, quiet, grid = base
    rules = [
        f".kvant-chart .page{{fill:{page}}}",
        f".kvant-chart text{{fill:{ink}}}",
        f".kvant-chart .tick,.kvant-chart .aside,.kvant-chart .note{{fill:{quiet}}}",
        f".kvant-chart .grid{{stroke:{grid}}}",
        f".kvant-chart .axis,.kvant-chart .rule,.kvant-chart .leader{{stroke:{quiet}}}",
        f".kvant-chart .label,.kvant-chart .inner{{stroke:{page}}}",
    ]
    for number, colour in enumerate(series):
        rules += [
            f".kvant-chart .c{number}{{stroke:{colour}}}",
            f".kvant-chart .mark.c{number}{{fill:{colour};stroke:{page}}}",
            f".kvant-chart .hollow.c{number}{{fill:{page};stroke:{colour}}}",
            f".kvant-chart .label.t{number}{{fill:{colour}}}",
        ]
    return "".join(rules)


def marker(number: int, x: float, y: float, size: float) -> str:
    """SVG path data of the marker of series ``number``, about ``size`` from centre to edge."""
    shapes = (
        None,
        ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        ((0, -1.2), (1.15, 0.85), (-1.15, 0.85)),
        ((0, 1.2), (1.15, -0.85), (-1.15, -0.85)),
    )
    corners = shapes[number % SHAPES]
    if corners is None:
        arc = f"a{size:g} {size:g} 0 1 0"
        return f"M{x - size:.2f} {y:.2f}{arc} {2 * size:g} 0{arc} {-2 * size:g} 0z"
    path = "L".join(f"{x + size * dx:.2f} {y + size * dy:.2f}" for dx, dy in corners)
    return f"M{path}z"
