"""Gemma 2: every other layer slides, scores and logits are soft-capped, norms before and after.

Norms multiply with one more than Hugging Face's files say (``checkpoint/names.py``).
Source: Gemma Team, arXiv 2408.00118.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch._config import DecoderConfig
from kvant.arch._fields import derived
from kvant.arch._gemma import check_query_scalar, query_scalar, soft_cap
from kvant.arch._windows import Windows, window_field
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("Gemma2ForCausalLM",)
GGUF_ROWS = "half"
#: Layers of the largest model, whose queries are scaled in another way.
_LARGEST = 46


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """Gemma 2's config; the caps cannot be off in GGUF, nor the output matrix be its own."""

    FIXED: ClassVar = {
        "hidden_activation": ("gelu_pytorch_tanh", None),
        "hidden_act": ("gelu_pytorch_tanh", None),
        "attention_bias": (False, None),
        "tie_word_embeddings": (True,),
        "use_bidirectional_attention": (False, None),
    }
    STATED: ClassVar = frozenset(
        {"attn_logit_softcapping", "final_logit_softcapping", "head_dim", "sliding_window"}
    )

    tie_word_embeddings: bool = derived(lambda done: True)
    windows: Windows = window_field(every=2, gguf_default=4096)  # noqa: RUF009
    query_pre_attn_scalar: float = query_scalar(largest=_LARGEST)
    attn_logit_softcapping: float = soft_cap("attn_logit_softcapping", 50.0)
    final_logit_softcapping: float = soft_cap("final_logit_softcapping", 30.0)

    def check(self, where: str) -> None:
        """Also refuse a scale of the queries that GGUF has no place for."""
        super().check(where)
        check_query_scalar(self, self.query_pre_attn_scalar, _LARGEST, where)


def trace(c: Config) -> Graph:
    """The whole model: tokens to logits."""
    g = Graph()
    x = g.scale(g.embedding("token_embd", c.vocab_size, c.hidden_size), c.hidden_size**0.5)
    for layer in g.layers(c.num_hidden_layers):
        x = block(g, c, x, c.windows.of(layer))
    x = g.rms_norm(x, "output_norm", eps=c.rms_norm_eps)
    g.soft_cap(g.linear(x, "token_embd", c.vocab_size), c.final_logit_softcapping)
    return g


def block(g: Graph, c: Config, x: Value, window: int) -> Value:
    """One layer."""
    nq, nkv, eps = c.num_attention_heads, c.num_key_value_heads, c.rms_norm_eps
    scale, cap = c.query_pre_attn_scalar**-0.5, c.attn_logit_softcapping

    h = g.rms_norm(x, "attn_norm", eps=eps)
    q = c.rope.turn(g, g.linear(h, "attn_q", nq * c.head_dim), nq)
    k = c.rope.turn(g, g.linear(h, "attn_k", nkv * c.head_dim), nkv)
    v = g.linear(h, "attn_v", nkv * c.head_dim)
    h = g.attention(q, k, v, heads=nq, kv_heads=nkv, scale=scale, window=window, soft_cap=cap)
    h = g.linear(h, "attn_output", c.hidden_size)
    x = g.add(x, g.rms_norm(h, "post_attention_norm", eps=eps))

    h = g.rms_norm(x, "ffn_norm", eps=eps)
    gate = g.linear(h, "ffn_gate", c.intermediate_size)
    h = g.geglu(gate, g.linear(h, "ffn_up", c.intermediate_size))
    h = g.linear(h, "ffn_down", c.hidden_size)
    return g.add(x, g.rms_norm(h, "post_ffw_norm", eps=eps))
