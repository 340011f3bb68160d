"""Answers as events: reasoning, text and tool calls told apart, several answers at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from kvant.engine.results import FinishReason
from kvant.errors import UnsupportedError
from kvant.server.events import CallEnd, Event, Text, Thought
from kvant.server.jobs import Answer, Backend, Delta, Job
from kvant.server.reasoning import ReasoningSplitter
from kvant.server.template_traits import Traits, traits_of
from kvant.server.tool_calls import NamedCallReader, ToolCallReader
from kvant.server.tool_use import ToolUse

__all__ = ["Answers", "Reading", "Step", "Whole", "begin", "close_all"]


class Reading:
    """Reads one answer's text.

    Args:
        splitter: tells reasoning apart; None leaves it in the text.
        calls: finds tool calls; None leaves them in the text.
        parallel: whether calls after the first are kept.
    """

    def __init__(
        self,
        splitter: ReasoningSplitter | None = None,
        calls: ToolCallReader | NamedCallReader | None = None,
        parallel: bool = True,
    ) -> None:
        self._splitter = splitter
        self._calls = calls
        self._parallel = parallel

    @property
    def called(self) -> bool:
        """Whether there was a call."""
        return self._calls is not None and self._calls.count > 0

    def add(self, text: str) -> list[Event]:
        """The events of a piece."""
        if not text:
            return []
        parts = self._splitter.add(text) if self._splitter else [("text", text)]
        return [event for kind, part in parts for event in self._part(kind, part)]

    def finish(self) -> list[Event]:
        """The events of what was held back."""
        parts = self._splitter.finish() if self._splitter else []
        events = [event for kind, part in parts for event in self._part(kind, part)]
        if self._calls is not None:
            events += self._kept(self._calls.finish())
        return events

    def _part(self, kind: str, text: str) -> list[Event]:
        if kind == "reasoning":
            return [Thought(text)]
        return [Text(text)] if self._calls is None else self._kept(self._calls.add(text))

    def _kept(self, events: list[Event]) -> list[Event]:
        if self._parallel:
            return events
        return [e for e in events if isinstance(e, (Text, Thought)) or e.index == 0]


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one delta of answer ``index``."""

    index: int
    events: Sequence[Event]
    delta: Delta
    called: bool = False


@dataclass(slots=True)
class Whole:
    """A finished answer."""

    text: str = ""
    thought: str = ""
    calls: list[CallEnd] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    finish_reason: FinishReason = "stop"

    def add(self, step: Step) -> None:
        """Take another step."""
        for event in step.events:
            match event:
                case Text(text):
                    self.text += text
                case Thought(text):
                    self.thought += text
                case CallEnd():
                    self.calls.append(event)
        if step.delta.tokens:
            self.deltas.append(step.delta)
        if step.delta.finish_reason is not None:
            self.finish_reason = step.delta.finish_reason


class Answers:
    """Answers to one request, admitted and under way. Close it."""

    def __init__(
        self,
        answers: Sequence[Answer],
        deltas: Sequence[AsyncIterator[Delta]],
        readings: Sequence[Reading],
        n: int = 1,
    ) -> None:
        self.answers = answers
        self._n = n
        self._deltas = deltas
        self._readings = readings

    @property
    def first(self) -> Answer:
        """The one whose prompt counts."""
        return self.answers[0]

    @property
    def prompt_tokens(self) -> int:
        """Tokens asked; a prompt that several answers share counts once."""
        return sum(a.prompt_tokens for a in self.answers[:: self._n])

    @property
    def cached_tokens(self) -> int:
        """Those of them that were found in the cache."""
        return sum(a.cached_tokens for a in self.answers[:: self._n])

    @property
    def completion_tokens(self) -> int:
        """Tokens written, of all."""
        return sum(a.completion_tokens for a in self.answers)

    async def steps(self) -> AsyncGenerator[Step, None]:
        """What comes, of all answers as it comes.

        Raises:
            DeadlineError, EngineLostError: while they were written.
        """
        if len(self.answers) == 1:
            async for step in self._one(0):
                yield step
            return
        queue: asyncio.Queue[Step | Exception | None] = asyncio.Queue(maxsize=64)

        async def run(index: int) -> None:
            try:
                async for step in self._one(index):
                    await queue.put(step)
            except Exception as error:
                await queue.put(error)
            await queue.put(None)

        tasks = [asyncio.create_task(run(i)) for i in range(len(self.answers))]
        try:
            left = len(tasks)
            while left:
                found = await queue.get()
                if isinstance(found, Exception):
                    raise found
                if found is None:
                    left -= 1
                else:
                    yield found
        finally:
            for task in tasks:
                task.cancel()

    async def collect(self) -> list[Whole]:
        """All of them, finished."""
        found = [Whole() for _ in self.answers]
        async for step in self.steps():
            found[step.index].add(step)
        return found

    async def aclose(self) -> None:
        """End those that are not finished."""
        await close_all(self.answers)

    async def _one(self, index: int) -> AsyncIterator[Step]:
        reading = self._readings[index]
        async for delta in self._deltas[index]:
            events = reading.add(delta.text)
            if delta.finish_reason is not None:
                events += reading.finish()
            yield Step(index, events, delta, reading.called)


async def close_all(answers: Sequence[Answer]) -> None:
    """End answers; one that fails does not keep the others."""
    for answer in answers:
        with contextlib.suppress(Exception):
            await answer.aclose()


async def begin(
    backend: Backend,
    jobs: Sequence[Job],
    n: int = 1,
    tool_use: ToolUse | None = None,
    *,
    reasons: bool = False,
) -> Answers:
    """Begin ``n`` answers to each of ``jobs``.

    The others of a job begin when the first has read the prompt, so that they find it in the
    cache. With a seed they get the following ones.

    Args:
        backend: runs them.
        jobs: one of a conversation, or texts to continue.
        n: answers to each.
        tool_use: the tools of the conversation.
        reasons: reasoning is told apart.

    Raises:
        As `Backend.answer`; what has begun is ended then.
    """
    answers: list[Answer] = []
    deltas: list[AsyncIterator[Delta]] = []
    try:
        for job in jobs:
            for k in range(n):
                answers.append(await backend.answer(_with_seed(job, k)))
                deltas.append(aiter(answers[-1]))
                if k == 0 and n > 1:
                    deltas[-1] = await _read_prompt(deltas[-1])
        readings = [_reading(a, jobs[i // n], tool_use, reasons) for i, a in enumerate(answers)]
    except BaseException:
        await asyncio.shield(close_all(answers))
        raise
    return Answers(answers, deltas, readings, n)


def _with_seed(job: Job, k: int) -> Job:
    seed = job.sampling.get("seed")
    if not k or seed is None:
        return job
    sampling: Mapping[str, object] = {**job.sampling, "seed": seed + k}
    return dataclasses.replace(job, sampling=sampling)


async def _read_prompt(deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
    """The same deltas, once the first one is there."""
    first = await anext(deltas)

    async def again() -> AsyncIterator[Delta]:
        yield first
        async for delta in deltas:
            yield delta

    return again()


def _reading(answer: Answer, job: Job, tool_use: ToolUse | None, reasons: bool) -> Reading:
    traits: Traits = traits_of(answer.chat_template)
    if tool_use is None:
        tool_use = ToolUse()
    if tool_use.offered and tool_use.mode == "auto" and answer.chat_template and not traits.tools:
        raise UnsupportedError(
            f"The model {answer.model} does not support tools: its chat template has no place for "
            "them. Use a model that was trained for it, or demand the call with tool_choice."
        )
    splitter = None
    if reasons and job.constraint is None:
        splitter = ReasoningSplitter(traits.reasoning(job.template))
    return Reading(splitter, tool_use.reader(traits), tool_use.parallel)
