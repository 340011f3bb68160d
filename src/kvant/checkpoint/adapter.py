"""A LoRA adapter merged into a model: W + s B A, computed when rows are read.

Source: Hu et al., arXiv 2106.09685, and PEFT's files: adapter_config.json and
adapter_model.safetensors, whose tensors are called ``base_model.model.<module>.lora_A.weight``
([rank, inputs]) and ``lora_B.weight`` ([outputs, rank]).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvant.checkpoint.checkpoint import Checkpoint
from kvant.checkpoint.names import hf_name
from kvant.checkpoint.weights import Rotary, Weight, rotary_row_order
from kvant.errors import FileFormatError, InputError, UnsupportedError
from kvant.files.config_json import read_json
from kvant.files.decoded import DecodedTensor
from kvant.files.safetensors_read import read_safetensors
from kvant.files.source import open_source, quote
from kvant.files.tensor import StoredTensor
from kvant.packing import dequantize
from kvant.packing.types import BY_NAME

__all__ = ["merge_adapter"]

_FLOATS = ("F32", "F16", "BF16")
F32 = npt.NDArray[np.float32]
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.[^.]+)??(\.weight)?")
#: Settings under which the delta is not s B A, or the base is not the model it is merged into.
_CHANGES = (
    "use_dora",
    "lora_bias",
    "layer_replication",
    "megatron_config",
    "trainable_token_indices",
)


@dataclass(frozen=True, slots=True)
class _Merged(DecodedTensor):
    """``base`` plus ``left @ right``; rows of ``left`` are in the base's order."""

    base: StoredTensor
    left: F32
    right: F32

    def decode(self, start: int, stop: int) -> F32:
        """See the base class."""
        with open_source(self.base.path) as (fd, _):
            rows = self.base.read_rows(fd, start, stop)
        found = dequantize(self.base.type.name, rows) + self.left[start:stop] @ self.right
        return np.asarray(found, np.float32)


def merge_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint with an adapter's changes in its weights. No file is written.

    Raises:
        InputError: the folder has no adapter.
        FileFormatError: its tensors do not fit this model, or one of a pair is missing.
        UnsupportedError: an adapter of another kind than plain LoRA.
    """
    config = _read_config(folder)
    tensors = read_safetensors(folder / _WEIGHTS).tensors
    by_module = {
        hf_name(ref, checkpoint.architecture.name).removesuffix(".weight"): ref.name
        for ref in checkpoint.graph.weights.values()
        if ref.name.endswith(".weight") and len(ref.shape) == 2
    }
    pairs, whole = _sorted_out(folder, tensors)
    weights = dict(checkpoint.weights)
    for module, parts in pairs.items():
        name = by_module.get(module)
        if name is None:
            raise _not_here(folder, module, by_module)
        weights[name] = _merged(folder, config, module, parts, weights[name], checkpoint)
    for full, tensor in whole.items():
        name = by_module.get(full.removesuffix(".weight"))
        if name is None or tensor.shape != weights[name].shape:
            raise _not_here(folder, full, by_module)
        old = weights[name].rotary
        rotary = None if old is None else Rotary(old.heads, "half")
        weights[name] = replace(weights[name], stored=tensor, rotary=rotary)
    note = f"The adapter in {folder.name} is merged into {len(pairs) + len(whole)} matrices."
    return replace(checkpoint, weights=weights, notes=(*checkpoint.notes, note))


def _read_config(folder: Path) -> Mapping[str, object]:
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).exists():
            raise InputError(
                f"{folder}: expected a LoRA adapter with {_CONFIG} and {_WEIGHTS}, got no {name}. "
                "Name the folder that PEFT saved."
            )
    config = read_json(folder / _CONFIG)
    where = folder / _CONFIG
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise UnsupportedError(
            f"{where}: 'peft_type' should be \"LORA\", got {quote(str(kind)[:40])}. Merge it with "
            "PEFT's merge_and_unload and save the result."
        )
    init = config.get("init_lora_weights")
    changed = [key for key in _CHANGES if config.get(key)]
    if isinstance(init, str) and init.split("_")[0] in ("pissa", "olora", "corda", "loftq"):
        changed.append("init_lora_weights")
    if changed:
        raise UnsupportedError(
            f"{where}: {changed[0]!r} is {quote(str(config[changed[0]])[:40])}, expected plain "
            "LoRA. Merge it with PEFT's merge_and_unload and save the result."
        )
    return config


Pairs = dict[str, dict[str, StoredTensor]]


def _sorted_out(
    folder: Path, tensors: Mapping[str, StoredTensor]
) -> tuple[Pairs, dict[str, StoredTensor]]:
    """Pairs by module, and weights that the adapter has whole (``modules_to_save``)."""
    pairs: Pairs = {}
    whole: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(_PREFIX)
        found = _PART.fullmatch(short)
        if found is None:
            whole[short.replace(".modules_to_save.default", "")] = tensor
            continue
        key = f"{'e' if found[2] else ''}{found[3]}"
        pairs.setdefault(found[1], {})[key] = tensor
    for module, parts in pairs.items():
        if set(parts) not in ({"A", "B"}, {"eA", "eB"}):
            raise FileFormatError(
                f"{folder / _WEIGHTS}: {quote(module)} should have lora_A and lora_B, got "
                f"{', '.join(sorted(t.name for t in parts.values()))[:200]}. Fetch it again."
            )
    if not pairs and not whole:
        raise FileFormatError(f"{folder / _WEIGHTS}: it has no tensors. Fetch the file again.")
    return pairs, whole


def _merged(
    folder: Path,
    config: Mapping[str, object],
    module: str,
    parts: Mapping[str, StoredTensor],
    weight: Weight,
    checkpoint: Checkpoint,
) -> Weight:
    embedding = "eA" in parts
    a, b = (_floats(parts["eA" if embedding else "A"]), _floats(parts["eB" if embedding else "B"]))
    if embedding and checkpoint.config.tie_word_embeddings:
        raise UnsupportedError(
            f"{folder}: it changes the embedding, which is this model's output matrix too; merged "
            "it would change both. Merge it with PEFT's merge_and_unload and save the result."
        )
    left, right = (a.T, b.T) if embedding else (b, a)
    outputs, inputs = weight.shape
    rank = left.shape[-1]
    if left.shape != (outputs, rank) or right.shape != (rank, inputs):
        raise FileFormatError(
            f"{folder / _WEIGHTS}: {quote(module)} should change a matrix of {[outputs, inputs]}, "
            f"its parts are {list(a.shape)} and {list(b.shape)}. The adapter belongs to another "
            "model."
        )
    left = (left * np.float32(_scale(folder, config, module, rank))).astype(np.float32)
    if weight.rotary is not None and weight.rotary.order != "half":
        left = left[rotary_row_order(outputs, weight.rotary.heads, "half", weight.rotary.order)]
    base = weight.stored
    stored = _Merged(
        name=base.name,
        type=BY_NAME["F32"],
        shape=base.shape,
        path=base.path,
        offset=base.offset,
        origin="F32" if base.stored_as in _FLOATS else base.stored_as,
        base=base,
        left=np.ascontiguousarray(left),
        right=np.ascontiguousarray(right, np.float32),
    )
    return replace(weight, stored=stored)


def _floats(tensor: StoredTensor) -> F32:
    if len(tensor.shape) != 2:
        raise FileFormatError(
            f"{tensor.path}: tensor {quote(tensor.name)} should be a matrix, got "
            f"{list(tensor.shape)}. Fetch the file again."
        )
    values = dequantize(tensor.type.name, tensor.read()).reshape(tensor.shape)
    if not np.isfinite(values).all():
        raise FileFormatError(
            f"{tensor.path}: tensor {quote(tensor.name)} holds NaN or infinity. Get another one."
        )
    return values


def _scale(folder: Path, config: Mapping[str, object], module: str, rank: int) -> float:
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        # PEFT takes the keys as expressions; here they are the ends of names, which most are.
        if module == pattern or module.endswith(f".{pattern}"):
            alpha = value
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not abs(alpha) < 1e6:
        raise FileFormatError(
            f"{folder / _CONFIG}: 'lora_alpha' should be a number, got {quote(str(alpha)[:40])}."
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def _not_here(folder: Path, module: str, known: Mapping[str, str]) -> FileFormatError:
    return FileFormatError(
        f"{folder / _WEIGHTS}: it changes {quote(module)}, expected a matrix of this model such as "
        f"{next(iter(known))!r}. The adapter belongs to another model."
    )
