"""Llama 1, 2 and 3.x, and everything published as ``LlamaForCausalLM``.

Source: Touvron et al., arXiv 2302.13971 and 2307.09288; Llama 3's rope scaling as in its config.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvant.arch._config import DecoderConfig
from kvant.arch._fields import flag
from kvant.arch._rope import Rope, rope_field
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("LlamaForCausalLM",)
GGUF_ROWS = "interleaved"


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """Llama's config; biases and both rope scalings are optional."""

    rope: Rope = rope_field("linear", "llama3")  # noqa: RUF009 - a field, not a value
    attention_bias: bool = flag("attention_bias", tensor="blk.0.attn_q.bias")
    mlp_bias: bool = flag("mlp_bias", tensor="blk.0.ffn_up.bias")


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
    nq, nkv, bias = c.num_attention_heads, c.num_key_value_heads, c.attention_bias

    def rotate(h: Value, heads: int) -> Value:
        r = c.rope
        return g.rope(h, heads=heads, theta=r.theta, linear=r.linear, factors=r.factors)

    h = g.rms_norm(x, "attn_norm", eps=c.rms_norm_eps)
    q = rotate(g.linear(h, "attn_q", nq * c.head_dim, bias=bias), nq)
    k = rotate(g.linear(h, "attn_k", nkv * c.head_dim, bias=bias), nkv)
    v = g.linear(h, "attn_v", nkv * c.head_dim, bias=bias)
    h = g.attention(q, k, v, heads=nq, kv_heads=nkv)
    return g.add(x, g.linear(h, "attn_output", c.hidden_size, bias=bias))


def block(g: Graph, c: Config, x: Value) -> Value:
    """One layer."""
    x = attention(g, c, x)
    h = g.rms_norm(x, "ffn_norm", eps=c.rms_norm_eps)
    gate = g.linear(h, "ffn_gate", c.intermediate_size, bias=c.mlp_bias)
    up = g.linear(h, "ffn_up", c.intermediate_size, bias=c.mlp_bias)
    return g.add(x, g.linear(g.swiglu(gate, up), "ffn_down", c.hidden_size, bias=c.mlp_bias))
