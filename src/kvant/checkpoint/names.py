"""What a weight is called in a Hugging Face folder, and what may be there besides the weights."""

from __future__ import annotations

from typing import Literal

from kvant.graph.ir import WeightRef

__all__ = [
    "FUSED_EXPERTS",
    "HF_NAMES",
    "HF_NAMES_OF",
    "HF_VALUES_OF",
    "MLX_EXPERTS",
    "HfValues",
    "hf_name",
    "hf_old_name",
    "hf_parts",
    "hf_prefix",
    "hf_values",
    "is_aside",
    "is_buffer",
    "is_computed",
]

HfValues = Literal["as they are", "one less", "transposed"]
"""How Hugging Face's numbers of a weight differ from the canonical ones, which are GGUF's: a norm's
gains less one, or a matrix [inputs, outputs]."""

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


_NORMS_AROUND = {
    "post_attention_norm": "model.layers.{layer}.post_attention_layernorm",
    "ffn_norm": "model.layers.{layer}.pre_feedforward_layernorm",
    "post_ffw_norm": "model.layers.{layer}.post_feedforward_layernorm",
}

#: The same for roles that an architecture calls differently.
HF_NAMES_OF: dict[str, dict[str, str]] = {
    "bert": {
        "token_embd": "bert.embeddings.word_embeddings",
        "token_types": "bert.embeddings.token_type_embeddings",
        "position_embd": "bert.embeddings.position_embeddings",
        "token_embd_norm": "bert.embeddings.LayerNorm",
        "attn_q": "bert.encoder.layer.{layer}.attention.self.query",
        "attn_k": "bert.encoder.layer.{layer}.attention.self.key",
        "attn_v": "bert.encoder.layer.{layer}.attention.self.value",
        "attn_output": "bert.encoder.layer.{layer}.attention.output.dense",
        "attn_output_norm": "bert.encoder.layer.{layer}.attention.output.LayerNorm",
        "ffn_up": "bert.encoder.layer.{layer}.intermediate.dense",
        "ffn_down": "bert.encoder.layer.{layer}.output.dense",
        "layer_output_norm": "bert.encoder.layer.{layer}.output.LayerNorm",
    },
    "gemma2": _NORMS_AROUND,
    "gemma3": _NORMS_AROUND,
    "gpt2": {
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "attn_norm": "transformer.h.{layer}.ln_1",
        "attn_qkv": "transformer.h.{layer}.attn.c_attn",
        "attn_output": "transformer.h.{layer}.attn.c_proj",
        "ffn_norm": "transformer.h.{layer}.ln_2",
        "ffn_up": "transformer.h.{layer}.mlp.c_fc",
        "ffn_down": "transformer.h.{layer}.mlp.c_proj",
        "output_norm": "transformer.ln_f",
    },
    "olmo2": _NORMS_AROUND,
    "phi3": {
        "attn_qkv": "model.layers.{layer}.self_attn.qkv_proj",
        "ffn_up": "model.layers.{layer}.mlp.gate_up_proj",
    },
    "starcoder2": {
        "ffn_up": "model.layers.{layer}.mlp.c_fc",
        "ffn_down": "model.layers.{layer}.mlp.c_proj",
    },
    "mixtral": {
        "ffn_gate_inp": "model.layers.{layer}.block_sparse_moe.gate",
        "ffn_gate_exps": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1",
        "ffn_up_exps": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3",
        "ffn_down_exps": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2",
    },
}

_CONV1D: dict[str, HfValues] = dict.fromkeys(
    ("attn_qkv", "attn_output", "ffn_up", "ffn_down"), "transposed"
)
_NORMS: dict[str, HfValues] = dict.fromkeys(
    (
        *("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "output_norm"),
        *("attn_q_norm", "attn_k_norm"),
    ),
    "one less",
)

#: Roles whose numbers an architecture has differently in Hugging Face's files.
HF_VALUES_OF: dict[str, dict[str, HfValues]] = {
    "gemma2": _NORMS,
    "gemma3": _NORMS,
    "gpt2": _CONV1D,
}

#: What an architecture's model has beside what is computed: BERT's pooler and heads for training.
_ASIDE: dict[str, tuple[str, ...]] = {"bert": ("pooler.", "cls.")}

#: How files of 2018 call the parts of a norm.
_OLD_PARTS = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

#: Experts as transformers 5 holds them, where a checkpoint is written so: role to the name of one
#: tensor [experts, n x rows, columns], n, and which of the n.
FUSED_EXPERTS: dict[str, tuple[str, int, int]] = {
    "ffn_gate_exps": ("model.layers.{layer}.mlp.experts.gate_up_proj", 2, 0),
    "ffn_up_exps": ("model.layers.{layer}.mlp.experts.gate_up_proj", 2, 1),
    "ffn_down_exps": ("model.layers.{layer}.mlp.experts.down_proj", 1, 0),
}


#: The same as mlx-lm holds them: role to the name of its matrix below ``switch_mlp``.
MLX_EXPERTS: dict[str, str] = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_down_exps": "down_proj",
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


def hf_prefix(architecture: str) -> str:
    """What the names of all weights but the head's begin with, and those of a bare model lack."""
    embedding = HF_NAMES_OF.get(architecture, {}).get("token_embd") or HF_NAMES["token_embd"]
    return embedding.partition(".")[0] + "."


def hf_values(ref: WeightRef, architecture: str) -> HfValues:
    """How Hugging Face has a weight's numbers."""
    if ref.part == "bias":
        return "as they are"
    return HF_VALUES_OF.get(architecture, {}).get(ref.role, "as they are")


def hf_old_name(name: str) -> str:
    """What the earliest files call a weight; the same name where nothing has changed."""
    for new, old in _OLD_PARTS.items():
        if name.endswith(new):
            return name.removesuffix(new) + old
    return name


def is_aside(name: str, architecture: str) -> bool:
    """Whether a tensor belongs to the published model and not to what is computed here."""
    own = name.removeprefix(hf_prefix(architecture))
    return own.startswith(_ASIDE.get(architecture, ()))


def is_buffer(name: str) -> bool:
    """Whether a tensor only repeats what the config says.

    Early checkpoints stored the rope's frequencies (``inv_freq``), which follow from its base, or
    the causal mask and the number that masked scores get.
    """
    return name.endswith(
        (".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias", "embeddings.position_ids")
    )


def is_computed(name: str, architecture: str = "") -> bool:
    """Whether transformers would put a tensor of this name into the computation of the logits.

    Everything under ``model`` (``transformer``) and ``lm_head`` is a part of the causal language
    model: a bias or norm there that the graph lacks means that it is another model. Heads for other
    tasks (``score.weight``, ``v_head.…``) have other prefixes.
    """
    named = name.startswith((hf_prefix(architecture), "lm_head."))
    return named and not is_buffer(name) and not is_aside(name, architecture)
