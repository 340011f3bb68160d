"""How sensitive tensors usually are, for when nothing is run.

Geometric means of what was measured on the built-in model and on bench/models/qwen3-11m; single
tensors of either are up to three times more or less sensitive.
"""

from __future__ import annotations

__all__ = ["prior"]

_ROLES = {
    "attn_q": 0.017,
    "attn_k": 0.019,
    "attn_v": 0.024,
    "attn_output": 0.028,
    "ffn_gate": 0.030,
    "ffn_up": 0.022,
    "ffn_down": 0.037,
}
_USUAL = 0.025

# What the first layer makes of the embedding every other layer builds on.
_FIRST_LAYER = 5.0
_SCORES = ("attn_q", "attn_k")  # only decide where to look, which the first layer hardly does
_HEAD, _EMBEDDING = 0.70, 0.26


def prior(role: str, layer: int | None, layers: int, tied: bool) -> float:
    """Divergence per relative error of a tensor, nats a token."""
    if role == "token_embd":
        return _EMBEDDING + _HEAD if tied else _EMBEDDING
    if role == "output":
        return _HEAD
    value = _ROLES.get(role, _USUAL)
    return value * _FIRST_LAYER if layer == 0 and layers > 1 and role not in _SCORES else value
