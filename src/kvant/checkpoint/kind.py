"""What lies at a path: the one place that tells a model's format, from what is in it.

::

    gguf   a file                        hf     a folder as published on Hugging Face
    onnx   a folder with ONNX graphs     mlx    a folder for Apple's MLX
    vllm   a folder in compressed-tensors' formats, which vLLM loads
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias

from kvant.errors import KvantError
from kvant.files.config_json import read_json
from kvant.files.safetensors import read_safetensors
from kvant.files.safetensors_folder import INDEX, SINGLE

__all__ = ["FORMAT_NAMES", "ModelFormat", "model_format"]

ModelFormat: TypeAlias = Literal["gguf", "hf", "onnx", "mlx", "vllm"]

FORMAT_NAMES: dict[ModelFormat, str] = {
    "gguf": "a GGUF file",
    "hf": "a Hugging Face folder",
    "onnx": "an ONNX folder",
    "mlx": "an MLX folder",
    "vllm": "a compressed-tensors folder",
}
"""What messages call a format."""


def model_format(path: Path) -> ModelFormat:
    """The format of what lies at ``path``; nothing is checked beyond what tells formats apart.

    A folder with safetensors is never taken for an ONNX one: many on Hugging Face carry both, and
    the safetensors are the original. What is not there, or damaged, is called by what it looks
    like; opening it says what is wrong.
    """
    if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where nothing can be there
        return "onnx" if path.suffix == ".onnx" else "gguf"
    if not any((path / name).exists() for name in (SINGLE, INDEX)):
        return "onnx" if onnx_files(path) else "hf"
    try:
        config = read_json(path / "config.json")
    except KvantError:
        return "hf"
    values = config if isinstance(config, dict) else {}
    quantised = values.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if method == "compressed-tensors":
        return "vllm"
    if method is not None:
        return "hf"
    settings = values.get("quantization", quantised)
    if isinstance(settings, dict) and "group_size" in settings:
        return "mlx"
    return "mlx" if _written_for_mlx(path) else "hf"


def onnx_files(folder: Path) -> list[Path]:
    """The ONNX graphs directly in a folder, by name."""
    try:
        return sorted(folder.glob("*.onnx"))
    except OSError:
        return []


def _written_for_mlx(folder: Path) -> bool:
    """Whether the safetensors say so, as those of MLX do also where nothing is quantised."""
    single = folder / SINGLE
    first = single if single.exists() else min(folder.glob("*.safetensors"), default=single)
    try:
        return read_safetensors(first).metadata.get("format") == "mlx"
    except KvantError:
        return False
