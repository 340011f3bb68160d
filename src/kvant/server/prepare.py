"""From what a client wrote to tokens and checked settings. Runs in the model's process."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from kvant.engine.batch import Request, check_length
from kvant.engine.sampling import Sampling
from kvant.engine.stopping import StopStrings
from kvant.errors import ContextError, KvantError, UnsupportedError, UsageError
from kvant.server.jobs import Job
from kvant.tokenizer.build import Tokenizer
from kvant.tokenizer.chat import ChatRenderer

__all__ = ["Defaults", "Preparer"]

_MOST_TEMPLATES = 4
"""Processes kept for templates that clients bring; each holds some megabytes."""
_LONG = 16
"""Characters for each token of the context that are made tokens of at first."""
_SAMPLING = frozenset(f.name for f in fields(Sampling))


class _LongError(ContextError):
    """A text has more tokens than ``ids``, which are too many already."""

    def __init__(self, ids: list[int], context: int) -> None:
        super().__init__(
            len(ids),
            context,
            f"The prompt has more than {len(ids):,} tokens and the context holds {context:,}, "
            "prompt and answer together. Shorten the prompt, or use a larger context where the "
            "model has one.",
        )
        self.ids = ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a model's own file says where a client says nothing.

    ``sampling`` has fields of `kvant.Sampling`; ``messages`` go before every conversation.
    """

    template: str | None = None
    system: str | None = None
    messages: Sequence[Mapping[str, Any]] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    context: int | None = None


class Preparer:
    """Makes requests out of jobs. For one thread at a time; close it.

    Args:
        tokenizer: the model's.
        sampling: what it recommends.
        defaults: what its file says.
        context: most tokens of a prompt and its answer.
    """

    def __init__(
        self, tokenizer: Tokenizer, sampling: Sampling, defaults: Defaults, context: int
    ) -> None:
        self._tokenizer, self._defaults, self.context = tokenizer, defaults, context
        self._sampling = replace(sampling, **defaults.sampling)
        self._renderers: OrderedDict[str, ChatRenderer] = OrderedDict()

    def prepare(self, job: Job) -> Request:
        """Tokens and settings of a job.

        Raises:
            ContextError: it does not fit in the context.
            UsageError: a value out of range; a template that refuses the conversation.
            UnsupportedError: no chat template, or no tokens for filling in.
        """
        if (job.prompt is None) == (job.messages is None):
            raise UsageError("A request has either a prompt or messages. Send one of them.")
        tokens = self._conversation(job) if job.messages is not None else self._text(job)
        check_length(tokens, self.context)
        most = self._defaults.max_tokens if job.max_tokens is None else job.max_tokens
        if most is not None and (type(most) is not int or most < 1):
            raise UsageError(f"max_tokens should be a whole number from 1, got {most!r}.")
        unknown = set(job.sampling) - _SAMPLING
        if unknown:
            raise UsageError(f"There is no sampling setting called {min(unknown)!r}. Leave it out.")
        stop = (*self._defaults.stop, *job.stop)
        StopStrings(stop)  # says what is wrong with them
        sampling = replace(self._sampling, **job.sampling)
        self.checked(sorted(sampling.logit_bias), "of logit_bias ")
        return Request(
            prompt=tokens,
            sampling=sampling,
            max_tokens=most,
            stop=stop,
            user=job.user,
            constraint=job.constraint,
            ignore_end=job.ignore_end,
        )

    @property
    def template(self) -> str | None:
        """What conversations are written with, where a client brings nothing else."""
        return self._defaults.template or self._tokenizer.definition.chat_template

    def warm(self) -> None:
        """Start what renders conversations, so that the first one does not wait for it."""
        if self.template is not None:
            with contextlib.suppress(KvantError):
                self._conversation(Job(model="", messages=[{"role": "user", "content": "Hello"}]))

    def encode(self, text: str) -> list[int]:
        """Ids of a text; of an empty one, the token that begins texts."""
        t = self._tokenizer
        return self._tokens(text) or ([t.bos_id] if t.bos_id is not None else [])

    def cut(self, text: str) -> list[int]:
        """As `encode`; of a text that is longer than the context, more than fit, and not all."""
        try:
            return self.encode(text)
        except _LongError as error:
            return error.ids

    def _tokens(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """The ids of a text.

        The tokens of a text that is much too long are not counted to its end: that takes seconds a
        million characters, and the next request waits for it.

        Raises:
            ContextError: it is more than twice as long as the context.
        """
        size = _LONG * max(self.context, 512)
        while True:
            ids = self._tokenizer.encode(
                text[:size], add_special=add_special, parse_special=parse_special
            )
            if size >= len(text):
                return ids
            # Where the text is cut off a few tokens may be others, and twice as many are none.
            if len(ids) > 2 * self.context + 1024:
                raise _LongError(ids, self.context)
            size *= 4

    def checked(self, ids: Sequence[int], where: str = "") -> list[int]:
        """Ids that a client sent.

        Raises:
            UsageError: one is not of this vocabulary.
        """
        size = self._tokenizer.vocab_size
        for i in ids:
            if type(i) is not int or not 0 <= i < size:
                raise UsageError(
                    f"Token ids {where}should be whole numbers from 0 to {size - 1}, got {i!r}. "
                    "Use ids of this model's tokenizer."
                )
        return list(ids)

    def close(self) -> None:
        """End the templates' processes."""
        while self._renderers:
            self._renderers.popitem()[1].close()

    def _text(self, job: Job) -> list[int]:
        prompt = job.prompt
        if job.suffix:
            if not isinstance(prompt, str):
                raise UsageError("A suffix goes with a prompt of text, not of token ids.")
            return self._gap(prompt, job.suffix)
        if not isinstance(prompt, str):
            return self.checked(prompt or ())
        if job.raw:
            # Whoever writes the template themselves writes its special tokens too.
            return self._tokens(prompt, add_special=False, parse_special=True)
        return self.encode(prompt)

    def _gap(self, before: str, after: str) -> list[int]:
        d = self._tokenizer.definition
        marks = [d.token_id(name) for name in ("fim_pre", "fim_suf", "fim_mid")]
        pre, suf, mid = marks
        if pre is None or suf is None or mid is None:
            raise UnsupportedError(
                "The model has no tokens for filling in between a prompt and a suffix. Leave the "
                "suffix out, or use a model for code that has them."
            )
        begin, end = (self._tokens(part, add_special=False) for part in (before, after))
        return [pre, *begin, suf, *end, mid]

    def _conversation(self, job: Job) -> list[int]:
        d = self._tokenizer.definition
        template = job.chat_template or self.template
        if template is None:
            raise UnsupportedError(
                "The model has no chat template, so how a conversation is written for it is not "
                "known. Send a prompt to continue instead, or a model made for chat."
            )
        assert job.messages is not None
        messages = [dict(m) for m in job.messages]
        own = [dict(m) for m in self._defaults.messages]
        led = bool(messages) and messages[0].get("role") == "system"
        if self._defaults.system is not None and not led:
            messages = [{"role": "system", "content": self._defaults.system}, *own, *messages]
        else:
            messages = [*messages[:led], *own, *messages[led:]]
        names = {
            f"{name}_token": d.tokens[i]
            for name in ("bos", "eos")
            if (i := d.token_id(name)) is not None
        }
        tools = [dict(t) for t in job.tools] or None
        values = {"add_generation_prompt": True, **names, "tools": tools, **job.template}
        values.pop("messages", None)
        text = self._renderer(template).render(messages, **values)
        # The template writes all special tokens itself, as in transformers.
        return self._tokens(text, add_special=False, parse_special=True)

    def _renderer(self, template: str) -> ChatRenderer:
        found = self._renderers.pop(template, None) or ChatRenderer(template)
        self._renderers[template] = found
        if len(self._renderers) > _MOST_TEMPLATES:
            self._renderers.popitem(last=False)[1].close()
        return found
