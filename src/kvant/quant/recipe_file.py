"""Recipes as JSON files: what a search found, kept, read and used again.

A file is one object with the fields of `Recipe`, as `Recipe.to_json` names them, and ``format``.
It says everything that decides about an artefact's bytes but the importance file and the effort.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from kvant.errors import InputError, UsageError
from kvant.files.config_json import read_json
from kvant.files.source import quote, show
from kvant.packing import all_packings
from kvant.packing.spec import PrecisionClass
from kvant.quant.recipe import LayerSet, Recipe, Rule

__all__ = ["FORMAT", "is_recipe_file", "read_recipe", "recipe_from_json", "recipe_text"]

FORMAT = "kvant recipe 1"

_MAX_BYTES = 16_000_000
_MAX_NAME, _MAX_TEXT = 64, 200
_MAX_RULES = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_FILE_TYPES = range(1 << 16)

T = TypeVar("T")


def is_recipe_file(name: str) -> bool:
    """Whether what a user named as a recipe is a file: it ends in ``.json``."""
    return name.lower().endswith(".json")


def recipe_text(recipe: Recipe) -> str:
    """The content of a recipe's file: sorted by tensor, indented, ending in a newline."""
    content = {"format": FORMAT, **recipe.to_json()}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe's file.

    Raises:
        FileFormatError: not JSON, or beyond all bounds.
        InputError: no such file; or JSON that is no recipe, and where not.
    """
    return recipe_from_json(read_json(path, _MAX_BYTES), str(Path(path)))


def recipe_from_json(data: object, what: str) -> Recipe:
    """A recipe from plain data; ``what`` begins every message.

    Raises:
        InputError: a field is missing, unknown or of the wrong kind; an unknown packing.
    """
    fields = _Fields(data, what, "a recipe")
    fields.refuse_others(
        {
            *("format", "name", "base", "good_for", "file_type", "precision_class"),
            *("output", "output_fallback", "rules", "tensors"),
        }
    )
    if fields.optional("format", _text, FORMAT) != FORMAT:
        raise InputError(
            f"{what}: expected the format {FORMAT!r}, got {show(fields.data['format'])}. "
            "It was written by another version of kvant, or is no recipe."
        )
    return Recipe(
        name=fields.required("name", _name),
        base=fields.required("base", _packing),
        good_for=fields.optional("good_for", _text, "a recipe of your own"),
        file_type=fields.required("file_type", _file_type),
        precision_class=fields.required("precision_class", _one_of(get_args(PrecisionClass))),
        output=fields.optional("output", _packing, None),
        output_fallback=fields.optional("output_fallback", _packing, None),
        rules=fields.optional("rules", _rules, ()),
        tensors=fields.optional("tensors", _tensors, {}),
    )


class _Fields:
    """The fields of a JSON object, taken by name and kind."""

    def __init__(self, data: object, what: str, kind: str) -> None:
        if not isinstance(data, dict):
            raise InputError(f"{what}: expected {kind} as a JSON object, got {show(data)}.")
        self.data: Mapping[str, object] = data
        self._what, self._kind = what, kind

    def refuse_others(self, known: set[str]) -> None:
        """An unknown field may change the meaning of all others."""
        unknown = sorted(set(self.data) - known)
        if unknown:
            raise InputError(
                f"{self._what}: {self._kind} has no field {quote(unknown[0])}; "
                f"it has {', '.join(sorted(known))}."
            )

    def required(self, name: str, read: Callable[[object], T]) -> T:
        if name not in self.data:
            raise InputError(f"{self._what}: {self._kind} needs the field {name!r}.")
        return self._read(name, read)

    def optional(self, name: str, read: Callable[[object], T], default: T) -> T:
        return default if self.data.get(name) is None else self._read(name, read)

    def _read(self, name: str, read: Callable[[object], T]) -> T:
        try:
            return read(self.data[name])
        except (_WrongError, UsageError) as error:
            raise InputError(f"{self._what}: {name}: {error}") from None


class _WrongError(ValueError):
    """A value of another kind; the message is the end of one for the user."""


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise _WrongError(f"expected a text of at most {_MAX_TEXT} letters, got {show(value)}.")
    return value


def _name(value: object) -> str:
    text = _text(value)
    if len(text) > _MAX_NAME or not _NAME.fullmatch(text):
        raise _WrongError(
            f"expected at most {_MAX_NAME} letters, digits and . _ + -, as file names carry it, "
            f"got {show(value)}."
        )
    return text


def _packing(value: object) -> str:
    names = [p.name for p in all_packings()]
    if value not in names:
        raise _WrongError(f"expected a packing, got {show(value)}; kvant knows {', '.join(names)}.")
    return str(value)


def _file_type(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in _FILE_TYPES:
        raise _WrongError(f"expected a whole number below {len(_FILE_TYPES)}, got {show(value)}.")
    return value


def _one_of(values: tuple[Any, ...]) -> Callable[[object], Any]:
    def read(value: object) -> Any:
        if value not in values:
            raise _WrongError(f"expected one of {', '.join(values)}, got {show(value)}.")
        return value

    return read


def _rules(value: object) -> tuple[Rule, ...]:
    if not isinstance(value, list) or len(value) > _MAX_RULES:
        raise _WrongError(f"expected a list of at most {_MAX_RULES} rules, got {show(value)}.")
    return tuple(_rule(v, f"rules[{i}]") for i, v in enumerate(value))


def _rule(value: object, where: str) -> Rule:
    try:
        fields = _Fields(value, where, "a rule")
        fields.refuse_others({"packing", "roles", "layers", "min_queries_per_kv_head", "experts"})
        return Rule(
            packing=fields.required("packing", _packing),
            roles=fields.required("roles", _roles),
            layers=fields.optional("layers", _one_of(get_args(LayerSet)), "all"),
            min_queries_per_kv_head=fields.optional("min_queries_per_kv_head", _file_type, 0),
            experts=fields.optional("experts", _file_type, 0),
        )
    except InputError as error:
        raise _WrongError(str(error)) from None


def _roles(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_RULES:
        raise _WrongError(f"expected a list of roles, got {show(value)}.")
    return tuple(_text(v) for v in value)


def _tensors(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _WrongError(f"expected an object of tensor names and packings, got {show(value)}.")
    found = {}
    for name, packing in value.items():
        try:
            found[_text(name)] = _packing(packing)
        except _WrongError as error:
            raise _WrongError(f"{quote(name)}: {error}") from None
    return found
