"""Qwen 1.5, 2 and 2.5 (dense): Llama with biases on the query, key and value projections.

Source: Yang et al., arXiv 2407.10671.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch._config import DecoderConfig, check_heads
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("Qwen2ForCausalLM",)
GGUF_ROWS = "half"


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """Qwen2's config. Sliding windows must be off; the keys that describe them are then unused."""

    FIXED: ClassVar = {**DecoderConfig.FIXED, "use_sliding_window": (False, None)}
    UNUSED: ClassVar = frozenset({"sliding_window", "max_window_layers"})
    STATED: ClassVar = frozenset({"num_key_value_heads"})

    def check(self, where: str) -> None:
        """Also refuse heads that do not add up to the hidden size: GGUF's qwen2 has no such."""
        super().check(where)
        check_heads(self, where)


def trace(c: Config) -> Graph:
    """The whole model: tokens to logits."""
    g = Graph()
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    for _ in g.layers(c.num_hidden_layers):
        x = block(g, c, x)
    x = g.rms_norm(x, "output_norm", eps=c.rms_norm_eps)
    g.linear(x, "token_embd" if c.tie_word_embeddings else "output", c.vocab_size)
    return g


def block(g: Graph, c: Config, x: Value) -> Value:
    """One layer."""
    nq, nkv, r = c.num_attention_heads, c.num_key_value_heads, c.rope

    h = g.rms_norm(x, "attn_norm", eps=c.rms_norm_eps)
    q = g.linear(h, "attn_q", nq * c.head_dim, bias=True)
    k = g.linear(h, "attn_k", nkv * c.head_dim, bias=True)
    v = g.linear(h, "attn_v", nkv * c.head_dim, bias=True)
    q = g.rope(q, heads=nq, theta=r.theta, linear=r.linear)
    k = g.rope(k, heads=nkv, theta=r.theta, linear=r.linear)
    h = g.attention(q, k, v, heads=nq, kv_heads=nkv)
    x = g.add(x, g.linear(h, "attn_output", c.hidden_size))

    h = g.rms_norm(x, "ffn_norm", eps=c.rms_norm_eps)
    gate = g.linear(h, "ffn_gate", c.intermediate_size)
    up = g.linear(h, "ffn_up", c.intermediate_size)
    return g.add(x, g.linear(g.swiglu(gate, up), "ffn_down", c.hidden_size))
