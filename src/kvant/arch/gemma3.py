"""Gemma 3, text only: five of six layers slide, with a rope of their own; queries and keys normed.

Norms multiply with one more than Hugging Face's files say (``checkpoint/names.py``).
Source: Gemma Team, arXiv 2503.19786.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch._config import DecoderConfig
from kvant.arch._fields import flag, real
from kvant.arch._gemma import check_query_scalar, query_scalar
from kvant.arch._rope import Rope, local_rope_field, rope_field
from kvant.arch._windows import Windows, window_field
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_TYPE = "gemma3_text"
HF_CLASSES = ("Gemma3ForCausalLM",)
GGUF_ROWS = "half"
#: Layers of the largest model, whose queries are scaled in another way.
_LARGEST = 62


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """Gemma 3's config of the language model; only layers that see everything are stretched."""

    FIXED: ClassVar = {
        "hidden_activation": ("gelu_pytorch_tanh", None),
        "hidden_act": ("gelu_pytorch_tanh", None),
        "attention_bias": (False, None),
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": (False, None),
    }
    STATED: ClassVar = frozenset({"head_dim", "sliding_window"})

    tie_word_embeddings: bool = flag(
        "tie_word_embeddings", tensor="output.weight", present=False, default=True
    )
    rope: Rope = rope_field("linear", theta=1e6)  # noqa: RUF009 - a field, not a value
    local_rope: Rope = local_rope_field()  # noqa: RUF009
    windows: Windows = window_field(every=6)  # noqa: RUF009
    query_pre_attn_scalar: float = query_scalar(largest=_LARGEST)
    final_logit_softcapping: float = real(
        "final_logit_softcapping", "final_logit_softcapping", above=-1, most=1e6, none=0.0
    )

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
    x = g.linear(x, "token_embd" if c.tie_word_embeddings else "output", c.vocab_size)
    g.soft_cap(x, c.final_logit_softcapping)
    return g


def block(g: Graph, c: Config, x: Value, window: int) -> Value:
    """One layer."""
    nq, nkv, eps, n = c.num_attention_heads, c.num_key_value_heads, c.rms_norm_eps, c.head_dim
    rope, scale = c.local_rope if window else c.rope, c.query_pre_attn_scalar**-0.5

    h = g.rms_norm(x, "attn_norm", eps=eps)
    q = g.rms_norm(g.linear(h, "attn_q", nq * n), "attn_q_norm", eps=eps, groups=nq)
    k = g.rms_norm(g.linear(h, "attn_k", nkv * n), "attn_k_norm", eps=eps, groups=nkv)
    v = g.linear(h, "attn_v", nkv * n)
    q, k = rope.turn(g, q, nq), rope.turn(g, k, nkv)
    h = g.attention(q, k, v, heads=nq, kv_heads=nkv, scale=scale, window=window)
    h = g.linear(h, "attn_output", c.hidden_size)
    x = g.add(x, g.rms_norm(h, "post_attention_norm", eps=eps))

    h = g.rms_norm(x, "ffn_norm", eps=eps)
    gate = g.linear(h, "ffn_gate", c.intermediate_size)
    h = g.geglu(gate, g.linear(h, "ffn_up", c.intermediate_size))
    h = g.linear(h, "ffn_down", c.hidden_size)
    return g.add(x, g.rms_norm(h, "post_ffw_norm", eps=eps))
