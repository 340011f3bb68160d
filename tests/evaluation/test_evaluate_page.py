"""The page: complete by itself, nothing in it that a browser would run or fetch."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from kvant.evaluation.chart import Axis, Chart, Point, Series
from kvant.evaluation.page import Charts, Page, Section, Texts
from kvant.evaluation.table import Column, Table

HOSTILE = "<script>alert('x')</script>\x1b[2J\"><img src=x onerror=y>&amp;"
VOID = {"meta", "br", "rect", "path", "line", "polyline"}


class Checked(HTMLParser):
    """Every element is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page() -> str:
    chart = Chart(HOSTILE, Axis("x"), Axis("y"), (Series("s", (Point(1, 1, HOSTILE),)),))
    table = Table((Column(HOSTILE, (HOSTILE, "a")), Column("n", ("1", "2"), right=True)), HOSTILE)
    return Page(
        HOSTILE,
        HOSTILE,
        [
            Section(HOSTILE, (HOSTILE, table, Charts((chart, chart)))),
            Section("texts", (Texts(((HOSTILE, "given", f"one\ntwo {HOSTILE}"),)),)),
        ],
    ).html()


def test_it_is_whole_and_harmless() -> None:
    text = page()
    found = Checked(text)
    assert found.open == []
    tags = {tag for tag, _ in found.seen}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "form", "a"}
    names = {name for _, attributes in found.seen for name in attributes}
    assert not {n for n in names if n.startswith("on")} | names & {"src", "href", "srcdoc"}
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "default-src 'none'" in text
    assert "\x1b" not in text
    assert "prefers-color-scheme:dark" in text
    assert HOSTILE.replace("\x1b", "\\x1b") in found.texts
    assert text.isprintable() or all(c.isprintable() or c == "\n" for c in text)


def test_what_stands_where() -> None:
    found = Checked(page())
    cells = [attributes for tag, attributes in found.seen if tag == "td"]
    assert [c.get("class") for c in cells] == [None, "right", None, "right"]
    assert sum(tag == "svg" for tag, _ in found.seen) == 2
    assert any(t.startswith("one\ntwo ") for t in found.texts)
