"""Sliding windows in a config: how many tokens they show, and which layers have one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvant.arch._fields import Count, Done, Field, GgufSource, HfSource, field, got
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.gguf import Value, ValueType, array, uint32

__all__ = ["WindowField", "Windows", "window_field"]

_SIZE, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_KINDS = {"sliding_attention": True, "full_attention": False}
_size = Count("sliding_window", (_SIZE,), (1, 2**31 - 1), None)
_every = Count("sliding_window_pattern", (_PATTERN,), (1, 2**12), None)


@dataclass(frozen=True, slots=True)
class Windows:
    """Layers whose ``slides`` is true see ``size`` tokens, the last included; 0: all of them."""

    size: int
    slides: tuple[bool, ...]

    def of(self, layer: int) -> int:
        """The window of a layer, 0 for none."""
        return self.size if self.slides[layer] else 0


class WindowField(Field):
    """Reads ``sliding_window``, and which layers slide where some do and others do not.

    Args:
        every: each layer of this number sees everything; 0: no layer does.
        default: the size where a config.json does not say it, 0 for none.
        gguf_default: the same for a GGUF file.
    """

    def __init__(self, every: int, default: int, gguf_default: int) -> None:
        self.every, self.default, self.gguf_default = every, default, gguf_default
        self.hf_keys, self.gguf_keys = ("sliding_window",), (_SIZE,)
        if every:
            self.hf_keys += ("layer_types", "sliding_window_pattern", "_sliding_window_pattern")
            self.gguf_keys += (_PATTERN,)

    def _usual(self, layers: int, every: int) -> tuple[bool, ...]:
        return tuple(every == 0 or (layer + 1) % every != 0 for layer in range(layers))

    def from_hf(self, source: HfSource, done: Done) -> Windows:
        """See the base."""
        values, layers = source.values, done["num_hidden_layers"]
        size = values.get("sliding_window", self.default)
        size = 0 if size in (None, 0) else _size.check(size, source.where, "sliding_window")
        every = self.every
        for key in self.hf_keys[2:]:
            if values.get(key) is not None:
                every = _every.check(values[key], source.where, key)
        kinds = values.get("layer_types") if self.every else None
        if kinds is None:
            return Windows(size, self._usual(layers, every))
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or not all(isinstance(kind, str) and kind in _KINDS for kind in kinds)
        ):
            raise UnsupportedError(
                f"{source.where}: 'layer_types' should be {' or '.join(_KINDS)} for each of the "
                f"{layers} layers, got something else. kvant does not compute other layers for "
                "this architecture yet."
            )
        return Windows(size, tuple(_KINDS[kind] for kind in kinds))

    def from_gguf(self, source: GgufSource, done: Done) -> Windows:
        """See the base."""
        values, layers = source.values, done["num_hidden_layers"]
        size = values.get(_SIZE, self.gguf_default)
        size = _size.check(size, source.where, f"{source.prefix}.{_SIZE}") if size else 0
        pattern = values.get(_PATTERN) if self.every else None
        if isinstance(pattern, np.ndarray):
            if pattern.shape != (layers,) or pattern.dtype != np.bool_:
                raise FileFormatError(
                    f"{source.where}: '{source.prefix}.{_PATTERN}' should be a truth value for "
                    f"each of the {layers} layers, {got(pattern.shape)}. Convert the file again."
                )
            return Windows(size, tuple(map(bool, pattern)))
        every = self.every
        if pattern is not None:
            every = _every.check(pattern, source.where, f"{source.prefix}.{_PATTERN}")
        return Windows(size, self._usual(layers, every))

    def to_gguf(self, value: Any) -> dict[str, Value]:
        """The size, and which layers slide where that is not as usual."""
        windows: Windows = value
        metadata = {_SIZE: uint32(windows.size)} if windows.size else {}
        if windows.slides != self._usual(len(windows.slides), self.every):
            metadata[_PATTERN] = array(ValueType.BOOL, np.array(windows.slides, np.bool_))
        return metadata

    def to_hf(self, value: Any, done: Done) -> dict[str, object]:
        """The size, and the kind of each layer where some slide and others do not."""
        windows: Windows = value
        found: dict[str, object] = {"sliding_window": windows.size or None}
        if self.every:
            slides = {True: "sliding_attention", False: "full_attention"}
            found["layer_types"] = [slides[s] for s in windows.slides]
        return found


def window_field(*, every: int = 0, default: int = 0, gguf_default: int = 0) -> Any:
    """A dataclass field holding ``Windows``; arguments as of ``WindowField``."""
    return field(WindowField(every, default, gguf_default))
