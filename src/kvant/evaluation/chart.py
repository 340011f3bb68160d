"""A small chart as a self-contained SVG: measured points in series, with errors and labels.

It needs no other package, scales without loss, follows the reader's light or dark setting, and
keeps its text as text.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from kvant.evaluation.chart_axis import Kind, scale_for
from kvant.evaluation.chart_labels import Box, Label, leader, place, text_width
from kvant.evaluation.chart_style import COLOURS, LABEL_SIZE, TEXT_SIZE, Theme, marker, style

__all__ = ["Axis", "Chart", "Point", "Rule", "Series"]

_WIDTH, _HEIGHT = 880.0, 540.0
_MARGIN, _LEFT, _RIGHT, _BOTTOM = 22.0, 92.0, 28.0, 92.0
_TITLE_Y, _SUBTITLE_Y, _LINE = 36.0, 59.0, 23.0
_MARKER, _CAP, _TICK = 5.0, 4.0, 5.0
# A rule further out than this share of the span would squeeze the points; it becomes a note.
_RULE_REACH = 0.2


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows."""

    label: str
    kind: Kind = "linear"


@dataclass(frozen=True, slots=True)
class Point:
    """A measured point. ``error`` is the standard error of ``y``."""

    x: float
    y: float
    label: str = ""
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Series:
    """Points drawn alike, joined in order of x."""

    name: str
    points: tuple[Point, ...]
    joined: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """A dashed line across the chart at a value to compare with, such as the base's size."""

    axis: Literal["x", "y"]
    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart; ``svg()`` draws it."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    subtitle: str = ""
    note: str = ""
    rules: tuple[Rule, ...] = ()
    hint: str = ""
    """A short text in the lower left corner: which way is better."""

    def svg(self, theme: Theme = "auto") -> str:
        """The chart as an SVG document; ``auto`` follows the reader's setting."""
        return _Drawing(self).document(theme)


class _Drawing:
    """One chart on its way to SVG: the layout, then the elements from back to front."""

    def __init__(self, chart: Chart) -> None:
        self.chart = chart
        self.parts: list[str] = []
        top = (_SUBTITLE_Y if chart.subtitle else _TITLE_Y) + 20
        self.legend = self._legend_places(top)
        if self.legend:
            top = self.legend[-1][1] + 18
        self.plot = Box(_LEFT, top, _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM - top)
        self.near, self.far = self._sort_rules()
        points = [point for series in chart.series for point in series.points]
        self.x = scale_for(
            [p.x for p in points] + [r.value for r in self.near if r.axis == "x"], chart.x.kind
        )
        ends = [p.y + sign * p.error for p in points for sign in (-1, 0, 1)]
        self.y = scale_for(ends + [r.value for r in self.near if r.axis == "y"], chart.y.kind)
        self.texts: list[Box] = []
        self.points: list[Box] = []
        self.lines: list[Box] = []

    def document(self, theme: Theme) -> str:
        """All of it."""
        self._axes()
        for rule in self.near:
            self._rule(rule)
        for number, rule in enumerate(self.far):
            self._far_rule(rule, number)
        self._series()
        self._hint()
        self._labels()
        self._captions()
        title, width, height = html.escape(_legal(self.chart.title)), _WIDTH, _HEIGHT
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
                f'width="{width:g}" height="{height:g}" role="img" class="kvant-chart">',
                f"<title>{title}</title>",
                f"<style>{style(theme)}</style>",
                f'<rect class="page" width="{width:g}" height="{height:g}"/>',
                *self.parts,
                "</svg>\n",
            ]
        )

    # -- coordinates

    def _at(self, x: float, y: float) -> tuple[float, float]:
        plot = self.plot
        return (
            plot.left + self.x.position(x) * plot.width,
            plot.top + (1 - self.y.position(y)) * plot.height,
        )

    def _sort_rules(self) -> tuple[list[Rule], list[Rule]]:
        """The rules that stand among the points or close to them, and the others."""
        near: list[Rule] = []
        far: list[Rule] = []
        points = [p for series in self.chart.series for p in series.points]
        for rule in self.chart.rules:
            along_x = rule.axis == "x"
            scale = scale_for(
                [p.x if along_x else p.y for p in points],
                self.chart.x.kind if along_x else self.chart.y.kind,
            )
            reachable = -_RULE_REACH <= scale.position(rule.value) <= 1 + _RULE_REACH
            (near if reachable else far).append(rule)
        return near, far

    # -- parts

    def _add(self, tag: str, text: str | None = None, **attributes: object) -> None:
        shown = "".join(
            f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
            for name, value in attributes.items()
        )
        inner = "/>" if text is None else f">{html.escape(_legal(text))}</{tag}>"
        self.parts.append(f"<{tag}{shown}{inner}")

    def _line(self, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self._add("line", class_=kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def _axes(self) -> None:
        plot = self.plot
        right, bottom = plot.left + plot.width, plot.top + plot.height
        for tick in self.x.ticks:
            x = plot.left + self.x.position(tick.value) * plot.width
            if tick.label:
                self._line("grid", x, plot.top, x, bottom)
                self._add("text", tick.label, class_="tick middle", x=x, y=bottom + 21)
            self._line("axis", x, bottom, x, bottom + (_TICK if tick.label else _TICK / 2))
        for tick in self.y.ticks:
            y = bottom - self.y.position(tick.value) * plot.height
            if tick.label:
                self._line("grid", plot.left, y, right, y)
                self._add("text", tick.label, class_="tick end", x=plot.left - 10, y=y + 4.5)
            self._line("axis", plot.left - (_TICK if tick.label else _TICK / 2), y, plot.left, y)
        self._line("axis", plot.left, bottom, right, bottom)
        self._line("axis", plot.left, plot.top, plot.left, bottom)

    def _rule(self, rule: Rule) -> None:
        plot = self.plot
        right, bottom = plot.left + plot.width, plot.top + plot.height
        width = text_width(rule.label, TEXT_SIZE)
        if rule.axis == "x":
            x = plot.left + self.x.position(rule.value) * plot.width
            self._line("rule", x, plot.top, x, bottom)
            fits = x + 6 + width < right
            self._text_box(rule.label, x + 6 if fits else x - 6, plot.top + 4, end=not fits)
            self.texts.append(Box(x - 1, plot.top, 2, plot.height))
        else:
            y = bottom - self.y.position(rule.value) * plot.height
            self._line("rule", plot.left, y, right, y)
            self._text_box(rule.label, right - 6, y - TEXT_SIZE - 6, end=True)
            self.texts.append(Box(plot.left, y - 1, plot.width, 2))

    def _far_rule(self, rule: Rule, number: int) -> None:
        """A rule off the chart: a note in the corner that lies in its direction."""
        plot = self.plot
        scale = self.x if rule.axis == "x" else self.y
        beyond = scale.position(rule.value) > 1
        arrows = {("x", True): "→", ("x", False): "←", ("y", True): "↑", ("y", False): "↓"}
        text = f"{rule.label} {arrows[rule.axis, beyond]}"
        at_right = rule.axis == "y" or beyond
        left = plot.left + plot.width - 6 if at_right else plot.left + 6
        self._text_box(text, left, plot.top + 6 + number * _LINE, end=at_right)

    def _text_box(self, text: str, left: float, top: float, *, end: bool = False) -> None:
        """A quiet text within the plot, kept free of labels; ``left`` is its end if ``end``."""
        width = text_width(text, TEXT_SIZE)
        self.texts.append(Box(left - width if end else left, top, width, 1.3 * TEXT_SIZE))
        kind = "aside inner end" if end else "aside inner"
        self._add("text", text, class_=kind, x=left, y=top + TEXT_SIZE)

    def _series(self) -> None:
        """Lines of all series first, then bars, then markers: points are never hidden by lines."""
        for number, series in enumerate(self.chart.series):
            ordered = sorted(series.points, key=lambda p: p.x)
            path = [self._at(p.x, p.y) for p in ordered if not self._off(p)]
            if series.joined and len(path) > 1:
                points = " ".join(f"{x:.2f},{y:.2f}" for x, y in path)
                self._add("polyline", class_=f"path c{number % COLOURS}", points=points)
                for start, end in pairwise(path):
                    self.lines += _along(start, end)
        for number, series in enumerate(self.chart.series):
            for point in series.points:
                self._error_bar(point, number)
        for number, series in enumerate(self.chart.series):
            for point in series.points:
                x, y = self._at(point.x, point.y)
                kind = "mark hollow" if self._off(point) else "mark"
                outline = marker(number, x, y, _MARKER)
                self._add("path", class_=f"{kind} c{number % COLOURS}", d=outline)
                reach = _MARKER + 1
                self.points.append(Box(x - reach, y - reach, 2 * reach, 2 * reach))

    def _off(self, point: Point) -> bool:
        """Whether a point has no logarithm: it stands on the axis, hollow, with its value."""
        return self.chart.y.kind == "log" and point.y <= 0

    def _error_bar(self, point: Point, number: int) -> None:
        x, top = self._at(point.x, point.y + point.error)
        _, bottom = self._at(point.x, point.y - point.error)
        end = self.plot.top + self.plot.height
        bottom = min(bottom, end)
        if bottom - top < 2 * (_MARKER + _CAP / 2):
            return
        kind = f"bar c{number % COLOURS}"
        self._line(kind, x, top, x, bottom)
        for y in (top, bottom) if bottom < end else (top,):
            self._line(kind, x - _CAP, y, x + _CAP, y)
        self.points.append(Box(x - _CAP, top, 2 * _CAP, bottom - top))

    def _hint(self) -> None:
        """Which way is better, in the corner, if that is free."""
        text, plot = self.chart.hint, self.plot
        width = text_width(text, TEXT_SIZE)
        box = Box(plot.left + 8, plot.top + plot.height - 26, width, 20)
        if text and not any(box.overlap(b) for b in (*self.points, *self.lines, *self.texts)):
            self._text_box(text, box.left, box.top)

    def _labels(self) -> None:
        labels: list[Label] = []
        numbers: list[int] = []
        several = len(self.chart.series) > 1
        for number, series in enumerate(self.chart.series):
            for point in series.points:
                if point.label:
                    text = f"{point.label} ({point.y:g})" if self._off(point) else point.label
                    labels.append(Label(text, *self._at(point.x, point.y)))
                    numbers.append(number)
        boxes = place(labels, LABEL_SIZE, self.plot, [*self.points, *self.texts], self.lines)
        for label, box, number in zip(labels, boxes, numbers, strict=True):
            line = leader(label, box)
            if line is not None:
                kind = f"leader c{number % COLOURS}" if several else "leader"
                self._line(kind, *line[0], *line[1])
        for label, box, number in zip(labels, boxes, numbers, strict=True):
            kind = f"label middle t{number % COLOURS}" if several else "label middle"
            middle, baseline = box.left + box.width / 2, box.top + 0.95 * LABEL_SIZE
            self._add("text", label.text, class_=kind, x=middle, y=baseline)

    def _captions(self) -> None:
        chart, plot = self.chart, self.plot
        self._add("text", chart.title, class_="title", x=_MARGIN, y=_TITLE_Y)
        if chart.subtitle:
            self._add("text", chart.subtitle, class_="aside", x=_MARGIN, y=_SUBTITLE_Y)
        middle, bottom = plot.left + plot.width / 2, plot.top + plot.height
        self._add("text", chart.x.label, class_="middle", x=middle, y=bottom + 46)
        x, y = 26.0, plot.top + plot.height / 2
        turn = f"rotate(-90 {x:g} {y:.2f})"
        self._add("text", chart.y.label, class_="middle", x=x, y=y, transform=turn)
        if chart.note:
            self._add("text", chart.note, class_="note", x=_MARGIN, y=_HEIGHT - 16)
        for number, (left, y, name) in enumerate(self.legend):
            path = marker(number, left + 6, y - 4.5, _MARKER)
            self._add("path", class_=f"mark c{number % COLOURS}", d=path)
            self._add("text", name, x=left + 18, y=y)

    def _legend_places(self, top: float) -> list[tuple[float, float, str]]:
        """(left, baseline, name) of each entry, in as many lines as they need."""
        if len(self.chart.series) < 2:
            return []
        places = []
        left, baseline = _MARGIN, top + 4
        for series in self.chart.series:
            width = 18 + text_width(series.name, TEXT_SIZE) + 22
            if left > _MARGIN and left + width > _WIDTH - _RIGHT:
                left, baseline = _MARGIN, baseline + _LINE
            places.append((left, baseline, series.name))
            left += width
        return places


def _along(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """Small boxes along a line."""
    side = 5.0
    (x1, y1), (x2, y2) = start, end
    count = max(1, math.ceil(math.hypot(x2 - x1, y2 - y1) / side))
    return [
        Box(x1 + (x2 - x1) * t - side / 2, y1 + (y2 - y1) * t - side / 2, side, side)
        for t in (i / count for i in range(count + 1))
    ]


def _attribute(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else html.escape(_legal(str(value)))


def _legal(text: str) -> str:
    """Names come from files: what XML cannot hold is replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
