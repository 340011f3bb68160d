"""Whole variants, made and measured, in search of the smallest that keeps a divergence."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from kvant.api.measurement import evaluate
from kvant.api.source import Source
from kvant.errors import UsageError
from kvant.evaluation import EvalResult
from kvant.quant.allocate import Front, Mixture, NotReachableError
from kvant.tuning.sensitivity import Progress
from kvant.units import size_text

__all__ = ["Trials"]

_PROBES = 8
_CLOSE = 0.003  # the search for a divergence ends where sizes differ by this share,
_NEAR = 0.985  # or the limit is used up to this one

Write = Callable[[Mixture, Path], Path]
"""Writes the variant of a mixture under about such a name; where it lies."""


class Trials:
    """See the module. ``suffix`` is that of a variant's name: ``.gguf``, or nothing for folders."""

    def __init__(
        self,
        front: Front,
        source: Source,
        write: Write,
        validation: Source | None,
        threads: int | None,
        progress: Progress | None,
        *,
        suffix: str = ".gguf",
    ) -> None:
        self._front, self._source, self._write = front, source, write
        self._validation, self._threads, self._progress = validation, threads, progress
        self._suffix = suffix

    def smallest_within(self, limit: float) -> tuple[Mixture, EvalResult]:
        """The smallest mixture of the front whose measured divergence is at most ``limit``.

        The table foretells divergence up to a factor near one (and the engine's own rounding), so
        the next guess is the last one, corrected by how it was off, between the bounds known.

        Raises:
            UsageError: not even the best mixture keeps the limit; its divergence is stated.
        """
        front = self._front
        kept: tuple[Mixture, EvalResult] | None = None
        low, high = front.least_bytes - 1, front.most_bytes + 1
        guess = limit
        with tempfile.TemporaryDirectory(prefix="kvant-trials-") as folder:
            for trial in range(_PROBES):
                mixture = self._mixture(guess)
                if not low < mixture.nbytes < high:
                    mixture = front.within_bytes(max((low + high) // 2, front.least_bytes))
                    if not low < mixture.nbytes < high:
                        break
                result, kld = self._trial(mixture, Path(folder) / f"trial-{trial}{self._suffix}")
                if kld <= limit:
                    kept, high = (mixture, result), mixture.nbytes
                    if kld >= _NEAR * limit:
                        break
                else:
                    low = mixture.nbytes
                if kept is not None and high - low <= _CLOSE * high:
                    break
                guess = mixture.cost * limit / max(kld, 1e-12)
            if kept is None:
                kept = self._best(limit, Path(folder) / f"best{self._suffix}")
        return kept

    def _mixture(self, cost: float) -> Mixture:
        try:
            return self._front.within_cost(cost)
        except NotReachableError:
            return self._front.within_bytes(self._front.most_bytes)

    def _best(self, limit: float, path: Path) -> tuple[Mixture, EvalResult]:
        mixture = self._front.within_bytes(self._front.most_bytes)
        result, kld = self._trial(mixture, path)
        if kld > limit:
            raise UsageError(
                f"{self._source}: no mixture keeps a KL divergence of {limit:g} nats a token; the "
                f"best has {kld:.6f} in {size_text(mixture.nbytes)}. Allow that much, or "
                "more packings (--packings)."
            )
        return mixture, result

    def _trial(self, mixture: Mixture, path: Path) -> tuple[EvalResult, float]:
        made = self._write(mixture, path)
        try:
            result = self.measure(made)
            assert result.kld is not None
            return result, result.kld
        finally:
            if made.is_dir():
                shutil.rmtree(made)
            else:
                made.unlink()

    def measure(self, path: Path) -> EvalResult:
        """A variant's divergence from the source."""
        progress = self._progress
        return evaluate(
            path,
            self._source,
            text=self._validation,
            threads=self._threads,
            progress=None
            if progress is None
            else lambda done, total: progress("measuring", done, total),
        )[1]

    def measure_last(self, path: Path, limit: float) -> EvalResult:
        """The same of what was made in the end, which has the last word.

        Raises:
            UsageError: it does not keep the limit.
        """
        measured = self.measure(path)
        if measured.kld is None or measured.kld > limit:
            raise UsageError(
                f"{path}: has a KL divergence of {measured.kld}, measured again, over "
                f"the {limit:g} it was made for. Do not use it; please report this."
            )
        return measured
