"""OLMo 2: norms behind attention and feed-forward instead of before; queries and keys normed whole.

Source: OLMo Team, arXiv 2501.00656.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch._config import DecoderConfig, check_heads
from kvant.arch._fields import derived
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("Olmo2ForCausalLM",)
GGUF_ROWS = "half"


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """OLMo 2's config; GGUF's olmo2 has an output matrix of its own, and no biases."""

    FIXED: ClassVar = {
        **DecoderConfig.FIXED,
        "attention_bias": (False, None),
        "tie_word_embeddings": (False, None),
    }
    GGUF_FIXED: ClassVar = {"attention.sliding_window": (0,)}  # OLMo 3, which shares the name

    tie_word_embeddings: bool = derived(lambda done: False)

    def check(self, where: str) -> None:
        """Also refuse heads that do not add up to the hidden size."""
        super().check(where)
        check_heads(self, where)


def trace(c: Config) -> Graph:
    """The whole model: tokens to logits."""
    g = Graph()
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    for _ in g.layers(c.num_hidden_layers):
        x = block(g, c, x)
    x = g.rms_norm(x, "output_norm", eps=c.rms_norm_eps)
    g.linear(x, "output", c.vocab_size)
    return g


def block(g: Graph, c: Config, x: Value) -> Value:
    """One layer."""
    nq, nkv, eps = c.num_attention_heads, c.num_key_value_heads, c.rms_norm_eps

    q = g.rms_norm(g.linear(x, "attn_q", nq * c.head_dim), "attn_q_norm", eps=eps)
    k = g.rms_norm(g.linear(x, "attn_k", nkv * c.head_dim), "attn_k_norm", eps=eps)
    v = g.linear(x, "attn_v", nkv * c.head_dim)
    q, k = c.rope.turn(g, q, nq), c.rope.turn(g, k, nkv)
    h = g.linear(g.attention(q, k, v, heads=nq, kv_heads=nkv), "attn_output", c.hidden_size)
    x = g.add(x, g.rms_norm(h, "post_attention_norm", eps=eps))

    gate = g.linear(x, "ffn_gate", c.intermediate_size)
    h = g.swiglu(gate, g.linear(x, "ffn_up", c.intermediate_size))
    h = g.linear(h, "ffn_down", c.hidden_size)
    return g.add(x, g.rms_norm(h, "post_ffw_norm", eps=eps))
