"""Mixtral 8x7B and 8x22B: Llama whose feed-forward is a mixture of experts.

GGUF calls it ``llama`` as well; the number of experts tells them apart.
Source: Jiang et al., arXiv 2401.04088.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvant.arch import llama
from kvant.arch._experts import ExpertFields
from kvant.arch._rope import Rope, rope_field
from kvant.files.gguf import GgufFile
from kvant.graph.build import Graph

HF_CLASSES = ("MixtralForCausalLM",)
GGUF_NAME = "llama"
GGUF_ROWS = "interleaved"


def claims(file: GgufFile) -> bool:
    """Whether a GGUF file that says ``llama`` is one of these."""
    return bool(file.get_int("llama.expert_count", 0))


@dataclass(frozen=True, kw_only=True)
class Config(ExpertFields, llama.Config):
    """Llama's config with experts; ``intermediate_size`` is the width of one. No window."""

    FIXED: ClassVar = {
        **llama.Config.FIXED,
        **dict.fromkeys(("attention_bias", "mlp_bias"), (False, None)),
        "sliding_window": (None,),
    }
    UNUSED: ClassVar = frozenset({"router_jitter_noise"})  # of training
    STATED: ClassVar = frozenset({"num_key_value_heads"})

    rope: Rope = rope_field("linear", theta=1e6)  # noqa: RUF009 - a field, not a value


def trace(c: Config) -> Graph:
    """The whole model: tokens to logits."""
    g = Graph()
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    for _ in g.layers(c.num_hidden_layers):
        x = llama.attention(g, c, x)
        h = g.rms_norm(x, "ffn_norm", eps=c.rms_norm_eps)
        experts, used = c.num_experts, c.num_experts_per_tok
        x = g.add(x, g.moe(h, experts=experts, used=used, inner=c.intermediate_size))
    x = g.rms_norm(x, "output_norm", eps=c.rms_norm_eps)
    g.linear(x, "token_embd" if c.tie_word_embeddings else "output", c.vocab_size)
    return g
