"""Rotary position embedding in a config: its base, and the ways to stretch it to longer texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.arch._fields import Done, Field, GgufSource, HfSource, Real, field, got
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.gguf import Value, float32, string
from kvant.files.source import quote
from kvant.packing import dequantize

__all__ = ["ROPE_FACTORS", "Rope", "RopeField", "llama3_factors", "rope_field"]

#: GGUF's tensor of divisors, one for each pair of elements of a head.
ROPE_FACTORS = "rope_freqs.weight"
#: transformers' ``default_theta`` and llama.cpp's ``rope_freq_base_train``.
_DEFAULT_THETA = 10_000.0
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_KEYS = {"default": (), "linear": ("factor",), "llama3": _LLAMA3}

_theta = Real("rope_theta", ("rope.freq_base",), (0, 1e15), lambda _: _DEFAULT_THETA)
_linear = Real("factor", ("rope.scaling.factor", "rope.scale_linear"), (0, 1e9), None)


@dataclass(frozen=True, slots=True)
class Rope:
    """``theta`` is the base; ``linear`` divides positions; ``factors`` divide frequencies.

    ``factors`` is empty or has head_dim / 2 entries, all exact float32 values, so that a model
    and the GGUF file made from it turn by the same angles.
    """

    theta: float
    linear: float = 1.0
    factors: tuple[float, ...] = ()


class RopeField(Field):
    """Reads ``rope_theta`` and ``rope_scaling``, or the ``rope_parameters`` of transformers 5."""

    hf_keys = ("rope_theta", "rope_scaling", "rope_parameters")
    gguf_keys = (*_theta.gguf_keys, "rope.scaling.type", *_linear.gguf_keys)

    def __init__(self, scalings: tuple[str, ...]) -> None:
        self.scalings = scalings

    def from_hf(self, source: HfSource, done: Done) -> Rope:
        """The rope of a config.json; ``done`` has head_dim."""
        parameters = _parameters(source)
        theta = _one_theta(source, parameters, done)
        kind = self._kind(source, parameters)
        known = {"rope_type", "type", "rope_theta", *_KEYS[kind]}
        for key in sorted(set(parameters) - known):
            if parameters[key] is not None and not (
                key == "partial_rotary_factor" and parameters[key] == 1
            ):
                raise UnsupportedError(
                    f"{source.where}: the rope scaling {kind!r} has an entry {quote(key)} that "
                    "kvant does not know, expected only "
                    f"{', '.join(sorted(known))}. Remove it if the model does not use it."
                )
        where = f"{source.where}, rope scaling"
        if kind == "linear":
            return Rope(theta, _linear.check(parameters.get("factor"), where, "factor"))
        if kind == "llama3":
            numbers = [_linear.check(parameters.get(key), where, key) for key in _LLAMA3]
            if numbers[2] <= numbers[1]:
                raise FileFormatError(
                    f"{where}: 'high_freq_factor' should be above 'low_freq_factor', got "
                    f"{numbers[2]:g} and {numbers[1]:g}. Correct them."
                )
            return Rope(theta, factors=llama3_factors(done["head_dim"], theta, *numbers))
        return Rope(theta)

    def _kind(self, source: HfSource, parameters: dict[str, object]) -> str:
        stated = {key: parameters[key] for key in ("rope_type", "type") if parameters.get(key)}
        kinds = set(map(str, stated.values())) or {"default"}
        kind = kinds.pop()
        if kinds or kind not in ("default", *self.scalings):
            raise UnsupportedError(
                f"{source.where}: the rope scaling should be one of "
                f"{', '.join(('default', *self.scalings))}, got "
                f"{', '.join(quote(str(k), 40) for k in stated.values())}. "
                "kvant does not compute others for this architecture yet."
            )
        return kind

    def from_gguf(self, source: GgufSource, done: Done) -> Rope:
        """The rope of a GGUF file: three keys, and a tensor for single frequencies."""
        theta = _theta.from_gguf(source, done)
        values = source.values
        kind = values.get("rope.scaling.type", "linear")  # llama.cpp's default, with factor 1
        if kind not in ("none", "linear"):
            raise UnsupportedError(
                f"{source.where}: '{source.prefix}.rope.scaling.type' should be none or linear, "
                f"{got(kind)}. kvant does not compute others for this architecture yet."
            )
        linear = 1.0
        # llama.cpp reads a factor of 0 as "none".
        if kind == "linear" and any(values.get(key) for key in _linear.gguf_keys):
            linear = _linear.from_gguf(source, done)
        if ROPE_FACTORS in source.file.tensors and "llama3" not in self.scalings:
            raise UnsupportedError(
                f"{source.where}: tensor {ROPE_FACTORS!r} changes the rope, expected none for "
                f"{source.prefix}. kvant does not know what it means there."
            )
        return Rope(theta, linear, _stored_factors(source, done["head_dim"] // 2))

    def to_gguf(self, value: Any) -> dict[str, Value]:
        """Base and linear scaling; the factors are a tensor."""
        rope: Rope = value
        metadata = {"rope.freq_base": float32(rope.theta)}
        if rope.linear != 1.0:
            metadata["rope.scaling.type"] = string("linear")
            metadata["rope.scaling.factor"] = float32(rope.linear)
        return metadata


def rope_field(*scalings: str) -> Any:
    """A dataclass field holding a ``Rope``; ``scalings`` are the types this architecture knows."""
    return field(RopeField(scalings))


def llama3_factors(
    head_dim: int, theta: float, factor: float, low: float, high: float, original: float
) -> tuple[float, ...]:
    """Llama 3.1's divisors of the rope frequencies, head_dim / 2 of them.

    Waves shorter than ``original / high`` positions stay, those longer than ``original / low`` are
    stretched by ``factor``, those between are blended. Source: ``_compute_llama3_parameters`` of
    transformers; every step is in float32, as llama.cpp's converter takes them, so the stored
    factors agree. Only the powers are taken in float64 and rounded: NumPy's float32 power gives
    other bits on other processors, and they would end up in the file.
    """
    one = np.float32(1)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    base = float(np.float32(theta))
    powers = np.array([math.pow(base, exponent) for exponent in exponents.tolist()], np.float32)
    wavelengths = np.float32(2 * math.pi) / (one / powers)
    result = np.ones_like(wavelengths)
    result[wavelengths > original / low] = factor
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    blend = np.float32(original) / wavelengths[between] - np.float32(low)
    blend /= np.float32(high - low)
    result[between] = one / ((one - blend) / np.float32(factor) + blend)
    return tuple(result.tolist())


def _parameters(source: HfSource) -> dict[str, object]:
    found: dict[str, dict[str, object]] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = source.values.get(key)
        if value is None or value == {}:
            continue
        if not isinstance(value, dict):
            raise FileFormatError(
                f"{source.where}: {key!r} should be an object or null, {got(value)}. Correct it."
            )
        found[key] = value
    if len(found) > 1 and found["rope_scaling"] != found["rope_parameters"]:
        raise UnsupportedError(
            f"{source.where}: 'rope_scaling' and 'rope_parameters' differ, expected one of them. "
            "Remove the one the model was not trained with."
        )
    return next(iter(found.values()), {})


def _one_theta(source: HfSource, parameters: dict[str, object], done: Done) -> float:
    outer, inner = source.values.get("rope_theta"), parameters.get("rope_theta")
    if outer is not None and inner is not None and outer != inner:
        raise UnsupportedError(
            f"{source.where}: 'rope_theta' is {quote(str(outer), 40)} and once more "
            f"{quote(str(inner), 40)} in the rope parameters, expected one value. Correct it."
        )
    values = {"rope_theta": inner if outer is None else outer}
    theta: float = _theta.from_hf(HfSource(source.where, values), done)
    return theta


def _stored_factors(source: GgufSource, expected: int) -> tuple[float, ...]:
    stored = source.file.tensors.get(ROPE_FACTORS)
    if stored is None:
        return ()
    if stored.shape != (expected,) or stored.type.name != "F32":
        raise FileFormatError(
            f"{source.where}: tensor {ROPE_FACTORS!r} should be F32 ({expected},), got "
            f"{stored.type.name} {stored.shape}. Convert or fetch the file again."
        )
    factors: npt.NDArray[np.float32] = dequantize("F32", stored.read())[0]
    if not np.all((factors > 0) & (factors < np.inf)):
        raise FileFormatError(
            f"{source.where}: tensor {ROPE_FACTORS!r} should hold positive numbers, got "
            f"{factors[~((factors > 0) & (factors < np.inf))][0]}. Convert or fetch the file again."
        )
    return tuple(factors.tolist())
