"""MLX's levels, and which of them each matrix gets.

Sources: MLX's ``quantize``; mlx-lm's ``mixed_quant_predicate_builder`` and the models' own
``quant_predicate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvant.export.target import Level
from kvant.packing.groups import Groups, ScaleType
from kvant.packing.spec import PrecisionClass

__all__ = ["BASES", "LEVELS", "Base", "base_of", "config_of"]

_CLASS: Mapping[int, PrecisionClass] = {
    **dict.fromkeys((1, 2), "ultra-low"),
    **dict.fromkeys((3, 4), "low"),
    **dict.fromkeys((5, 6, 8), "medium"),
}
_GOOD_FOR = {
    2: "the smallest files; wants --effort balanced",
    3: "little memory",
    4: "most Macs and phones",
    5: "more quality where memory allows",
    6: "close to the original",
    8: "as good as the original",
}


@dataclass(frozen=True, slots=True)
class Base:
    """How one matrix is stored: MLX's mode, bits of a code, weights in a group."""

    mode: str
    bits: int
    group: int

    @property
    def name(self) -> str:
        """As `LEVELS` calls it."""
        if self.mode != "affine":
            return self.mode
        return f"{self.bits}bit" + ("" if self.group == 64 else f"-g{self.group}")

    @property
    def bits_per_weight(self) -> float:
        """With scales of 16 bits (8 in the float modes)."""
        return self.bits + (32 if self.mode == "affine" else 8) / self.group

    def grid(self, scale: ScaleType) -> Groups:
        """The grid; ``scale`` is the dtype of an affine one's scales and biases."""
        match self.mode:
            case "affine":
                return Groups(self.name, self.bits, self.group, "bias", scale)
            case "mxfp8":
                return Groups(self.name, 8, self.group, "none", "E8M0", "E4M3")
        kind: ScaleType = "E8M0" if self.mode == "mxfp4" else "E4M3"
        return Groups(self.name, 4, self.group, "none", kind, "E2M1")


_AFFINE = [Base("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (128, 64, 32)]
_FLOATS = [Base("mxfp4", 4, 32), Base("nvfp4", 4, 16), Base("mxfp8", 8, 32)]

BASES: Mapping[str, Base] = {b.name: b for b in (*_AFFINE, *_FLOATS)}
"""What a matrix can be stored as, by name."""

#: mlx-lm's mixed recipes: bits of most matrices, and of the more delicate ones.
_MIXED = {"mixed-2-6": (2, 6), "mixed-3-4": (3, 4), "mixed-3-6": (3, 6), "mixed-4-6": (4, 6)}

_FLOAT_GOOD_FOR = {
    "mxfp4": "models trained in this format",
    "nvfp4": "4-bit floats with finer scales",
    "mxfp8": "8-bit floats",
}


def _levels() -> tuple[Level, ...]:
    found = [
        Level(
            b.name,
            b.bits,
            b.bits_per_weight,
            b.group,
            _CLASS[b.bits],
            _FLOAT_GOOD_FOR.get(b.mode, _GOOD_FOR[b.bits]),
        )
        for b in BASES.values()
    ]
    for name, (low, high) in _MIXED.items():
        # A quarter of the weights of a usual model are the delicate ones'.
        bits = low + 0.5 + (high - low) / 6
        good_for = f"{low} bits, {high} for values and down projections of half the layers"
        found.append(Level(name, low, bits, 64, _CLASS[low], good_for))
    return tuple(sorted(found, key=lambda level: level.bits_per_weight))


LEVELS = _levels()


def base_of(
    level: str, path: str, layers: int, layer: int | None, architecture: str, columns: int
) -> Base | None:
    """What mlx-lm's converter stores the module ``path`` as; None leaves it as floats.

    Args:
        level: one of `LEVELS`.
        path: the module's path in mlx-lm's model.
        layers: of the model.
        layer: the module's; None outside the layers.
        architecture: kvant's name for it.
        columns: weights in a row.
    """
    if level in _MIXED:
        low, high = _MIXED[level]
        more = False
        if "v_proj" in path or "down_proj" in path:
            at, eighth = layer or 0, layers // 8
            more = at < eighth or at >= 7 * layers // 8 or (at - eighth) % 3 == 2
        more |= "lm_head" in path
        base = Base("affine", high if more else low, 64)
        return base if columns % base.group == 0 else None
    base = BASES[level]
    if columns % base.group:
        return None
    if not path.endswith(_OWN.get(architecture, ())):
        return base
    group = next((g for g in (64, 32) if columns % g == 0), None)
    return base if group is None else Base("affine", 8, group)


#: Modules that an architecture's model in mlx-lm asks to be kept at 8 bits.
_OWN: Mapping[str, tuple[str, ...]] = {
    "qwen3moe": ("mlp.gate",),
    "granite": ("self_attn.o_proj", "mlp.down_proj", "lm_head"),
}


def config_of(base: Base) -> dict[str, object]:
    """What config.json says of it."""
    return {"group_size": base.group, "bits": base.bits, "mode": base.mode}
