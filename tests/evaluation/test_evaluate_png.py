"""The picture as PNG: what the SVG has, where it has it."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from kvant.evaluation.chart import Axis, Chart, Point, Rule, Series
from kvant.evaluation.chart_font import glyph, text_strokes
from kvant.evaluation.chart_labels import text_width
from kvant.evaluation.chart_png import chart_png

CHART = Chart(
    title="What each size costs",
    subtitle="some model",
    x=Axis("file size, MB"),
    y=Axis("divergence", "log"),
    series=(
        Series("one", (Point(1, 0.1, "a", 0.05), Point(2, 0.01, "b"))),
        Series("two", (Point(1.5, 0.2, "<c> & \x1b[2J", 0.1), Point(2.5, 0.0, "zero"))),
    ),
    rules=(Rule("y", 0.02, "limit"), Rule("x", 90, "base")),
    note="± one standard error; 10⁻³",
    hint="↙ better",
)


def decoded(png: bytes) -> np.ndarray:
    """A reader of PNG's simplest kind."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, []
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length) == (zlib.crc32(kind + data),)
        chunks.append((kind, data))
        at += 12 + length
    assert [k for k, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert rest == [8, 2, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[1][1]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_what_is_on_it() -> None:
    pixels = decoded(chart_png(CHART))
    assert pixels.shape == (1080, 1760, 3)
    assert (pixels[:10] == 255).all()
    for colour in ((0x1F, 0x6F, 0xEB), (0xBC, 0x4C, 0x00), (0x1C, 0x21, 0x28)):
        assert (pixels == colour).all(-1).sum() > 60, colour
    assert chart_png(CHART) == chart_png(CHART)


def test_markers_are_where_the_svg_has_them() -> None:
    one = Chart("t", Axis("x"), Axis("y"), (Series("s", (Point(1, 1),)),))
    svg, pixels = one.svg("light"), decoded(chart_png(one))
    path = next(line for line in svg.splitlines() if 'class="mark c0"' in line)
    left, y = (float(n) for n in path.split('d="M')[1].split("a")[0].split())
    assert tuple(pixels[round(2 * y), round(2 * (left + 5))]) == (0x1F, 0x6F, 0xEB)
    blue = np.argwhere((pixels == (0x1F, 0x6F, 0xEB)).all(-1))
    assert abs(blue.mean(0) - (2 * y, 2 * (left + 5))).max() < 1.5


def test_type() -> None:
    texts = [chr(c) for c in range(33, 127)] + list("±×–→←↑↓↙·…⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    box = glyph("\u4e00")
    drawn = [glyph(c) for c in texts]
    assert all(strokes and width > 0 for width, strokes in drawn)
    assert box not in drawn
    # A capital I and a small l look alike, as in most faces without serifs.
    assert len({str(strokes) for _, strokes in drawn}) == len(texts) - 1
    for text in ("Q4_K_M", "mean KL divergence from the base, nats a token", "kvant-3.50bpw"):
        width, strokes = text_strokes(text, 13)
        assert 0.6 * text_width(text, 13) < width < 1.05 * text_width(text, 13)
        xs = [x for s in strokes for x, _ in s]
        assert min(xs) > -1
        assert max(xs) < width + 1
    assert text_strokes("", 13) == (0.0, [])
    assert text_strokes("AA", 26)[0] == pytest.approx(2 * text_strokes("AA", 13)[0])
