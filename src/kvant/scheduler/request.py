"""A request as the scheduler sees it, and a step as it hands it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from kvant.scheduler.blocks import Key

__all__ = ["Entry", "Request", "State", "Step"]


class State(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Request:
    """One text to continue.

    Attributes:
        tokens: prompt, then what was written.
        most_tokens: length at which it ends at the latest, prompt included.
        user: whose it is; users share fairly.
        salt: texts of different salts never share cached blocks; those of one salt do, also where
            their users differ.
        draft: guessed next tokens, to be checked in the next step; set by the caller after
            `Scheduler.complete`.
        computed: tokens whose keys and values are in ``blocks``.
        cached: tokens of the prompt that were found in the cache when it was first admitted.
        preemptions: how often it had to make room.
    """

    tokens: list[int]
    most_tokens: int
    user: str = ""
    salt: bytes = b""
    draft: list[int] = field(default_factory=list)
    state: State = State.WAITING
    computed: int = 0
    cached: int | None = None
    preemptions: int = 0
    blocks: list[int] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    published: int = 0
    order: int = 0
    prompt_tokens: int = 0
    in_step: bool = False

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be drawn."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class Entry:
    """A request's part of a step.

    ``tokens`` follow the ``start`` tokens that its ``blocks`` hold already. With ``draws`` what
    follows the last token is wanted; with ``drafted`` > 0 what follows each of the last
    ``drafted + 1`` tokens.
    """

    request: Request
    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    draws: bool
    drafted: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What to run now: first the copies of blocks (from, to), then all entries at once."""

    entries: tuple[Entry, ...]
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return sum(len(entry.tokens) for entry in self.entries)
