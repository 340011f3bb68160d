"""What an answer must match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Constraint"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must match: a JSON schema, a regular expression, or a grammar in Lark's form.

    ``json_object`` with an empty ``text`` is any JSON object.
    """

    kind: Literal["json_schema", "json_object", "regex", "grammar"]
    text: str
