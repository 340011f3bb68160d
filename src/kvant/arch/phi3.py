"""Phi-3 and Phi-4: Llama with query, key and value in one projection, gate and up in another.

Models for long texts have two sets of rope factors (LongRoPE), some rotate heads in part.
llama.cpp does not look at the sliding window: it computes the same for texts that fit into it.
Source: Abdin et al., arXiv 2404.14219.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvant.arch._config import DecoderConfig, check_heads
from kvant.arch._rope import Rope, rope_field
from kvant.arch._windows import Windows, window_field
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("Phi3ForCausalLM",)
GGUF_ROWS = "half"


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """Phi-3's config; the window, where there is one, is that of all layers."""

    rope: Rope = rope_field("longrope", partial=True)  # noqa: RUF009 - a field, not a value
    windows: Windows = window_field()  # noqa: RUF009

    def check(self, where: str) -> None:
        """Also refuse heads that do not add up to the hidden size."""
        super().check(where)
        check_heads(self, where)


def trace(c: Config) -> Graph:
    """The whole model: tokens to logits."""
    g = Graph()
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    for layer in g.layers(c.num_hidden_layers):
        x = block(g, c, x, c.windows.of(layer))
    x = g.rms_norm(x, "output_norm", eps=c.rms_norm_eps)
    g.linear(x, "token_embd" if c.tie_word_embeddings else "output", c.vocab_size)
    return g


def block(g: Graph, c: Config, x: Value, window: int) -> Value:
    """One layer."""
    nq, nkv, inner = c.num_attention_heads, c.num_key_value_heads, c.intermediate_size
    wide, narrow = nq * c.head_dim, nkv * c.head_dim

    h = g.rms_norm(x, "attn_norm", eps=c.rms_norm_eps)
    q, k, v = g.split(g.linear(h, "attn_qkv", wide + 2 * narrow), wide, narrow, narrow)
    q, k = c.rope.turn(g, q, nq), c.rope.turn(g, k, nkv)
    h = g.attention(q, k, v, heads=nq, kv_heads=nkv, window=window)
    x = g.add(x, g.linear(h, "attn_output", c.hidden_size))

    h = g.rms_norm(x, "ffn_norm", eps=c.rms_norm_eps)
    gate, up = g.split(g.linear(h, "ffn_up", 2 * inner), inner, inner)
    return g.add(x, g.linear(g.swiglu(gate, up), "ffn_down", c.hidden_size))
