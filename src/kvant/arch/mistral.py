"""Mistral 7B, Nemo, Small: Llama, in its first version with a sliding window.

GGUF calls it ``llama`` as well. The window has a key there too, which llama.cpp does not look at:
it computes the same for texts that fit into the window.
Source: Jiang et al., arXiv 2310.06825.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch._config import DecoderConfig
from kvant.arch._windows import Windows, window_field
from kvant.files.gguf import GgufFile
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("MistralForCausalLM",)
GGUF_NAME = "llama"
GGUF_ROWS = "interleaved"


def claims(file: GgufFile) -> bool:
    """Whether a GGUF file that says ``llama`` is one of these; without a window it need not be."""
    return bool(file.get_int("llama.attention.sliding_window", 0))


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """Llama's config with a window, and without biases."""

    STATED: ClassVar = frozenset({"num_key_value_heads"})

    windows: Windows = window_field(default=4096)  # noqa: RUF009 - a field, not a value


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
    nq, nkv = c.num_attention_heads, c.num_key_value_heads

    h = g.rms_norm(x, "attn_norm", eps=c.rms_norm_eps)
    q = c.rope.turn(g, g.linear(h, "attn_q", nq * c.head_dim), nq)
    k = c.rope.turn(g, g.linear(h, "attn_k", nkv * c.head_dim), nkv)
    v = g.linear(h, "attn_v", nkv * c.head_dim)
    h = g.attention(q, k, v, heads=nq, kv_heads=nkv, window=window)
    x = g.add(x, g.linear(h, "attn_output", c.hidden_size))

    h = g.rms_norm(x, "ffn_norm", eps=c.rms_norm_eps)
    gate = g.linear(h, "ffn_gate", c.intermediate_size)
    up = g.linear(h, "ffn_up", c.intermediate_size)
    return g.add(x, g.linear(g.swiglu(gate, up), "ffn_down", c.hidden_size))
