"""A model that runs: text from text, chat, embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from kvant.api.sampling_defaults import default_sampling
from kvant.api.source import Source, named, open_source, threads_or_default, tokenizer_of
from kvant.api.speculation import Speculate, speculator
from kvant.checkpoint import Checkpoint, Pooling
from kvant.checkpoint.pooling import POOLING_TYPES
from kvant.engine import Engine, load_engine
from kvant.engine.batch import Batch, Limits
from kvant.engine.constrain import Constraint, Grammars
from kvant.engine.generate import Request, check_length, generate
from kvant.engine.load import KV_TYPES, KvTypeName
from kvant.engine.pooled import pooled_states
from kvant.engine.results import Completion, Piece, collect
from kvant.engine.sampling import Sampling
from kvant.engine.speculative import Speculator
from kvant.engine.stopping import StopStrings
from kvant.errors import UnsupportedError, UsageError
from kvant.tokenizer.chat import ChatRenderer

if TYPE_CHECKING:
    from kvant.registry import Local
    from kvant.tokenizer.build import Tokenizer

__all__ = ["Message", "Model", "load"]

Message: TypeAlias = Mapping[str, Any]
"""A turn of a conversation: ``{"role": "user", "content": "..."}``, and what else its template
reads."""
Stop: TypeAlias = str | Sequence[str]
Bound: TypeAlias = Constraint | Mapping[str, Any] | None


def load(
    source: Source,
    *,
    threads: int | None = None,
    context: int | None = None,
    kv_type: KvTypeName = "f16",
    speculate: Speculate = None,
) -> Model:
    """Load a model to run it.

    Args:
        source: ``demo``, a Hugging Face folder, a GGUF file, or a model of the store; that one
            brings its parameters, template, system message and first turns.
        threads: processors to use; all by default.
        context: most tokens of a prompt and its answer together. Memory for as many tokens is set
            aside; texts that are written at once share it, and wait for each other where it does
            not suffice. By default what the model takes, or what half of the free memory holds.
        kv_type: how keys and values are kept: ``f16``, or ``q8_0`` for half the memory.
        speculate: guess tokens and check several in one step, where that is faster: ``"ngram"``
            takes what followed the same tokens before in the text; else a smaller model of the same
            vocabulary. Texts are the same with and without.

    Raises:
        InputError: the model cannot be read, or has no tokenizer.
        UsageError: the context is more than the model takes, or an option does not exist.
        NotEnoughMemoryError: it does not fit in memory; says what would.
    """
    local = named(source)
    checkpoint = open_source(source)
    if context is None and local is not None and local.settings.context is not None:
        # As in Ollama: a wish, not a limit that is an error to miss.
        context = min(local.settings.context, checkpoint.config.max_position_embeddings)
    _check_context(context, checkpoint.config.max_position_embeddings)
    if kv_type not in KV_TYPES:
        raise UsageError(f"kv_type should be one of {', '.join(KV_TYPES)}, got {kv_type!r}.")
    # A vocabulary of a hundred thousand texts takes half a second to build: beside the weights.
    with ThreadPoolExecutor(1) as beside:
        building = beside.submit(tokenizer_of, checkpoint)
        engine = load_engine(
            checkpoint, threads=threads_or_default(threads), kv_tokens=context, kv_type=kv_type
        )
        tokenizer = building.result()
    guesses = speculator(speculate, engine, tokenizer)
    return Model(checkpoint, engine, tokenizer, context=context, local=local, speculation=guesses)


class Model:
    """A loaded model; made by `load`. Close it, or use ``with``. For one thread at a time.

    Attributes:
        checkpoint: what was loaded.
        tokenizer: text to ids and back.
        context: most tokens of a prompt and its answer together.
        local: what the store says of it; None where it is not from there.
        default_sampling: what is used where no sampling is given: the model's own recommendation,
            or temperature 0.8, top-k 40, top-p 0.95, min-p 0.05.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        context: int | None = None,
        local: Local | None = None,
        speculation: Speculator | None = None,
    ) -> None:
        self.local = local
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        room = engine.kv.capacity_tokens
        self.context = min(context or engine.context, engine.context, room)
        self.default_sampling = default_sampling(checkpoint)
        if local is not None:
            self.default_sampling = replace(self.default_sampling, **local.settings.sampling)
        self._engine: Engine | None = engine
        self._renderer: ChatRenderer | None = None
        self._speculation = speculation
        self._grammars = Grammars(tokenizer, engine.vocab_size)

    # ---- text --------------------------------------------------------------------------------

    def stream(
        self,
        prompt: str,
        sampling: Sampling | None = None,
        *,
        max_tokens: int | None = None,
        stop: Stop = (),
        constraint: Bound = None,
    ) -> Iterator[Piece]:
        """Continue ``prompt``; yields the text in pieces, as it is written.

        Args:
            prompt: the text to continue, without any template.
            sampling: how to choose tokens; ``default_sampling`` by default.
            max_tokens: most tokens to write; by default until the model stops or the context is
                full.
            stop: strings that end the text; they are not part of it.
            constraint: what the text must match: a `Constraint`, or a JSON schema as a dictionary.
                Cut off by ``max_tokens`` it is the beginning of such a text.

        Raises:
            ContextError: the prompt does not fit in the context.
            UsageError: an argument makes no sense.
            MissingExtraError: a constraint needs a package that is not installed.
        """
        request = self._request(self._encode(prompt), sampling, max_tokens, stop, constraint)
        return (piece for _, piece in self._generate([request]))

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self,
        prompts: str,
        sampling: Sampling | None = None,
        *,
        max_tokens: int | None = None,
        stop: Stop = (),
        constraint: Bound = None,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling | None = None,
        *,
        max_tokens: int | None = None,
        stop: Stop = (),
        constraint: Bound = None,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        sampling: Sampling | None = None,
        *,
        max_tokens: int | None = None,
        stop: Stop = (),
        constraint: Bound = None,
    ) -> Completion | list[Completion]:
        """Continue one prompt, or many at once; as `stream`, but the whole texts.

        The result of a prompt does not depend on the others. With a seed, each prompt gets the
        tokens it would get alone.
        """
        alone = isinstance(prompts, str)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = [self._encode(text) for text in texts]
        requests = [self._request(i, sampling, max_tokens, stop, constraint) for i in ids]
        found = self._complete(requests)
        return found[0] if alone else found

    def batch(self, limits: Limits | None = None) -> Batch:
        """A batch that requests may join and leave at any time; for servers.

        It shares the cache with everything else this model does. One thread at a time.
        """
        return Batch(
            self._running(),
            self.tokenizer,
            context=self.context,
            limits=limits,
            speculation=self._speculation,
            grammars=self._grammars,
        )

    # ---- chat --------------------------------------------------------------------------------

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        max_tokens: int | None = None,
        stop: Stop = (),
        constraint: Bound = None,
        **context: Any,
    ) -> Completion:
        """The model's answer to a conversation, by its chat template.

        Args:
            messages: the turns so far, the last one to be answered.
            sampling: as in `stream`.
            max_tokens: as in `stream`.
            stop: as in `stream`.
            constraint: as in `stream`.
            context: further values the template reads (``tools``, ``enable_thinking``, ...).

        Raises:
            UnsupportedError: the model has no chat template.
            UsageError: the template does not take this conversation.
            ContextError: the conversation does not fit in the context.
        """
        ids = self._render(messages, context)
        request = self._request(ids, sampling, max_tokens, stop, constraint)
        return self._complete([request])[0]

    def chat_stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        max_tokens: int | None = None,
        stop: Stop = (),
        constraint: Bound = None,
        **context: Any,
    ) -> Iterator[Piece]:
        """As `chat`, in pieces. What was read of a conversation is kept for its next turn."""
        ids = self._render(messages, context)
        request = self._request(ids, sampling, max_tokens, stop, constraint)
        return (piece for _, piece in self._generate([request]))

    @property
    def chat_template(self) -> str | None:
        """How a conversation is written for the model, if that is known: Jinja."""
        if self.local is not None and self.local.template is not None:
            return self.local.template
        return self.tokenizer.definition.chat_template

    def require_chat_template(self) -> str:
        """The template.

        Raises:
            UnsupportedError: there is none.
        """
        template = self.chat_template
        if template is None:
            raise UnsupportedError(
                f"{self.checkpoint.path}: the model has no chat template, so how a conversation "
                "is written for it is not known. Give it a text to continue instead."
            )
        return template

    # ---- embeddings --------------------------------------------------------------------------

    def embed(
        self, texts: Sequence[str], *, pooling: Pooling | None = None
    ) -> npt.NDArray[np.float32]:
        """Vectors of texts: final hidden states, pooled, of length one.

        Args:
            texts: any number.
            pooling: ``mean`` of all tokens, the first one's (``cls``), or the ``last`` one's; by
                default what the model was trained with, where it says so, else the mean.

        Returns:
            float32 [len(texts), hidden size]. The dot product of two is their cosine similarity.

        Raises:
            ContextError: a text has more tokens than the context.
            UsageError: a text is empty, or the pooling unknown.
        """
        if isinstance(texts, str):
            raise UsageError("embed takes a list of texts, got one text. Write embed([text]).")
        return self.embed_tokens([self._encode(text) for text in texts], pooling=pooling)

    def embed_tokens(
        self, ids: Sequence[list[int]], *, pooling: Pooling | None = None
    ) -> npt.NDArray[np.float32]:
        """As `embed`, of texts that are token ids already."""
        pooling = pooling or self.checkpoint.pooling or "mean"
        if pooling not in POOLING_TYPES:
            raise UsageError(f"pooling should be 'mean', 'cls' or 'last', got {pooling!r}.")
        for tokens in ids:
            check_length(tokens, self.context + 1)
        if not ids:
            return np.zeros((0, self.checkpoint.config.hidden_size), np.float32)
        rows = np.stack(list(pooled_states(self._running(), ids, pooling)))
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        unit: npt.NDArray[np.float32] = (rows / np.maximum(lengths, 1e-300)).astype(np.float32)
        return unit

    # ---- life --------------------------------------------------------------------------------

    def describe(self) -> str:
        """How it runs, in a line: threads, context, memory."""
        engine = self._running()
        memory = engine.memory
        return (
            f"{engine.threads} threads, context of {self.context:,} tokens, "
            f"{memory.weights_bytes / 1e6:,.0f} MB of weights, room for "
            f"{engine.kv.capacity_tokens:,} tokens in {memory.kv_bytes / 1e6:,.0f} MB"
        )

    def close(self) -> None:
        """Give the memory back. The model is not used again."""
        if self._renderer is not None:
            self._renderer.close()
        self._engine = self._renderer = self._speculation = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- inside ------------------------------------------------------------------------------

    def _running(self) -> Engine:
        if self._engine is None:
            raise UsageError("The model has been closed. Load it again.")
        return self._engine

    def _encode(self, text: str) -> list[int]:
        """Ids of a text; of an empty one, the token that begins texts."""
        t = self.tokenizer
        ids = t.encode(text)
        return ids or ([t.bos_id] if t.bos_id is not None else [])

    def _render(self, messages: Sequence[Message], context: Mapping[str, Any]) -> list[int]:
        template = self.require_chat_template()
        definition = self.tokenizer.definition
        if self._renderer is None:
            self._renderer = ChatRenderer(template)
        names = {
            f"{name}_token": definition.tokens[i]
            for name in ("bos", "eos")
            if (i := definition.token_id(name)) is not None
        }
        values = {"add_generation_prompt": True, **names, **context}
        if self.local is not None:
            messages = self.local.conversation(messages)
        text = self._renderer.render(messages, **values)
        # The template writes all special tokens itself, as in transformers.
        return self.tokenizer.encode(text, add_special=False, parse_special=True)

    def _request(
        self,
        prompt: list[int],
        sampling: Sampling | None,
        max_tokens: int | None,
        stop: Stop,
        constraint: Bound,
    ) -> Request:
        if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
            raise UsageError(f"max_tokens should be a whole number from 1, got {max_tokens!r}.")
        check_length(prompt, self.context)
        strings = (stop,) if isinstance(stop, str) else tuple(stop)
        if self.local is not None:
            settings = self.local.settings
            strings = strings or settings.stop
            max_tokens = max_tokens or settings.max_tokens
        StopStrings(strings)  # said now, not when the first piece is asked for
        if isinstance(constraint, Mapping):
            constraint = Constraint("json_schema", json.dumps(constraint))
        if constraint is not None:
            self._grammars.matcher(constraint)
        chosen = sampling or self.default_sampling
        return Request(prompt, chosen, max_tokens, strings, constraint=constraint)

    def _generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Piece]]:
        return generate(
            self._running(),
            self.tokenizer,
            requests,
            context=self.context,
            speculation=self._speculation,
            grammars=self._grammars,
        )

    def _complete(self, requests: Sequence[Request]) -> list[Completion]:
        pieces: list[list[Piece]] = [[] for _ in requests]
        for index, piece in self._generate(requests):
            pieces[index].append(piece)
        return [
            collect(p, len(r.prompt), r.sampling.logprobs is not None)
            for p, r in zip(pieces, requests, strict=True)
        ]


def _check_context(context: int | None, most: int) -> None:
    if context is not None and not 1 <= context <= most:
        raise UsageError(
            f"The context should be from 1 to the {most} tokens the model takes, got {context}."
        )
