"""Which tools a request offers, whether one must be called, and how the call is then read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from kvant.server.fields import FieldError
from kvant.server.jobs import Constraint
from kvant.server.template_traits import Traits
from kvant.server.tool_calls import NamedCallReader, ToolCallReader, new_call_id

__all__ = ["Tool", "ToolMode", "ToolUse"]

ToolMode: TypeAlias = Literal["auto", "none", "required", "named"]

#: How llguidance writes it: nobody reads a call, and small models lose themselves in white space.
_COMPACT = {
    "x-guidance": {
        "whitespace_pattern": "",
        "item_separator": ", ",
        "key_separator": ": ",
    }
}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. ``parameters`` is a JSON schema of its arguments."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """In OpenAI's form, which templates read."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": dict(self.parameters)}}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request.

    Attributes:
        tools: what may be called.
        mode: ``auto`` leaves it to the model, ``none`` hides the tools, ``required`` and
            ``named`` make it call one, by a constraint.
        name: of the tool to be called, with ``named``.
        parallel: whether an answer may have several calls.
        id_prefix: what ids of calls begin with.
    """

    tools: Sequence[Tool] = ()
    mode: ToolMode = "auto"
    name: str = ""
    parallel: bool = True
    id_prefix: str = "call_"

    def check(self, tools_path: str, choice_path: str) -> ToolUse:
        """Itself.

        Raises:
            FieldError: names that are none or stand twice, a choice without its tool.
        """
        names = [t.name for t in self.tools]
        for i, name in enumerate(names):
            if not _NAME.match(name):
                raise FieldError(
                    f"{tools_path}[{i}]",
                    "a tool's name should be 1 to 128 letters, digits, '_', '-' or '.', got "
                    f"{name[:60]!r}.",
                )
            if name in names[:i]:
                raise FieldError(f"{tools_path}[{i}]", f"the tool {name!r} is there already.")
        if self.mode in ("required", "named") and not names:
            raise FieldError(choice_path, "a call is demanded, but there are no tools.")
        if self.mode == "named" and self.name not in names:
            raise FieldError(
                choice_path, f"there is no tool {self.name[:60]!r}; there are {', '.join(names)}."
            )
        return self

    @property
    def offered(self) -> tuple[dict[str, Any], ...]:
        """What the template gets."""
        return () if self.mode == "none" else tuple(t.to_json() for t in self.tools)

    def constraint(self) -> Constraint | None:
        """What an answer that must call a tool looks like."""
        if self.mode == "named":
            chosen = next(t for t in self.tools if t.name == self.name)
            return Constraint("json_schema", json.dumps({**_COMPACT, **_arguments(chosen)}))
        if self.mode != "required":
            return None
        place = "#/items/anyOf/{}/properties/arguments"
        options = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    "arguments": _moved(_arguments(tool), place.format(i)),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for i, tool in enumerate(self.tools)
        ]
        schema: dict[str, Any] = {**_COMPACT, "type": "array", "minItems": 1}
        schema["items"] = {"anyOf": options}
        if not self.parallel:
            schema["maxItems"] = 1
        return Constraint("json_schema", json.dumps(schema))

    def reader(self, traits: Traits) -> ToolCallReader | NamedCallReader | None:
        """What finds the calls in an answer; None where there can be none."""
        short = "[TOOL_CALLS]" in traits.openers and len(traits.openers) == 1

        def new_id() -> str:
            return new_call_id(self.id_prefix, short=short)

        if self.mode == "none" or not self.tools:
            return None
        if self.mode == "named":
            return NamedCallReader(self.name, new_id)
        schemas = {t.name: t.parameters for t in self.tools}
        if self.mode == "required":
            return ToolCallReader(schemas, (), bare=True, new_id=new_id)
        return ToolCallReader(schemas, traits.openers, bare=traits.bare, new_id=new_id)


def _arguments(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments, which are an object whatever else is said."""
    return {"type": "object", **tool.parameters}


def _moved(schema: Any, place: str) -> Any:
    """A schema that stands at ``place`` of a larger one: its references follow."""
    if isinstance(schema, Mapping):
        return {
            k: place + v[1:]
            if k == "$ref" and isinstance(v, str) and v.startswith("#")
            else _moved(v, place)
            for k, v in schema.items()
        }
    if isinstance(schema, list):
        return [_moved(v, place) for v in schema]
    return schema
