"""Go's template language as a tree: what templates of models use of it (text/template of Go)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from kvant.errors import UnsupportedError
from kvant.files.source import quote

__all__ = ["Branch", "Node", "Parser", "Print", "Set", "Term", "Text", "cannot", "pieces"]

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<assign>:=|=)|
    (?P<sign>[(),|])|(?P<variable>\$\w*)(?P<of>(?:\.\w+)*)|(?P<field>(?:\.\w+)+|\.)|(?P<word>\w+))""",
    re.VERBOSE | re.ASCII,
)
_DEEPEST = 40


@dataclass(slots=True)
class Term:
    """``kind``: string, number, word, field (of the dot), variable (with fields), or group."""

    kind: str
    text: str = ""
    fields: tuple[str, ...] = ()
    group: list[Term] = field(default_factory=list)


@dataclass(slots=True)
class Text:
    """What stands between actions."""

    text: str


@dataclass(slots=True)
class Print:
    """An action whose value is written."""

    pipe: list[Term]


@dataclass(slots=True)
class Set:
    """A variable declared (``new``) or changed."""

    name: str
    pipe: list[Term]
    new: bool


@dataclass(slots=True)
class Branch:
    """``word`` is if, with or range; ``names`` the variables it declares."""

    word: str
    names: tuple[str, ...]
    pipe: list[Term]
    body: list[Node]
    other: list[Node]


Node: TypeAlias = "Text | Print | Set | Branch"


def pieces(text: str) -> Iterator[tuple[bool, str]]:
    """Texts (False) and what stands between braces (True), white space trimmed as marked."""
    at, trim = 0, False
    while (start := text.find("{{", at)) >= 0:
        plain = text[at:start]
        inside = start + 2
        left = text[inside : inside + 2] in ("- ", "-\n", "-\t", "-\r")
        end = inside
        while not text.startswith("}}", end):
            if end >= len(text):
                raise cannot("a {{ is never closed")
            if text.startswith("/*", end):
                end = _after(text, "*/", end + 2)
            elif text[end] == "`":
                end = _after(text, "`", end + 1)
            elif text[end] == '"':
                closing = re.compile(r'"(?:[^"\\\n]|\\.)*"').match(text, end)
                if closing is None:
                    raise cannot("a text has no closing quote")
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
        raise cannot(f"no {mark} follows")
    return found + len(mark)


class Parser:
    """Pieces to a tree."""

    def __init__(self, pieces: Iterator[tuple[bool, str]]) -> None:
        self._pieces = pieces

    def parse(self) -> list[Node]:
        """All of it.

        Raises:
            UnsupportedError: what is not understood.
        """
        nodes, end = self._nodes(0)
        if end:
            raise cannot(f"there is {{{{ {end} }}}} without a beginning")
        return nodes

    def _nodes(self, depth: int) -> tuple[list[Node], str]:
        """Nodes up to an ``end`` or ``else``, which is returned too; empty at the end."""
        if depth > _DEEPEST:
            raise cannot(f"it nests deeper than {_DEEPEST}")
        nodes: list[Node] = []
        for is_action, text in self._pieces:
            if not is_action:
                if text:
                    nodes.append(Text(text))
                continue
            if text.startswith("/*") or not text:
                continue
            word = text.split(None, 1)[0]
            if word in ("end", "else"):
                return nodes, text
            if word in ("if", "with", "range"):
                nodes.append(self._branch(word, text[len(word) :], depth))
            elif word in ("define", "template", "block", "break", "continue"):
                raise cannot(f"it uses {quote(word)}")
            else:
                nodes.append(_statement(text))
        return nodes, ""

    def _branch(self, word: str, rest: str, depth: int) -> Branch:
        names, pipe = _declared(_terms(rest))
        body, end = self._nodes(depth + 1)
        other: list[Node] = []
        if end.startswith("else"):
            more = end[4:].strip()
            if more:
                kind = more.split(None, 1)[0]
                if kind not in ("if", "with"):
                    raise cannot(f"it uses {quote(end[:40])}")
                # `else if` shares the `end` of its `if`.
                other = [self._branch(kind, more[len(kind) :], depth + 1)]
                return Branch(word, names, pipe, body, other)
            other, end = self._nodes(depth + 1)
        if end != "end":
            raise cannot(f"{word} has no end")
        return Branch(word, names, pipe, body, other)


def _statement(text: str) -> Node:
    terms = _terms(text)
    for at, term in enumerate(terms):
        if term.kind == "assign":
            if at != 1 or terms[0].kind != "variable" or terms[0].fields:
                raise cannot(f"it has {quote(text, 40)}")
            return Set(terms[0].text, terms[2:], term.text == ":=")
    return Print(terms)


def _declared(terms: list[Term]) -> tuple[tuple[str, ...], list[Term]]:
    """The variables before ``:=``, and what follows."""
    for at, term in enumerate(terms):
        if term.kind == "assign":
            names = [t.text for t in terms[:at] if t.kind == "variable"]
            return tuple(names), terms[at + 1 :]
    return (), terms


def _terms(text: str) -> list[Term]:
    stack: list[list[Term]] = [[]]
    at = 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise cannot(f"it has {quote(text[at : at + 40])}")
        at = match.end()
        kind = match.lastgroup or ""
        if match["sign"] == "(":
            stack.append([])
            if len(stack) > _DEEPEST:
                raise cannot("its parentheses nest too deep")
        elif match["sign"] == ")":
            group = stack.pop()
            if not stack:
                raise cannot("a parenthesis is closed that was never opened")
            stack[-1].append(Term("group", group=group))
        elif match["variable"] is not None:
            fields = tuple(f for f in match["of"].split(".") if f)
            stack[-1].append(Term("variable", match["variable"], fields))
        elif match["field"] is not None:
            fields = tuple(f for f in match["field"].split(".") if f)
            stack[-1].append(Term("field", fields[0] if fields else "", fields[1:]))
        else:
            stack[-1].append(Term(kind, match[kind]))
    if len(stack) > 1:
        raise cannot("a parenthesis is never closed")
    return stack[0]


def cannot(why: str) -> UnsupportedError:
    """What is raised for whatever has no translation."""
    return UnsupportedError(
        f"This TEMPLATE is in Go's template language, and it cannot be translated: {why}. Leave it "
        "out, and the template in the model's file is used; or write one in Jinja."
    )
