"""The model of the demo: a Llama or Qwen3 decoder, sampling, and the Hugging Face folder."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as fn

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Everything that decides the size and the flavour of a model."""

    hidden: int = 256
    ffn: int = 768
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    vocab: int = 4096
    positions: int = 1024
    theta: float = 10000.0
    eps: float = 1e-5
    qwen3: bool = False

    def config(self, eos: int) -> dict[str, object]:
        """Return the complete Hugging Face ``config.json``."""
        common: dict[str, object] = {
            "architectures": ["Qwen3ForCausalLM" if self.qwen3 else "LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": eos,
            "eos_token_id": eos,
            "pad_token_id": eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.ffn,
            "max_position_embeddings": self.positions,
            "model_type": "qwen3" if self.qwen3 else "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.eps,
            "rope_scaling": None,
            "rope_theta": self.theta,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab,
        }
        if self.qwen3:
            extra = {"max_window_layers": self.layers, "sliding_window": None}
            return common | extra | {"use_sliding_window": False}
        return common | {"mlp_bias": False, "pretraining_tp": 1}


PRESETS = {
    "demo": Shape(),
    "bench": Shape(512, 1024, 4, 8, 4, theta=1000000.0, eps=1e-6, qwen3=True),
}


def linear(fan_in: int, fan_out: int) -> nn.Linear:
    """Return a linear map without bias."""
    return nn.Linear(fan_in, fan_out, bias=False)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions (HF half-split order)."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.q_proj = linear(s.hidden, s.heads * s.head_dim)
        self.k_proj = linear(s.hidden, s.kv_heads * s.head_dim)
        self.v_proj = linear(s.hidden, s.kv_heads * s.head_dim)
        self.o_proj = linear(s.heads * s.head_dim, s.hidden)
        if s.qwen3:
            self.q_norm = nn.RMSNorm(s.head_dim, s.eps)
            self.k_norm = nn.RMSNorm(s.head_dim, s.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend within the sequence: (batch, time, hidden) to the same shape."""
        b, t, _ = x.shape
        q, k, v = (
            p(x).view(b, t, -1, self.s.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.s.qwen3:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        group = self.s.heads // self.s.kv_heads
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = fn.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to (batch, time, heads, head_dim)."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Mlp(nn.Module):
    """SwiGLU feed-forward block."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = linear(s.hidden, s.ffn)
        self.up_proj = linear(s.hidden, s.ffn)
        self.down_proj = linear(s.ffn, s.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``down(silu(gate(x)) * up(x))``."""
        return self.down_proj(fn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(s.hidden, s.eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden, s.eps)
        self.mlp = Mlp(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Run attention and the feed-forward block with residuals."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    """Decoder-only language model with tied embeddings."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        self.layers = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.hidden, s.eps)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * s.layers) if out else 0.02)
        freq = s.theta ** (-torch.arange(0, s.head_dim, 2).double() / s.head_dim)
        angle = torch.outer(torch.arange(s.positions).double(), freq)[:, None, :]
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits for every position."""
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return fn.linear(self.norm(x), self.embed_tokens.weight)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats a token."""
        return fn.cross_entropy(self(ids).flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def generate(model: Model, tok: Tokenizer, prompt: str, count: int = 80, seed: int = 0) -> str:
    """Sample a continuation (temperature 0.7, the 40 likeliest tokens)."""
    gen = torch.Generator().manual_seed(seed)
    ids = tok.encode(prompt).ids
    for _ in range(count):
        logits = model(torch.tensor([ids[-1000:]]))[0, -1].float()
        top = torch.topk(logits / 0.7, 40)
        pick = int(top.indices[torch.multinomial(top.values.softmax(-1), 1, generator=gen)])
        if pick in (tok.token_to_id(SPECIALS[0]), tok.token_to_id(SPECIALS[2])):
            break
        ids.append(pick)
    return tok.decode(ids)


def export(model: Model, s: Shape, tok: Tokenizer, out: Path) -> None:
    """Write the Hugging Face folder; every file is replaced atomically, weights last."""
    out.mkdir(parents=True, exist_ok=True)
    eos, _, im_end = (tok.token_to_id(t) for t in SPECIALS)
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = {tok.token_to_id(t): {"content": t, **flags, "special": True} for t in SPECIALS}
    names: dict[str, object] = dict.fromkeys(("bos_token", "eos_token", "pad_token"), SPECIALS[0])
    names["additional_special_tokens"] = list(SPECIALS[1:])
    tokenizer_config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        **names,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": s.positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {"do_sample": True, "temperature": 0.7, "top_k": 40}
    ids = {"bos_token_id": eos, "eos_token_id": [eos, im_end], "pad_token_id": eos}
    files = {
        "config.json": s.config(eos),
        "generation_config.json": ids | generation,
        "special_tokens_map.json": names,
        "tokenizer_config.json": tokenizer_config,
    }
    texts = {k: json.dumps(v, indent=2, ensure_ascii=False) + "\n" for k, v in files.items()}
    for name, text in (texts | {"tokenizer.json": tok.to_str(pretty=True)}).items():
        (out / f".{name}.tmp").write_text(text, "utf-8")
        (out / f".{name}.tmp").replace(out / name)
    temporary = out / ".model.tmp"
    state = {f"model.{k}": v.bfloat16().contiguous() for k, v in model.state_dict().items()}
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)
    temporary.replace(out / "model.safetensors")
