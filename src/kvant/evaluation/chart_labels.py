"""Where the labels of points go, so that none covers another, a point or a line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

__all__ = ["Box", "Label", "leader", "place", "text_width"]

Leader: TypeAlias = tuple[tuple[float, float], tuple[float, float]]

# Widths of DejaVu Sans, the widest face in the font list, in hundredths of the font size.
_NARROW = {**dict.fromkeys("iljI.,:;'|!", 36), **dict.fromkeys("fjrt()[]/- ", 42)}
_WIDE = {**dict.fromkeys("mMW@%", 98), **dict.fromkeys("wGOQ→±", 86)}
_USUAL, _CAPITAL = 64, 72

# Distance of a label from its point: the nearest place that is free is best.
_RADII = (9.0, 14.0, 22.0, 32.0, 44.0, 58.0, 74.0, 92.0)
_ANGLES = tuple(math.radians(a) for a in (0, -35, 35, -90, 90, 180, -145, 145, -62, 62, -118, 118))
_ROUNDS = 8

# What a place costs. Labels over labels cannot be read at all, over points hardly.
_OVER_LABEL, _OVER_POINT, _OVER_LINE, _OUTSIDE = 1000.0, 300.0, 30.0, 5000.0
# A leader through another label strikes it out.
_CROSSED = 400.0
_POINT_CROSSED = 150.0
# Labels further than this from their point have a leader.
_LEADER = 18.0
# Where the leader begins: outside the marker.
_MARKER_REACH = 9.0


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in the chart's units; y grows downwards."""

    left: float
    top: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """The area the two have in common."""
        wide = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        high = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        return wide * high if wide > 0 and high > 0 else 0.0

    def contains(self, other: Box) -> bool:
        """Whether ``other`` lies wholly inside."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.left + other.width <= self.left + self.width
            and other.top + other.height <= self.top + self.height
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The place in the box that is nearest to a point."""
        return (
            min(max(x, self.left), self.left + self.width),
            min(max(y, self.top), self.top + self.height),
        )

    def crossed(self, start: tuple[float, float], end: tuple[float, float]) -> bool:
        """Whether a straight line goes through (Liang and Barsky's clipping)."""
        (x, y), dx, dy = start, end[0] - start[0], end[1] - start[1]
        enter, leave = 0.0, 1.0
        for step, low, high in (
            (dx, self.left - x, self.left + self.width - x),
            (dy, self.top - y, self.top + self.height - y),
        ):
            if step == 0:
                if low > 0 or high < 0:
                    return False
                continue
            first, last = sorted((low / step, high / step))
            enter, leave = max(enter, first), min(leave, last)
        return enter < leave


@dataclass(frozen=True, slots=True)
class Label:
    """A text that belongs to the point (x, y)."""

    text: str
    x: float
    y: float


def text_width(text: str, size: float) -> float:
    """About how wide ``text`` is drawn at ``size``; rather too much than too little."""
    hundredths = sum(
        _NARROW.get(c) or _WIDE.get(c) or (_CAPITAL if c.isupper() or ord(c) > 0x2E80 else _USUAL)
        for c in text
    )
    return hundredths * size / 100


def place(
    labels: Sequence[Label],
    size: float,
    frame: Box,
    points: Sequence[Box],
    lines: Sequence[Box],
) -> list[Box]:
    """A box for each label, inside ``frame``, clear of the others as far as there is room.

    Each label in turn takes the cheapest of the places around its point, given where the others
    stand, until none moves any more. The same input always gives the same places.

    Args:
        labels: texts and their points.
        size: font size.
        frame: where labels may stand.
        points: boxes of the markers, error bars and other texts.
        lines: small boxes along the lines, better not covered.
    """
    choices = [
        [_Place.at(label, box, frame, points, lines) for box in _boxes(label, size)]
        for label in labels
    ]
    for rank, places in enumerate(zip(*choices, strict=True)):
        for option in places:
            option.cost += rank
    # Where the search ends depends on who chooses first, so it is done in several orders.
    numbers = range(len(labels))
    orders = (
        sorted(numbers, key=lambda i: -_crowd(labels, i)),
        sorted(numbers, key=lambda i: labels[i].x),
        sorted(numbers, key=lambda i: -labels[i].x),
        sorted(numbers, key=lambda i: labels[i].y),
        sorted(numbers, key=lambda i: -labels[i].y),
    )
    _, best = min((_settle(choices, order) for order in orders), key=lambda found: found[0])
    return [place.box for place in best]


def _settle(
    choices: Sequence[Sequence[_Place]], order: Sequence[int]
) -> tuple[float, list[_Place]]:
    """Let the labels choose in turn until none moves any more; the cost of it all, the places."""
    placed: dict[int, _Place] = {}
    for _ in range(_ROUNDS):
        before = dict(placed)
        for i in order:
            placed[i] = _cheapest(choices[i], [p for j, p in placed.items() if j != i])
        if placed == before:
            break
    places = [placed[i] for i in range(len(choices))]
    between = sum(a.conflict(b) for a, b in combinations(places, 2))
    return sum(place.cost for place in places) + between, places


@dataclass(slots=True, eq=False)
class _Place:
    """A box a label could have, its leader if it needs one, and its cost apart from others."""

    box: Box
    leader: Leader | None
    cost: float

    @classmethod
    def at(
        cls, label: Label, box: Box, frame: Box, points: Sequence[Box], lines: Sequence[Box]
    ) -> _Place:
        cost = 0.0 if frame.contains(box) else _OUTSIDE
        cost += _OVER_POINT * sum(box.overlap(point) > 0 for point in points)
        cost += _OVER_LINE * sum(box.overlap(line) > 0 for line in lines)
        line = leader(label, box)
        if line is not None:
            # The point's own marker ends before its leader begins.
            cost += _POINT_CROSSED * sum(point.crossed(*line) for point in points)
        return cls(box, line, cost)

    def conflict(self, other: _Place) -> float:
        """What the two cost each other."""
        cost = _OVER_LABEL if self.box.overlap(other.box) > 0 else 0.0
        for line, box in ((self.leader, other.box), (other.leader, self.box)):
            if line is not None and box.crossed(*line):
                cost += _CROSSED
        return cost


def _cheapest(options: Sequence[_Place], others: Sequence[_Place]) -> _Place:
    best, least = options[0], math.inf
    for option in options:
        if option.cost < least:
            cost = option.cost + sum(map(option.conflict, others))
            if cost < least:
                best, least = option, cost
    return best


def leader(label: Label, box: Box) -> Leader | None:
    """The line from a point to its label, where they are so far apart that one is needed."""
    end = box.nearest(label.x, label.y)
    length = math.dist((label.x, label.y), end)
    if length <= _LEADER:
        return None
    share = _MARKER_REACH / length
    start = (label.x + share * (end[0] - label.x), label.y + share * (end[1] - label.y))
    return start, end


def _boxes(label: Label, size: float) -> Iterator[Box]:
    """Boxes around the point, the best first."""
    width, height = text_width(label.text, size), 1.25 * size
    for radius in _RADII:
        for angle in _ANGLES:
            across, down = math.cos(angle), math.sin(angle)
            x, y = label.x + radius * across, label.y + radius * down
            # The box's nearest side or corner touches the circle.
            left = x - width * (1 - across) / 2 if abs(across) < 0.5 else x - width * (across < 0)
            top = y - height * (1 - down) / 2
            yield Box(left, top, width, height)


def _crowd(labels: Sequence[Label], i: int) -> int:
    near = 80.0
    return sum(math.hypot(o.x - labels[i].x, o.y - labels[i].y) < near for o in labels)
