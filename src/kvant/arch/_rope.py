"""Rotary position embedding in a config: its base, and the ways to stretch it to longer texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.arch._fields import Count, Done, Field, GgufSource, HfSource, Real, field, got, shortest
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.gguf import Value, float32, string, uint32
from kvant.files.source import quote
from kvant.graph.build import Graph
from kvant.graph.ir import Value as Node
from kvant.packing import dequantize

__all__ = [
    "Rope",
    "RopeField",
    "check_turned",
    "llama3_factors",
    "llama3_parameters",
    "local_rope_field",
    "rope_field",
]

#: GGUF's tensors of divisors, one number for each pair of elements of a head.
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
#: transformers' ``default_theta`` and llama.cpp's ``rope_freq_base_train``.
_DEFAULT_THETA = 10_000.0
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_LONG = ("short_factor", "long_factor", "factor", "attention_factor")
_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"
_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": _LLAMA3,
    "longrope": (*_LONG, _ORIGINAL),
}
_OLD_NAMES = {"su": "longrope"}
#: Where transformers 5 has parameters for each kind of layer.
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"

_theta = Real("rope_theta", ("rope.freq_base",), (0, 1e15), lambda _: _DEFAULT_THETA)
_linear = Real("factor", ("rope.scaling.factor", "rope.scale_linear"), (0, 1e9), None)
_magnitude = Real("attention_factor", ("rope.scaling.attn_factor",), (0, 1e3), lambda _: 1.0)
_original = Count(_ORIGINAL, ("rope.scaling.original_context_length",), (1, 2**31 - 1), None)
_turned = Count("", ("rope.dimension_count",), (1, 2**13), lambda done: done["head_dim"])


@dataclass(frozen=True, slots=True)
class Rope:
    """``theta`` is the base; ``linear`` divides positions; ``factors`` divide frequencies.

    ``turned`` elements of a head are rotated, and multiplied by ``magnitude``.
    ``long_factors`` take the place of ``factors`` in texts of more than ``original`` tokens. Both
    are empty or have an entry for each pair, all exact float32 values, so that a model and the GGUF
    file made from it turn by the same angles.
    """

    theta: float
    turned: int
    linear: float = 1.0
    factors: tuple[float, ...] = ()
    magnitude: float = 1.0
    long_factors: tuple[float, ...] = ()
    original: int = 0

    def turn(self, g: Graph, x: Node, heads: int) -> Node:
        """Trace the rotation of ``x``."""
        return g.rope(
            x,
            heads=heads,
            theta=self.theta,
            linear=self.linear,
            factors=self.factors,
            turned=self.turned,
            magnitude=self.magnitude,
            long_factors=self.long_factors,
            original=self.original,
        )


def check_turned(count: int, where: str) -> None:
    """Check that elements of a head can be rotated.

    Raises:
        FileFormatError: an odd number.
    """
    if count % 2:
        raise FileFormatError(
            f"{where}: {count} elements of a head are rotated, expected an even number. "
            "Correct the config, or fetch the file again."
        )


class RopeField(Field):
    """Reads ``rope_theta`` and ``rope_scaling``, or the ``rope_parameters`` of transformers 5.

    Args:
        scalings: the types this architecture knows.
        theta: transformers' default for it.
        partial: whether heads may be rotated in part.
    """

    def __init__(self, scalings: tuple[str, ...], theta: float, partial: bool) -> None:
        self.scalings, self.partial = scalings, partial
        self.theta = Real("rope_theta", _theta.gguf_keys, _theta.bounds, lambda _: theta)
        self.hf_keys = ("rope_theta", "rope_scaling", "rope_parameters")
        self.gguf_keys = (
            *_theta.gguf_keys,
            "rope.scaling.type",
            *_linear.gguf_keys,
            *_turned.gguf_keys,
        )
        if partial:
            self.hf_keys += (_PARTIAL,)
        if "longrope" in scalings:
            self.hf_keys += (_ORIGINAL,)
            self.gguf_keys += (*_magnitude.gguf_keys, *_original.gguf_keys)

    def from_hf(self, source: HfSource, done: Done) -> Rope:
        """The rope of a config.json; ``done`` has head_dim."""
        parameters = _parameters(source)
        theta = self._one_theta(source, parameters, done)
        kind = self._kind(source, parameters)
        turned = self._turned(source, parameters, done)
        known = {"rope_type", "type", "rope_theta", _PARTIAL, *_KEYS[kind]}
        if kind == "default":
            known.add(_ORIGINAL)  # of another scaling, which is off
        for key in sorted(set(parameters) - known):
            if parameters[key] is not None:
                raise UnsupportedError(
                    f"{source.where}: the rope scaling {kind!r} has an entry {quote(key)} that "
                    "kvant does not know, expected only "
                    f"{', '.join(sorted(known))}. Remove it if the model does not use it."
                )
        where = f"{source.where}, rope scaling"
        if kind == "linear":
            linear = _linear.check(parameters.get("factor"), where, "factor")
            return Rope(theta, turned, linear)
        if kind == "llama3":
            numbers = [_linear.check(parameters.get(key), where, key) for key in _LLAMA3]
            if numbers[2] <= numbers[1]:
                raise FileFormatError(
                    f"{where}: 'high_freq_factor' should be above 'low_freq_factor', got "
                    f"{numbers[2]:g} and {numbers[1]:g}. Correct them."
                )
            factors = llama3_factors(done["head_dim"], theta, *numbers)
            return Rope(theta, turned, factors=factors)
        if kind == "longrope":
            return _longrope(source, parameters, theta, turned, done)
        return Rope(theta, turned)

    def _one_theta(self, source: HfSource, parameters: dict[str, object], done: Done) -> float:
        outer, inner = source.values.get("rope_theta"), parameters.get("rope_theta")
        if outer is not None and inner is not None and outer != inner:
            raise UnsupportedError(
                f"{source.where}: 'rope_theta' is {quote(str(outer), 40)} and once more "
                f"{quote(str(inner), 40)} in the rope parameters, expected one value. Correct it."
            )
        values = {"rope_theta": inner if outer is None else outer}
        theta: float = self.theta.from_hf(HfSource(source.where, values), done)
        return theta

    def _turned(self, source: HfSource, parameters: dict[str, object], done: Done) -> int:
        stated = (parameters.get(_PARTIAL), source.values.get(_PARTIAL))
        share = next((value for value in stated if value is not None), 1)
        number = isinstance(share, (int, float)) and not isinstance(share, bool) and 0 < share <= 1
        if not number or (share != 1 and not self.partial):
            raise UnsupportedError(
                f"{source.where}: {_PARTIAL!r} should be 1{self.partial * ' or less'}, "
                f"{got(share)}. kvant does not compute others for this architecture yet."
            )
        return int(done["head_dim"] * float(share))  # type: ignore[arg-type]

    def _kind(self, source: HfSource, parameters: dict[str, object]) -> str:
        stated = {key: parameters[key] for key in ("rope_type", "type") if parameters.get(key)}
        kinds = {_OLD_NAMES.get(str(v), str(v)) for v in stated.values()} or {"default"}
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
        """The rope of a GGUF file: some keys, and tensors for single frequencies."""
        theta = _theta.from_gguf(source, done)
        values = source.values
        turned = self._turned_in_gguf(source, done)
        kind = values.get("rope.scaling.type", "linear")  # llama.cpp's default, with factor 1
        kinds = ("none", "linear", *("longrope",) * ("longrope" in self.scalings))
        if kind not in kinds:
            raise UnsupportedError(
                f"{source.where}: '{source.prefix}.rope.scaling.type' should be "
                f"{' or '.join(kinds)}, {got(kind)}. kvant does not compute others for this "
                "architecture yet."
            )
        linear = 1.0
        # llama.cpp reads a factor of 0 as "none".
        if kind == "linear" and any(values.get(key) for key in _linear.gguf_keys):
            linear = _linear.from_gguf(source, done)
        needed = {ROPE_FACTORS: "llama3", LONG_FACTORS: "longrope", SHORT_FACTORS: "longrope"}
        for name, scaling in needed.items():
            if name in source.file.tensors and scaling not in self.scalings:
                raise UnsupportedError(
                    f"{source.where}: tensor {name!r} changes the rope, expected none for "
                    f"{source.prefix}. kvant does not know what it means there."
                )
        pairs = turned // 2
        if not {LONG_FACTORS, SHORT_FACTORS} & set(source.file.tensors):
            factors = _stored_factors(source, ROPE_FACTORS, pairs)
            return Rope(theta, turned, linear, factors)
        short, long = (_stored_factors(source, n, pairs) for n in (SHORT_FACTORS, LONG_FACTORS))
        magnitude, original = (f.from_gguf(source, done) for f in (_magnitude, _original))
        return Rope(theta, turned, linear, short, magnitude, long, original)

    def _turned_in_gguf(self, source: GgufSource, done: Done) -> int:
        turned: int = _turned.from_gguf(source, done)
        whole = done["head_dim"]
        if turned > whole or (turned < whole and not self.partial):
            key = f"{source.prefix}.{_turned.gguf_keys[0]}"
            raise FileFormatError(
                f"{source.where}: expected one value, got {key} = {turned} and heads of {whole} "
                "elements. Correct it, or fetch the file again."
            )
        return turned

    def to_gguf(self, value: Any) -> dict[str, Value]:
        """Base, rotated elements and scalings; the factors are tensors."""
        rope: Rope = value
        metadata = {
            "rope.dimension_count": uint32(rope.turned),
            "rope.freq_base": float32(rope.theta),
        }
        if rope.linear != 1.0:
            metadata["rope.scaling.type"] = string("linear")
            metadata["rope.scaling.factor"] = float32(rope.linear)
        if rope.long_factors:
            metadata["rope.scaling.attn_factor"] = float32(rope.magnitude)
            metadata["rope.scaling.original_context_length"] = uint32(rope.original)
        return metadata

    def to_hf(self, value: Any, done: Done) -> dict[str, object]:
        """Base and scaling, under the names they had before transformers 5 joined them.

        Raises:
            UnsupportedError: factors that no scaling of Hugging Face's gives.
        """
        rope: Rope = value
        found: dict[str, object] = {"rope_theta": shortest(rope.theta), "rope_scaling": None}
        if self.partial:
            found[_PARTIAL] = rope.turned / done["head_dim"]
        if rope.long_factors:
            found[_ORIGINAL] = rope.original
            found["rope_scaling"] = {
                **dict.fromkeys(("rope_type", "type"), "longrope"),
                "short_factor": [shortest(f) for f in rope.factors],
                "long_factor": [shortest(f) for f in rope.long_factors],
                "attention_factor": shortest(rope.magnitude),
            }
        elif rope.factors:
            found["rope_scaling"] = llama3_parameters(rope)
        elif rope.linear != 1.0:
            kind = dict.fromkeys(("rope_type", "type"), "linear")
            found["rope_scaling"] = {**kind, "factor": shortest(rope.linear)}
        return found

    def tensors(self, value: Any) -> dict[str, npt.NDArray[np.float32]]:
        """The factors."""
        rope: Rope = value
        long = bool(rope.long_factors)
        named = {
            SHORT_FACTORS if long else ROPE_FACTORS: rope.factors,
            LONG_FACTORS: rope.long_factors,
        }
        return {name: np.array(found, np.float32) for name, found in named.items() if found}


class LocalRopeField(Field):
    """The rope of sliding layers where it is another: plain, with a base of its own."""

    hf_keys = ("rope_local_base_freq",)
    gguf_keys = ("rope.freq_base_swa",)
    theta = Real(hf_keys[0], gguf_keys, _theta.bounds, lambda _: _DEFAULT_THETA)

    def from_hf(self, source: HfSource, done: Done) -> Rope:
        """See the base."""
        parameters = _parameters(source, _LOCAL)
        kind = parameters.get("rope_type", "default")
        if kind != "default" or set(parameters) - {"rope_type", "rope_theta", _PARTIAL}:
            raise UnsupportedError(
                f"{source.where}: the rope of sliding layers should be default, got "
                f"{quote(str(parameters), 60)}. kvant does not compute others."
            )
        stated = parameters.get("rope_theta") or source.values.get(self.hf_keys[0])
        theta = self.theta.from_hf(HfSource(source.where, {self.hf_keys[0]: stated}), done)
        return Rope(theta, done["head_dim"])

    def from_gguf(self, source: GgufSource, done: Done) -> Rope:
        """See the base."""
        return Rope(self.theta.from_gguf(source, done), done["head_dim"])

    def to_gguf(self, value: Any) -> dict[str, Value]:
        """See the base."""
        return self.theta.to_gguf(value.theta)

    def to_hf(self, value: Any, done: Done) -> dict[str, object]:
        """See the base."""
        return {self.hf_keys[0]: shortest(value.theta)}


def local_rope_field() -> Any:
    """A dataclass field holding the ``Rope`` of sliding layers."""
    return field(LocalRopeField())


def rope_field(*scalings: str, theta: float = _DEFAULT_THETA, partial: bool = False) -> Any:
    """A dataclass field holding a ``Rope``; arguments as of ``RopeField``."""
    return field(RopeField(scalings, theta, partial))


def _longrope(
    source: HfSource, parameters: dict[str, object], theta: float, turned: int, done: Done
) -> Rope:
    """Factors for short and for long texts; source: ``_compute_longrope_parameters``."""
    where = f"{source.where}, rope scaling"
    stated = parameters.get(_ORIGINAL) or source.values.get(_ORIGINAL)
    original = _original.check(stated, where, _ORIGINAL)
    pairs = turned // 2
    short, long = (_listed(parameters.get(key), where, key, pairs) for key in _LONG[:2])
    stretch = done["max_position_embeddings"] / original
    if parameters.get("factor") is not None:
        stretch = _linear.check(parameters["factor"], where, "factor")
    magnitude = 1.0
    if parameters.get("attention_factor") is not None:
        magnitude = _magnitude.check(parameters["attention_factor"], where, "attention_factor")
    elif stretch > 1 and original > 1:
        magnitude = math.sqrt(1 + math.log(stretch) / math.log(original))
    magnitude = float(np.float32(magnitude))
    return Rope(theta, turned, 1.0, short, magnitude, long, original)


def _listed(value: object, where: str, key: str, expected: int) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != expected:
        found = f"{len(value)} of them" if isinstance(value, list) else got(value)
        raise FileFormatError(
            f"{where}: {key!r} should be a list of {expected} numbers, got {found}. Correct it."
        )
    return tuple(float(np.float32(_linear.check(number, where, key))) for number in value)


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


def llama3_parameters(rope: Rope) -> dict[str, object]:
    """Llama 3's parameters that give a rope's factors, as Hugging Face's config has them.

    GGUF holds only the factors. The largest is the parameter ``factor``; of the others the
    published models have few, which are tried.

    Raises:
        UnsupportedError: none of them gives the factors.
    """
    factor = max(rope.factors)
    for original in (8192, 4096, 16384, 2048, 32768, *(2**k for k in (5, 6, 7, 8, 9, 10, 16, 17))):
        for low, high in ((1.0, 4.0), (1.0, 2.0), (1.0, 8.0), (2.0, 4.0), (1.0, 32.0)):
            if llama3_factors(2 * len(rope.factors), rope.theta, factor, low, high, original) == (
                rope.factors
            ):
                return {
                    "rope_type": "llama3",
                    "factor": shortest(factor),
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    raise UnsupportedError(
        "The rope of this model has factors that no parameters of Llama 3's scaling give, expected "
        "such; a config.json cannot say them. Start from the model's Hugging Face folder."
    )


def _parameters(source: HfSource, layers: str = _GLOBAL) -> dict[str, object]:
    """The rope's parameters; where each kind of layer has its own, those of ``layers``."""
    found: dict[str, dict[str, object]] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = source.values.get(key)
        if value is None or value == {}:
            continue
        if not isinstance(value, dict):
            raise FileFormatError(
                f"{source.where}: {key!r} should be an object or null, {got(value)}. Correct it."
            )
        by_layers = value.get(layers)
        if isinstance(by_layers, dict):
            value = by_layers
        elif layers == _LOCAL:
            continue
        found[key] = value
    if len(found) > 1 and found["rope_scaling"] != found["rope_parameters"]:
        raise UnsupportedError(
            f"{source.where}: 'rope_scaling' and 'rope_parameters' differ, expected one of them. "
            "Remove the one the model was not trained with."
        )
    return next(iter(found.values()), {})


def _stored_factors(source: GgufSource, name: str, expected: int) -> tuple[float, ...]:
    stored = source.file.tensors.get(name)
    if stored is None and name == ROPE_FACTORS:
        return ()
    if stored is None:
        raise FileFormatError(
            f"{source.where}: tensor {name!r} is missing, expected both or none of "
            f"{LONG_FACTORS!r} and {SHORT_FACTORS!r}. Convert or fetch the file again."
        )
    if stored.shape != (expected,) or stored.type.name != "F32":
        raise FileFormatError(
            f"{source.where}: tensor {name!r} should be F32 ({expected},), got "
            f"{stored.type.name} {stored.shape}. Convert or fetch the file again."
        )
    factors: npt.NDArray[np.float32] = dequantize("F32", stored.read())[0]
    if not np.all((factors > 0) & (factors < np.inf)):
        raise FileFormatError(
            f"{source.where}: tensor {name!r} should hold positive numbers, got "
            f"{factors[~((factors > 0) & (factors < np.inf))][0]}. Convert or fetch the file again."
        )
    return tuple(factors.tolist())
