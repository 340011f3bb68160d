"""Memory and speed of a variant, before it exists.

Memory is what kvant's engine takes: weights in panels of sixteen rows, the whole cache, buffers of
a step, and the process with its tokenizer (`bench/memory_prediction.py` holds this against the
engine's measured peak). Generation is bound by reading the weights and the cache once a token,
prompts by arithmetic; shares of both limits are those the engine was measured at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from kvant import _core
from kvant.checkpoint import Checkpoint
from kvant.devices.knowledge import knowledge
from kvant.devices.profiles import Device
from kvant.evidence.sizes import SizedTensor
from kvant.graph.ops import Attention, Embedding, Linear

__all__ = ["Memory", "Prediction", "SpeedRange", "Variant", "predict"]

_PANEL_ROWS = 16
_KV_TYPES = {"f16": 0, "q8_0": 1}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes a running model takes."""

    weights: int
    kv: int
    compute: int
    process: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.kv + self.compute + self.process

    def to_json(self) -> dict[str, int]:
        """As plain data."""
        return {
            "weights": self.weights,
            "kv": self.kv,
            "compute": self.compute,
            "process": self.process,
            "total": self.total,
        }


@dataclass(frozen=True, slots=True)
class SpeedRange:
    """Tokens a second, from and to: an estimate, not a measurement."""

    low: float
    high: float

    def to_json(self) -> list[float]:
        """As plain data."""
        return [self.low, self.high]


@dataclass(frozen=True, slots=True)
class Variant:
    """What a file of a model would be, or is.

    ``packings`` are weights multiplied for each token, by packing; ``panel_bytes`` what they
    take in memory, ``read_bytes`` what is read of them for each token.
    """

    recipe: str
    file_bytes: int
    bpw: float
    packings: Mapping[str, int]
    panel_bytes: int
    read_bytes: int

    @classmethod
    def of(
        cls,
        recipe: str,
        checkpoint: Checkpoint,
        tensors: Mapping[str, SizedTensor],
        file_bytes: int,
    ) -> Variant:
        """A model with its tensors in these packings, by canonical name."""
        packings: Counter[str] = Counter()
        panels: dict[str, int] = {}
        read: dict[str, int] = {}
        for node in checkpoint.graph.nodes:
            if isinstance(node.op, Embedding):  # a row a token, left in the file
                continue
            for ref in node.op.weights:
                tensor = tensors[ref.name]
                if ref.name not in read and len(tensor.shape) > 1:
                    packings[tensor.type.name] += math.prod(tensor.shape)
                rows = math.prod(tensor.shape[:-1])
                full = -(-rows // _PANEL_ROWS) * _PANEL_ROWS if rows > 1 else rows
                panels[ref.name] = tensor.nbytes * full // rows
                read[ref.name] = tensor.nbytes
        weights = sum(math.prod(t.shape) for t in tensors.values())
        bits = 8 * sum(t.nbytes for t in tensors.values())
        return cls(
            recipe,
            file_bytes,
            bits / weights,
            dict(packings),
            sum(panels.values()),
            sum(read.values()),
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """What to expect of a variant; speeds are None where nothing is known to tell them from."""

    variant: Variant
    memory: Memory
    generation: SpeedRange | None
    prompt: SpeedRange | None

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        v = self.variant
        return {
            "recipe": v.recipe,
            "bytes": v.file_bytes,
            "bpw": v.bpw,
            "memory": self.memory.to_json(),
            "generation": None if self.generation is None else self.generation.to_json(),
            "prompt": None if self.prompt is None else self.prompt.to_json(),
        }


def predict(
    variant: Variant,
    checkpoint: Checkpoint,
    *,
    context: int,
    threads: int,
    device: Device | None = None,
    kv_type: str = "f16",
) -> Prediction:
    """Predict memory for a full context, and speed on ``device`` in the middle of it.

    Args:
        variant: the file.
        checkpoint: its model, for its graph and vocabulary.
        context: tokens of keys and values that are kept.
        threads: of the engine.
        device: where it runs; without one no speed is told.
        kv_type: ``f16`` or ``q8_0``.
    """
    k = knowledge()["memory"]
    block = sum(
        _core.kv_block_bytes(s.heads, s.head_dim, _KV_TYPES[kv_type])
        for s in checkpoint.graph.states
    )
    memory = Memory(
        weights=variant.panel_bytes,
        kv=-(-context // _core.KV_BLOCK) * block,
        compute=_buffers(checkpoint, k) + threads * k["bytes_per_thread"],
        process=k["interpreter_bytes"]
        + k["base_bytes"]
        + checkpoint.config.vocab_size * k["bytes_per_token_of_vocabulary"],
    )
    if device is None:
        return Prediction(variant, memory, None, None)
    prompt_share, memory_share = _shares(variant)
    moved = variant.read_bytes + context / 2 * block / _core.KV_BLOCK
    fastest = device.bandwidth * memory_share / moved
    generation = SpeedRange(fastest * device.achieved[0], fastest * device.achieved[1])
    prompt = None
    if device.peak:
        rate = device.peak * prompt_share / (2 * sum(variant.packings.values()))
        prompt = SpeedRange(rate * 0.6, rate)  # few devices keep their clock under load
    return Prediction(variant, memory, generation, prompt)


def _buffers(checkpoint: Checkpoint, k: dict[str, float]) -> int:
    """Bytes of the values inside a layer, which all layers share, for a step of tokens."""
    hidden = checkpoint.config.hidden_size
    layer = [
        node.result.width
        for node in checkpoint.graph.nodes
        if node.layer == 0 and isinstance(node.op, (Linear, Attention))
    ]
    # Two linears of a layer add to the stream, which is a buffer of its own.
    width = max(hidden, sum(layer) - hidden)
    tokens = max(8, min(int(k["step_tokens"]), checkpoint.config.max_position_embeddings))
    return int(tokens * width * 4 * k["buffers"])


def _shares(variant: Variant) -> tuple[float, float]:
    """Shares of the arithmetic peak and of bandwidth, over the packings by number of weights."""
    engine = knowledge()["engine"]
    total = sum(variant.packings.values())
    found = [
        (count / total, engine["shares"].get(name, engine["other"]))
        for name, count in variant.packings.items()
    ]
    return sum(w * s[0] for w, s in found), sum(w * s[1] for w, s in found)
