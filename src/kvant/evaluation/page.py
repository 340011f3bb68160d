"""A report as one HTML page: tables, charts and texts; nothing is fetched, no script runs."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from kvant.evaluation.chart import Chart
from kvant.evaluation.table import Table
from kvant.files.source import printable

__all__ = ["Block", "Charts", "Page", "Section", "Texts"]

_STYLE = """
:root{color-scheme:light dark}
body{margin:0;background:#fff;color:#1c2128;line-height:1.5;
 font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}
main{max-width:1000px;margin:0 auto;padding:28px 22px 60px}
h1{font-size:1.7rem;margin:.2em 0}h2{font-size:1.2rem;margin:2em 0 .5em}
p{max-width:46rem}.quiet{color:#59636e;font-size:.92rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.92rem}
th,td{padding:.35em .8em;border-bottom:1px solid #e4e8ec;text-align:left;white-space:nowrap;
 font-variant-numeric:tabular-nums}td.right,th.right{text-align:right}
th{font-weight:600}tbody tr:hover{background:#f6f8fa}
svg{max-width:100%;height:auto;display:block;margin:1em 0}
.texts{display:grid;grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:14px}
.text{border:1px solid #e4e8ec;border-radius:8px;padding:10px 14px;font-size:.92rem}
.text h3{margin:0 0 .4em;font-size:.92rem}.text p{margin:0;white-space:pre-wrap;
 overflow-wrap:anywhere}.text b{font-weight:400;color:#59636e}
@media (prefers-color-scheme:dark){body{background:#14181d;color:#e8ecf1}
 .quiet,.text b{color:#9aa4af}th,td,.text{border-color:#2b323a}tbody tr:hover{background:#1b2027}}
@media print{main{max-width:none}}
"""


@dataclass(frozen=True, slots=True)
class Charts:
    """Charts, one below the other."""

    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts side by side: (who wrote it, what was given, how it went on)."""

    texts: tuple[tuple[str, str, str], ...]


Block = str | Table | Charts | Texts
"""What stands in a section; a string is a paragraph."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A page; ``html()`` writes it. Every text is escaped."""

    title: str
    lead: str
    sections: Sequence[Section]

    def html(self) -> str:
        """The document."""
        body = [f"<h1>{_text(self.title)}</h1>", f"<p>{_text(self.lead)}</p>"]
        for section in self.sections:
            body.append(f"<section><h2>{_text(section.heading)}</h2>")
            body += [_block(block) for block in section.blocks]
            body.append("</section>")
        return "\n".join(
            [
                '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width,initial-scale=1">',
                # Nothing is loaded from anywhere, whatever a model's name or text contains.
                '<meta http-equiv="Content-Security-Policy" '
                "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
                f"<title>{_text(self.title)}</title>\n<style>{_STYLE}</style>\n</head>",
                "<body>\n<main>",
                *body,
                "</main>\n</body>\n</html>\n",
            ]
        )


def _text(text: str) -> str:
    return html.escape(printable(text))


def _block(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{_text(block)}</p>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Charts):
        return "\n".join(chart.svg() for chart in block.charts)
    cards = [
        f'<div class="text"><h3>{_text(who)}</h3><p><b>{_lines(given)}</b>{_lines(text)}</p></div>'
        for who, given, text in block.texts
    ]
    return '<div class="texts">\n' + "\n".join(cards) + "\n</div>"


def _lines(text: str) -> str:
    return "\n".join(_text(line) for line in text.splitlines())


def _table(table: Table) -> str:
    kinds = [' class="right"' if column.right else "" for column in table.columns]
    heads = zip(kinds, (column.title for column in table.columns), strict=True)
    head = "".join(f"<th{kind}>{_text(title)}</th>" for kind, title in heads)
    rows = []
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        row = zip(kinds, cells, strict=True)
        rows.append("<tr>" + "".join(f"<td{k}>{_text(c.strip())}</td>" for k, c in row) + "</tr>")
    note = f'<p class="quiet">{_text(table.note)}</p>' if table.note else ""
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(rows)
        + f"\n</tbody></table></div>{note}"
    )
