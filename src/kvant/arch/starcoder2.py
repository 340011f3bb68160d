"""StarCoder 2: layer norms and biases everywhere, a plain feed-forward with gelu, rotated heads.

llama.cpp does not look at the sliding window: it computes the same for texts that fit into it.
Source: Lozhkov et al., arXiv 2402.19173.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch._config import ModelConfig, check_heads, check_turned
from kvant.arch._fields import flag, real
from kvant.arch._rope import Rope, rope_field
from kvant.arch._windows import Windows, window_field
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("Starcoder2ForCausalLM",)
GGUF_ROWS = "half"


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """StarCoder 2's config; GGUF's has all biases."""

    FIXED: ClassVar = {
        "hidden_act": ("gelu_pytorch_tanh",),
        "mlp_type": ("default",),
        "norm_type": ("layer_norm",),
        "use_bias": (True,),
    }
    STATED: ClassVar = frozenset({"num_key_value_heads"})

    tie_word_embeddings: bool = flag(
        "tie_word_embeddings", tensor="output.weight", present=False, default=True
    )
    norm_eps: float = real("norm_epsilon", "attention.layer_norm_epsilon", above=0, most=0.1)
    rope: Rope = rope_field("linear")  # noqa: RUF009 - a field, not a value
    windows: Windows = window_field()  # noqa: RUF009

    def check(self, where: str) -> None:
        """Also refuse heads that cannot be rotated or do not add up to the hidden size."""
        super().check(where)
        check_heads(self, where)
        check_turned(self.head_dim, where)


def trace(c: Config) -> Graph:
    """The whole model: tokens to logits."""
    g = Graph()
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    for layer in g.layers(c.num_hidden_layers):
        x = block(g, c, x, c.windows.of(layer))
    x = g.layer_norm(x, "output_norm", eps=c.norm_eps)
    g.linear(x, "token_embd" if c.tie_word_embeddings else "output", c.vocab_size)
    return g


def block(g: Graph, c: Config, x: Value, window: int) -> Value:
    """One layer."""
    nq, nkv = c.num_attention_heads, c.num_key_value_heads

    h = g.layer_norm(x, "attn_norm", eps=c.norm_eps)
    q = c.rope.turn(g, g.linear(h, "attn_q", nq * c.head_dim, bias=True), nq)
    k = c.rope.turn(g, g.linear(h, "attn_k", nkv * c.head_dim, bias=True), nkv)
    v = g.linear(h, "attn_v", nkv * c.head_dim, bias=True)
    h = g.attention(q, k, v, heads=nq, kv_heads=nkv, window=window)
    x = g.add(x, g.linear(h, "attn_output", c.hidden_size, bias=True))

    h = g.layer_norm(x, "ffn_norm", eps=c.norm_eps)
    h = g.gelu(g.linear(h, "ffn_up", c.intermediate_size, bias=True), tanh=True)
    return g.add(x, g.linear(h, "ffn_down", c.hidden_size, bias=True))
