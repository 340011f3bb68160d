"""What an evaluation found, one record a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvant.errors import UsageError
from kvant.evaluation.statistics import Estimate, over_chunks

__all__ = ["EvalResult", "kld_difference", "ln_ppl_difference", "results_json"]


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The figures of one model on one text.

    What compares with a base is None for the base itself and where there is none. Standard errors
    (``_se``) are those over chunks of text; those of a comparison are paired.
    """

    name: str
    path: str | None
    bytes: int | None
    """Size on disk."""
    bpw: float | None
    """Bits per weight, over all tensors."""
    corpus: str
    """SHA-256 of the token chunks: results may be compared where it is the same."""
    context: int
    chunks: int
    tokens: int
    """Scored tokens."""
    perplexity: float
    perplexity_se: float
    format: str | None = None
    """``gguf``, ``hf``, ``onnx``, ``mlx`` or ``vllm``."""
    runtime: str | None = None
    """What ran it, and whether as its format means or with the weights decoded by kvant."""
    read_rate: float | None = field(default=None, compare=False)
    """Tokens of this text read a second, logits of the scored ones included."""
    base: str | None = None
    """Name of the model compared with."""
    kld: float | None = None
    """Mean KL(base || this), in nats a token."""
    kld_se: float | None = None
    kld_median: float | None = None
    kld_p99: float | None = None
    kld_max: float | None = None
    same_top: float | None = None
    """Share of tokens, 0 to 1, where both find the same token the likeliest."""
    same_top_se: float | None = None
    ln_ppl_ratio: float | None = None
    """ln(perplexity of this / perplexity of the base)."""
    ln_ppl_ratio_se: float | None = None
    chunk_nll: npt.NDArray[np.float64] = field(
        default_factory=lambda: np.empty(0), repr=False, compare=False
    )
    """Mean -log p of each chunk, float64 [chunks]."""
    chunk_kld: npt.NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    """Mean divergence of each chunk, float64 [chunks]."""

    def to_json(self) -> dict[str, str | int | float | None]:
        """The record as JSON values; null where there is no base or nothing is known."""
        return {
            "name": self.name,
            "path": self.path,
            "bytes": self.bytes,
            "bpw": self.bpw,
            "format": self.format,
            "runner": self.runtime,
            "read_tokens_per_second": self.read_rate,
            "tokens": self.tokens,
            "perplexity": self.perplexity,
            "perplexity_se": self.perplexity_se,
            "kld": self.kld,
            "kld_se": self.kld_se,
            "same_top": self.same_top,
            "same_top_se": self.same_top_se,
            "ln_ppl_ratio": self.ln_ppl_ratio,
            "ln_ppl_ratio_se": self.ln_ppl_ratio_se,
            "kld_median": self.kld_median,
            "kld_p99": self.kld_p99,
            "kld_max": self.kld_max,
            "base": self.base,
            "context": self.context,
            "chunks": self.chunks,
            "corpus_sha256": self.corpus,
        }


def results_json(results: Iterable[EvalResult]) -> str:
    """The JSON document ``{"results": [...]}``, indented, ending in a newline."""
    document = {"results": [result.to_json() for result in results]}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def kld_difference(a: EvalResult, b: EvalResult) -> Estimate:
    """Mean divergence of ``a`` less that of ``b``, with the paired standard error.

    Raises:
        UsageError: they were not measured on the same text against the same base.
    """
    _check_comparable(a, b)
    if a.chunk_kld is None or b.chunk_kld is None or a.base != b.base:
        raise UsageError(
            f"{a.name} and {b.name} were not measured against one base "
            f"({a.base or 'none'} and {b.base or 'none'}). Evaluate them in one run."
        )
    return over_chunks(a.chunk_kld - b.chunk_kld)


def ln_ppl_difference(a: EvalResult, b: EvalResult) -> Estimate:
    """``ln(perplexity of a / perplexity of b)``, with the paired standard error.

    Raises:
        UsageError: they were not measured on the same text.
    """
    _check_comparable(a, b)
    return over_chunks(a.chunk_nll - b.chunk_nll)


def _check_comparable(a: EvalResult, b: EvalResult) -> None:
    if a.corpus != b.corpus:
        raise UsageError(
            f"{a.name} and {b.name} were measured on different token chunks "
            f"({a.corpus[:12]} and {b.corpus[:12]}). Evaluate them on the same text and context."
        )
