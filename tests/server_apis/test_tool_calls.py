"""Tool calls in what models write, however it is cut into pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.server.events import CallEnd, CallPart, CallStart, Text
from kvant.server.json_scan import ObjectScan
from kvant.server.template_traits import traits_of
from kvant.server.tool_calls import NamedCallReader, ToolCallReader

TOOLS = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}}},
    "add": {"properties": {"a": {"type": "integer"}, "note": {"type": "string"}}},
}
HERMES = "{% if tools %}<tool_call>{% endif %}"
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]"
LLAMA = "{% if tools %}<|python_tag|>{% endif %}"
GRANITE = "{% if tools %}<|tool_call|>{% endif %}"

WEATHER = ("get_weather", {"city": "Oslo"})
ADD = ("add", {"a": 1, "note": 'x "y"\n{'})
ADD_TEXT = json.dumps(ADD[1])

# Template, what the model writes, the text left of it, the calls in it.
WRITTEN = [
    (
        HERMES,
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
        "",
        [WEATHER],
    ),
    (
        HERMES,
        'I look. <tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>\n'
        f'<tool_call>{{"arguments": {ADD_TEXT}, "name": "add"}}</tool_call>',
        "I look.",
        [WEATHER, ADD],
    ),
    (
        HERMES,
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=note>\n"
        "12\n</parameter>\n</function>\n</tool_call>",
        "",
        [("add", {"a": 1, "note": "12"})],
    ),
    (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}, '
        f'{{"name": "add", "arguments": {ADD_TEXT}}}]',
        "",
        [WEATHER, ADD],
    ),
    # Its opener is a control token, which has no text.
    (MISTRAL, '[{"name": "get_weather", "arguments": {"city": "Oslo"}}]', "", [WEATHER]),
    (MISTRAL, '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}', "", [WEATHER]),
    (MISTRAL, 'get_weather{"city": "Oslo"}', "", [WEATHER]),
    (LLAMA, '{"name": "get_weather", "parameters": {"city": "Oslo"}}', "", [WEATHER]),
    (
        LLAMA,
        f'{{"name": "get_weather", "parameters": {{"city": "Oslo"}}}}; '
        f'{{"name": "add", "parameters": {ADD_TEXT}}}',
        "",
        [WEATHER, ADD],
    ),
    (
        LLAMA,
        '<|python_tag|>{"type": "function", "name": "add", "parameters": {}}',
        "",
        [("add", {})],
    ),
    (
        GRANITE,
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
        "",
        [WEATHER],
    ),
    (HERMES, '<tool_call>{"name": "add"}</tool_call>', "", [("add", {})]),
    (
        HERMES,
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 2}"}</tool_call>',
        "",
        [("add", {"a": 2})],
    ),
    # A line break within a string, which is no JSON, but what models write.
    (
        HERMES,
        '<tool_call>{"name": "add", "arguments": {"note": "a\nb"}}</tool_call>',
        "",
        [("add", {"note": "a\nb"})],
    ),
    (HERMES, "No call < here, {only} text <tool", "No call < here, {only} text <tool", []),
    (HERMES, '{"name": "get_weather"}', '{"name": "get_weather"}', []),
    (LLAMA, '{"name": "unknown", "parameters": {}}', '{"name": "unknown", "parameters": {}}', []),
    (LLAMA, "{oops", "{oops", []),
    (LLAMA, '{"temperature": 3} is it.', '{"temperature": 3} is it.', []),
    (LLAMA, "[1, 2]", "[1, 2]", []),
    (
        HERMES,
        'x <tool_call>{"name": "unknown", "arguments": {}}</tool_call> y',
        'x <tool_call>{"name": "unknown", "arguments": {}}</tool_call> y',
        [],
    ),
]


def read(template, pieces):
    """Text and calls, after checking that the events fit together."""
    traits = traits_of(template)
    reader = ToolCallReader(TOOLS, traits.openers, bare=traits.bare)
    events = [e for piece in pieces for e in reader.add(piece)] + reader.finish()
    text, calls, parts = "", [], []
    for event in events:
        match event:
            case Text(piece):
                text += piece
            case CallStart(index, _, name):
                assert index == len(parts)
                parts.append([name, ""])
            case CallPart(index, piece):
                assert index == len(parts) - 1
                parts[index][1] += piece
            case CallEnd(index, _, name, arguments):
                assert [name, arguments] == parts[index]
                calls.append((name, json.loads(arguments)))
    assert reader.count == len(calls)
    return text, calls


@pytest.mark.parametrize(("template", "written", "text", "calls"), WRITTEN)
def test_calls_are_found(template, written, text, calls):
    assert read(template, [written]) == (text, calls)
    assert read(template, list(written)) == (text, calls)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cuts_make_no_difference(data):
    template, written, text, calls = data.draw(st.sampled_from(WRITTEN))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)), max_size=6)))
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert read(template, pieces) == (text, calls)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet='{}[]",:\\ <>tool_call/name"arguments1\n', max_size=60))
def test_other_text_never_breaks_it(written):
    """Whatever is written, one letter after another gives what the whole gives."""
    assert read(HERMES, [written]) == read(HERMES, list(written))
    assert read(LLAMA, [written]) == read(LLAMA, list(written))


def test_arguments_come_while_they_are_written():
    traits = traits_of(HERMES)
    reader = ToolCallReader(TOOLS, traits.openers, bare=traits.bare)
    events = reader.add('<tool_call>{"name": "get_weather", "arguments": {"ci')
    assert [type(e) for e in events] == [CallStart, CallPart]
    assert events[1].text == '{"ci'
    assert reader.add('ty": "Os') == [CallPart(0, 'ty": "Os')]
    # What was cut off is a call all the same, with what there is of it.
    assert reader.finish()[0].arguments == '{"city": "Os'


def test_another_object_is_not_held_back():
    reader = ToolCallReader(TOOLS, (), bare=True)
    assert reader.add('{"temp') == []
    assert reader.add('erature": 3, "x') == [Text('{"temperature": 3, "x')]
    assert reader.add("more") == [Text("more")]


def test_ids_suit_the_family():
    found = ToolCallReader(TOOLS, ("<tool_call>",), bare=False)
    [start, *_] = found.add('<tool_call>{"name": "add", "arguments": {}}')
    assert start.id.startswith("call_")
    assert len(start.id) == 29


def test_a_named_call_is_all_arguments():
    reader = NamedCallReader("add")
    assert [type(e) for e in reader.add('{"a"')] == [CallStart, CallPart]
    assert reader.add(": 1}") == [CallPart(0, ": 1}")]
    assert reader.finish()[0].arguments == '{"a": 1}'
    assert NamedCallReader("add").finish() == []


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4), st.sampled_from([None, 1]))
def test_a_scan_ends_where_the_object_does(value, indent):
    text = json.dumps(value, indent=indent)
    scan = ObjectScan()
    assert scan.add(text + "tail}") == len(text)
    assert scan.complete
    assert scan.raw == text
    assert {k: scan.value(k) for k in scan.members} == value


@pytest.mark.parametrize(
    ("template", "openers", "bare", "tools"),
    [
        (HERMES, ("<tool_call>",), False, True),
        (LLAMA, ("<|python_tag|>",), True, True),
        ("{{ messages }}", None, True, False),
    ],
)
def test_traits_of_templates(template, openers, bare, tools):
    traits = traits_of(template)
    if openers is not None:
        assert traits.openers == openers
    assert (traits.bare, traits.tools) == (bare, tools)
