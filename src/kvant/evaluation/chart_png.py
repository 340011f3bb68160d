"""A chart as PNG, for places that show no SVG: drawn by NumPy, needing no other package.

It draws the chart's own SVG, whose few elements and classes are known, so that both pictures are
the same: lines, polylines, filled outlines and texts, in the type of `chart_font`.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from kvant.evaluation.chart import Chart
from kvant.evaluation.chart_font import text_strokes

__all__ = ["chart_png"]

_SCALE = 2.0
_STYLE = re.compile(r"([^{}]+)\{([^}]*)\}")
_ARC = re.compile(r"M([-\d.]+) ([-\d.]+)a([-\d.]+)")
_POINT = re.compile(r"([-\d.]+) ([-\d.]+)")
_BOLD = 1.45

Point = tuple[float, float]
Coverage = npt.NDArray[np.float32]


def chart_png(chart: Chart) -> bytes:
    """The chart as a PNG file, 1760 by 1080, on a light page."""
    return _Picture(chart.svg("light")).png()


class _Picture:
    """An SVG document of ours on its way to pixels."""

    def __init__(self, svg: str) -> None:
        # Our own document: names in it are escaped, and there is no DTD to expand.
        self._root = ElementTree.fromstring(svg)
        self._rules = list(_rules(self._root.findtext("{*}style") or ""))
        width, height = (int(float(self._root.get(k, "0")) * _SCALE) for k in ("width", "height"))
        self._pixels = np.ones((height, width, 3), np.float32)
        for element in self._root:
            self._draw(element, element.tag.rpartition("}")[2])

    def png(self) -> bytes:
        """The file."""
        height, width, _ = self._pixels.shape
        rows = np.zeros((height, 1 + 3 * width), np.uint8)
        rows[:, 1:] = np.rint(255 * self._pixels.clip(0, 1)).reshape(height, -1)
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts
        )

    # -- elements

    def _draw(self, element: ElementTree.Element, tag: str) -> None:
        style = self._style_of(element, tag)
        number = {k: float(v) for k, v in element.items() if _is_number(v)}
        if tag == "line":
            ends = ((number["x1"], number["y1"]), (number["x2"], number["y2"]))
            self._stroke([*_dashed(ends, style.get("stroke-dasharray"))], style)
        elif tag == "polyline":
            points = [_pair(p) for p in element.get("points", "").split()]
            self._stroke([tuple(points)], style)
        elif tag == "path":
            outline = _outline(element.get("d", ""))
            self._paint(self._filled(outline), style.get("fill"), style)
            self._stroke([(*outline, outline[0])], style)
        elif tag == "text":
            self._text(element, style, number)

    def _style_of(self, element: ElementTree.Element, tag: str) -> dict[str, str]:
        """What the style sheet says of an element; later rules go before earlier ones."""
        classes = {f".{name}" for name in element.get("class", "").split()} | {tag}
        style: dict[str, str] = {}
        for needed, declared in self._rules:
            if needed <= classes:
                style |= declared
        return style

    def _text(
        self, element: ElementTree.Element, style: dict[str, str], number: dict[str, float]
    ) -> None:
        size = float(style.get("font-size", "13px").removesuffix("px"))
        width, strokes = text_strokes(element.text or "", size)
        shift = {"middle": width / 2, "end": width}.get(style.get("text-anchor", ""), 0.0)
        x, y = number["x"], number["y"]
        turned = "rotate(-90" in element.get("transform", "")
        placed = [
            tuple(
                (x - py, y + shift - px) if turned else (x - shift + px, y - py)
                for px, py in stroke
            )
            for stroke in strokes
        ]
        weight = float(style.get("font-weight", "400"))
        thick = size * 0.085 * (_BOLD if weight >= 600 else 1.15 if weight >= 500 else 1.0)
        if style.get("stroke") and style.get("paint-order") == "stroke":
            halo = {"stroke": style["stroke"], "stroke-width": str(thick + 4.0)}
            self._stroke(placed, halo)
        self._stroke(placed, {"stroke": style.get("fill", "#000"), "stroke-width": str(thick)})

    # -- pixels

    def _stroke(self, lines: Sequence[Sequence[Point]], style: dict[str, str]) -> None:
        colour, width = style.get("stroke"), float(style.get("stroke-width", "1"))
        if colour in (None, "none"):
            return
        cover = np.zeros(self._pixels.shape[:2], np.float32)
        for line in lines:
            for start, end in pairwise(line):
                self._segment(cover, start, end, width * _SCALE / 2)
        self._paint(cover, colour, style)

    def _segment(self, cover: Coverage, start: Point, end: Point, reach: float) -> None:
        """Cover what lies within ``reach`` pixels of a line, softly at the edge."""
        (x1, y1), (x2, y2) = ((x * _SCALE, y * _SCALE) for x, y in (start, end))
        rows = _span(y1, y2, reach, cover.shape[0])
        columns = _span(x1, x2, reach, cover.shape[1])
        y, x = np.ogrid[rows, columns]
        dx, dy = x2 - x1, y2 - y1
        length = dx * dx + dy * dy
        px, py = x + 0.5 - x1, y + 0.5 - y1
        t = ((px * dx + py * dy) / length).clip(0, 1) if length else 0.0
        distance = np.hypot(px - t * dx, py - t * dy)
        box = cover[rows, columns]
        np.maximum(box, (reach + 0.5 - distance).clip(0, 1), out=box)

    def _filled(self, outline: Sequence[Point]) -> Coverage:
        """How much of each pixel is inside: four by four samples, by crossings."""
        cover = np.zeros(self._pixels.shape[:2], np.float32)
        xs, ys = ([p[i] * _SCALE for p in outline] for i in (0, 1))
        rows = _span(min(ys), max(ys), 1, cover.shape[0])
        columns = _span(min(xs), max(xs), 1, cover.shape[1])
        y, x = np.ogrid[rows, columns]
        for dy in (0.125, 0.375, 0.625, 0.875):
            for dx in (0.125, 0.375, 0.625, 0.875):
                inside = np.zeros((y.size, x.size), np.bool_)
                for i in range(len(xs)):
                    x1, y1, x2, y2 = xs[i - 1], ys[i - 1], xs[i], ys[i]
                    if y1 != y2:
                        between = (y1 > y + dy) != (y2 > y + dy)
                        inside ^= between & (x + dx < x1 + (y + dy - y1) * (x2 - x1) / (y2 - y1))
                cover[rows, columns] += inside / np.float32(16)
        return cover

    def _paint(self, cover: Coverage, colour: str | None, style: dict[str, str]) -> None:
        if colour in (None, "none"):
            return
        alpha = (cover * np.float32(style.get("opacity", "1")))[..., None]
        self._pixels += alpha * (_rgb(colour) - self._pixels)


def _rules(sheet: str) -> Iterator[tuple[set[str], dict[str, str]]]:
    for selectors, body in _STYLE.findall(sheet):
        declared = dict(
            tuple(part.strip() for part in line.split(":", 1))
            for line in body.split(";")
            if ":" in line
        )
        for selector in selectors.split(","):
            own = selector.strip().removeprefix(".kvant-chart").strip()
            yield set(re.findall(r"\.[\w-]+|^\w+", own)), declared


def _span(a: float, b: float, reach: float, size: int) -> slice:
    low = max(0, math.floor(min(a, b) - reach - 1))
    return slice(min(low, size), min(size, max(low, math.ceil(max(a, b) + reach + 1))))


def _outline(path: str) -> list[Point]:
    """Corners of a marker's path: a circle, or straight lines."""
    circle = _ARC.match(path)
    if circle is not None:
        left, y, r = (float(g) for g in circle.groups())
        turns = (2 * math.pi * i / 32 for i in range(32))
        return [(left + r + r * math.cos(a), y + r * math.sin(a)) for a in turns]
    return [(float(x), float(y)) for x, y in _POINT.findall(path)]


def _dashed(ends: tuple[Point, Point], pattern: str | None) -> Iterator[tuple[Point, Point]]:
    if pattern is None:
        yield ends
        return
    dash, gap = (float(n) for n in pattern.split())
    (x1, y1), (x2, y2) = ends
    length = math.dist(*ends)
    at = 0.0
    while at < length:
        a, b = at / length, min(at + dash, length) / length
        yield (
            (x1 + a * (x2 - x1), y1 + a * (y2 - y1)),
            (x1 + b * (x2 - x1), y1 + b * (y2 - y1)),
        )
        at += dash + gap


def _pair(text: str) -> Point:
    x, y = text.split(",")
    return float(x), float(y)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[\d.]+", text) is not None


def _rgb(colour: str) -> npt.NDArray[np.float32]:
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array(values, np.float32)
