"""BERT and the encoders of texts made from it: MiniLM, BGE, E5, GTE and their like.

Every token sees the whole text; norms come after the sums. The graph ends in states.
Source: Devlin et al., arXiv 1810.04805.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch._config import ModelConfig, check_heads
from kvant.arch._fields import count, count_elsewhere, derived, real
from kvant.files.gguf import Value as GgufValue
from kvant.files.gguf import boolean, uint32
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
GGUF_ROWS = "half"

_KINDS = "tokenizer.ggml.token_type_count"


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """BERT's config. There is no output matrix, so none is apart from the embedding."""

    FIXED: ClassVar = {
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False, None),
        "add_cross_attention": (False, None),
    }
    GGUF_FIXED: ClassVar = {"attention.causal": (False,)}
    UNUSED: ClassVar = frozenset({"tie_word_embeddings"})

    num_key_value_heads: int = derived(lambda done: done["num_attention_heads"])
    head_dim: int = derived(lambda done: done["hidden_size"] // done["num_attention_heads"])
    max_position_embeddings: int = count("max_position_embeddings", "context_length", most=2**24)
    tie_word_embeddings: bool = derived(lambda done: True)
    norm_eps: float = real("layer_norm_eps", "attention.layer_norm_epsilon", above=0, most=0.1)
    type_vocab_size: int = count_elsewhere("type_vocab_size", _KINDS, most=2**10)

    def to_gguf(self, prefix: str) -> dict[str, GgufValue]:
        """Also that every token sees all, and the kinds of segments."""
        more = {f"{prefix}.attention.causal": boolean(False), _KINDS: uint32(self.type_vocab_size)}
        return {**super().to_gguf(prefix), **more}

    def check(self, where: str) -> None:
        """Also refuse heads that do not add up to the hidden size."""
        super().check(where)
        check_heads(self, where)


def trace(c: Config) -> Graph:
    """The whole model: tokens to states, all of the first kind of segment."""
    g, n = Graph(), c.hidden_size
    x = g.embedding("token_embd", c.vocab_size, n)
    x = g.add(x, g.row("token_types", c.type_vocab_size, n))
    x = g.add(x, g.positions("position_embd", c.max_position_embeddings, n))
    x = g.layer_norm(x, "token_embd_norm", eps=c.norm_eps)
    for _ in g.layers(c.num_hidden_layers):
        x = block(g, c, x)
    return g


def block(g: Graph, c: Config, x: Value) -> Value:
    """One layer."""
    n, heads = c.hidden_size, c.num_attention_heads

    q, k, v = (g.linear(x, role, n, bias=True) for role in ("attn_q", "attn_k", "attn_v"))
    h = g.attention(q, k, v, heads=heads, kv_heads=heads, causal=False)
    x = g.add(x, g.linear(h, "attn_output", n, bias=True))
    x = g.layer_norm(x, "attn_output_norm", eps=c.norm_eps)

    h = g.gelu(g.linear(x, "ffn_up", c.intermediate_size, bias=True), tanh=False)
    x = g.add(x, g.linear(h, "ffn_down", n, bias=True))
    return g.layer_norm(x, "layer_output_norm", eps=c.norm_eps)
