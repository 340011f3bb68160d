"""Qwen 3 (dense): every query and key head is normalised before it is rotated; no biases.

Source: Yang et al., arXiv 2505.09388.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch._config import DecoderConfig
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("Qwen3ForCausalLM",)
GGUF_ROWS = "half"


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """Qwen3's config; ``attention_bias`` is always false in it, and GGUF's qwen3 has no place."""

    FIXED: ClassVar = {
        **DecoderConfig.FIXED,
        "use_sliding_window": (False, None),
        "attention_bias": (False, None),
    }
    UNUSED: ClassVar = frozenset({"sliding_window", "max_window_layers"})
    STATED: ClassVar = frozenset({"num_key_value_heads", "head_dim"})


def trace(c: Config) -> Graph:
    """The whole model: tokens to logits."""
    g = Graph()
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    for _ in g.layers(c.num_hidden_layers):
        x = block(g, c, x)
    x = g.rms_norm(x, "output_norm", eps=c.rms_norm_eps)
    g.linear(x, "token_embd" if c.tie_word_embeddings else "output", c.vocab_size)
    return g


def attention(g: Graph, c: Config, x: Value) -> Value:
    """The first half of a layer."""
    nq, nkv, eps = c.num_attention_heads, c.num_key_value_heads, c.rms_norm_eps

    h = g.rms_norm(x, "attn_norm", eps=eps)
    q = g.rms_norm(g.linear(h, "attn_q", nq * c.head_dim), "attn_q_norm", eps=eps, groups=nq)
    k = g.rms_norm(g.linear(h, "attn_k", nkv * c.head_dim), "attn_k_norm", eps=eps, groups=nkv)
    v = g.linear(h, "attn_v", nkv * c.head_dim)
    q = g.rope(q, heads=nq, theta=c.rope.theta, linear=c.rope.linear)
    k = g.rope(k, heads=nkv, theta=c.rope.theta, linear=c.rope.linear)
    h = g.attention(q, k, v, heads=nq, kv_heads=nkv)
    return g.add(x, g.linear(h, "attn_output", c.hidden_size))


def block(g: Graph, c: Config, x: Value) -> Value:
    """One layer."""
    x = attention(g, c, x)
    h = g.rms_norm(x, "ffn_norm", eps=c.rms_norm_eps)
    gate = g.linear(h, "ffn_gate", c.intermediate_size)
    up = g.linear(h, "ffn_up", c.intermediate_size)
    return g.add(x, g.linear(g.swiglu(gate, up), "ffn_down", c.hidden_size))
