"""Modelfiles: read, written, and refused with the line's number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.errors import UnsupportedError, UsageError
from kvant.registry import Message, Modelfile, ModelfileError, parse_modelfile
from kvant.registry.parameters import split_parameters

WHOLE = '''
# what it is
from llama3.2:1b
PARAMETER temperature 0.7
parameter STOP "<|user|>"
PARAMETER stop   """ two
lines """
PARAMETER num_ctx 4096
PARAMETER num_gpu 99
SYSTEM """You are Mario.

# this is no comment
Answer "as" Mario.
"""
TEMPLATE "{{ messages[0].content }}
on two lines"
ADAPTER ./lora
LICENSE """MIT"""
LICENSE <<END
"""quoted"""
END
MESSAGE user Is Toronto in Canada?
MESSAGE assistant   "yes
indeed"
'''


def test_everything() -> None:
    found = parse_modelfile(WHOLE)
    assert found == Modelfile(
        base="llama3.2:1b",
        parameters={
            "temperature": 0.7,
            "stop": ["<|user|>", " two\nlines "],
            "num_ctx": 4096,
            "num_gpu": "99",
        },
        template="{{ messages[0].content }}\non two lines",
        system='You are Mario.\n\n# this is no comment\nAnswer "as" Mario.\n',
        adapter="./lora",
        licenses=("MIT", '"""quoted"""'),
        messages=(Message("user", "Is Toronto in Canada?"), Message("assistant", "yes\nindeed")),
    )
    settings = split_parameters(found.parameters)
    assert settings.sampling == {"temperature": 0.7}
    assert (settings.context, settings.idle) == (4096, ("num_gpu",))


def test_windows_lines() -> None:
    assert parse_modelfile(WHOLE.replace("\n", "\r\n")) == parse_modelfile(WHOLE)
    assert parse_modelfile("\ufeffFROM x").base == "x"


BAD = {
    "": "Modelfile: has no FROM line",
    "SYSTEM hi": "Modelfile: has no FROM line",
    "FROM": "Modelfile:1: FROM needs a value",
    "FROM x\nFROM y": "Modelfile:2: FROM stands there a second time",
    "FROM x\n\nHELLO y": "Modelfile:3: expected FROM, PARAMETER, .*got 'HELLO y'",
    "FROM x\nRENDERER qwen3": "Modelfile:2: RENDERER is for Ollama's own programs",
    "FROM x\nPARAMETER colour red": "Modelfile:2: There is no parameter 'colour'",
    "FROM x\nPARAMETER temperature hot": "Modelfile:2: Parameter temperature should be a number",
    "FROM x\nPARAMETER top_k 1.5": "Modelfile:2: Parameter top_k should be a whole number",
    "FROM x\nPARAMETER top_p nan": "Modelfile:2: Parameter top_p should be a number",
    "FROM x\nPARAMETER num_ctx 0": "Modelfile:2: Parameter num_ctx should be tokens from 1",
    "FROM x\nPARAMETER temperature": "Modelfile:2: expected PARAMETER NAME VALUE",
    'FROM x\n\nSYSTEM """no end\n\n': 'Modelfile:3: the text that begins here has no closing """',
    "FROM x\nSYSTEM <<END\nno end": "Modelfile:2: no line END ends the text",
    "FROM x\nMESSAGE wizard hi": "Modelfile:2: a message's role should be .*got 'wizard'",
    "FROM x\nTEMPLATE {{ .Nonsense }}": "Modelfile:2: This TEMPLATE is .*asks for .Nonsense",
    "FROM x\0": "Modelfile: expected text, got zero bytes",
    "FROM x\n" + "#" * 9_000_000: "characters, expected at most",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
def test_mistakes_name_their_line(text: str) -> None:
    with pytest.raises(ModelfileError, match=BAD[text]):
        parse_modelfile(text)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60) | st.lists(
    st.sampled_from(['"', '"""', "\n", "END", "<<END", " ", "a", "#", "\t", "\r\n", "FROM x\n"]),
    max_size=12,
).map("".join)
numbers = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 4),
        "top_k": st.integers(0, 1000),
        "seed": st.integers(-1, 2**60),
        "num_ctx": st.integers(1, 2**20),
        "num_gpu": st.sampled_from(["1", "true"]),
        "stop": st.lists(texts.filter(bool), min_size=1, max_size=3),
    },
)
bases = texts.filter(lambda t: bool(t.strip()))


@given(
    st.builds(
        Modelfile,
        base=bases,
        parameters=numbers,
        template=st.none() | texts.filter(lambda t: "{{" not in t),
        system=st.none() | texts,
        adapter=st.none() | bases,
        licenses=st.lists(texts, max_size=2).map(tuple),
        messages=st.lists(
            st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts), max_size=3
        ).map(tuple),
    )
)
def test_what_is_written_is_read_back(modelfile: Modelfile) -> None:
    assert parse_modelfile(str(modelfile)) == modelfile


@given(st.text(max_size=200) | texts)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_modelfile(text)
    except ModelfileError:
        return
    assert parse_modelfile(str(found)) == found


def test_values_of_requests() -> None:
    found = Modelfile.of(
        base="x",
        parameters={"temperature": 1, "stop": "a", "top_k": 40.0},
        messages=[{"role": "user", "content": "hi"}],
        template="{{ .Prompt }}",
    )
    assert found.parameters == {"temperature": 1.0, "stop": ["a"], "top_k": 40}
    assert found.template is not None
    assert "s.prompt" in found.template
    with pytest.raises(UsageError, match="stop should be up to 64 texts"):
        Modelfile.of(parameters={"stop": [1]})
    with pytest.raises(UsageError, match="should be a number"):
        Modelfile.of(parameters={"top_k": [1]})
    with pytest.raises(UsageError, match="A message's role"):
        Modelfile.of(messages=[{"role": "x", "content": ""}])
    with pytest.raises(UnsupportedError, match="Go's template language"):
        Modelfile.of(template="{{ if .Nope }}{{ end }}")
