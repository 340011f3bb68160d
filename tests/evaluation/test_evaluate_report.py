"""Tables and JSON of evaluations."""

from __future__ import annotations

import json
import unicodedata

import pytest

from kvant.evaluation import EvalResult, results_json
from kvant.evaluation.report import evaluation_table
from kvant.evaluation.statistics import Estimate
from kvant.evaluation.table import Column, Table, decimals_for, estimate_cells
from kvant.units import size_text


def result(name, size=None, bpw=None, **figures) -> EvalResult:
    base = None if "kld" not in figures else "BF16"
    known = {"perplexity": 9.41234, "perplexity_se": 0.1352, **figures}
    return EvalResult(
        name, None, size, bpw, "c" * 64, context=512, chunks=30, tokens=7650, base=base, **known
    )


RESULTS = (
    result("BF16", 14_600_000, 16.0),
    result("Q8_0", 7_800_000, 8.5, kld=0.00021, kld_se=6.1e-6, same_top=0.986, same_top_se=0.001),
    result("Q2_K", 3_400_000, 3.2, kld=0.412, kld_se=0.009, same_top=0.71, same_top_se=0.005),
)

EXPECTED = """\
variant  class      size    bpw  perplexity   KL divergence          same top token
───────  ──────  ───────  ─────  ───────────  ─────────────────────  ──────────────
BF16     full    14.6 MB  16.00  9.41 ± 0.14  –                      –
Q8_0     medium   7.8 MB   8.50  9.41 ± 0.14  0.0002100 ± 0.0000061  98.60 ± 0.10 %
Q2_K     low      3.4 MB   3.20  9.41 ± 0.14  0.4120    ± 0.0090     71.00 ± 0.50 %

± is one standard error, over 30 chunks of 512 tokens (7,650 tokens scored). KL
divergence from BF16, in nats a token.
"""


def table() -> Table:
    return evaluation_table(RESULTS, [Column("class", ("full", "medium", "low"))])


def test_text_table():
    assert table().text() == EXPECTED


def test_ascii_table():
    text = table().text(ascii_only=True)
    assert text.isascii()
    lines = text.splitlines()
    assert lines[3] == (
        "Q8_0     medium   7.8 MB   8.50  9.41 +/- 0.14  0.0002100 +/- 0.0000061  98.60 +/- 0.10 %"
    )


def test_markdown_table():
    lines = table().markdown().splitlines()
    assert lines[0] == (
        "| variant | class | size | bpw | perplexity | KL divergence | same top token |"
    )
    assert lines[1] == "| --- | --- | ---: | ---: | --- | --- | --- |"
    assert lines[4] == (
        "| Q2_K | low | 3.4 MB | 3.20 | 9.41 ± 0.14 | 0.4120 ± 0.0090 | 71.00 ± 0.50 % |"
    )


def test_without_a_base_there_are_no_columns_of_divergence():
    lines = evaluation_table([result("a")]).text().splitlines()
    assert lines[0].split() == ["variant", "size", "bpw", "perplexity"]
    assert lines[2].split() == ["a", "–", "–", "9.41", "±", "0.14"]


def test_names_from_files_can_do_no_harm():
    hostile = result("a\x1b[31m\nb|c*d_`<x>")
    text = evaluation_table([hostile]).text()
    assert "\x1b" not in text
    assert text.splitlines()[2].startswith(r"a\x1b[31m\nb|c*d_`<x>  ")
    markdown = evaluation_table([hostile]).markdown()
    assert r"\|c\*d\_\`\<x>" in markdown
    assert markdown.splitlines()[2].replace("\\|", "").count("|") == 5


def test_wide_characters_keep_columns_aligned():
    lines = Table((Column("name", ("模型", "abc")), Column("n", ("1", "2")))).text().splitlines()

    def columns(text):
        return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)

    assert len({columns(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("se", "decimals"),
    [(0.0, 1), (123.0, 0), (12.0, 0), (1.2, 1), (0.12, 2), (0.099, 3), (1e-6, 7), (1e-12, 7)],
)
def test_two_digits_of_the_error(se, decimals):
    assert decimals_for(se) == decimals


def test_estimates_align():
    cells = estimate_cells([Estimate(1234.5, 20.0), None, Estimate(-0.01234, 0.00067)], "%")
    assert cells == (
        "1234       ± 20       %",
        "–",
        "  -0.01234 ±  0.00067 %",
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "–"), (12_345, "12.3 kB"), (14_600_000, "14.6 MB"), (2_480_000_000, "2.48 GB")],
)
def test_sizes(size, text):
    assert size_text(size) == text


def test_json():
    document = json.loads(results_json(RESULTS))
    base, variant, _ = document["results"]
    for key in ("name", "path", "bytes", "bpw", "tokens", "perplexity", "perplexity_se"):
        assert key in base
    for key in ("kld", "kld_se", "same_top"):
        assert base[key] is None
        assert isinstance(variant[key], float)
    assert variant["bytes"] == 7_800_000
    assert base["tokens"] == 7650
    assert results_json(RESULTS).endswith("}\n")
