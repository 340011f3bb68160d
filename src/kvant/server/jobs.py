"""What the HTTP side asks of whatever runs the models, in plain data. Both sides know only this."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from kvant.engine.constrain import Constraint
from kvant.engine.results import FinishReason
from kvant.engine.sampling import TokenLogprob
from kvant.errors import KvantError

__all__ = [
    "Answer",
    "Backend",
    "BackendError",
    "BusyError",
    "Constraint",
    "DeadlineError",
    "Delta",
    "EmbedJob",
    "Embedded",
    "EngineLostError",
    "Job",
    "LoadedModel",
    "ModelNotFoundError",
    "Timings",
]


class BackendError(KvantError):
    """A request could not be served."""


class ModelNotFoundError(BackendError):
    """There is no model of that name here."""


class BusyError(BackendError):
    """As much waits as may; ``retry_after`` seconds are a fair guess for another try."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(BackendError):
    """The time a request may take is over."""


class EngineLostError(BackendError):
    """The process that ran the model ended; the next request starts another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One text to continue (``prompt``), or one conversation to answer (``messages``).

    Attributes:
        model: its name, as the client wrote it.
        prompt: text, or token ids; None with ``messages``.
        raw: ``prompt`` as it is: no token that begins texts is added to it.
        suffix: what follows the text to be written, for models that fill in.
        messages: turns, as chat templates read them; None with ``prompt``.
        tools: what the model may call, in OpenAI's form; for the template.
        template: further values the template reads (``enable_thinking``, ...).
        chat_template: in place of the model's own.
        sampling: fields of `kvant.Sampling` the client set; the others are the model's.
        max_tokens: most tokens to write; None until the model stops or the context is full.
        stop: strings that end the text.
        constraint: what the text must match.
        ignore_end: writes on when the model would end the text (for measuring).
        keep_alive: seconds the model stays loaded afterwards, negative for ever, 0 to unload it;
            None for what was said last since it was loaded, at first the server's own setting.
        context: tokens the model is loaded for, where it is not loaded yet; None for the server's.
        user: whose it is, for fair shares and the log.
        deadline: seconds from now at which it is ended.
    """

    model: str
    prompt: str | Sequence[int] | None = None
    raw: bool = False
    suffix: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    template: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    ignore_end: bool = False
    keep_alive: float | None = None
    context: int | None = None
    user: str = ""
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. The last one has a ``finish_reason``.

    ``pieces`` are the texts of ``tokens``, as bytes (a character may take several tokens), and
    ``tops`` those of the alternatives in ``logprobs``; both only where logprobs were asked for.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    pieces: tuple[bytes, ...] = ()
    tops: tuple[tuple[bytes, ...], ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Timings:
    """Seconds an answer took: until its model was loaded, in the queue, reading, writing."""

    load: float = 0.0
    queue: float = 0.0
    prompt: float = 0.0
    generation: float = 0.0


class Answer(Protocol):
    """An answer under way: iterate it once for its deltas; `aclose` at any time ends it."""

    @property
    def model(self) -> str:
        """The model's full name."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The template that the conversation was written with; None for texts.

        From it the HTTP side reads how the model reasons and calls tools.
        """
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens that were asked."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Those of them that were found in the cache; known with the first delta."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Tokens written so far."""
        ...

    @property
    def timings(self) -> Timings:
        """Complete with the last delta."""
        ...

    def __aiter__(self) -> AsyncIterator[Delta]:
        """The deltas.

        Raises:
            DeadlineError, EngineLostError: while it was written.
        """
        ...

    async def aclose(self) -> None:
        """End it; its place and its cache are free at once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedJob:
    """Texts, or token ids, to turn into vectors."""

    model: str
    inputs: Sequence[str | Sequence[int]]
    truncate: bool = False
    keep_alive: float | None = None
    user: str = ""
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of length one, float32 [inputs, hidden size], and the tokens that were read."""

    model: str
    vectors: npt.NDArray[np.float32]
    tokens: int
    timings: Timings


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory. ``expires`` is a time stamp in seconds, None for never."""

    name: str
    digest: str
    size: int
    memory: int
    context: int
    running: int
    waiting: int
    expires: float | None


Keep: TypeAlias = float | None


class Backend(Protocol):
    """Runs models by name: loads them when they are asked for, gives them back when not."""

    async def answer(self, job: Job) -> Answer:
        """Begin to answer; returns when the request is admitted and its length known.

        Raises:
            ModelNotFoundError: no such model.
            BusyError: the queue is full, or no memory can be freed for the model.
            ContextError: it does not fit in the context; states both lengths.
            UsageError, UnsupportedError: a value out of range, a template that refuses the
                conversation, a model that cannot do this.
        """
        ...

    async def embed(self, job: EmbedJob) -> Embedded:
        """Vectors of texts.

        Raises:
            As `answer`.
        """
        ...

    async def load(self, model: str, keep_alive: Keep = None) -> None:
        """Load a model, or set how long it stays."""
        ...

    async def unload(self, model: str) -> bool:
        """Give a model's memory back when its answers are done; whether it was loaded."""
        ...

    def loaded(self) -> Sequence[LoadedModel]:
        """Models in memory."""
        ...
