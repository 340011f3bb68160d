'''Modelfiles: a model described by what it is made from and how it is spoken to.

::

    # a comment
    FROM llama3.2:1b                     a name, a GGUF file, a folder of safetensors
    PARAMETER temperature 0.7            parameters.py has the list
    PARAMETER stop "<|user|>"
    SYSTEM """You are Mario.
    Answer as Mario."""
    TEMPLATE """{{ messages[0].content }}"""
    ADAPTER ./lora                       a folder that PEFT saved
    LICENSE """..."""
    MESSAGE user Is Toronto in Canada?
    MESSAGE assistant yes

The grammar is Ollama's (parser/parser.go of ollama/ollama): instructions in any case and order; a
value is the rest of its line, or in quotes, one or three of them, and then as many lines as it
takes: it ends at a line that ends with the quotes. Within there are no escapes. Beyond Ollama, a
text that no quotes can hold is written between ``<<WORD`` and a line ``WORD``.

``TEMPLATE`` is Jinja, as everywhere in kvant; Go's template language, which Ollama's are written
in, is translated (go_template.py) or refused.
'''

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kvant.errors import InputError, UsageError
from kvant.files.source import quote
from kvant.registry.go_template import is_go_template, translate
from kvant.registry.parameters import normal, parameter_text, parse_parameter

__all__ = ["Message", "Modelfile", "ModelfileError", "parse_modelfile"]

_MOST = 8 << 20
_ROLES = ("system", "user", "assistant")
_QUOTES = ('"""', '"')
_ONCE = ("from", "template", "system", "adapter")
_HERE = re.compile(r"<<([A-Z][A-Z0-9_]{0,31})", re.ASCII)
_INSTRUCTION = re.compile(r"\s*([A-Za-z]+)(?:[ \t]+(.*))?", re.DOTALL)
_OLLAMAS = {
    "renderer": "the model file's own template is used instead",
    "parser": "kvant finds tool calls and reasoning by the model's own template",
    "draft": "name the draft model when the model is run or served",
    "requires": "it is about Ollama's version",
}


class ModelfileError(InputError):
    """A Modelfile that cannot be understood; the message has the line's number."""


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a conversation that a model begins with."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelfile:
    """What a Modelfile says. ``template`` is Jinja; ``parameters`` by name, ``stop`` a list.

    An empty ``base`` is none: it comes from elsewhere (files of a request).
    """

    base: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    system: str | None = None
    adapter: str | None = None
    licenses: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()

    def __str__(self) -> str:
        """As a file that `parse_modelfile` reads back to the same."""
        lines = [f"FROM {_quoted(self.base)}"] if self.base else []
        if self.adapter is not None:
            lines.append(f"ADAPTER {_quoted(self.adapter)}")
        if self.template is not None:
            lines.append(f"TEMPLATE {_quoted(self.template, always=True)}")
        if self.system is not None:
            lines.append(f"SYSTEM {_quoted(self.system, always=True)}")
        for name, text in parameter_text(self.parameters):
            lines.append(f"PARAMETER {name} {_quoted(text)}")
        for message in self.messages:
            lines.append(f"MESSAGE {message.role} {_quoted(message.content)}")
        lines += [f"LICENSE {_quoted(text, always=True)}" for text in self.licenses]
        text = "\n".join(lines) + "\n"
        # A first line that ends like Windows' would make the whole file Windows'.
        return f"# Modelfile\n{text}" if text.partition("\n")[0].endswith("\r") else text

    @classmethod
    def of(
        cls,
        *,
        base: str = "",
        parameters: Mapping[str, Any] | None = None,
        template: str | None = None,
        system: str | None = None,
        adapter: str | None = None,
        licenses: Sequence[str] = (),
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> Modelfile:
        """The same from the values of a request, checked as if they had been written.

        Raises:
            UsageError, UnsupportedError: a parameter, role or template that does not exist.
        """
        turns = []
        for message in messages:
            role, content = message.get("role"), message.get("content", "")
            if role not in _ROLES or not isinstance(content, str):
                raise UsageError(
                    f"A message's role should be {', '.join(_ROLES)} and its content a text, got "
                    f"{quote(str(role))}."
                )
            turns.append(Message(str(role), content))
        return cls(
            base=base,
            parameters=normal(parameters or {}, "the request"),
            template=jinja_of(template) if template else None,
            system=system,
            adapter=adapter,
            licenses=tuple(licenses),
            messages=tuple(turns),
        )


def jinja_of(template: str) -> str:
    """A template in Jinja, translated where it is Go's.

    Raises:
        UnsupportedError: Go's language, with something that cannot be translated.
    """
    return translate(template) if is_go_template(template) else template


def parse_modelfile(text: str, where: str = "Modelfile", *, need_base: bool = True) -> Modelfile:
    """Read a Modelfile.

    Args:
        text: all of it.
        where: begins every message.
        need_base: a file without FROM is an error.

    Raises:
        ModelfileError: names the line.
    """
    if len(text) > _MOST:
        raise ModelfileError(f"{where}: {len(text)} characters, expected at most {_MOST}.")
    found: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    licenses: list[str] = []
    messages: list[Message] = []
    for line, name, value in _instructions(text, where):
        here = f"{where}:{line}"
        if name in _ONCE and name in found:
            raise ModelfileError(f"{here}: {name.upper()} stands there a second time. Remove one.")
        if name == "parameter":
            _add_parameter(parameters, value, here)
        elif name == "license":
            licenses.append(value)
        elif name == "message":
            messages.append(_message(value, here))
        elif name == "template":
            try:
                found[name] = jinja_of(value)
            except InputError as error:
                raise ModelfileError(f"{here}: {error}") from None
        else:
            if not value and name != "system":
                raise ModelfileError(f"{here}: {name.upper()} needs a value.")
            found[name] = value
    if need_base and "from" not in found:
        raise ModelfileError(
            f"{where}: has no FROM line, so there is no model. Begin with FROM and a model's name, "
            "a GGUF file or a folder."
        )
    return Modelfile(
        base=found.get("from", ""),
        parameters=parameters,
        template=found.get("template"),
        system=found.get("system"),
        adapter=found.get("adapter"),
        licenses=tuple(licenses),
        messages=tuple(messages),
    )


def _instructions(text: str, where: str) -> Iterator[tuple[int, str, str]]:
    """Line number, lower-case name and value of every instruction."""
    text = text.removeprefix("\ufeff")
    if "\0" in text:
        raise ModelfileError(f"{where}: expected text, got zero bytes. Save it as UTF-8.")
    if text.partition("\n")[0].endswith("\r"):  # the whole file is Windows'
        text = text.replace("\r\n", "\n")
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        start, line = at, lines[at]
        at += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _INSTRUCTION.fullmatch(line)
        name = match[1].lower() if match else ""
        here = f"{where}:{start + 1}"
        if name in _OLLAMAS:
            raise ModelfileError(
                f"{here}: {name.upper()} is for Ollama's own programs. Remove the line: "
                f"{_OLLAMAS[name]}."
            )
        if match is None or name not in (*_ONCE, "parameter", "license", "message"):
            raise ModelfileError(
                f"{here}: expected FROM, PARAMETER, TEMPLATE, SYSTEM, ADAPTER, LICENSE or MESSAGE, "
                f"got {quote(line.strip(), 40)}. Comments begin with #."
            )
        head, rest = "", (match[2] or "").lstrip()
        if name in ("parameter", "message"):
            head, *tail = re.split(r"[ \t]+", rest, maxsplit=1)
            rest, head = tail[0] if tail else "", head + " "
        value, at = _value(rest, lines, at, here)
        yield start + 1, name, head + value


def _value(rest: str, lines: list[str], at: int, here: str) -> tuple[str, int]:
    """A value that begins with ``rest``, and the line after it."""
    if match := _HERE.fullmatch(rest.strip()):
        for end in range(at, len(lines)):
            if lines[end].strip() == match[1]:
                return "\n".join(lines[at:end]), end + 1
        raise ModelfileError(f"{here}: no line {match[1]} ends the text that begins here.")
    mark = next((m for m in _QUOTES if rest.startswith(m)), None)
    if mark is None:
        return rest.strip(), at
    parts = [rest]
    while True:
        # Only the last line decides, so a text of many lines is not joined again for each.
        last = parts[-1].rstrip()
        first = len(parts) == 1
        if last.endswith(mark) and (not first or len(last) >= 2 * len(mark)):
            parts[-1] = last
            return "\n".join(parts)[len(mark) : -len(mark)], at
        if at == len(lines):
            raise ModelfileError(f"{here}: the text that begins here has no closing {mark}.")
        parts.append(lines[at])
        at += 1


def _add_parameter(parameters: dict[str, Any], value: str, here: str) -> None:
    name, _, text = value.partition(" ")
    name = name.lower()
    if not name or not text:
        raise ModelfileError(f"{here}: expected PARAMETER NAME VALUE.")
    try:
        found = parse_parameter(name, text)
    except UsageError as error:
        raise ModelfileError(f"{here}: {error}") from None
    if name == "stop":
        parameters.setdefault("stop", []).append(found)
    else:
        parameters[name] = found  # the last one counts, as in Ollama


def _message(value: str, here: str) -> Message:
    role, _, content = value.partition(" ")
    if role not in _ROLES:
        raise ModelfileError(
            f"{here}: a message's role should be system, user or assistant, got {quote(role, 20)}."
        )
    return Message(role, content)


def _quoted(text: str, *, always: bool = False) -> str:
    """As a value that is read back to the same text."""
    marks = _QUOTES if always or not text or not text.isprintable() else ("", *_QUOTES)
    for mark in marks:
        first, *more = f"{mark}{text}{mark}".split("\n")
        with suppress(ModelfileError):
            if _value(first, more, 0, "") == (text, len(more)):
                return f"{mark}{text}{mark}"
    word, count = "END", 0
    lines = {line.strip() for line in text.split("\n")}
    while word in lines:
        count += 1
        word = f"END{count}"
    return f"<<{word}\n{text}\n{word}"
