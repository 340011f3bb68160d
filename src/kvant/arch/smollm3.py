"""SmolLM 3: Llama in which every fourth layer knows no positions (NoPE).

Source: Bakouch et al., https://huggingface.co/blog/smollm3; Yang et al., arXiv 2501.18795.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from kvant.arch._config import DecoderConfig
from kvant.arch._fields import flag
from kvant.arch._rope import Rope, rope_field
from kvant.errors import UnsupportedError
from kvant.graph.build import Graph
from kvant.graph.ir import Value

HF_CLASSES = ("SmolLM3ForCausalLM",)
GGUF_ROWS = "interleaved"


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """SmolLM 3's config; windows must be off, and there are no biases."""

    FIXED: ClassVar = {
        **DecoderConfig.FIXED,
        "use_sliding_window": (False, None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
    }
    UNUSED: ClassVar = frozenset(
        {"sliding_window", "max_window_layers", "no_rope_layers", "no_rope_layer_interval"}
    )
    STATED: ClassVar = frozenset({"num_key_value_heads"})

    rope: Rope = rope_field("linear", theta=2e6)  # noqa: RUF009 - a field, not a value
    tie_word_embeddings: bool = flag(
        "tie_word_embeddings", tensor="output.weight", present=False, default=True
    )

    @classmethod
    def from_hf(cls, values: Mapping[str, object], where: str) -> tuple[Self, list[str]]:
        """Also refuse other layers without positions than GGUF's readers compute."""
        config, ignored = super().from_hf(values, where)
        usual = [int(config.turns(layer)) for layer in range(config.num_hidden_layers)]
        every, stated = values.get("no_rope_layer_interval"), values.get("no_rope_layers")
        if stated not in (None, usual) or (stated is None and every not in (None, 4)):
            raise UnsupportedError(
                f"{where}: 'no_rope_layers' should be 0 for every fourth layer and 1 for the "
                "others, got something else. GGUF has no place for it; kvant computes nothing else."
            )
        return config, ignored

    def turns(self, layer: int) -> bool:
        """Whether a layer is rotated."""
        return (layer + 1) % 4 != 0


def trace(c: Config) -> Graph:
    """The whole model: tokens to logits."""
    g = Graph()
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    for layer in g.layers(c.num_hidden_layers):
        x = block(g, c, x, c.turns(layer))
    x = g.rms_norm(x, "output_norm", eps=c.rms_norm_eps)
    g.linear(x, "token_embd" if c.tie_word_embeddings else "output", c.vocab_size)
    return g


def block(g: Graph, c: Config, x: Value, turns: bool) -> Value:
    """One layer."""
    nq, nkv = c.num_attention_heads, c.num_key_value_heads

    h = g.rms_norm(x, "attn_norm", eps=c.rms_norm_eps)
    q, k, v = (
        g.linear(h, role, heads * c.head_dim)
        for role, heads in (("attn_q", nq), ("attn_k", nkv), ("attn_v", nkv))
    )
    if turns:
        q, k = c.rope.turn(g, q, nq), c.rope.turn(g, k, nkv)
    h = g.attention(q, k, v, heads=nq, kv_heads=nkv)
    x = g.add(x, g.linear(h, "attn_output", c.hidden_size))

    h = g.rms_norm(x, "ffn_norm", eps=c.rms_norm_eps)
    gate = g.linear(h, "ffn_gate", c.intermediate_size)
    up = g.linear(h, "ffn_up", c.intermediate_size)
    return g.add(x, g.linear(g.swiglu(gate, up), "ffn_down", c.hidden_size))
