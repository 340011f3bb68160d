"""What mlx-lm's models call weights, and which architectures it has.

Source: mlx-lm's ``models/*.py``: the attributes of its modules, and what ``sanitize`` makes of
Hugging Face's names.
"""

from __future__ import annotations

from dataclasses import replace

from kvant.checkpoint import Checkpoint
from kvant.checkpoint.names import MLX_EXPERTS, hf_name, hf_values
from kvant.errors import UnsupportedError
from kvant.export.pieces import Piece, hf_pieces

__all__ = ["ARCHITECTURES", "check_architecture", "mlx_pieces"]

ARCHITECTURES = frozenset(
    (
        *("gemma2", "gemma3", "gpt2", "granite", "llama", "mistral", "mixtral", "olmo2", "olmoe"),
        *("phi3", "qwen2", "qwen3", "qwen3moe", "smollm3", "starcoder2"),
    )
)
"""Those of ours that mlx-lm computes."""


def check_architecture(checkpoint: Checkpoint) -> None:
    """Refuse what mlx-lm does not compute.

    Raises:
        UnsupportedError: names the architecture.
    """
    name = checkpoint.architecture.name
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            f"{checkpoint.path}: mlx-lm computes no {name} models, expected one of "
            f"{', '.join(sorted(ARCHITECTURES))}. Choose another target, such as gguf or onnx."
        )


def mlx_pieces(checkpoint: Checkpoint) -> list[Piece]:
    """Every weight as mlx-lm's model has it, in the graph's order; experts are stacked."""
    arch = checkpoint.architecture.name
    found = [piece for piece in hf_pieces(checkpoint) if piece.expert is None]
    plain = [_renamed(piece, checkpoint) for piece in found]
    stacks = []
    for name, weight in checkpoint.weights.items():
        ref = checkpoint.graph.weights[name]
        if len(ref.shape) == 3:
            block = hf_name(ref, arch).partition(".experts.")[0]
            path = f"{block}.switch_mlp.{MLX_EXPERTS[ref.role]}.weight"
            stacks.append(Piece(path, weight, ref.role, ref.layer))
    order = {name: at for at, name in enumerate(checkpoint.weights)}
    return sorted([*plain, *stacks], key=lambda piece: order[piece.canonical])


def _renamed(piece: Piece, checkpoint: Checkpoint) -> Piece:
    if checkpoint.architecture.name != "gpt2":
        return piece
    ref = checkpoint.graph.weights[piece.canonical]
    name = "model." + piece.name.removeprefix("transformer.")
    if hf_values(ref, "gpt2") == "transposed":  # its linears are like everybody's
        return Piece(name, checkpoint.weights[piece.canonical], piece.role, piece.layer)
    return replace(piece, name=name)
