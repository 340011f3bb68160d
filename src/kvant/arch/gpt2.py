"""GPT-2: layer norms with biases, learned positions, query, key and value in one projection.

Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch._config import ModelConfig, check_heads
from kvant.arch._fields import count, derived, flag, real
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("GPT2LMHeadModel",)
GGUF_ROWS = "half"


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """GPT-2's config, whose keys are its own."""

    FIXED: ClassVar = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    UNUSED: ClassVar = frozenset({"reorder_and_upcast_attn", "summary_activation"})

    hidden_size: int = count("n_embd", "embedding_length", most=2**20)
    intermediate_size: int = count(
        "n_inner", "feed_forward_length", most=2**22, default=lambda done: 4 * done["hidden_size"]
    )
    num_hidden_layers: int = count("n_layer", "block_count", most=2**12)
    num_attention_heads: int = count("n_head", "attention.head_count", most=2**14)
    num_key_value_heads: int = derived(lambda done: done["num_attention_heads"])
    head_dim: int = derived(lambda done: done["hidden_size"] // done["num_attention_heads"])
    max_position_embeddings: int = count("n_positions", "context_length", most=2**24)
    tie_word_embeddings: bool = flag(
        "tie_word_embeddings", tensor="output.weight", present=False, default=True
    )
    norm_eps: float = real("layer_norm_epsilon", "attention.layer_norm_epsilon", above=0, most=0.1)

    def check(self, where: str) -> None:
        """Also refuse heads that do not add up to the hidden size."""
        super().check(where)
        check_heads(self, where)


def trace(c: Config) -> Graph:
    """The whole model: tokens to logits."""
    g = Graph()
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    x = g.add(x, g.positions("position_embd", c.max_position_embeddings, c.hidden_size))
    for _ in g.layers(c.num_hidden_layers):
        x = block(g, c, x)
    x = g.layer_norm(x, "output_norm", eps=c.norm_eps)
    g.linear(x, "token_embd" if c.tie_word_embeddings else "output", c.vocab_size)
    return g


def block(g: Graph, c: Config, x: Value) -> Value:
    """One layer."""
    n, heads = c.hidden_size, c.num_attention_heads

    h = g.layer_norm(x, "attn_norm", eps=c.norm_eps)
    q, k, v = g.split(g.linear(h, "attn_qkv", 3 * n, bias=True), n, n, n)
    h = g.attention(q, k, v, heads=heads, kv_heads=heads)
    x = g.add(x, g.linear(h, "attn_output", n, bias=True))

    h = g.layer_norm(x, "ffn_norm", eps=c.norm_eps)
    h = g.gelu(g.linear(h, "ffn_up", c.intermediate_size, bias=True), tanh=True)
    return g.add(x, g.linear(h, "ffn_down", n, bias=True))
