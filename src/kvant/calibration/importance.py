"""How much each input of a linear matters: the mean square of what it was fed over a text.

An error of a weight in column j is multiplied by input j, so over a text its squared effect is
the mean square of that input: what a quantiser weighs squared errors by. llama.cpp calls a file of
these an importance matrix, kvant reads and writes its formats (`imatrix.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["FLOOR", "PRIOR", "Cold", "Importance", "Text"]

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

FLOOR = 1e-4
"""Columns whose mean square is below this share of their tensor's mean count as cold, and as this
share: another text may use them, so their weights must not become arbitrary."""

PRIOR = 32
"""Tokens of even importance that an expert is given beside those it saw: one that saw none counts
all columns alike, one that saw thousands is not moved."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text that was used: its name, its share of the tokens as it was asked for, its tokens."""

    name: str
    weight: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Cold:
    """A tensor with inputs that the text hardly used, and how many; ``experts`` that saw nothing.

    ``columns`` counts over the experts that saw something.
    """

    name: str
    columns: int
    of_columns: int
    experts: int
    of_experts: int


@dataclass(frozen=True, eq=False)
class Importance:
    """Sums of squares by canonical name of a linear's weight, and what they were made from.

    ``sums`` are float32 [columns] ([experts, columns] for stacked experts), ``seen`` int64
    [experts] (one entry for a plain linear): the tokens each sum is over. Files of llama.cpp's
    older format count chunks instead, which makes no difference to the means.
    """

    sums: Mapping[str, Floats]
    seen: Mapping[str, Counts]
    chunk: int = 0
    """Tokens a chunk; 0 where it is not known."""
    chunks: int = 0
    """Chunks that were run."""
    datasets: tuple[str, ...] = ()
    """Names of the texts, as the file has them."""
    texts: tuple[Text, ...] = ()
    """The same with shares and tokens, where kvant wrote the file."""
    model: str = ""
    """`model_fingerprint` of the model; empty where not stated."""
    model_name: str = ""
    corpus: str = ""
    """SHA-256 of the token chunks; empty where not stated."""
    version: str = ""
    """Of the kvant that collected them; empty for other tools."""
    file: str = ""
    """Name of the file they were read from, without folders."""
    sha256: str = ""
    """Of the file they were read from."""
    _ready: dict[str, Floats] = field(default_factory=dict, repr=False, init=False)

    @cached_property
    def moments(self) -> Mapping[str, Floats]:
        """Mean squares as measured: float32, zero where an expert saw nothing."""
        found = {}
        for name, sums in self.sums.items():
            seen = self.seen[name][:, None] if sums.ndim == 2 else self.seen[name]
            means = sums.astype(np.float64) / np.maximum(seen, 1)
            found[name] = np.where(seen > 0, means, 0).astype(np.float32)
        return found

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Tokens each tensor was fed, over all its experts."""
        return {name: int(seen.sum()) for name, seen in self.seen.items()}

    def for_tensor(self, name: str) -> Floats | None:
        """What to weigh a tensor's squared errors by; None where nothing is known of it.

        The mean squares, scaled to a mean of one (for each expert), with the fallbacks for cold
        inputs (`FLOOR`, `PRIOR`): float32 [columns] or [experts, columns], all above zero.
        """
        if name not in self.sums:
            return None
        if name not in self._ready:
            self._ready[name] = _usable(self.moments[name], self.seen[name])
        return self._ready[name]

    def cold(self) -> list[Cold]:
        """Tensors with inputs the text hardly used; of those that share an input, the first."""
        found = []
        firsts = {id(sums): name for name, sums in reversed(list(self.sums.items()))}
        for name, moments in self.moments.items():
            if firsts[id(self.sums[name])] != name:
                continue
            rows = moments if moments.ndim == 2 else moments[None]
            active = self.seen[name] > 0
            means = rows.mean(-1, keepdims=True, dtype=np.float64)
            columns = int((rows <= FLOOR * means)[active].sum())
            experts = int((~active).sum())
            if columns or experts:
                found.append(Cold(name, columns, rows[active].size, experts, len(rows)))
        return found


def _usable(moments: Floats, seen: Counts) -> Floats:
    rows = (moments if moments.ndim == 2 else moments[None]).astype(np.float64)
    active = seen > 0
    level = rows[active].mean() if active.any() else 1.0
    if moments.ndim == 2:
        weight = seen[:, None].astype(np.float64)
        rows = (weight * rows + PRIOR * level) / (weight + PRIOR)
    means = rows.mean(-1, keepdims=True)
    means[means == 0] = 1
    ready = np.maximum(rows / means, FLOOR)
    ready /= ready.mean(-1, keepdims=True)
    result: Floats = ready.astype(np.float32).reshape(moments.shape)
    return result
