"""Qwen 3 with a mixture of experts in every layer: Qwen3-30B-A3B and its like.

Source: Yang et al., arXiv 2505.09388.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch import qwen3
from kvant.arch._experts import ExpertFields
from kvant.arch._fields import count, switch
from kvant.errors import UnsupportedError
from kvant.graph.build import Graph

HF_TYPE = "qwen3_moe"
HF_CLASSES = ("Qwen3MoeForCausalLM",)
GGUF_ROWS = "half"


@dataclass(frozen=True, kw_only=True)
class Config(ExpertFields, qwen3.Config):
    """Qwen3's config with experts; every layer has them, and the shares always add up to one."""

    FIXED: ClassVar = {
        **qwen3.Config.FIXED,
        "decoder_sparse_step": (1, None),
        "mlp_only_layers": ([], None),
    }
    STATED: ClassVar = frozenset({"num_key_value_heads"})

    moe_intermediate_size: int = count(
        "moe_intermediate_size", "expert_feed_forward_length", most=2**22
    )
    norm_topk_prob: bool = switch(
        "norm_topk_prob", "expert_weights_norm", hf_default=False, gguf_default=True
    )

    def check(self, where: str) -> None:
        """Also refuse shares that are not normalised: whoever runs GGUF's qwen3moe does that."""
        super().check(where)
        if not self.norm_topk_prob:
            raise UnsupportedError(
                f"{where}: 'norm_topk_prob' should be true (it counts as false where it is "
                "missing), got false. GGUF's qwen3moe has no place for anything else; correct the "
                "config if it is wrong."
            )


def trace(c: Config) -> Graph:
    """The whole model: tokens to logits."""
    g = Graph()
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    for _ in g.layers(c.num_hidden_layers):
        x = qwen3.attention(g, c, x)
        h = g.rms_norm(x, "ffn_norm", eps=c.rms_norm_eps)
        h = g.moe(
            h,
            experts=c.num_experts,
            used=c.num_experts_per_tok,
            inner=c.moe_intermediate_size,
            normalise=c.norm_topk_prob,
        )
        x = g.add(x, h)
    x = g.rms_norm(x, "output_norm", eps=c.rms_norm_eps)
    g.linear(x, "token_embd" if c.tie_word_embeddings else "output", c.vocab_size)
    return g
