"""Guessing the next tokens and checking them in one step (Leviathan et al., arXiv 2211.17192).

Guesses come from a smaller model of the same vocabulary, or from the text itself: what followed
the last time its last few tokens stood there (prompt lookup). They decide only how many tokens a
step can give, never which: each token is drawn by the request's own sampler, with its own random
number, from the model's own logits, and a guess counts where it is what was drawn. So a text is
the same to the last bit with guesses, with others, or without, greedy or not, under penalties and
grammars too; nothing about the distribution has to be argued. A draft model draws with the random
numbers that the model will draw with, so that the two agree wherever their distributions do.

Whether guessing pays is measured. A step of n tokens takes T(n) seconds, learned as steps run; a
guess is right with a probability that is learned for each request. What time is worth is tokens a
second without guesses, and a request guesses as many tokens as gain more than their time is worth:
none in a large batch, where steps are bound by arithmetic, or where guesses are wrong.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from kvant.engine.kv_blocks import KvSequence
from kvant.engine.sampling import Sampler, Turn
from kvant.engine.steps import Steps
from kvant.errors import CacheFullError, ContextError, UsageError
from kvant.tokenizer.build import Tokenizer

__all__ = ["DraftModel", "Drafter", "Lookup", "Pace", "Speculator", "Text", "check_vocabulary"]

_MOST = 15
"""Guesses at once. With the token before them they fill two tiles of the products."""
_ROWS = 128
"""Tokens of a step with guesses, at most: each has a row of logits in memory."""
_LEARN = 0.15
"""How much of the old a new observation replaces."""
_AGE = 512
"""Steps after which a time is no longer known."""
_LONGEST = 4096
"""Steps between two tries of a drafter that did not pay, at most."""


class Text(Protocol):
    """What a drafter is told of a request."""

    sampler: Sampler
    tokens: list[int]
    """Prompt and answer so far."""


class Drafter(Protocol):
    """Guesses what follows texts."""

    costs: bool
    """Whether guessing takes time worth counting."""
    trust: float
    """How likely a guess is right before anything is known."""

    def propose(self, wanted: Sequence[tuple[Text, int]]) -> list[list[int]]:
        """For each text at most as many tokens as asked, perhaps none."""
        ...

    def seconds(self, texts: int) -> float:
        """What one guess for each of so many texts takes."""
        ...

    def forget(self, text: Text) -> None:
        """The text is done."""
        ...


class Pace:
    """How long a step of n tokens takes, learned as steps run."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._noted: dict[int, int] = {}
        self._steps = 0

    def note(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._steps += 1
        self._noted[tokens] = self._steps
        if self._steps % _AGE == 0:  # texts get longer: what was seen long ago is tried again
            for n in [n for n, at in self._noted.items() if at <= self._steps - _AGE]:
                del self._noted[n], self._seconds[n]
        known = self._seconds.get(tokens)
        # What took longer than usual was probably disturbed.
        part = 1.0 if known is None else 0.3 if seconds < known else 0.1
        self._seconds[tokens] = seconds if known is None else known + part * (seconds - known)

    def known(self, tokens: int) -> bool:
        """Whether a step of so many tokens was seen."""
        return tokens in self._seconds

    def seconds(self, tokens: int) -> float:
        """An estimate, between the nearest that are known; 0 where nothing is."""
        if tokens in self._seconds:
            return self._seconds[tokens]
        below = max((n for n in self._seconds if n < tokens), default=0)
        above = min((n for n in self._seconds if n > tokens), default=0)
        if not above:
            # Memory is what bounds small steps, so a few tokens more are taken to cost little.
            # Where that is hoped for too much, a step shows it.
            return self._seconds.get(below, 0.0) * (1 + (tokens - below) / (below + 16))
        if not below:
            return self._seconds[above]
        share = (tokens - below) / (above - below)
        return self._seconds[below] + share * (self._seconds[above] - self._seconds[below])


@dataclass(slots=True)
class _Record:
    """How a request's guesses fared."""

    right: float
    rest: int = 0  # steps until the next try
    pause: int = 16
    shadow: int | None = None  # a guess that is only compared


class Speculator:
    """Decides who guesses how much. One for a model: what it learns of time serves all requests.

    Args:
        drafter: where guesses come from.
        most: most guesses for a request in a step.
        pace: how long steps take; learned where none is given.
    """

    def __init__(self, drafter: Drafter, most: int = _MOST, pace: Pace | None = None) -> None:
        self._drafter, self._most = drafter, most
        self._pace = pace or Pace()
        self._records: dict[int, _Record] = {}
        self.counts = (0, 0)
        """Guesses that were checked, and those that were right."""

    def propose(self, texts: Sequence[Text]) -> list[list[int]]:
        """Guesses for texts that will all write one token in the next step, and nothing else."""
        asked: list[tuple[Text, int]] = []
        shadows: list[Text] = []
        size = len(texts)
        for text in texts:
            record = self._records.setdefault(id(text), _Record(self._drafter.trust))
            count = min(self._worth(record, len(texts), size), max(0, _ROWS - size))
            if count == 0 and not self._drafter.costs:
                shadows.append(text)
            asked.append((text, count))
            size += count
        wanted = [(t, n) for t, n in asked if n] + [(t, 1) for t in shadows]
        found = iter(self._drafter.propose(wanted) if wanted else [])
        guesses = [next(found) if n else [] for _, n in asked]
        for text, guess in zip(shadows, found, strict=True):
            self._records[id(text)].shadow = guess[0] if guess else None
        return guesses

    def learn(self, text: Text, drafted: Sequence[int], drawn: Sequence[int]) -> None:
        """What became of a text's guesses: ``drawn`` are those that were right, and one more."""
        record = self._records.get(id(text))
        if record is None:
            return
        right = len(drawn) - 1
        self.counts = self.counts[0] + len(drafted), self.counts[1] + right
        seen = [True] * right + [False] * (right < len(drafted))
        if record.shadow is not None:
            seen, record.shadow = [record.shadow == drawn[0]], None
        for hit in seen:
            record.right += _LEARN * (hit - record.right)

    def note(self, tokens: int, seconds: float) -> None:
        """A step in which texts only wrote, so many tokens with their guesses, took so long."""
        self._pace.note(tokens, seconds)

    def forget(self, text: Text) -> None:
        """The text is done."""
        self._records.pop(id(text), None)
        self._drafter.forget(text)

    def _worth(self, record: _Record, texts: int, size: int) -> int:
        """How many guesses gain most, for a text in a step of ``size`` tokens so far."""
        base = self._pace.seconds(texts)
        if not self._pace.known(texts) or not base:
            return 0  # first a step without any, to compare with
        if record.rest:
            record.rest -= 1
            return 0
        worth = texts / base  # tokens a second
        draft = self._drafter.seconds(texts) / texts
        before = self._pace.seconds(size)
        best, found = 0.0, 0
        gain, chance = 0.0, 1.0
        for count in range(1, self._most + 1):
            chance *= record.right
            gain += chance
            cost = self._pace.seconds(size + count) - before + draft * count
            if gain - worth * cost > best:
                best, found = gain - worth * cost, count
        if not found and self._drafter.costs:  # it is asked again later, and trusted once more
            record.rest, record.pause = record.pause, min(2 * record.pause, _LONGEST)
            record.right = self._drafter.trust
        return found


class Lookup:
    """Guesses from the text itself: what followed its last tokens when they stood there before."""

    costs = False
    trust = 0.5
    _sizes = (4, 3, 2)

    def __init__(self) -> None:
        self._indices: dict[int, _Index] = {}

    def propose(self, wanted: Sequence[tuple[Text, int]]) -> list[list[int]]:
        """What followed the longest of the last runs of tokens that was there before."""
        found = []
        for text, count in wanted:
            index = self._indices.setdefault(id(text), _Index(self._sizes))
            found.append(index.following(text.tokens, count))
        return found

    def seconds(self, texts: int) -> float:
        """Nothing."""
        return 0.0

    def forget(self, text: Text) -> None:
        """Drop its index."""
        self._indices.pop(id(text), None)


class _Index:
    """Where each run of tokens ended last."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._ends: dict[tuple[int, ...], int] = {}
        self._known = 0  # runs that end here or before are in

    def following(self, tokens: list[int], count: int) -> list[int]:
        """At most ``count`` tokens."""
        for end in range(self._known + 1, len(tokens)):
            for size in self._sizes:
                if end >= size:
                    self._ends[tuple(tokens[end - size : end])] = end
        self._known = max(self._known, len(tokens) - 1)
        for size in self._sizes:
            found = self._ends.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if found is not None:
                # Where the text repeats itself, what follows goes round.
                period = len(tokens) - found
                return [tokens[found + i % period] for i in range(count)]
        return []


@dataclass(slots=True)
class _Mirror:
    """A text in the draft model's cache."""

    sequence: KvSequence
    sampler: Sampler
    fed: list[int] = field(default_factory=list)
    sure: int = 0  # tokens of ``fed`` known to be the text's


class DraftModel:
    """A smaller model that writes ahead.

    Args:
        engine: runs it. Its cache is its own; where that is full, nobody gets further guesses in
            that step, nor until texts that are in it have ended.
        vocab_size: the large model's; guesses beyond are none.
    """

    costs = True
    trust = 0.7

    def __init__(self, engine: Steps, vocab_size: int) -> None:
        self._engine, self._vocab_size = engine, vocab_size
        self._mirrors: dict[int, _Mirror] = {}
        self._pace = Pace()

    def propose(self, wanted: Sequence[tuple[Text, int]]) -> list[list[int]]:
        """What the draft model draws with the random numbers that the large one will draw with."""
        guesses: list[list[int]] = [[] for _ in wanted]
        mirrors = [self._mirror(text) for text, _ in wanted]
        pending = [self._align(m, text) for m, (text, _) in zip(mirrors, wanted, strict=True)]
        for made in range(max((count for _, count in wanted), default=0)):
            at = [i for i, (_, count) in enumerate(wanted) if count > made == len(guesses[i])]
            if not at:
                break
            started = time.perf_counter()
            work = [(mirrors[i].sequence, pending[i]) for i in at]
            try:
                logits = self._engine.step(work, logits="last")
            except (CacheFullError, ContextError):
                break  # what there is will do
            for i in at:
                mirrors[i].fed += pending[i]
            turns = [Turn(mirrors[i].sampler) for i in at]
            for i, found in zip(at, self._engine.draw(turns, logits), strict=True):
                if isinstance(found, list) and found[0].token < self._vocab_size:
                    guesses[i].append(found[0].token)
                    pending[i] = [found[0].token]
            if made:  # the first reads what is new, which is no measure
                self._pace.note(len(at), time.perf_counter() - started)
        return guesses

    def seconds(self, texts: int) -> float:
        """As measured; 0 until then, so that it is tried."""
        return self._pace.seconds(texts)

    def forget(self, text: Text) -> None:
        """Free its blocks."""
        mirror = self._mirrors.pop(id(text), None)
        if mirror is not None:
            mirror.sequence.free()

    def _mirror(self, text: Text) -> _Mirror:
        if id(text) not in self._mirrors:
            plain = replace(
                text.sampler.sampling,
                repetition_penalty=1.0,
                presence_penalty=0.0,
                frequency_penalty=0.0,
                logprobs=None,
                seed=text.sampler.seed,
            )
            sampler = Sampler(plain, self._engine.vocab_size)
            self._mirrors[id(text)] = _Mirror(self._engine.sequence(), sampler)
        return self._mirrors[id(text)]

    def _align(self, mirror: _Mirror, text: Text) -> list[int]:
        """Forget wrong guesses; what is to be read."""
        same = min(len(mirror.fed), len(text.tokens) - 1)
        at = mirror.sure
        while at < same and mirror.fed[at] == text.tokens[at]:
            at += 1
        mirror.sequence.truncate(at)
        del mirror.fed[at:]
        mirror.sure = at
        mirror.sampler.seek(text.sampler.position)
        return text.tokens[at:]


def check_vocabulary(tokenizer: Tokenizer, draft: Tokenizer) -> None:
    """Check that a draft model speaks of the same tokens.

    Raises:
        UsageError: it does not; names the first token that differs.
    """
    ours, theirs = tokenizer.definition.tokens, draft.definition.tokens
    if ours == theirs:
        return
    pairs = enumerate(zip(ours, theirs, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    raise UsageError(
        f"A draft model needs the model's own vocabulary of {len(ours):,} tokens; "
        f"{draft.definition.where} has {len(theirs):,}, and token {first} is another. Use a "
        "smaller model of the same family, or 'ngram', which needs none."
    )
