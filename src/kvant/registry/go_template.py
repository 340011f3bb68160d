"""Templates in Go's language, as Ollama's models have them, become Jinja where that is possible.

Source: text/template of Go, and template/template.go of ollama/ollama for what a template is
given: either ``.Messages`` (each with ``.Role`` and ``.Content``), ``.System`` and ``.Tools``, or,
in older ones, one turn at a time as ``.System``, ``.Prompt`` and ``.Response``. The result reads
``messages`` and ``tools``, as templates of transformers do.

Understood: text, trim markers, comments, ``if``, ``else if``, ``else``, ``with``, ``range`` (with
an index too), variables, fields, ``eq ne lt le gt ge and or not len slice index json``, pipes and
parentheses. Whatever else stands in a template is an error that names it: a template that is only
almost right makes a model worse without anybody noticing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from kvant.files.source import quote
from kvant.registry.go_syntax import Branch, Node, Parser, Print, Set, Term, Text, cannot, pieces

__all__ = ["is_go_template", "translate"]

_GO = re.compile(
    r"\{\{-?\s*(?:\.[A-Z]|\$|/\*|(?:if|else|end|range|with|json|slice)\b|(?:and|or|not|eq|ne|len)\s)"
)
_MOST = 100_000

#: What a template's root has, beside the turns, as expressions of Jinja.
_ROOT = {
    "Messages": "s.turns",
    "System": "s.system",
    "Prompt": "s.prompt",
    "Response": "s.response",
    "Tools": "(tools or [])",
    "Think": "(enable_thinking if enable_thinking is defined else false)",
    "IsThinkSet": "(enable_thinking is defined)",
}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

#: Ollama joins turns of one role, and all system messages for ``.System``.
_COLLECT = (
    "{%- set s = namespace(turns=[], system='', prompt='', response='') -%}"
    "{%- for m in messages -%}"
    "{%- if s.turns and s.turns[-1].role == m.role and m.role != 'tool' -%}"
    "{%- set s.turns = s.turns[:-1] + [{'role': m.role, 'content': "
    "s.turns[-1].content ~ '\\n\\n' ~ m.content}] -%}"
    "{%- else -%}{%- set s.turns = s.turns + [m] -%}{%- endif -%}"
    "{%- endfor -%}"
)
_SYSTEM = (
    "{%- for m in messages if m.role == 'system' -%}"
    "{%- set s.system = s.system ~ ('\\n\\n' if s.system else '') ~ m.content -%}{%- endfor -%}"
)
_SHOW = (
    "{%- macro show(x) -%}{{ '' if x is undefined or x is none else x if x is string "
    "else x | tojson }}{%- endmacro -%}"
)
_CLEAR = "{%- set s.system = '' -%}{%- set s.prompt = '' -%}{%- set s.response = '' -%}"


def is_go_template(text: str) -> bool:
    """Whether a template is written in Go's language rather than in Jinja."""
    return "{%" not in text and _GO.search(text) is not None


def translate(text: str) -> str:
    """A template of Go as one of Jinja.

    Raises:
        UnsupportedError: it has something that cannot be translated; names it.
    """
    if len(text) > _MOST:
        raise cannot(f"it has {len(text)} characters, expected at most {_MOST}")
    tree = Parser(pieces(text)).parse()
    if _mentions(tree, "Messages"):
        body = _Writer().write(tree)
        return _COLLECT + _SYSTEM + _SHOW + body
    if not _mentions(tree, "Response"):
        tree = [*tree, Print([Term("field", "Response")])]
    whole = _Writer().write(tree)
    last = _Writer().write(_cut(tree)[0])
    turn = "{{ turn() }}" + _CLEAR
    return (
        _COLLECT
        + _SHOW
        + "{%- macro turn() -%}"
        + whole
        + "{%- endmacro -%}{%- for m in s.turns -%}"
        + "{%- if m.role == 'system' -%}{%- if s.prompt or s.response -%}"
        + turn
        + "{%- endif -%}{%- set s.system = m.content -%}"
        + "{%- elif m.role == 'user' -%}{%- if s.response -%}"
        + turn
        + "{%- endif -%}{%- set s.prompt = m.content -%}"
        + "{%- elif m.role == 'assistant' -%}{%- set s.response = m.content -%}{%- endif -%}"
        + "{%- endfor -%}"
        + last
    )


# ---- what depends on the old form ------------------------------------------------------------


def _mentions(nodes: Sequence[Node], name: str) -> bool:
    def within(terms: Sequence[Term]) -> bool:
        return any(
            (t.kind == "field" and t.text == name)
            or (t.kind == "variable" and name in t.fields)
            or within(t.group)
            for t in terms
        )

    return any(
        (not isinstance(n, Text) and within(n.pipe))
        or (isinstance(n, Branch) and (_mentions(n.body, name) or _mentions(n.other, name)))
        for n in nodes
    )


def _cut(nodes: Sequence[Node]) -> tuple[list[Node], bool]:
    """What stands before the answer: the last turn ends where the model goes on."""
    kept: list[Node] = []
    for node in nodes:
        if isinstance(node, Branch):
            body, done = _cut(node.body)
            other, later = ([], True) if done else _cut(node.other)
            kept.append(Branch(node.word, node.names, node.pipe, body, other))
            if done or later:
                return kept, True
        elif isinstance(node, Print) and _mentions([node], "Response"):
            return kept, True
        else:
            kept.append(node)
    return kept, False


# ---- Jinja -----------------------------------------------------------------------------------


class _Writer:
    """A tree as Jinja. All texts become literals, so no setting about white space touches them."""

    def __init__(self) -> None:
        self._count = 0
        self._dots = ["$"]  # what the dot is, innermost last; $ is the root
        self._scopes: list[dict[str, str]] = [{}]

    def write(self, nodes: Sequence[Node]) -> str:
        return "".join(self._node(node) for node in nodes)

    def _node(self, node: Node) -> str:
        if isinstance(node, Text):
            return "{{ " + _literal(node.text) + " }}"
        if isinstance(node, Print):
            return "{{ show(" + self._pipe(node.pipe) + ") }}"
        if isinstance(node, Set):
            value = self._pipe(node.pipe)
            name = self._declare(node.name) if node.new else self._variable(node.name)
            return "{%- set " + name + " = " + value + " -%}"
        return self._range(node) if node.word == "range" else self._if(node)

    def _if(self, node: Branch) -> str:
        value = self._pipe(node.pipe)
        before = ""
        self._scopes.append({})
        if node.names or node.word == "with":
            name = self._declare(node.names[0] if node.names else "$with")
            before = "{%- set " + name + " = " + value + " -%}"
            value = name
        if node.word == "with":
            self._dots.append(value)
        body = self.write(node.body)
        if node.word == "with":
            self._dots.pop()
        other = self.write(node.other)
        self._scopes.pop()
        middle = "{%- else -%}" + other if other else ""
        return before + "{%- if " + value + " -%}" + body + middle + "{%- endif -%}"

    def _range(self, node: Branch) -> str:
        over = self._pipe(node.pipe)
        self._count += 1
        item = f"item{self._count}"
        self._scopes.append({})
        before = ""
        if node.names:
            values = [item] if len(node.names) == 1 else ["loop.index0", item]
            for name, value in zip(node.names, values, strict=False):
                before += "{%- set " + self._declare(name) + " = " + value + " -%}"
        self._dots.append(item)
        body = self.write(node.body)
        self._dots.pop()
        self._scopes.pop()
        other = self.write(node.other)
        middle = "{%- else -%}" + other if other else ""
        return (
            "{%- for " + item + " in " + over + " -%}" + before + body + middle + "{%- endfor -%}"
        )

    def _declare(self, name: str) -> str:
        """An attribute of the namespace: Jinja's own variables end with their block."""
        self._count += 1
        self._scopes[-1][name] = f"s.v{self._count}"
        return self._scopes[-1][name]

    def _variable(self, name: str) -> str:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        raise cannot(f"variable {quote(name)} is used before it is declared")

    def _pipe(self, terms: Sequence[Term]) -> str:
        stages: list[list[Term]] = [[]]
        for term in terms:
            if term.kind == "sign" and term.text == "|":
                stages.append([])
            else:
                stages[-1].append(term)
        value: str | None = None
        for stage in stages:
            value = self._call(stage, value)
        assert value is not None
        return value

    def _call(self, terms: list[Term], piped: str | None) -> str:
        if not terms:
            raise cannot("an action is empty")
        first, *rest = terms
        if first.kind != "word" or first.text in ("true", "false", "nil"):
            if rest or piped is not None:
                raise cannot("a value is called like a function")
            return self._term(first)
        given = [self._term(t) for t in rest] + ([] if piped is None else [piped])
        return _function(first.text, given)

    def _term(self, term: Term) -> str:
        if term.kind == "string":
            return _literal(_text_of(term.text))
        if term.kind == "number":
            return term.text
        if term.kind == "group":
            return f"({self._pipe(term.group)})"
        if term.kind == "word" and term.text in ("true", "false", "nil"):
            return "none" if term.text == "nil" else term.text
        if term.kind == "variable":
            if term.text == "$":
                return self._root(term.fields)
            return self._variable(term.text) + _attributes(term.fields)
        if term.kind == "field":
            fields = (term.text, *term.fields) if term.text else ()
            dot = self._dots[-1]
            return self._root(fields) if dot == "$" else dot + _attributes(fields)
        raise cannot(f"it has {quote(term.text)}")

    def _root(self, fields: tuple[str, ...]) -> str:
        if not fields or fields[0] not in _ROOT:
            raise cannot(f"it asks for .{'.'.join(fields)}")
        return _ROOT[fields[0]] + _attributes(fields[1:])


def _function(name: str, given: list[str]) -> str:
    count = len(given)
    if name in ("and", "or") and count:
        return "(" + f" {name} ".join(given) + ")"
    if name == "eq" and count > 1:
        return "(" + " or ".join(f"{given[0]} == {other}" for other in given[1:]) + ")"
    if name in _COMPARE and count == 2:
        return f"({given[0]} {_COMPARE[name]} {given[1]})"
    if name == "not" and count == 1:
        return f"(not {given[0]})"
    if name == "len" and count == 1:
        return f"({given[0]} | length)"
    if name == "json" and count == 1:
        return f"({given[0]} | tojson)"
    if name == "index" and count == 2:
        return f"{given[0]}[{given[1]}]"
    if name == "slice" and count in (2, 3):
        return f"{given[0]}[{':'.join([*given[1:], ''][:2])}]"
    raise cannot(f"it calls {quote(name)} with {count} values")


def _attributes(fields: Sequence[str]) -> str:
    """``.ToolCalls`` is ``tool_calls`` in a conversation."""
    return "".join("." + re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", f).lower() for f in fields)


def _text_of(token: str) -> str:
    if token.startswith("`"):
        return token[1:-1]
    try:
        return str(json.loads(token))
    except json.JSONDecodeError:
        raise cannot(f"it has the text {quote(token, 40)}") from None


def _literal(text: str) -> str:
    """A text as Jinja reads it: its escapes are Python's."""
    return json.dumps(text, ensure_ascii=False)
