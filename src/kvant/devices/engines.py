"""Which engine serves a model on a machine, and why; and why the others do not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvant.devices.machine import Machine
from kvant.errors import MissingExtraError, UnsupportedError, UsageError

__all__ = ["ENGINES", "Choice", "EngineName", "Form", "choose", "form_of"]

EngineName = Literal["native", "mlx", "vllm", "onnxruntime-genai"]
ENGINES: tuple[EngineName, ...] = ("native", "mlx", "vllm", "onnxruntime-genai")

_PACKAGES = {"mlx": "mlx-lm", "vllm": "vllm", "onnxruntime-genai": "onnxruntime-genai"}
_MOST_BYTES = 1 << 20

Form = Literal["gguf", "folder", "mlx", "onnx"]
"""A GGUF file; a folder of Hugging Face's; one that MLX quantised; one for ONNX Runtime GenAI."""
_READS: Mapping[str, tuple[str, ...]] = {
    "native": ("gguf", "folder", "mlx"),
    "mlx": ("folder", "mlx"),
    "vllm": ("folder",),
    "onnxruntime-genai": ("onnx",),
}
_FORM_NAMES = {
    "gguf": "a GGUF file",
    "folder": "a folder of safetensors",
    "mlx": "a folder that MLX quantised",
    "onnx": "a folder for ONNX Runtime GenAI",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine that serves, why, and for each other one why it does not."""

    engine: EngineName
    why: str
    others: Mapping[EngineName, str]

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {"engine": self.engine, "why": self.why, "others": dict(self.others)}


def form_of(path: Path) -> Form:
    """What kind of model a path is, by its files' names and its config."""
    if path.is_file():
        return "gguf"
    if (path / "genai_config.json").is_file():
        return "onnx"
    try:
        raw = (path / "config.json").read_bytes()
        config = json.loads(raw) if len(raw) <= _MOST_BYTES else {}
        scheme = config.get("quantization") if isinstance(config, dict) else None
    except (OSError, ValueError, RecursionError):
        scheme = None
    return "mlx" if isinstance(scheme, dict) and "group_size" in scheme else "folder"


def choose(machine: Machine, path: Path, asked: str = "auto") -> Choice:
    """The engine for a model.

    Args:
        machine: where it is to run.
        path: the model.
        asked: ``auto``, or an engine's name.

    Raises:
        UsageError: there is no such engine.
        MissingExtraError: the one that was asked for is not installed.
        UnsupportedError: it does not read this kind of model, or nothing does.
    """
    form = form_of(path)
    against = {name: why for name in ENGINES if (why := _against(machine, name, form))}
    if asked != "auto":
        return _asked(path, asked, form, against)
    for name in ("mlx", "vllm", "onnxruntime-genai", "native"):
        if name not in against:
            return Choice(name, _FOR[name], _rest(name, against))
    raise MissingExtraError(
        f"{path}: is {_FORM_NAMES[form]}, and what runs it is not installed. Install it: pip "
        "install onnxruntime-genai"
    )


def _asked(path: Path, asked: str, form: Form, against: Mapping[EngineName, str]) -> Choice:
    for name in ENGINES:
        if name == asked:
            break
    else:
        raise UsageError(f"--engine is auto, {', '.join(ENGINES)}, got {asked!r}.")
    if form not in _READS[name]:
        raise UnsupportedError(
            f"{path}: is {_FORM_NAMES[form]}, which {name} does not serve; it takes "
            f"{' or '.join(_FORM_NAMES[f] for f in _READS[name])}."
        )
    why = against.get(name, "")
    if why.endswith("is not installed"):
        package = _PACKAGES[name]
        raise MissingExtraError(f"--engine {name} {why}. Install it: pip install {package}")
    return Choice(name, "--engine asks for it", _rest(name, against))


_FOR: Mapping[str, str] = {
    "native": "kvant's own, on the processor: many requests over one cache, every packing",
    "mlx": "the GPU and the shared memory of Apple's chips; MLX LM is installed",
    "vllm": "an NVIDIA GPU serves many at once; vLLM is installed",
    "onnxruntime-genai": "the model is in its format, and it is installed",
}


def _against(machine: Machine, name: EngineName, form: Form) -> str:
    """Why an engine is not chosen by itself; empty where nothing is against it."""
    if form not in _READS[name]:
        return f"does not read {_FORM_NAMES[form]}"
    package = _PACKAGES.get(name)
    if package is not None and package not in machine.runtimes:
        return f"needs the package {package}, which is not installed"
    if name == "mlx" and not machine.apple:
        return "is made for Apple's chips; on others kvant's own engine is faster"
    if name == "vllm" and not any(g.vendor == "NVIDIA" for g in machine.gpus):
        return "needs an NVIDIA GPU, and there is none"
    return ""


def _rest(chosen: EngineName, against: Mapping[EngineName, str]) -> dict[EngineName, str]:
    return {
        name: against.get(name, "would do, but another one comes first")
        for name in ENGINES
        if name != chosen
    }
