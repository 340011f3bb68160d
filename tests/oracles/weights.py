"""Weights to try packings on: distributions, awkward blocks by hand, the built-in model's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import kvant
from kvant.packing import dequantize

__all__ = [
    "HALF_MAX",
    "KINDS",
    "builtin_model",
    "hand_made",
    "importance",
    "kind",
    "squared_error",
    "tensors",
]

Floats = npt.NDArray[Any]  # float32, [rows, columns]

HALF_MAX = 65504.0

KINDS = ("gaussian", "laplacian", "heavy-tailed", "mixed", "positive", "uniform")
"""Kinds of weights; ``heavy-tailed`` is Student's t with three degrees of freedom."""


def kind(name: str, rows: int, columns: int, seed: int = 0, scale: float = 0.02) -> Floats:
    """Random weights of one of `KINDS`, [rows, columns]."""
    rng = np.random.default_rng([seed, KINDS.index(name)])
    shape = (rows, columns)
    if name == "gaussian":
        x = rng.standard_normal(shape)
    elif name == "laplacian":
        x = rng.laplace(size=shape)
    elif name == "heavy-tailed":
        x = rng.standard_t(3, shape)
    elif name == "mixed":  # a scale for every weight, as where rows and columns both vary
        x = rng.standard_normal(shape) * np.exp(rng.standard_normal(shape) / 2)
    elif name == "positive":
        x = np.abs(rng.standard_normal(shape))
    else:
        x = rng.uniform(-1, 1, shape)
    scaled: Floats = np.clip(x * scale, -HALF_MAX, HALF_MAX).astype(np.float32)
    return scaled


def importance(columns: int, seed: int = 0, spread: float = 1.0) -> Floats:
    """A weight for each column: log-normal, mean 1."""
    w = np.exp(spread * np.random.default_rng([seed, 99]).standard_normal(columns))
    return (w / w.mean()).astype(np.float32)


def squared_error(x: Floats, decoded: Floats, weights: Floats | None = None) -> float:
    """Sum of squared differences, weighted by column if weights are given; in double."""
    error = (decoded.astype(np.float64) - x) ** 2
    return float(error.sum() if weights is None else (error * weights.astype(np.float64)).sum())


def hand_made(block: int) -> dict[str, Floats]:
    """Blocks that break careless quantisers, by name; each [blocks, block], odd block counts too.

    All are finite and within half precision, which is what a packing has to bear.
    """
    rng = np.random.default_rng(5)
    g = rng.standard_normal((3, block))
    one, ramp = np.ones((1, block)), np.linspace(-1, 1, block)[None]
    outlier = g[:1] * 0.01
    outlier[0, block // 3] = -40000
    both = np.zeros((2, block))
    both[0, 1], both[0, 2], both[1, 1], both[1, 2] = 3, -3, -3, 3
    runs = np.repeat(10.0 ** rng.uniform(-30, 4, (3, block // 16)), 16, axis=1)
    arrays = {
        "zeros": 0 * g,
        "negative zeros": -0.0 * one,
        "zeros of both signs": np.where(np.arange(block) % 3, 0.0, -0.0)[None] * one,
        "a constant": 0.37 * one,
        "a negative constant": -12.5 * one,
        "the largest constant": HALF_MAX * one,
        "all positive": np.abs(g),
        "all negative": -np.abs(g),
        "far from zero": g * 1e-3 + 7,
        "far below zero": g * 1e-3 - 7,
        "tiny": g * 1e-30,
        "about the smallest half": g * 6e-8,
        "subnormal halves": g * 1e-6,
        "subnormal floats": g * 1e-41,
        "the smallest float": one * 1e-45,
        "huge": np.clip(g * 3e4, -HALF_MAX, HALF_MAX),
        "the largest of both signs": np.where(g > 0, HALF_MAX, -HALF_MAX),
        "one outlier": outlier,
        "one weight": np.eye(1, block, block // 2) * 0.3,
        "one negative weight": np.eye(1, block, block - 1) * -0.3,
        "largest magnitude twice": both,
        "a ramp": ramp,
        "whole numbers": rng.integers(-8, 8, (5, block)),
        "ternary": rng.integers(-1, 2, (2, block)) * 0.02,
        "binary": np.where(g > 0, 0.02, -0.02),
        "mixed magnitudes": g * 10.0 ** rng.uniform(-40, 3, (3, block)),
        "runs of magnitudes": g * runs,
        "zeros but for a run": np.where(np.arange(block) < 16, g, 0.0),
        "rounding ties": rng.integers(-15, 16, (3, block)) * 0.5,
        "one block": g[:1],
        "seven blocks": rng.standard_normal((7, block)) * 0.02,
    }
    return {name: np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float32) for name, x in arrays.items()}


def builtin_model() -> Path | None:
    """The built-in model's weights; None where the package has been built without them."""
    path = Path(str(kvant.__file__)).parent / "builtin" / "demo" / "model.safetensors"
    return path if path.is_file() else None


def tensors(path: Path, max_rows: int | None = None) -> Iterator[tuple[str, Floats]]:
    """The matrices of a safetensors file whose rows fill blocks of 256, as float32, by name.

    ``max_rows`` takes that many rows, spread evenly over the tensor.
    """
    from kvant.files.safetensors import read_safetensors

    with path.open("rb") as file:
        for name, stored in sorted(read_safetensors(path).tensors.items()):
            if len(stored.shape) != 2 or stored.row_length % 256:
                continue
            x = dequantize(stored.type.name, stored.read_rows(file.fileno(), 0, stored.rows))
            step = 1 if max_rows is None else -(-len(x) // max_rows)
            yield name, np.ascontiguousarray(x[::step])
