"""What a recipe comes to on a model everyone knows the size of: Llama-3.1-8B's shape."""

from __future__ import annotations

import math

from kvant.packing import get
from kvant.quant.assign import Slot, assign
from kvant.quant.recipe import ModelShape, Recipe

__all__ = ["NOMINAL_MODEL", "nominal_bits_per_weight"]

NOMINAL_MODEL = "Llama-3.1-8B"

_LAYERS, _HIDDEN, _FFN, _KV, _VOCABULARY = 32, 4096, 14336, 1024, 128256

_MATRICES = {
    "attn_q": (_HIDDEN, _HIDDEN),
    "attn_k": (_KV, _HIDDEN),
    "attn_v": (_KV, _HIDDEN),
    "attn_output": (_HIDDEN, _HIDDEN),
    "ffn_gate": (_FFN, _HIDDEN),
    "ffn_up": (_FFN, _HIDDEN),
    "ffn_down": (_HIDDEN, _FFN),
}


def nominal_bits_per_weight(recipe: Recipe) -> float:
    """Bits per weight of ``recipe`` over the matrices of Llama-3.1-8B (untied, 32 layers)."""
    slots = [
        Slot("token_embd.weight", "token_embd", None, (_VOCABULARY, _HIDDEN)),
        Slot("output.weight", "output", None, (_VOCABULARY, _HIDDEN)),
    ]
    for layer in range(_LAYERS):
        slots += [
            Slot(f"blk.{layer}.{role}.weight", role, layer, shape)
            for role, shape in _MATRICES.items()
        ]
    shape = ModelShape("llama", _LAYERS, queries_per_kv_head=4, tied_output=False)
    weights = [(math.prod(a.slot.shape), a.packing) for a in assign(recipe, slots, shape)]
    bits = sum(count * get(packing).bits_per_weight for count, packing in weights)
    return bits / sum(count for count, _ in weights)
