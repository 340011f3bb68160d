"""How a token is chosen: what can be asked for, and the object that does it for one request.

The choosing is the core's (``native/runtime/sampler.h``). The order is vLLM's:

1. logit bias;
2. repetition penalty (tokens of prompt and answer: a positive logit is divided by it, a negative
   one multiplied), frequency penalty (times the token's number in the answer) and presence penalty
   (once, if it is in the answer) subtracted, as OpenAI, vLLM and transformers define them;
3. temperature;
4. min-p: tokens at least this share as likely as the likeliest;
5. top-k: the k likeliest of these;
6. top-p: the fewest of these, likeliest first, that hold this share of what is left of the mass.

llama.cpp divides by the temperature last, so its top-p and min-p see the unscaled distribution;
models' recommended settings are found with transformers and vLLM, so their order is used here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.errors import DataError, NoTokenError, UsageError

__all__ = ["Draw", "Sampler", "Sampling", "TokenLogprob", "Turn", "draw", "draw_turns"]

_MOST_LOGPROBS = 100
_GREEDY_BELOW = 1e-5  # 1 / temperature stays a number; vLLM draws the line here too


class TokenLogprob(NamedTuple):
    """A chosen token's logprob, and those of the likeliest tokens there, likeliest first.

    Natural logarithms of the model's own distribution: before penalties, temperature and filters,
    as OpenAI defines them.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Draw(NamedTuple):
    """One token, with its logprobs where they were asked for."""

    token: int
    logprob: TokenLogprob | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What to ask of the sampler. As it stands, the model's own distribution, unchanged.

    Attributes:
        temperature: 0 always takes the likeliest token; below 1 likely tokens become likelier.
        top_k: choose among the k likeliest; 0 for all.
        top_p: choose among the likeliest that together hold this share; 1 for all.
        min_p: leave out what is less than this share as likely as the likeliest; 0 for nothing.
        repetition_penalty: above 1 makes tokens of prompt and answer less likely.
        presence_penalty: subtracted from the logits of tokens that are in the answer.
        frequency_penalty: the same, for every time they are in the answer.
        logit_bias: added to the logits of tokens by id; ``-inf`` forbids one.
        seed: the same request gives the same tokens; None for another choice each time.
        logprobs: None for none; n for the chosen token's and those of the n likeliest.

    Raises:
        UsageError: a value is not in its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _in_range("temperature", self.temperature, 0, 100)
        _whole("top_k", self.top_k, 0, 2**31 - 1)
        _in_range("top_p", self.top_p, 0, 1, low_open=True)
        _in_range("min_p", self.min_p, 0, 1)
        _in_range("repetition_penalty", self.repetition_penalty, 0, 100, low_open=True)
        _in_range("presence_penalty", self.presence_penalty, -100, 100)
        _in_range("frequency_penalty", self.frequency_penalty, -100, 100)
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**64 - 1)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, _MOST_LOGPROBS)
        for token, bias in self.logit_bias.items():
            _whole("a token of logit_bias", token, 0, 2**31 - 1)
            if bias != -math.inf:
                _in_range(f"logit_bias of token {token}", bias, -1000, 1000)


class Sampler:
    """Chooses the tokens of one request, one after another, and remembers them for the penalties.

    Args:
        sampling: what was asked for. Without a seed, one is taken from the system.
        vocab_size: the length of a row of logits.
        prompt: token ids of the prompt; the repetition penalty knows them.

    Raises:
        UsageError: ``logit_bias`` names a token that does not exist.
    """

    def __init__(self, sampling: Sampling, vocab_size: int, prompt: Sequence[int] = ()) -> None:
        s = sampling
        if s.logit_bias and max(s.logit_bias) >= vocab_size:
            raise UsageError(
                f"logit_bias names token {max(s.logit_bias)}; the vocabulary has ids 0 to "
                f"{vocab_size - 1}. Use ids of this model's tokenizer."
            )
        seed = int.from_bytes(os.urandom(8), "little") if s.seed is None else s.seed
        self.sampling = s
        self.seed = seed % 2**64
        """Where its random numbers come from."""
        self._wants_logprobs = s.logprobs is not None
        self._core = _core.Sampler(
            vocab_size,
            temperature=0.0 if s.temperature < _GREEDY_BELOW else s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            min_p=s.min_p,
            repetition=s.repetition_penalty,
            frequency=s.frequency_penalty,
            presence=s.presence_penalty,
            seed=self.seed,
            logprobs=-1 if s.logprobs is None else s.logprobs,
            bias=list(s.logit_bias.items()),
        )
        if prompt:
            self._core.prompt(np.asarray(prompt, np.int32))

    def accept(self, tokens: Sequence[int]) -> None:
        """Take ``tokens`` as part of the answer, as if they had been drawn here."""
        self._core.accept(np.asarray(tokens, np.int32))

    @property
    def position(self) -> int:
        """Tokens of the answer so far; the place in the stream of random numbers."""
        return self._core.position

    def seek(self, position: int) -> None:
        """Draw next as after ``position`` tokens of the answer; penalties are not told."""
        self._core.seek(position)


@dataclass(slots=True)
class Turn:
    """What one request draws in a step.

    Its rows of logits follow each other. Behind each but the last stands a guess of what it gives,
    and the next row counts only where the guess was right.

    Attributes:
        sampler: the request's.
        guesses: one fewer than its rows.
        mask: the first of its masks, one for each of its rows; None where all tokens may be drawn.
    """

    sampler: Sampler
    guesses: Sequence[int] = ()
    mask: int | None = None


def draw_turns(
    turns: Sequence[Turn],
    logits: npt.NDArray[np.float32],
    masks: npt.NDArray[np.uint32] | None = None,
    plan: _core.Plan | None = None,
) -> list[list[Draw] | DataError]:
    """Draw for several requests at once; a fault of one is its own.

    Args:
        turns: each sampler at most once.
        logits: float32 [rows of all turns, vocabulary], C-contiguous; only read.
        masks: uint32 [masks, words], a bit for each token, the lowest of the first word for token
            0: those that may be drawn.
        plan: on whose threads; None for the caller's alone.

    Returns:
        For each turn as many tokens as its guesses are right, and one more; or what is wrong with
        its logits, or with biases, penalties and masks that leave no token.
    """
    rows = [i for t in turns for i in (*t.guesses, -1)]
    masked = None
    if masks is not None:
        named = (
            range(t.mask, t.mask + len(t.guesses) + 1)
            if t.mask is not None
            else (-1,) * (len(t.guesses) + 1)
            for t in turns
        )
        masked = np.array([mask for masks_of in named for mask in masks_of], np.int32)
    found = _core.sample(
        [t.sampler._core for t in turns], logits, np.array(rows, np.int32), masks, masked, plan
    )
    results: list[list[Draw] | DataError] = []
    row = 0
    for t, drawn in zip(turns, found, strict=True):
        if drawn[-1].fault:
            at = row + len(drawn) - 1
            results.append(_fault(at, drawn[-1].fault, logits[at]))
        elif t.sampler._wants_logprobs:
            results.append(
                [Draw(d.token, TokenLogprob(d.token, d.logprob, tuple(d.top))) for d in drawn]
            )
        else:
            results.append([Draw(d.token, None) for d in drawn])
        row += len(t.guesses) + 1
    return results


def draw(samplers: Sequence[Sampler], logits: npt.NDArray[np.float32]) -> list[Draw]:
    """One token a row; each sampler remembers its own.

    Args:
        samplers: one a row, each at most once.
        logits: float32 [len(samplers), vocabulary], C-contiguous; only read.

    Raises:
        DataError: NaN or infinity among the logits, or biases and penalties that leave no token.
            All rows that could be drawn have been.
    """
    draws: list[Draw] = []
    for found in draw_turns([Turn(s) for s in samplers], logits):
        if isinstance(found, DataError):
            raise found
        draws += found
    return draws


def _fault(row: int, fault: int, logits: npt.NDArray[np.float32]) -> DataError:
    if fault == 1:
        bad = np.flatnonzero(~np.isfinite(logits))
        return DataError(
            f"The model's logits should be finite, got {logits[bad[0]]} for token {bad[0]} and "
            f"{bad.size} such values of {logits.size} (row {row}). The model is damaged or "
            "overflows; check it with `kvant verify`, or use a wider packing."
        )
    return NoTokenError(
        "logit_bias, penalties and what the text must match leave no token that may be chosen. "
        "Forbid fewer tokens, or use smaller penalties."
    )


def _in_range(name: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not ok or not (low < value <= high or (value == low and not low_open)):
        bounds = f"above {low:g}, at most {high:g}" if low_open else f"from {low:g} to {high:g}"
        raise UsageError(f"{name} should be a number {bounds}, got {value!r}.")


def _whole(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise UsageError(f"{name} should be a whole number from {low} to {high}, got {value!r}.")
