"""Templates of Ollama's models, translated: the texts that Go's engine gives, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.errors import UnsupportedError
from kvant.registry.go_template import is_go_template, translate
from kvant.tokenizer.chat import ChatRenderer, render

SYSTEM = {"role": "system", "content": "Be kind."}
HI = {"role": "user", "content": "Hi"}
HO = {"role": "assistant", "content": "Ho"}
BYE = {"role": "user", "content": "Bye"}

CHATML = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
LLAMA2 = "[INST] {{ if .System }}<<SYS>>{{ .System }}<</SYS>>\n\n{{ end }}{{ .Prompt }} [/INST]"
LLAMA3 = """{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}<|start|>{{ .Role }}<|end|>

{{ .Content }}
{{- if $last }}{{ if ne .Role "assistant" }}<|eot|><|start|>assistant<|end|>

{{ end }}
{{- else }}<|eot|>{{ end }}
{{- end }}"""
ROLES = """{{ if .System }}S:{{ .System }}|{{ end }}
{{- range .Messages }}
{{- if eq .Role "user" }}U:{{ .Content }}|
{{- else if eq .Role "assistant" }}A:{{ .Content }}|
{{- end }}
{{- else }}nothing{{ end }}A:"""


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (CHATML, [HI], "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (
            CHATML,
            [SYSTEM, HI, HO, BYE],
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            LLAMA2,
            [SYSTEM, HI, HO, BYE],
            "[INST] <<SYS>>Be kind.<</SYS>>\n\nHi [/INST]Ho[INST] Bye [/INST]",
        ),
        (
            LLAMA3,
            [SYSTEM, HI],
            "<|start|>system<|end|>\n\nBe kind.<|eot|><|start|>user<|end|>\n\nHi<|eot|>"
            "<|start|>assistant<|end|>\n\n",
        ),
        (LLAMA3, [HI, HO], "<|start|>user<|end|>\n\nHi<|eot|><|start|>assistant<|end|>\n\nHo"),
        (ROLES, [SYSTEM, HI, HO, BYE], "S:Be kind.|U:Hi|A:Ho|U:Bye|A:"),
        (ROLES, [HI, BYE], "U:Hi\n\nBye|A:"),  # turns of one role are joined
        ("{{ .Prompt }}", [HI, HO, BYE], "HiHoBye"),
        ("{{/* said */}}{{ .Prompt }}{{- /* more */ -}}  x", [HI], "Hix"),
        ('{{ "{{" }}{{ `a"b` }}{{ .Prompt }}', [HI], '{{a"bHi'),
        ("{% raw in Go %}", [HI], None),
        ("{{ with .System }}[{{ . }}]{{ end }}{{ .Prompt }}", [SYSTEM, HI], "[Be kind.]Hi"),
        ("{{ range .Messages }}{{ json .Content }}{{ end }}", [HI], '"Hi"'),
        ("{{ range .Messages }}{{ .Content | json }}{{ end }}", [HI], '"Hi"'),
        ("{{ $x := 1 }}{{ range .Messages }}{{ $x = 2 }}{{ end }}{{ $x }}", [HI], "2"),
        (
            '{{ range .Messages }}{{ if and (eq .Role "user") (not .ToolCalls) }}u{{ end }}'
            "{{ end }}",
            [HI, HO],
            "u",
        ),
        ("  {{- .Prompt -}}\n\n{% {# {{ .Prompt }}", [HI], None),
    ],
)
def test_translated(template: str, messages: list[dict[str, str]], text: str | None) -> None:
    if text is None:
        assert not is_go_template(template)
        return
    assert is_go_template(template) or "{{" in template
    assert render(translate(template), messages, add_generation_prompt=True) == text


def test_tools() -> None:
    template = (
        "{{ if .Tools }}T:{{ range .Tools }}{{ .Function.Name }},{{ end }}{{ end }}"
        "{{ range .Messages }}{{ if .ToolCalls }}{{ range .ToolCalls }}"
        "{{ .Function.Name }}({{ json .Function.Arguments }}){{ end }}{{ else }}{{ .Content }}"
        "{{ end }}{{ end }}"
    )
    tools = [{"type": "function", "function": {"name": "look"}}]
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "look", "arguments": {"at": 1}}}],
    }
    found = render(translate(template), [HI, call], tools=tools)
    assert found == 'T:look,Hilook({"at": 1})'
    assert render(translate(template), [HI]) == "Hi"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ .First }}", "asks for .First"),
        ("{{ printf .Prompt }}", "calls 'printf'"),
        ('{{ define "x" }}{{ end }}', "uses 'define'"),
        ("{{ range .Messages }}{{ break }}{{ end }}", "uses 'break'"),
        ("{{ if .Prompt }}", "if has no end"),
        ("{{ .Prompt", "never closed"),
        ("{{ end }}", "without a beginning"),
        ("{{ $x }}", "used before it is declared"),
        ("{{ (.Prompt }}", "never closed"),
        ("{{ .Prompt) }}", "never opened"),
        ('{{ "a }}', "no closing quote"),
        ("{{ .Prompt .System }}", "called like a function"),
        ("{{ if .Prompt }}" * 60, "nests deeper"),
        ("{{ ~ }}", "it has '~"),
    ],
)
def test_refused(template: str, why: str) -> None:
    with pytest.raises(UnsupportedError, match=f"cannot be translated: .*{why}"):
        translate(template)


@given(
    st.lists(
        st.sampled_from(
            [
                *(
                    "{{ ",
                    " }}",
                    "{{- ",
                    " -}}",
                    "if ",
                    "else ",
                    "end ",
                    "range ",
                    "with ",
                    ".Messages",
                ),
                *(
                    ".Content",
                    ".Prompt",
                    ".Response",
                    "$x",
                    " := ",
                    "eq ",
                    '"a"',
                    "(",
                    ")",
                    "|",
                    "x",
                ),
                *("{%", "%}", "{#", "\n", "{{ end }}", "{{ if .Prompt }}", "$i, $m := .Messages"),
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_any_text_is_translated_or_refused(text: str) -> None:
    try:
        jinja = translate(text)
    except UnsupportedError:
        return
    import jinja2

    jinja2.Environment().parse(jinja)  # whatever came out is Jinja


def test_a_translated_template_stays_in_its_bounds() -> None:
    with ChatRenderer(translate(CHATML)) as renderer:
        long = [HI, HO] * 200 + [HI]
        assert renderer.render(long).count("<|im_start|>user") == 201
