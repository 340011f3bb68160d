"""Reasoning apart from the answer, however the text is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.server.reasoning import ReasoningSplitter, Tags
from kvant.server.template_traits import traits_of

OUTSIDE, INSIDE = Tags(), Tags(inside=True)

# Tags, what the model writes, its reasoning, its answer.
WRITTEN = [
    (OUTSIDE, "<think>\nHm, 1 < 2.\n</think>\n\nYes.", "Hm, 1 < 2.", "Yes."),
    (OUTSIDE, "\n <think>a</think>b", "a", "b"),
    (OUTSIDE, "<think>\n\n</think>\n\nYes.", "", "Yes."),
    (OUTSIDE, "Yes. <think>not this</think>", "", "Yes. <think>not this</think>"),
    (OUTSIDE, "  <thin is text", "", "  <thin is text"),
    (OUTSIDE, "<think>cut off </thi", "cut off </thi", ""),
    (OUTSIDE, "<think>", "", ""),
    (OUTSIDE, "", "", ""),
    (INSIDE, "Hm.\n\nStill.\n</think>\n\nYes.\n", "Hm.\n\nStill.", "Yes.\n"),
    (INSIDE, "<think>\nTwice.</think>Yes.", "Twice.", "Yes."),
    (INSIDE, "</think>Yes.", "", "Yes."),
    (INSIDE, "<thinking is not the tag</think>x", "<thinking is not the tag", "x"),
    (Tags("[THINK]", "[/THINK]"), "[THINK]a[/THINK]b", "a", "b"),
]


def read(tags, pieces):
    splitter = ReasoningSplitter(tags)
    parts = [p for piece in pieces for p in splitter.add(piece)] + splitter.finish()
    assert all(text for _, text in parts)
    kinds = [kind for kind, _ in parts]
    assert kinds == sorted(kinds)  # reasoning, then text
    return tuple("".join(t for k, t in parts if k == kind) for kind in ("reasoning", "text"))


@pytest.mark.parametrize(("tags", "written", "thought", "text"), WRITTEN)
def test_reasoning_is_split(tags, written, thought, text):
    assert read(tags, [written]) == (thought, text)
    assert read(tags, list(written)) == (thought, text)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cuts_make_no_difference(data):
    tags, written, thought, text = data.draw(st.sampled_from(WRITTEN))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)), max_size=6)))
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert read(tags, pieces) == (thought, text)


QWEN3 = (
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{%- if enable_thinking is defined and "
    "enable_thinking is false %}<think>\n\n</think>\n\n{%- endif %}{%- endif %}"
)
R1 = "{{ x.split('</think>')[-1] }}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
QWEN35 = QWEN3.replace("{%- endif %}{%- endif %}", "{%- else %}<think>\n{%- endif %}{%- endif %}")


@pytest.mark.parametrize(
    ("template", "values", "inside"),
    [
        (QWEN3, {}, False),
        (QWEN3, {"enable_thinking": False}, False),
        (R1, {}, True),
        (QWEN35, {}, True),
        (QWEN35, {"enable_thinking": False}, False),
        ("{{ messages }}", {}, False),
        (None, {}, False),
    ],
)
def test_templates_that_open_the_reasoning(template, values, inside):
    assert traits_of(template).reasoning(values).inside is inside
