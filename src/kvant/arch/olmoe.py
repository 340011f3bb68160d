"""OLMoE: experts whose shares are used as they are, queries and keys normed whole.

Source: Muennighoff et al., arXiv 2409.02060.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch._config import check_heads
from kvant.arch._experts import ExpertFields
from kvant.arch._fields import derived, switch
from kvant.errors import UnsupportedError
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("OlmoeForCausalLM",)
GGUF_ROWS = "half"


@dataclass(frozen=True, kw_only=True)
class Config(ExpertFields):
    """OLMoE's config; ``intermediate_size`` is the width of an expert."""

    FIXED: ClassVar = {
        **ExpertFields.FIXED,
        **dict.fromkeys(("attention_bias", "tie_word_embeddings"), (False, None)),
        "clip_qkv": (None,),
    }

    tie_word_embeddings: bool = derived(lambda done: False)
    norm_topk_prob: bool = switch(
        "norm_topk_prob", "expert_weights_norm", hf_default=False, gguf_default=False
    )

    def check(self, where: str) -> None:
        """Also refuse what GGUF's olmoe has no place for: shared keys, and shares that add up."""
        super().check(where)
        check_heads(self, where)
        if self.num_key_value_heads != self.num_attention_heads or self.norm_topk_prob:
            raise UnsupportedError(
                f"{where}: expected a key-value head for each of {self.num_attention_heads} heads "
                f"and 'norm_topk_prob' false, got {self.num_key_value_heads} and "
                f"{str(self.norm_topk_prob).lower()}. GGUF's olmoe has no place for anything else."
            )


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
    n, heads, eps = c.hidden_size, c.num_attention_heads, c.rms_norm_eps

    h = g.rms_norm(x, "attn_norm", eps=eps)
    q = c.rope.turn(g, g.rms_norm(g.linear(h, "attn_q", n), "attn_q_norm", eps=eps), heads)
    k = c.rope.turn(g, g.rms_norm(g.linear(h, "attn_k", n), "attn_k_norm", eps=eps), heads)
    h = g.attention(q, k, g.linear(h, "attn_v", n), heads=heads, kv_heads=heads)
    x = g.add(x, g.linear(h, "attn_output", n))

    h = g.rms_norm(x, "ffn_norm", eps=eps)
    experts, used = c.num_experts, c.num_experts_per_tok
    return g.add(
        x, g.moe(h, experts=experts, used=used, inner=c.intermediate_size, normalise=False)
    )
