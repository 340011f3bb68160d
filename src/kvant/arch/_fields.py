"""Config fields that know where they stand: the Hugging Face key, the GGUF keys, the bounds.

Configs come from files that may be hostile, so every number has a bound; the bounds are generous
(ten times the largest published model) and keep what follows from allocating absurd amounts.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import FileFormatError
from kvant.files.gguf import GgufFile, Value, boolean, float32, uint32
from kvant.files.source import quote

__all__ = [
    "Done",
    "Field",
    "GgufSource",
    "HfSource",
    "Real",
    "count",
    "count_elsewhere",
    "derived",
    "field",
    "flag",
    "got",
    "real",
    "shortest",
    "shown",
    "switch",
    "vocabulary",
]

Done = Mapping[str, Any]
"""The fields read so far, by name."""
_REMEDY = "Correct it, or fetch the file again."


@dataclass(frozen=True, slots=True)
class HfSource:
    """A config.json; ``where`` names it in messages."""

    where: str
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class GgufSource:
    """A GGUF file and the prefix of its architecture's keys."""

    file: GgufFile
    prefix: str

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.file.path)

    @property
    def values(self) -> dict[str, object]:
        """The architecture's keys, without the prefix."""
        start = f"{self.prefix}."
        found = self.file.metadata.items()
        return {key.removeprefix(start): v.value for key, v in found if key.startswith(start)}


class Field(ABC):
    """One entry of a config: reads itself from either format and writes itself to GGUF."""

    hf_keys: tuple[str, ...]
    gguf_keys: tuple[str, ...]
    """Without the architecture's prefix."""

    @abstractmethod
    def from_hf(self, source: HfSource, done: Done) -> Any:
        """The value in a config.json."""

    @abstractmethod
    def from_gguf(self, source: GgufSource, done: Done) -> Any:
        """The value in a GGUF file."""

    @abstractmethod
    def to_gguf(self, value: Any) -> dict[str, Value]:
        """The metadata that says ``value``."""

    def to_hf(self, value: Any, done: Done) -> dict[str, object]:
        """The entries of a config.json that say ``value``; ``done`` has all fields."""
        return dict.fromkeys(self.hf_keys, value)

    def tensors(self, value: Any) -> dict[str, npt.NDArray[np.float32]]:
        """The tensors of a GGUF file that say ``value``."""
        return {}


class _Number(Field):
    """A number with bounds under one Hugging Face key and any number of equal GGUF keys."""

    def __init__(
        self,
        hf: str,
        gguf: tuple[str, ...],
        bounds: tuple[float, float],
        default: Callable[[Done], object] | None,
        other_names: tuple[str, ...] = (),
    ) -> None:
        self.hf_keys, self.gguf_keys, self.bounds = (hf, *other_names), gguf, bounds
        self.default = default

    @abstractmethod
    def check(self, value: object, where: str, key: str) -> Any:
        """``value`` as the right type and within the bounds, or FileFormatError."""

    def from_hf(self, source: HfSource, done: Done) -> Any:
        stated = (k for k in self.hf_keys if source.values.get(k) is not None)
        key = next(stated, self.hf_keys[0])
        value = source.values.get(key)
        for other in stated:
            if source.values[other] != value:
                raise FileFormatError(
                    f"{source.where}: expected one value, got {key!r} = {shown(value)} and "
                    f"{other!r} = {shown(source.values[other])}. {_REMEDY}"
                )
        if value is None and self.default is not None:
            value = self.default(done)
        return self.check(value, source.where, key)

    def from_gguf(self, source: GgufSource, done: Done) -> Any:
        values = source.values
        stated = [(key, values[key]) for key in self.gguf_keys if key in values]
        if not stated:
            value = None if self.default is None else self.default(done)
            stated = [(self.gguf_keys[0], value)]
        checked = [self.check(value, source.where, f"{source.prefix}.{k}") for k, value in stated]
        if any(value != checked[0] for value in checked):
            listed = ", ".join(f"{source.prefix}.{key} = {value}" for key, value in stated)
            raise FileFormatError(f"{source.where}: expected one value, got {listed}. {_REMEDY}")
        return checked[0]


class Count(_Number):
    """A whole number from 1 to a bound."""

    def check(self, value: object, where: str, key: str) -> int:
        """See the base."""
        low, high = map(int, self.bounds)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        expected = f"a whole number from {low} to {high}"
        raise FileFormatError(f"{where}: {key!r} should be {expected}, {got(value)}. {_REMEDY}")

    def to_gguf(self, value: Any) -> dict[str, Value]:
        """See the base."""
        return {key: uint32(value) for key in self.gguf_keys}


class Vocabulary(Count):
    """The number of tokens; many GGUF files say it only by their list of tokens or embedding."""

    def from_gguf(self, source: GgufSource, done: Done) -> Any:
        """See the base."""
        if self.gguf_keys[0] in source.values:
            return super().from_gguf(source, done)
        embedding = source.file.tensors.get("token_embd.weight")
        rows = embedding.rows if embedding is not None else 1
        tokens = source.file.count("tokenizer.ggml.tokens")
        return self.check(tokens or rows, source.where, "tokenizer.ggml.tokens")


class CountElsewhere(Count):
    """A number whose key in GGUF is not among the architecture's."""

    def __init__(self, hf: str, key: str, most: int) -> None:
        super().__init__(hf, (), (1, most), None)
        self.key = key

    def from_gguf(self, source: GgufSource, done: Done) -> Any:
        """See the base; 1 where the key is missing."""
        return self.check(source.file.get_int(self.key, 1), source.where, self.key)


class Real(_Number):
    """A finite number above the lower bound, up to the upper one.

    ``gguf_default`` gives its value where a GGUF file lacks the key. ``none`` is a value that means
    that nothing is done: null in config.json, no key in GGUF.
    """

    def __init__(
        self,
        hf: str,
        gguf: tuple[str, ...],
        bounds: tuple[float, float],
        default: Callable[[Done], object] | None,
        gguf_default: Callable[[Done], float] | None = None,
        none: float | None = None,
    ) -> None:
        super().__init__(hf, gguf, bounds, default if none is None else lambda _: none)
        self.gguf_default, self.none = gguf_default, none

    def from_gguf(self, source: GgufSource, done: Done) -> Any:
        """See the base."""
        if self.gguf_default is not None and self.gguf_keys[0] not in source.values:
            return self.gguf_default(done)
        return super().from_gguf(source, done)

    def check(self, value: object, where: str, key: str) -> float:
        """See the base."""
        low, high = self.bounds
        if isinstance(value, (int, float)) and not isinstance(value, bool) and low < value <= high:
            return float(value)
        expected = f"a number above {low:g}, at most {high:g}"
        raise FileFormatError(f"{where}: {key!r} should be {expected}, {got(value)}. {_REMEDY}")

    def to_gguf(self, value: Any) -> dict[str, Value]:
        """See the base."""
        if value == self.none:
            return {}
        return {key: float32(value) for key in self.gguf_keys}

    def to_hf(self, value: Any, done: Done) -> dict[str, object]:
        """See the base."""
        return {self.hf_keys[0]: None if value == self.none else shortest(value)}


class Derived(Field):
    """What an architecture has no key for: it follows from the fields before it."""

    hf_keys = gguf_keys = ()

    def __init__(self, value: Callable[[Done], object]) -> None:
        self.value = value

    def from_hf(self, source: HfSource, done: Done) -> Any:
        """See the base."""
        return self.value(done)

    def from_gguf(self, source: GgufSource, done: Done) -> Any:
        """See the base."""
        return self.value(done)

    def to_gguf(self, value: Any) -> dict[str, Value]:
        """Nothing."""
        return {}


class Flag(Field):
    """A truth value. GGUF has no key for it: it shows in a tensor being there, or not."""

    def __init__(self, hf: str, tensor: str, present: bool, default: bool) -> None:
        self.hf_keys, self.gguf_keys = (hf,), ()
        self.tensor, self.present, self.default = tensor, present, default

    def from_hf(self, source: HfSource, done: Done) -> bool:
        """Transformers' default where the key is missing."""
        key = self.hf_keys[0]
        value = source.values.get(key)
        if value is None:
            return self.default
        if not isinstance(value, bool):
            raise FileFormatError(
                f"{source.where}: {key!r} should be true or false, {got(value)}. {_REMEDY}"
            )
        return value

    def from_gguf(self, source: GgufSource, done: Done) -> bool:
        """Whether the tensor is there, or is not."""
        return (self.tensor in source.file.tensors) == self.present

    def to_gguf(self, value: Any) -> dict[str, Value]:
        """Nothing: the tensors say it."""
        return {}


class Switch(Field):
    """A truth value under one key in either format, with the format's own default."""

    def __init__(self, hf: str, gguf: str, defaults: tuple[bool, bool]) -> None:
        self.hf_keys, self.gguf_keys, self.defaults = (hf,), (gguf,), defaults

    def from_hf(self, source: HfSource, done: Done) -> bool:
        """The value, or transformers' default."""
        return self._check(source.values.get(self.hf_keys[0]), 0, source.where, self.hf_keys[0])

    def from_gguf(self, source: GgufSource, done: Done) -> bool:
        """The value, or llama.cpp's default."""
        key = self.gguf_keys[0]
        return self._check(source.values.get(key), 1, source.where, f"{source.prefix}.{key}")

    def to_gguf(self, value: Any) -> dict[str, Value]:
        """Only what is not the default."""
        return {} if value == self.defaults[1] else {self.gguf_keys[0]: boolean(value)}

    def _check(self, value: object, default: int, where: str, key: str) -> bool:
        value = self.defaults[default] if value is None else value
        if not isinstance(value, bool):
            raise FileFormatError(
                f"{where}: {key!r} should be true or false, {got(value)}. {_REMEDY}"
            )
        return value


def count(
    hf: str,
    *gguf: str,
    most: int,
    default: Callable[[Done], object] | None = None,
    other_names: tuple[str, ...] = (),
) -> Any:
    """A dataclass field holding a whole number.

    Args:
        hf: its key in config.json.
        gguf: its keys in GGUF, without prefix; all that are there must agree.
        most: the upper bound.
        default: its value, from the fields before it, where the key is missing.
        other_names: further keys in config.json that say the same.
    """
    return field(Count(hf, gguf, (1, most), default, other_names))


def vocabulary(hf: str, gguf: str, *, most: int) -> Any:
    """A dataclass field holding the number of tokens."""
    return field(Vocabulary(hf, (gguf,), (1, most), None))


def count_elsewhere(hf: str, key: str, *, most: int) -> Any:
    """A dataclass field holding a whole number that GGUF has under a whole ``key``.

    The architecture writes it itself.
    """
    return field(CountElsewhere(hf, key, most))


def real(
    hf: str,
    *gguf: str,
    above: float,
    most: float,
    default: Callable[[Done], object] | None = None,
    gguf_default: Callable[[Done], float] | None = None,
    none: float | None = None,
) -> Any:
    """A dataclass field holding a number; it must be stated where there is no default."""
    return field(Real(hf, gguf, (above, most), default, gguf_default, none))


def flag(hf: str, *, tensor: str, present: bool = True, default: bool = False) -> Any:
    """A dataclass field that is true in GGUF where ``tensor`` is there (or is not).

    ``default`` is transformers', for a config.json without the key.
    """
    return field(Flag(hf, tensor, present, default))


def derived(value: Callable[[Done], object]) -> Any:
    """A dataclass field without keys: ``value`` of the fields before it."""
    return field(Derived(value))


def switch(hf: str, gguf: str, *, hf_default: bool, gguf_default: bool) -> Any:
    """A dataclass field that is true or false in either format."""
    return field(Switch(hf, gguf, (hf_default, gguf_default)))


def field(described: Field) -> Any:
    """The dataclass field for ``described``."""
    return dataclasses.field(metadata={"field": described})


def shortest(value: float) -> float:
    """The number of fewest digits that is the same in single precision: 1e-5, not 9.9999997e-06.

    GGUF holds single precision, so what came from there is one; a number that is none is kept.
    """
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def got(value: object) -> str:
    """What was found, for a message."""
    return "it is missing" if value is None else f"got {shown(value)}"


def shown(value: object) -> str:
    """A value as config.json has it, shortened and safe to print."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, str):
        return quote(value, 60)
    # Built-in containers and numbers print their texts escaped.
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
