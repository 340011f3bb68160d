"""Chat templates: real ones render, hostile ones end soon."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import FileFormatError, KvantError, UnsupportedError, UsageError
from kvant.tokenizer.chat import MAX_TEMPLATE_CHARS, ChatRenderer, Limits, render

TALK = [
    {"role": "user", "content": "Hei, hvordan går det? 😀"},
    {"role": "assistant", "content": "Bra."},
    {"role": "user", "content": "Fint."},
]
NOW = datetime(2026, 11, 23, 12, 0)

#: What these want beside a conversation, and fail without in transformers too.
NEEDS: dict[str, dict[str, Any]] = {
    "CohereForAI-c4ai-command-r-plus-tool_use": {"tools": []},
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": {"tools": []},
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": {"tools": []},
    "fireworks-ai-llama-3-firefunction-v2": {"functions": "[]", "datetime": "today"},
}


def _templates(shared_data: Path) -> dict[str, str]:
    folder = shared_data / "tokenizers" / "chat-templates"
    return {p.stem: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.jinja"))}


@pytest.mark.slow
def test_real_templates_render(shared_data: Path) -> None:
    templates = _templates(shared_data)
    assert len(templates) >= 70
    for name, template in templates.items():
        with ChatRenderer(template) as renderer:
            text = renderer.render(TALK, True, "<s>", "</s>", now=NOW, **NEEDS.get(name, {}))
            assert "Fint." in text, name
            if name in NEEDS:
                with pytest.raises(UsageError, match="fails on this conversation"):
                    renderer.render(TALK, True, "<s>", "</s>")


@pytest.mark.slow
@pytest.mark.parity
def test_real_templates_render_as_in_transformers(shared_data: Path) -> None:
    module = pytest.importorskip("transformers.utils.chat_template_utils")
    for name, template in _templates(shared_data).items():
        values = {"tools": None, **NEEDS.get(name, {})}
        expected = module._compile_jinja_template(template).render(
            messages=TALK,
            documents=None,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
            **values,
        )
        assert render(template, TALK, True, "<s>", "</s>", **values) == expected, name


def test_what_templates_have_at_hand() -> None:
    template = (
        "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{{ loop.index }}{% endfor %}|"
        "{{ ns.n }}|{{ strftime_now('%Y') }}|{{ {'å': [1, none]} | tojson }}|"
        "{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}|{{ dict(a=1).a }}|"
        "{% generation %}{{ bos_token }}{% endgeneration %}|{{ '%s' % 'x' }}|{{ 'a b'.split() }}"
    )
    text = render(template, TALK, bos_token="<s>", now=NOW)
    assert text == ('13|2|2026|{"å": [1, null]}|{\n "a": 2,\n "b": 1\n}|1|<s>|x|[\'a\', \'b\']')


ATTACKS: dict[str, str] = {
    "memory at once": "{{ 'a' * 10**9 }}",
    "memory as a list": "{{ [1] * 10**8 }}",
    "memory by doubling": "{% set n = namespace(s='a') %}{% for i in range(60) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "memory by width": "{{ 'x'.center(10**9) }}",
    "memory by format": "{{ '%1000000000d' % 1 }}",
    "memory by new format": "{{ '{:1000000000}'.format(1) }}",
    "memory by bytes": "{{ (5).to_bytes(10**9, 'big') }}",
    "memory by replace": "{% set a = 'a' * 10**5 %}{{ a.replace('a', a) }}",
    "a long range": "{{ range(10**9) | list }}",
    "a number too large": "{{ 10**(10**10) }}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "lists of themselves": "{% set n = namespace(x=[1]) %}{% for i in range(40) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "comparing them": "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(40) %}"
    "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "output without end": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "brackets": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "a tower of nots": "{% if" + " not" * 3000 + " 1 %}{% endif %}",
    "deep blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a class by name": "{{ ''['__class__'].x }}",
    "a class by filter": "{{ (''|attr('__class__')).x }}",
    "a class by format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "a class by format map": "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "globals of ours": "{{ raise_exception.__globals__.x }}",
    "frames": "{{ (x for x in []).gi_frame }}",
    "a namespace of Python's": "{{ namespace(__class__=1) }}",
    "a namespace set later": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "a change of the messages": "{{ messages.append(1) }}",
    "a change of a message": "{{ messages[0].update({'role': 'x'}) }}",
    "an include": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os }}",
    "the environment": "{{ self._TemplateReference__context.environment }}",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_end_in_one_sentence(name: str) -> None:
    with pytest.raises((UnsupportedError, UsageError, FileFormatError)) as caught:
        render(ATTACKS[name], TALK)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="how memory is limited differs")
def test_attacks_take_little_time_and_memory() -> None:
    script = (
        "import json, resource, sys\n"
        "from kvant.errors import KvantError\n"
        "from kvant.tokenizer.chat import render\n"
        "for t in json.load(sys.stdin):\n"
        "    try: render(t, [])\n"
        "    except KvantError: continue\n"
        # ru_maxrss of this process would count what its parent had before it started this.
        "own = [int(x.split()[1]) for x in open('/proc/self/status') if x.startswith('VmHWM')]\n"
        "use = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([own[0], use.ru_maxrss, use.ru_utime + use.ru_stime]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(list(ATTACKS.values())),
        capture_output=True,
        text=True,
        check=True,
    )
    own, children, seconds = json.loads(done.stdout)
    assert max(own, children) < 300_000
    # Half a second each where the limit is needed, and a start of the process.
    assert seconds < 1.0 * len(ATTACKS)


def test_a_renderer_goes_on_after_an_attack() -> None:
    template = "{% if messages %}{{ messages[0].x * n }}{% endif %}ok"
    with ChatRenderer(template) as renderer:
        assert renderer.render([], n=1) == "ok"
        with pytest.raises(UnsupportedError, match="memory"):
            renderer.render([{"x": "a"}], n=10**9)
        assert renderer.render([{"x": "b"}], n=2) == "bbok"
    with ChatRenderer(
        "{% for i in range(99999) %}{% for j in range(n) %}{% endfor %}{% endfor %}"
    ) as r:
        with pytest.raises(UnsupportedError, match="processor time"):
            r.render([], n=99999)
        assert r.render([], n=0) == ""


def test_limits_can_be_set() -> None:
    with (
        ChatRenderer("{{ 'ab' * 10 }}", Limits(output=10)) as renderer,
        pytest.raises(UnsupportedError, match="more than 10 characters"),
    ):
        renderer.render([])


def test_impatience() -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with (
        ChatRenderer(loop, Limits(seconds=60, patience=0.3)) as renderer,
        pytest.raises(UnsupportedError, match=r"more than 0\.3 seconds"),
    ):
        renderer.render([])


@pytest.mark.parametrize(
    ("template", "kind", "message"),
    [
        ("{% if %}", FileFormatError, r"not valid Jinja, .line 1: Expected"),
        ("{{ raise_exception('roles!') }}", UsageError, r"refuses this conversation: 'roles!'"),
        ("{{ raise_exception('a\x1b[31m\n') }}", UsageError, r"'a\\x1b\[31m\\n'"),
        ("{{ nothing.at.all }}", UsageError, "'nothing' is undefined"),
        ("{{ messages[9].x.y }}", UsageError, "fails on this conversation"),
        ("x" * (MAX_TEMPLATE_CHARS + 1), FileFormatError, "expected at most"),
    ],
)
def test_messages(template: str, kind: type[KvantError], message: str) -> None:
    with pytest.raises(kind, match=message):
        render(template, TALK)


def test_a_conversation_must_be_plain_data() -> None:
    with pytest.raises(UsageError, match="not plain data"):
        render("x", [{"content": object()}])


def test_nothing_of_the_child_is_left() -> None:
    renderer = ChatRenderer("x")
    assert renderer.render([]) == "x"
    process = renderer._process
    assert process is not None
    renderer.close()
    assert process.returncode is not None
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0


@pytest.mark.skipif(sys.platform != "linux", reason="how files are limited differs")
def test_even_outside_the_sandbox_files_are_out_of_reach(tmp_path: Path) -> None:
    """The worker's process, with its own confinement and no sandbox at all."""
    from kvant.tokenizer import chat

    script = (
        f"import sys; sys.argv = ['w', '1', '1000000', '1', *{sys.path!r}]\n"
        f"import importlib.util as u\n"
        f"spec = u.spec_from_file_location('w', {str(chat._WORKER)!r})\n"
        "w = u.module_from_spec(spec); spec.loader.exec_module(w)\n"
        "w._confine(50_000_000)\n"
        f"for name in ('/etc/passwd', {str(tmp_path / 'new')!r}):\n"
        "    try: open(name, 'r' if 'etc' in name else 'w'); print('open')\n"
        "    except OSError: print('shut')\n"
        "try: bytearray(10**9); print('memory')\n"
        "except MemoryError: print('none')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["shut", "shut", "none"], done.stderr
