"""What a weight is called in a Hugging Face folder, and what may be there besides the weights."""

from __future__ import annotations

from kvant.graph.ir import WeightRef

__all__ = [
    "FUSED_EXPERTS",
    "HF_NAMES",
    "HF_NAMES_OF",
    "hf_name",
    "hf_parts",
    "is_buffer",
    "is_computed",
]

#: Role to module path, for most architectures. A new role is one line here.
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
    "ffn_gate_inp": "model.layers.{layer}.mlp.gate",
    "ffn_gate_exps": "model.layers.{layer}.mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "model.layers.{layer}.mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "model.layers.{layer}.mlp.experts.{expert}.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}


#: The same for roles that an architecture calls differently.
HF_NAMES_OF: dict[str, dict[str, str]] = {
    "mixtral": {
        "ffn_gate_inp": "model.layers.{layer}.block_sparse_moe.gate",
        "ffn_gate_exps": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1",
        "ffn_up_exps": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3",
        "ffn_down_exps": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2",
    },
}

#: Experts as transformers 5 holds them, where a checkpoint is written so: role to the name of one
#: tensor [experts, n x rows, columns], n, and which of the n.
FUSED_EXPERTS: dict[str, tuple[str, int, int]] = {
    "ffn_gate_exps": ("model.layers.{layer}.mlp.experts.gate_up_proj", 2, 0),
    "ffn_up_exps": ("model.layers.{layer}.mlp.experts.gate_up_proj", 2, 1),
    "ffn_down_exps": ("model.layers.{layer}.mlp.experts.down_proj", 1, 0),
}


def hf_parts(ref: WeightRef, architecture: str) -> tuple[str, ...]:
    """The Hugging Face names of a weight's parts: one of a matrix, one an expert of a stack."""
    path = HF_NAMES_OF.get(architecture, {}).get(ref.role) or HF_NAMES[ref.role]
    experts = ref.shape[0] if "{expert}" in path else 1
    return tuple(
        f"{path.format(layer=ref.layer, expert=expert)}.{ref.part}" for expert in range(experts)
    )


def hf_name(ref: WeightRef, architecture: str = "") -> str:
    """The Hugging Face name of a weight: ``model.layers.0.self_attn.q_proj.weight``.

    Of a stack of experts, that of the first.
    """
    return hf_parts(ref, architecture)[0]


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
