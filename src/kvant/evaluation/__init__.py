"""What a variant costs in quality: perplexity, divergence from the base, and how sure that is."""

from __future__ import annotations

from kvant.evaluation.corpus import Corpus
from kvant.evaluation.gate import Gate, gates
from kvant.evaluation.measure import Progress, Subject, check_vocabularies, evaluate
from kvant.evaluation.results import EvalResult, kld_difference, ln_ppl_difference, results_json
from kvant.evaluation.runner import Runner

__all__ = [
    "Corpus",
    "EvalResult",
    "Gate",
    "Progress",
    "Runner",
    "Subject",
    "check_vocabularies",
    "evaluate",
    "gates",
    "kld_difference",
    "ln_ppl_difference",
    "results_json",
]
