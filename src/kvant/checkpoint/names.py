"""What a weight is called in a Hugging Face folder, and what may be there besides the weights."""

from __future__ import annotations

from kvant.graph.ir import WeightRef

__all__ = ["HF_NAMES", "hf_name", "is_buffer", "is_computed"]

#: Role to module path, for all architectures so far. A new role is one line here.
HF_NAMES: dict[str, str] = {
    "token_embd": "model.embed_tokens",
    "attn_norm": "model.layers.{layer}.input_layernorm",
    "attn_q": "model.layers.{layer}.self_attn.q_proj",
    "attn_k": "model.layers.{layer}.self_attn.k_proj",
    "attn_v": "model.layers.{layer}.self_attn.v_proj",
    "attn_output": "model.layers.{layer}.self_attn.o_proj",
    "attn_q_norm": "model.layers.{layer}.self_attn.q_norm",
    "attn_k_norm": "model.layers.{layer}.self_attn.k_norm",
    "ffn_norm": "model.layers.{layer}.post_attention_layernorm",
    "ffn_gate": "model.layers.{layer}.mlp.gate_proj",
    "ffn_up": "model.layers.{layer}.mlp.up_proj",
    "ffn_down": "model.layers.{layer}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def hf_name(ref: WeightRef) -> str:
    """The Hugging Face name of a weight: ``model.layers.0.self_attn.q_proj.weight``."""
    return f"{HF_NAMES[ref.role].format(layer=ref.layer)}.{ref.part}"


def is_buffer(name: str) -> bool:
    """Whether a tensor only repeats what the config says.

    Early checkpoints stored the rope's frequencies (``inv_freq``), which follow from its base.
    """
    return name.endswith(".rotary_emb.inv_freq")


def is_computed(name: str) -> bool:
    """Whether transformers would put a tensor of this name into the computation of the logits.

    Everything under ``model`` and ``lm_head`` is a part of the causal language model: a bias or
    norm there that the graph lacks means that it is another model. Heads for other tasks
    (``score.weight``, ``v_head.…``) have other prefixes.
    """
    return name.startswith(("model.", "lm_head.")) and not is_buffer(name)
