"""Requests as dataclasses: JSON in, checked objects out, and the JSON schema of the same classes.

A class is the one home of what an API takes: field names, types and defaults, and in
``Annotated[...]`` what a field means (a text), its bounds (`Within`), and whether it is `Ignored`
or `Refused`. Parsing, the OpenAPI document and the tables of ``docs/api.md`` are read from it.

What a class does not name is ignored, as the real APIs do; a value of the wrong type is an error.
"""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from kvant.errors import UsageError

__all__ = ["Field", "FieldError", "Ignored", "Refused", "Within", "fields_of", "parse"]

T = TypeVar("T")
_SHOWN = 60


class FieldError(UsageError):
    """A field of a request is not what it should be. ``path`` names it: ``messages[0].role``."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


@dataclass(frozen=True, slots=True)
class Within:
    """Bounds of a number, or of the length of a text or list."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Ignored:
    """The field is taken and changes nothing, because ``reason``."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The field cannot be served, because ``reason``; values in ``neutral`` ask for nothing."""

    reason: str
    neutral: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request class.

    Attributes:
        name: in JSON.
        attribute: in Python.
        type: without its annotations.
        doc: what it means.
        within: bounds.
        state: set where it is `Ignored` or `Refused`.
        required: whether it has no default.
        default: its default, if it has a plain one.
    """

    name: str
    attribute: str
    type: Any
    doc: str
    within: Within | None
    state: Ignored | Refused | None
    required: bool
    default: Any


def fields_of(cls: type[Any]) -> tuple[Field, ...]:
    """The fields of a request class, in its order."""
    return _fields_of(cast(Hashable, cls))


@functools.cache
def _fields_of(key: Hashable) -> tuple[Field, ...]:
    cls = cast(type[Any], key)
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for f in fields(cls):
        inner, notes = _split(hints[f.name])
        found.append(
            Field(
                name=f.name.rstrip("_"),
                attribute=f.name,
                type=inner,
                doc=" ".join(n for n in notes if isinstance(n, str)),
                within=next((n for n in notes if isinstance(n, Within)), None),
                state=next((n for n in notes if isinstance(n, (Ignored, Refused))), None),
                required=f.default is MISSING and f.default_factory is MISSING,
                default=None if f.default is MISSING else f.default,
            )
        )
    return tuple(found)


def parse(cls: type[T], data: object, path: str = "") -> T:
    """An object of ``cls`` from decoded JSON.

    Raises:
        FieldError: a value is missing, has the wrong type or is out of its bounds.
    """
    if not isinstance(data, Mapping):
        raise FieldError(path, f"expected an object, got {_show(data)}.")
    values: dict[str, Any] = {}
    for field in fields_of(cls):
        place = f"{path}.{field.name}" if path else field.name
        given = data.get(field.name)
        if given is None:
            if field.required:
                raise FieldError(place, "is missing; it has no default.")
            continue
        if isinstance(field.state, Ignored):
            continue
        if isinstance(field.state, Refused):
            if given in field.state.neutral or given in ([], {}, ""):
                continue
            raise FieldError(place, f"is not supported: {field.state.reason}")
        values[field.attribute] = _value(field.type, field.within, given, place)
    return cls(**values)


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        return inner, tuple(notes)
    return hint, ()


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, without None; otherwise the type alone."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(m for m in get_args(hint) if m is not type(None))
    return (hint,)


def _value(hint: Any, within: Within | None, given: Any, path: str) -> Any:
    options = members(hint)
    fitting = [o for o in options if _kind_fits(o, given)]
    if len(fitting) > 1:
        fitting = [o for o in fitting if _tag_fits(o, given)] or fitting[-1:]
    if not fitting:
        raise FieldError(path, f"expected {_expected(options, within)}, got {_show(given)}.")
    option, notes = _split(fitting[0])
    within = next((n for n in notes if isinstance(n, Within)), within)
    origin = get_origin(option)
    if is_dataclass(option):
        return parse(cast(type[Any], option), given, path)
    if origin in (list, Sequence, tuple):
        _check(within, len(given), path, f"{len(given)} items", "items")
        item = get_args(option)[0]
        if _plain(item, given):
            return tuple(given)
        return tuple(_value(item, None, v, f"{path}[{i}]") for i, v in enumerate(given))
    if origin in (dict, Mapping):
        _check(within, len(given), path, f"{len(given)} entries", "entries")
        item = get_args(option)[1]
        if _plain(item, given.values()):
            return dict(given)
        return {k: _value(item, None, v, f"{path}.{k}") for k, v in given.items()}
    if isinstance(given, str) and within is not None:
        _check(within, len(given), path, f"{len(given)} characters", "characters")
    if option in (int, float):
        number = _number(option, given, path)
        _check(within, number, path, _show(given), "")
        return number
    return given


def _plain(item: Any, given: Collection[Any]) -> bool:
    """Whether all of ``given`` are of one type that may be taken as it is.

    A body has room for millions of numbers, and one after another they would take a minute.
    """
    if item is Any:
        return True
    kinds = set(map(type, given))
    return kinds in ({int}, {str}) and kinds <= set(members(item))


def _number(option: type[int] | type[float], given: float, path: str) -> float:
    try:
        return option(given)
    except OverflowError:
        raise FieldError(path, "expected a smaller number.") from None


def _check(within: Within | None, value: float, path: str, got: str, unit: str) -> None:
    if within is None:
        return
    low, high = within.low, within.high
    if (low is not None and value < low) or (high is not None and value > high):
        raise FieldError(
            path, f"expected {_bounds(within)}{' ' + unit if unit else ''}, got {got}."
        )


def _bounds(within: Within) -> str:
    if within.high is None:
        return f"at least {within.low:.12g}"
    if within.low is None:
        return f"at most {within.high:.12g}"
    return f"{within.low:.12g} to {within.high:.12g}"


def _kind_fits(hint: Any, given: Any) -> bool:
    hint, _ = _split(hint)
    origin = get_origin(hint)
    if hint is Any or hint is object:
        return True
    if origin is Literal:
        return any(type(v) is type(given) and v == given for v in get_args(hint))
    if is_dataclass(hint) or origin in (dict, Mapping):
        return isinstance(given, Mapping)
    if origin in (list, Sequence, tuple):
        return isinstance(given, list)
    if hint is bool or hint is str:
        return isinstance(given, hint)
    if hint is int:
        return type(given) is int or (type(given) is float and given.is_integer())
    if hint is float:
        return type(given) in (int, float)
    raise TypeError(f"a request field has a type that cannot be read: {hint}")


def _tag_fits(hint: Any, given: Any) -> bool:
    """Of several classes: whether the field ``type`` is this one's."""
    if not is_dataclass(hint):
        return type(given) is not float or hint is float
    tag = next((f for f in fields_of(cast(type[Any], hint)) if f.name == "type"), None)
    return tag is None or _kind_fits(tag.type, given.get("type", tag.default))


def _expected(options: Sequence[Any], within: Within | None) -> str:
    names = []
    for option in options:
        inner, _ = _split(option)
        origin = get_origin(inner)
        if origin is Literal:
            names += [json.dumps(v) for v in get_args(inner)]
        elif is_dataclass(inner) or origin in (dict, Mapping):
            names.append("an object")
        elif origin in (list, Sequence, tuple):
            names.append(f"a list of {_plural(get_args(inner)[0])}")
        elif inner in (int, float):
            name = "a whole number" if inner is int else "a number"
            bounded = within is not None and (within.low is not None or within.high is not None)
            names.append(f"{name} of {_bounds(within)}" if bounded and within else name)
        else:
            names.append({bool: "true or false", str: "a text"}.get(inner, str(inner)))
    return " or ".join(dict.fromkeys(names))


def _plural(hint: Any) -> str:
    names = []
    for member in members(_split(hint)[0]):
        inner, _ = _split(member)
        plain = {str: "texts", int: "whole numbers", float: "numbers"}
        names.append("objects" if is_dataclass(inner) else plain.get(inner, "values"))
    return " or ".join(dict.fromkeys(names))


def _show(given: object) -> str:
    if isinstance(given, Mapping):
        return "an object"
    if isinstance(given, list):
        return "a list"
    text = json.dumps(given, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
