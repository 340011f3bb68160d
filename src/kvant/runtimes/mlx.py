"""Folders run by mlx-lm, on whatever device its installation has: a GPU, or a processor.

On a processor MLX is an oracle, not a backend: its products of 16-bit floats and of codes are
plain loops, some hundred times slower than ours. There the floats are taken to float32 first,
which changes no value, is twice as fast and leaves out the rounding of every layer to 16 bits.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from kvant.errors import InputError, MissingExtraError
from kvant.files.source import printable
from kvant.runtimes.stepping import Logits, Tokens, Wanted

__all__ = ["MlxStepper", "has_gpu", "installed", "version_text"]

_HOW = "pip install 'kvant[mlx]'"


def installed() -> bool:
    """Whether mlx and mlx-lm are there; neither is imported."""
    return _version("mlx") is not None and _version("mlx-lm") is not None


def has_gpu() -> bool:
    """Whether what is installed can use one: MLX for Apple's, or its build for CUDA."""
    return sys.platform == "darwin" or any(
        _version(f"mlx-cuda{suffix}") is not None for suffix in ("", "-12", "-13")
    )


def version_text() -> str:
    """What a report says was used: ``mlx 0.32.4``, and that it computes in float32 if it does."""
    return f"mlx {_version('mlx')}{'' if has_gpu() else ' in float32'}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class MlxStepper:
    """A folder that mlx-lm loads: one written for MLX, or a plain Hugging Face one."""

    whole = False
    context = None
    how = "mlx-lm's model and cache, a call a step"

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Load the model; on a GPU, its arithmetic is in the type its floats are stored in.

        Raises:
            MissingExtraError: mlx-lm is not installed.
            InputError: mlx-lm refuses the folder; its words are in the message.
        """
        if not installed():
            raise MissingExtraError(f"Running a model with MLX needs mlx and mlx-lm: {_HOW}.")
        self.vocab_size = vocab_size
        self._mx: Any = importlib.import_module("mlx.core")
        self._cache: Any = importlib.import_module("mlx_lm.models.cache")
        load = importlib.import_module("mlx_lm.utils").load_model
        try:
            self.model: Any = load(folder)[0]
        except Exception as error:
            raise InputError(
                f"{folder}: mlx-lm {version('mlx-lm')} does not load it: "
                f"{printable(str(error), 200)}."
            ) from None
        if not has_gpu():
            self.model.set_dtype(self._mx.float32)

    def sequence(self) -> MlxSequence:
        """A new, empty sequence."""
        return MlxSequence(self._cache, self._cache.make_prompt_cache(self.model))

    def feed(self, sequence: MlxSequence, tokens: Tokens, wanted: Wanted, /) -> Logits:
        """See `Stepper`; with ``none``, only the cache is computed."""
        mx = self._mx
        out = self.model(mx.array(np.asarray(tokens, np.int32)[None]), cache=sequence.cache)
        sequence.length += len(tokens)
        if wanted == "none":
            mx.eval([c.state for c in sequence.cache])
            return np.empty((0, self.vocab_size), np.float32)
        rows = out[0] if wanted == "all" else out[0, -1:]
        return np.array(rows.astype(mx.float32), np.float32, copy=False)


class MlxSequence:
    """The caches of all layers of one sequence."""

    def __init__(self, module: Any, cache: Any) -> None:
        self._module = module
        self.cache = cache
        self.length = 0

    def truncate(self, length: int, /) -> None:
        """Forget all tokens but the first ``length``."""
        self._module.trim_prompt_cache(self.cache, self.length - length)
        self.length = length

    def free(self) -> None:
        """Give the caches back."""
        self.cache = []
