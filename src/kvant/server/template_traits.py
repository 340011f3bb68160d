"""What a chat template tells of its model: how it reasons, and how it writes tool calls."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvant.server.reasoning import Tags

__all__ = ["Traits", "traits_of"]

_THINK = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thought>", "</thought>"))
_OPENERS = ("<tool_call>", "<|tool_call|>", "[TOOL_CALLS]", "<|python_tag|>", "<function_call>")


@dataclass(frozen=True, slots=True)
class Traits:
    """What is read from a template.

    Attributes:
        tags: around reasoning, where the model is known to reason.
        inside: its generation prompt opens the reasoning itself.
        switchable: it reads ``enable_thinking``.
        tools: it has a place for tools.
        openers: what begins a tool call, of those it mentions.
        bare: a call may stand without an opener: it has none, or its opener is a control token,
            which has no text.
    """

    tags: tuple[str, str] | None = None
    inside: bool = False
    switchable: bool = False
    tools: bool = False
    openers: tuple[str, ...] = ()
    bare: bool = True

    def reasoning(self, template_values: Mapping[str, Any]) -> Tags:
        """How to split an answer, given what else the template was told.

        A model that is not known to reason may still do it: what its answer opens with
        ``<think>`` is its reasoning.
        """
        opening, closing = self.tags or _THINK[0]
        off = template_values.get("enable_thinking") is False
        return Tags(opening, closing, self.inside and not off)


@functools.lru_cache(maxsize=64)
def traits_of(template: str | None) -> Traits:
    """The traits of a template; of none, those of a model that may do anything."""
    if template is None:
        return Traits(openers=_OPENERS)
    tags = next((t for t in _THINK if t[0] in template or t[1] in template), None)
    openers = tuple(o for o in _OPENERS if o in template)
    return Traits(
        tags=tags,
        inside=tags is not None and _opens(template, tags),
        switchable="enable_thinking" in template,
        tools="tools" in template,
        openers=openers or _OPENERS,
        bare=not openers or any(o[0] == "[" or o[1] == "|" for o in openers),
    )


def _opens(template: str, tags: tuple[str, str]) -> bool:
    """Whether the generation prompt opens the tag more often than it closes it.

    Qwen3 writes both, an empty reasoning, where thinking is off, and nothing where it is on;
    DeepSeek-R1 and later Qwen models write the opening one where it is on.
    """
    _, found, prompt = template.rpartition("add_generation_prompt")
    return bool(found) and prompt.count(tags[0]) > prompt.count(tags[1])
