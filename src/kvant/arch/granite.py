"""Granite 3: Llama whose embeddings, scores, residual sums and logits are multiplied by constants.

Source: Granite Team, IBM, Granite 3.0 Language Models (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch._config import DecoderConfig, check_heads
from kvant.arch._fields import flag, real
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("GraniteForCausalLM",)
GGUF_ROWS = "interleaved"


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """Llama's config with constants; GGUF files without positions are of another model."""

    GGUF_FIXED: ClassVar = {"rope.scaling.finetuned": (True,)}

    attention_bias: bool = flag("attention_bias", tensor="blk.0.attn_q.bias")
    mlp_bias: bool = flag("mlp_bias", tensor="blk.0.ffn_up.bias")
    embedding_multiplier: float = real(
        "embedding_multiplier", "embedding_scale", above=0, most=1e6, default=lambda _: 1.0
    )
    attention_multiplier: float = real(
        *("attention_multiplier", "attention.scale"),
        above=0,
        most=1e6,
        default=lambda _: 1.0,
        gguf_default=lambda done: done["head_dim"] ** -0.5,
    )
    residual_multiplier: float = real(
        "residual_multiplier", "residual_scale", above=0, most=1e6, default=lambda _: 1.0
    )
    logits_scaling: float = real(
        "logits_scaling", "logit_scale", above=0, most=1e6, default=lambda _: 1.0
    )

    def check(self, where: str) -> None:
        """Also refuse heads that do not add up to the hidden size."""
        super().check(where)
        check_heads(self, where)


def trace(c: Config) -> Graph:
    """The whole model: tokens to logits."""
    g = Graph()
    x = g.scale(g.embedding("token_embd", c.vocab_size, c.hidden_size), c.embedding_multiplier)
    for _ in g.layers(c.num_hidden_layers):
        x = block(g, c, x)
    x = g.rms_norm(x, "output_norm", eps=c.rms_norm_eps)
    x = g.linear(x, "token_embd" if c.tie_word_embeddings else "output", c.vocab_size)
    g.scale(x, 1 / c.logits_scaling)
    return g


def block(g: Graph, c: Config, x: Value) -> Value:
    """One layer."""
    nq, nkv, bias = c.num_attention_heads, c.num_key_value_heads, c.attention_bias

    h = g.rms_norm(x, "attn_norm", eps=c.rms_norm_eps)
    q = c.rope.turn(g, g.linear(h, "attn_q", nq * c.head_dim, bias=bias), nq)
    k = c.rope.turn(g, g.linear(h, "attn_k", nkv * c.head_dim, bias=bias), nkv)
    v = g.linear(h, "attn_v", nkv * c.head_dim, bias=bias)
    h = g.attention(q, k, v, heads=nq, kv_heads=nkv, scale=c.attention_multiplier)
    h = g.linear(h, "attn_output", c.hidden_size, bias=bias)
    x = g.add(x, g.scale(h, c.residual_multiplier))

    h = g.rms_norm(x, "ffn_norm", eps=c.rms_norm_eps)
    gate = g.linear(h, "ffn_gate", c.intermediate_size, bias=c.mlp_bias)
    up = g.linear(h, "ffn_up", c.intermediate_size, bias=c.mlp_bias)
    h = g.linear(g.swiglu(gate, up), "ffn_down", c.hidden_size, bias=c.mlp_bias)
    return g.add(x, g.scale(h, c.residual_multiplier))
