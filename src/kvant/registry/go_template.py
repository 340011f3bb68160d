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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kvant.errors import UnsupportedError
from kvant.files.source import quote

__all__ = ["is_go_template", "translate"]

_GO = re.compile(
    r"\{\{-?\s*(?:\.[A-Z]|\$|/\*|(?:if|else|end|range|with|json|slice)\b|(?:and|or|not|eq|ne|len)\s)"
)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<assign>:=|=)|
    (?P<sign>[(),|])|(?P<variable>\$\w*)(?P<of>(?:\.\w+)*)|(?P<field>(?:\.\w+)+|\.)|(?P<word>\w+))""",
    re.VERBOSE | re.ASCII,
)
_MOST, _DEEPEST = 100_000, 40

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
        raise _cannot(f"it has {len(text)} characters, expected at most {_MOST}")
    tree = _Parser(_pieces(text)).parse()
    if _mentions(tree, "Messages"):
        body = _Writer().write(tree)
        return _COLLECT + _SYSTEM + _SHOW + body
    if not _mentions(tree, "Response"):
        tree = [*tree, _Print([_Term("field", "Response")])]
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


# ---- what a template consists of -------------------------------------------------------------


@dataclass(slots=True)
class _Term:
    """``kind``: string, number, word, field (of the dot), variable (with fields), or group."""

    kind: str
    text: str = ""
    fields: tuple[str, ...] = ()
    group: list[_Term] = field(default_factory=list)


@dataclass(slots=True)
class _Text:
    text: str


@dataclass(slots=True)
class _Print:
    pipe: list[_Term]


@dataclass(slots=True)
class _Set:
    name: str
    pipe: list[_Term]
    new: bool


@dataclass(slots=True)
class _Branch:
    word: str  # if, with, range
    names: tuple[str, ...]
    pipe: list[_Term]
    body: list[_Node]
    other: list[_Node]


_Node = _Text | _Print | _Set | _Branch


def _pieces(text: str) -> Iterator[tuple[bool, str]]:
    """Texts (False) and what stands between braces (True), white space trimmed as marked."""
    at, trim = 0, False
    while (start := text.find("{{", at)) >= 0:
        plain = text[at:start]
        inside = start + 2
        left = text[inside : inside + 2] in ("- ", "-\n", "-\t", "-\r")
        end = inside
        while not text.startswith("}}", end):
            if end >= len(text):
                raise _cannot("a {{ is never closed")
            if text.startswith("/*", end):
                end = _after(text, "*/", end + 2)
            elif text[end] == "`":
                end = _after(text, "`", end + 1)
            elif text[end] == '"':
                closing = re.compile(r'"(?:[^"\\\n]|\\.)*"').match(text, end)
                if closing is None:
                    raise _cannot("a text has no closing quote")
                end = closing.end()
            else:
                end += 1
        action = text[inside + (1 if left else 0) : end]
        right = len(action) > 1 and action[-1] == "-" and action[-2] in " \n\t\r"
        plain = plain.lstrip() if trim else plain
        yield False, plain.rstrip() if left else plain
        yield True, (action[:-1] if right else action).strip()
        at, trim = end + 2, right
    yield False, text[at:].lstrip() if trim else text[at:]


def _after(text: str, mark: str, start: int) -> int:
    found = text.find(mark, start)
    if found < 0:
        raise _cannot(f"no {mark} follows")
    return found + len(mark)


class _Parser:
    """Pieces to a tree."""

    def __init__(self, pieces: Iterator[tuple[bool, str]]) -> None:
        self._pieces = pieces

    def parse(self) -> list[_Node]:
        nodes, end = self._nodes(0)
        if end:
            raise _cannot(f"there is {{{{ {end} }}}} without a beginning")
        return nodes

    def _nodes(self, depth: int) -> tuple[list[_Node], str]:
        """Nodes up to an ``end`` or ``else``, which is returned too; empty at the end."""
        if depth > _DEEPEST:
            raise _cannot(f"it nests deeper than {_DEEPEST}")
        nodes: list[_Node] = []
        for is_action, text in self._pieces:
            if not is_action:
                if text:
                    nodes.append(_Text(text))
                continue
            if text.startswith("/*") or not text:
                continue
            word = text.split(None, 1)[0]
            if word in ("end", "else"):
                return nodes, text
            if word in ("if", "with", "range"):
                nodes.append(self._branch(word, text[len(word) :], depth))
            elif word in ("define", "template", "block", "break", "continue"):
                raise _cannot(f"it uses {quote(word)}")
            else:
                nodes.append(_statement(text))
        return nodes, ""

    def _branch(self, word: str, rest: str, depth: int) -> _Branch:
        names, pipe = _declared(_terms(rest))
        body, end = self._nodes(depth + 1)
        other: list[_Node] = []
        if end.startswith("else"):
            more = end[4:].strip()
            if more:
                kind = more.split(None, 1)[0]
                if kind not in ("if", "with"):
                    raise _cannot(f"it uses {quote(end[:40])}")
                # `else if` shares the `end` of its `if`.
                other = [self._branch(kind, more[len(kind) :], depth + 1)]
                return _Branch(word, names, pipe, body, other)
            other, end = self._nodes(depth + 1)
        if end != "end":
            raise _cannot(f"{word} has no end")
        return _Branch(word, names, pipe, body, other)


def _statement(text: str) -> _Node:
    terms = _terms(text)
    for at, term in enumerate(terms):
        if term.kind == "assign":
            if at != 1 or terms[0].kind != "variable" or terms[0].fields:
                raise _cannot(f"it has {quote(text, 40)}")
            return _Set(terms[0].text, terms[2:], term.text == ":=")
    return _Print(terms)


def _declared(terms: list[_Term]) -> tuple[tuple[str, ...], list[_Term]]:
    """The variables before ``:=``, and what follows."""
    for at, term in enumerate(terms):
        if term.kind == "assign":
            names = [t.text for t in terms[:at] if t.kind == "variable"]
            return tuple(names), terms[at + 1 :]
    return (), terms


def _terms(text: str) -> list[_Term]:
    stack: list[list[_Term]] = [[]]
    at = 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _cannot(f"it has {quote(text[at : at + 40])}")
        at = match.end()
        kind = match.lastgroup or ""
        if match["sign"] == "(":
            stack.append([])
            if len(stack) > _DEEPEST:
                raise _cannot("its parentheses nest too deep")
        elif match["sign"] == ")":
            group = stack.pop()
            if not stack:
                raise _cannot("a parenthesis is closed that was never opened")
            stack[-1].append(_Term("group", group=group))
        elif match["variable"] is not None:
            fields = tuple(f for f in match["of"].split(".") if f)
            stack[-1].append(_Term("variable", match["variable"], fields))
        elif match["field"] is not None:
            fields = tuple(f for f in match["field"].split(".") if f)
            stack[-1].append(_Term("field", fields[0] if fields else "", fields[1:]))
        else:
            stack[-1].append(_Term(kind, match[kind]))
    if len(stack) > 1:
        raise _cannot("a parenthesis is never closed")
    return stack[0]


# ---- what depends on the old form ------------------------------------------------------------


def _mentions(nodes: Sequence[_Node], name: str) -> bool:
    def within(terms: Sequence[_Term]) -> bool:
        return any(
            (t.kind == "field" and t.text == name)
            or (t.kind == "variable" and name in t.fields)
            or within(t.group)
            for t in terms
        )

    return any(
        (not isinstance(n, _Text) and within(n.pipe))
        or (isinstance(n, _Branch) and (_mentions(n.body, name) or _mentions(n.other, name)))
        for n in nodes
    )


def _cut(nodes: Sequence[_Node]) -> tuple[list[_Node], bool]:
    """What stands before the answer: the last turn ends where the model goes on."""
    kept: list[_Node] = []
    for node in nodes:
        if isinstance(node, _Branch):
            body, done = _cut(node.body)
            other, later = ([], True) if done else _cut(node.other)
            kept.append(_Branch(node.word, node.names, node.pipe, body, other))
            if done or later:
                return kept, True
        elif isinstance(node, _Print) and _mentions([node], "Response"):
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

    def write(self, nodes: Sequence[_Node]) -> str:
        return "".join(self._node(node) for node in nodes)

    def _node(self, node: _Node) -> str:
        if isinstance(node, _Text):
            return "{{ " + _literal(node.text) + " }}"
        if isinstance(node, _Print):
            return "{{ show(" + self._pipe(node.pipe) + ") }}"
        if isinstance(node, _Set):
            value = self._pipe(node.pipe)
            name = self._declare(node.name) if node.new else self._variable(node.name)
            return "{%- set " + name + " = " + value + " -%}"
        return self._range(node) if node.word == "range" else self._if(node)

    def _if(self, node: _Branch) -> str:
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

    def _range(self, node: _Branch) -> str:
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
        raise _cannot(f"variable {quote(name)} is used before it is declared")

    def _pipe(self, terms: Sequence[_Term]) -> str:
        stages: list[list[_Term]] = [[]]
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

    def _call(self, terms: list[_Term], piped: str | None) -> str:
        if not terms:
            raise _cannot("an action is empty")
        first, *rest = terms
        if first.kind != "word" or first.text in ("true", "false", "nil"):
            if rest or piped is not None:
                raise _cannot("a value is called like a function")
            return self._term(first)
        given = [self._term(t) for t in rest] + ([] if piped is None else [piped])
        return _function(first.text, given)

    def _term(self, term: _Term) -> str:
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
        raise _cannot(f"it has {quote(term.text)}")

    def _root(self, fields: tuple[str, ...]) -> str:
        if not fields or fields[0] not in _ROOT:
            raise _cannot(f"it asks for .{'.'.join(fields)}")
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
    raise _cannot(f"it calls {quote(name)} with {count} values")


def _attributes(fields: Sequence[str]) -> str:
    """``.ToolCalls`` is ``tool_calls`` in a conversation."""
    return "".join("." + re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", f).lower() for f in fields)


def _text_of(token: str) -> str:
    if token.startswith("`"):
        return token[1:-1]
    try:
        return str(json.loads(token))
    except json.JSONDecodeError:
        raise _cannot(f"it has the text {quote(token, 40)}") from None


def _literal(text: str) -> str:
    """A text as Jinja reads it: its escapes are Python's."""
    return json.dumps(text, ensure_ascii=False)


def _cannot(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"This TEMPLATE is in Go's template language, and it cannot be translated: {why}. Leave it "
        "out, and the template in the model's file is used; or write one in Jinja."
    )
