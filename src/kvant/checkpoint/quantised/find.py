"""Which scheme a checkpoint was quantised by, and its tensors as floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvant.checkpoint.quantised.bitsandbytes import bitsandbytes
from kvant.checkpoint.quantised.compressed import compressed_tensors
from kvant.checkpoint.quantised.floats import fp8
from kvant.checkpoint.quantised.gptq import awq, gptq
from kvant.checkpoint.quantised.mlx import mlx
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.raw import RawTensor
from kvant.files.safetensors import SafetensorsFolder
from kvant.files.safetensors_read import OtherTensor
from kvant.files.source import quote
from kvant.files.tensor import StoredTensor

__all__ = ["Dequantised", "dequantised"]

Scheme = Callable[[Mapping[str, object], Mapping[str, RawTensor]], Iterator[Any]]

#: ``quant_method`` to what decodes it.
SCHEMES: dict[str, Scheme] = {
    "gptq": gptq,
    "awq": awq,
    "fp8": fp8,
    "fbgemm_fp8": fp8,
    "bitsandbytes": bitsandbytes,
    "compressed-tensors": compressed_tensors,
}


@dataclass(frozen=True, slots=True)
class Dequantised:
    """A folder's content as if it had not been quantised.

    ``values`` is its config without the key that says so, ``notes`` a sentence for the report.
    """

    values: dict[str, object]
    tensors: dict[str, StoredTensor]
    other: dict[str, OtherTensor]
    notes: tuple[str, ...] = ()


def dequantised(
    values: Mapping[str, object], content: SafetensorsFolder, where: str
) -> Dequantised:
    """The tensors an unquantised checkpoint would have; as they are where this one is such.

    Raises:
        UnsupportedError: a scheme, or a variant of one, that cannot be decoded exactly.
        FileFormatError: parts of a layer are missing or do not fit together.
    """
    found = _scheme(values, where)
    rest = {k: v for k, v in values.items() if k not in ("quantization", "quantization_config")}
    if found is None:
        kept = dict(values) if values.get("quantization_config") else rest
        return Dequantised(kept, content.tensors, content.other)
    name, scheme, config = found
    raw = {
        n: RawTensor(n, t.type.name, t.shape, t.path, t.offset) for n, t in content.tensors.items()
    }
    raw |= {n: RawTensor(n, t.dtype, t.shape, t.path, t.offset) for n, t in content.other.items()}
    tensors, other = dict(content.tensors), dict(content.other)
    count = 0
    for module, tensor in scheme(config, raw):
        for used in module.used:
            tensors.pop(used, None)
            other.pop(used, None)
        tensors[tensor.name] = tensor
        count += 1
    if not count:
        raise FileFormatError(
            f"{where}: it says that the weights are quantised by {name}, and no tensor is. Remove "
            "the key if they are not, or fetch all files of one release again."
        )
    note = f"{count} matrices were quantised by {name} and are decoded; what that lost stays lost."
    return Dequantised(rest, tensors, other, (note,))


def _scheme(
    values: Mapping[str, object], where: str
) -> tuple[str, Scheme, Mapping[str, object]] | None:
    own = values.get("quantization")
    if isinstance(own, dict) and "group_size" in own:
        return "MLX", mlx, own
    config = values.get("quantization_config")
    if not isinstance(config, dict) or not config:
        return None
    method = config.get("quant_method")
    if method is None and "group_size" in config and "mode" in config:
        return "MLX", mlx, config
    if not isinstance(method, str) or method not in SCHEMES:
        raise UnsupportedError(
            f"{where}: the weights are quantised by {quote(str(method)[:40])}, expected one of "
            f"{', '.join(SCHEMES)} or MLX's. Get the checkpoint this one was made from."
        )
    return method, SCHEMES[method], config
