"""The chart: valid SVG, everything on it, nothing on top of anything else."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluate_report import RESULTS, result

from kvant.evaluation.chart import Axis, Chart, Point, Rule, Series
from kvant.evaluation.chart_axis import scale_for
from kvant.evaluation.chart_labels import Box, Label, place, text_width
from kvant.evaluation.report import quality_chart, quality_series

SVG = "{http://www.w3.org/2000/svg}"
PRESETS = (
    ("Q2_K", 581, 0.33),
    ("Q3_K_S", 640, 0.16),
    ("Q3_K_M", 691, 0.084),
    ("Q3_K_L", 735, 0.07),
    ("Q4_0", 771, 0.055),
    ("Q4_K_S", 776, 0.034),
    ("Q4_K_M", 808, 0.0282),
    ("Q5_0", 893, 0.016),
    ("Q5_K_S", 894, 0.0095),
    ("Q5_K_M", 911, 0.0085),
    ("Q6_K", 1022, 0.003),
    ("Q8_0", 1321, 0.0006),
)


def parse(chart: Chart, theme="auto"):
    return ElementTree.fromstring(chart.svg(theme))


def texts(root) -> list[str]:
    return [element.text for element in root.iter(f"{SVG}text")]


def label_boxes(root, size=13.0) -> list[tuple[str, Box]]:
    """Where the labels were drawn, told from the document alone."""
    found = []
    for element in root.iter(f"{SVG}text"):
        kind = element.get("class", "").split()
        width = text_width(element.text, size)
        x, y = float(element.get("x", 0)), float(element.get("y", 0))
        if "label" in kind:
            found.append((element.text, Box(x - width / 2, y - 0.75 * size, width, 0.95 * size)))
        elif "inner" in kind:
            left = x - width if "end" in kind else x
            found.append((element.text, Box(left, y - 0.75 * size, width, 0.95 * size)))
    return found


def assert_apart(boxes) -> None:
    for i, (name, box) in enumerate(boxes):
        for other_name, other in boxes[i + 1 :]:
            assert box.overlap(other) == 0, (name, other_name)


def presets_chart(count: int, seed: int, presets=PRESETS) -> Chart:
    rng = np.random.default_rng(seed)
    return Chart(
        title="Quality against size",
        subtitle="many points",
        x=Axis("MB"),
        y=Axis("mean KL divergence", "log"),
        series=tuple(
            Series(
                f"series {i}",
                tuple(
                    Point(
                        size * rng.uniform(0.97, 1.03),
                        (kld := k * (0.5 + 0.4 * i) * rng.uniform(0.9, 1.1)),
                        name,
                        0.05 * kld,
                    )
                    for name, size, k in presets
                ),
            )
            for i in range(count)
        ),
        rules=(Rule("x", 2480, "BF16, 2.48 GB"),),
        hint="↙ better",
    )


def test_quality_chart_shows_every_result_and_the_base():
    root = parse(
        quality_chart([quality_series("kvant", RESULTS)], base=RESULTS[0], subtitle="demo")
    )
    shown = texts(root)
    for expected in ("Quality against size", "demo", "Q8_0", "Q2_K", "BF16, 14.6 MB →"):
        assert expected in shown
    assert "file size, MB" in shown
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text == "Quality against size"
    assert "kvant" not in shown  # one series needs no legend
    assert_apart(label_boxes(root))


def test_several_series_have_a_legend_and_their_own_markers():
    root = parse(
        quality_chart([quality_series("kvant", RESULTS), quality_series("peer", RESULTS[1:])])
    )
    assert {"kvant", "peer"} <= set(texts(root))
    marks = [e.get("class") for e in root.iter(f"{SVG}path")]
    assert sum(kind.startswith("mark c0") for kind in marks) == 3
    assert sum(kind.startswith("mark c1") for kind in marks) == 3


def test_large_files_are_shown_in_gigabytes():
    big = [result("Q8_0", 8_000_000_000, 8.5, kld=0.001, kld_se=1e-5)]
    assert "file size, GB" in texts(parse(quality_chart([quality_series("", big)])))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2])
def test_no_label_covers_another_with_all_presets(count, seed):
    root = parse(presets_chart(count, seed))
    boxes = label_boxes(root)
    assert len(boxes) >= 12 * count + 1
    assert_apart(boxes)


def test_five_series_of_six():
    assert_apart(label_boxes(parse(presets_chart(5, 3, PRESETS[:6]))))


@settings(max_examples=30, deadline=None)
@given(
    points=st.lists(st.tuples(st.floats(100, 800), st.floats(100, 450)), min_size=1, max_size=14)
)
def test_labels_stay_inside_and_apart_wherever_the_points_are(points):
    frame = Box(80, 80, 760, 400)
    labels = [Label(f"Q{i}_K_M", x, y) for i, (x, y) in enumerate(points)]
    markers = [Box(x - 6, y - 6, 12, 12) for x, y in points]
    boxes = place(labels, 13, frame, markers, [])
    assert all(frame.contains(box) for box in boxes)
    assert_apart([(label.text, box) for label, box in zip(labels, boxes, strict=True)])
    assert boxes == place(labels, 13, frame, markers, [])


def test_hostile_names_stay_text():
    name = '<script>&"\x00\x1b]]>' + "\ud800"
    chart = Chart(name, Axis(name), Axis(name), (Series(name, (Point(1, 1, name),)),), name, name)
    root = ElementTree.fromstring(chart.svg())
    assert not list(root.iter(f"{SVG}script"))
    assert any(text.startswith("<script>&") for text in texts(root))


@pytest.mark.parametrize("theme", ["auto", "light", "dark"])
def test_themes(theme):
    document = quality_chart([quality_series("", RESULTS)]).svg(theme)
    ElementTree.fromstring(document)
    assert ("prefers-color-scheme" in document) == (theme == "auto")
    assert ("#14181d" in document) == (theme != "light")
    assert "http" not in document.replace("http://www.w3.org/2000/svg", "")


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_has_contrast(theme):
    document = quality_chart([quality_series("", RESULTS)]).svg(theme)
    page = re.search(r"\.page\{fill:(#\w{6})", document)[1]
    for kind, colour in re.findall(r"(text|\.tick[^{]*|\.label\.t\d)\{fill:(#\w{6})", document):
        high, low = sorted((luminance(page), luminance(colour)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, kind


def test_error_bars_and_points_stand_where_they_should():
    points = (Point(1, 0.1, "a", 0.05), Point(3, 0.001, "b", 0.002))
    root = parse(Chart("t", Axis("x"), Axis("y", "log"), (Series("s", points),)))
    bars = [e for e in root.iter(f"{SVG}line") if e.get("class") == "bar c0"]
    assert len(bars) == 5  # two stems; the second has no cap below
    stems = [e for e in bars if e.get("x1") == e.get("x2")]
    axis_y = max(float(e.get("y2")) for e in root.iter(f"{SVG}line") if e.get("class") == "axis")
    # The second reaches below zero: it ends at the frame, not in the margin.
    assert all(float(stem.get("y2")) <= axis_y for stem in stems)


def test_zero_on_a_log_axis_is_marked_as_such():
    points = (Point(1, 0.1, "a"), Point(2, 0.0, "b"))
    root = parse(Chart("t", Axis("x"), Axis("y", "log"), (Series("s", points),)))
    kinds = [e.get("class") for e in root.iter(f"{SVG}path")]
    assert kinds == ["mark c0", "mark hollow c0"]
    assert {"a", "b (0)"} <= set(texts(root))
    assert not list(root.iter(f"{SVG}polyline"))  # a line to it would have no meaning


def test_rules_near_and_far():
    def chart(value, axis="x"):
        points = tuple(Point(x, x, f"p{x}") for x in (1, 2, 3))
        series = (Series("s", points),)
        return parse(Chart("t", Axis("x"), Axis("y"), series, rules=(Rule(axis, value, "base"),)))

    def ruled(root):
        return [e for e in root.iter(f"{SVG}line") if e.get("class") == "rule"]

    for axis in ("x", "y"):
        assert len(ruled(chart(3.2, axis))) == 1
        assert "base" in texts(chart(3.2, axis))
        assert not ruled(chart(30, axis))
    assert "base →" in texts(chart(30))
    assert "base ↑" in texts(chart(30, "y"))
    assert "base ←" in texts(chart(-30))


def test_a_chart_without_points_is_still_a_chart():
    root = parse(quality_chart([quality_series("", RESULTS[:1])], base=RESULTS[0]))
    assert "Quality against size" in texts(root)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5),
    kind=st.sampled_from(["linear", "log"]),
)
def test_scales_hold_their_values_and_have_round_ticks(values, kind):
    if kind == "log":
        values = [10 ** (v / 1e8) for v in values]
    scale = scale_for(values, kind)
    for value in values:
        assert 0 <= scale.position(value) <= 1
    labels = [tick.label for tick in scale.ticks if tick.label]
    assert 2 <= len(labels) <= 25
    assert len(set(labels)) == len(labels)
    positions = [scale.position(tick.value) for tick in scale.ticks]
    assert positions == sorted(positions)
    assert positions[0] >= -1e-9
    assert positions[-1] <= 1 + 1e-9


@pytest.mark.parametrize(
    ("values", "kind", "labels"),
    [
        ([3.4, 7.8], "linear", ["4", "5", "6", "7", "8"]),
        ([0.2, 0.9], "linear", ["0.2", "0.4", "0.6", "0.8"]),
        ([580, 1320], "linear", ["600", "800", "1000", "1200"]),
        ([0.0002, 0.4], "log", ["0.001", "0.01", "0.1"]),
        ([0.01, 0.4], "log", ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]),
        ([1e-9, 1e-5], "log", ["10⁻⁹", "10⁻⁸", "10⁻⁷", "10⁻⁶", "10⁻⁵"]),
        ([0.031, 0.038], "log", ["0.032", "0.034", "0.036", "0.038"]),
        (
            [1e-20, 1.0],
            "log",
            ["10⁻²¹", "10⁻¹⁸", "10⁻¹⁵", "10⁻¹²", "10⁻⁹", "10⁻⁶", "10⁻³", "10⁰"],
        ),
    ],
)
def test_tick_labels(values, kind, labels):
    assert [t.label for t in scale_for(values, kind).ticks if t.label] == labels


def test_text_width_is_rather_too_much():
    # DejaVu Sans at 13 units, measured.
    for text, width in {"Q4_K_M": 52.6, "llama.cpp presets": 108.5, "mean KL": 57.3}.items():
        assert width <= text_width(text, 13) <= 1.25 * width
    assert math.isclose(text_width("ab", 26), 2 * text_width("ab", 13))
