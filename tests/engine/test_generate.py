"""The loop over many prompts: same tokens in any company, every ending, nothing left behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from engine_standin import Recorded, SpokenEngine

from kvant.checkpoint import Checkpoint
from kvant.engine import load_engine
from kvant.engine.generate import Request, generate, take_chunks
from kvant.engine.results import Completion, collect
from kvant.engine.sampling import Sampling
from kvant.errors import CacheFullError, ContextError, DataError, UsageError
from kvant.tokenizer.build import Tokenizer

GREEDY = Sampling(temperature=0)
PROMPTS = ["Once upon a time", "The king", "def f(x):\n    return", "One day, Lily went to the"]


def _run(
    engine: Any, tokenizer: Tokenizer, requests: Sequence[Request], **options: Any
) -> list[Completion]:
    pieces: list[list[Any]] = [[] for _ in requests]
    options = {"context": engine.context, **options}
    for index, piece in generate(engine, tokenizer, requests, **options):
        pieces[index].append(piece)
    return [
        collect(p, len(r.prompt), r.sampling.logprobs is not None)
        for p, r in zip(pieces, requests, strict=True)
    ]


def _reciting(checkpoint: Checkpoint, ids: Sequence[int], after: int) -> SpokenEngine:
    """A model that says ``ids`` after a prompt of ``after`` tokens, whatever it is."""

    def rows(tokens: list[int]) -> npt.ArrayLike:
        row = np.zeros(checkpoint.config.vocab_size, np.float32)
        row[ids[min(len(tokens) - after, len(ids) - 1)]] = 30
        return row

    return SpokenEngine(checkpoint.config.vocab_size, 1024, rows)


@pytest.fixture
def recite(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Callable[..., Completion]:
    """``recite(text_or_ids, **request)``: the completion by a model that says just that."""

    def run(says: str | list[int], **options: Any) -> Completion:
        ids = tokenizer.encode(says) if isinstance(says, str) else says
        prompt = tokenizer.encode("Hello")
        engine = _reciting(checkpoint, [*ids, tokenizer.eos_id or 0], len(prompt))
        (done,) = _run(engine, tokenizer, [Request(prompt, GREEDY, **options)])
        assert engine.idle
        return done

    return run


def test_greedy_takes_the_likeliest(engine: Recorded, tokenizer: Tokenizer) -> None:
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        (found,) = _run(engine, tokenizer, [Request(ids, GREEDY, 8)])
        sequence, following = engine.sequence(), ids
        for token in found.tokens:
            assert engine.step([(sequence, following)]).argmax() == token
            following = [token]
        sequence.free()
        assert found.text == tokenizer.decode(found.tokens)
        assert found.finish_reason == "length"
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids), 8)


@pytest.mark.parametrize(("batch", "chunk"), [(16, 256), (2, 5), (3, 1), (1, 7)])
def test_the_same_in_any_company(
    engine: Recorded, tokenizer: Tokenizer, batch: int, chunk: int
) -> None:
    requests = [
        Request(tokenizer.encode(p), Sampling(temperature=0.9, seed=i, logprobs=2), 3 + 2 * i)
        for i, p in enumerate(PROMPTS)
    ]
    alone = [_run(engine, tokenizer, [r])[0] for r in requests]
    engine.steps.clear()
    together = _run(engine, tokenizer, requests, batch=batch, chunk=chunk)
    for a, b in zip(alone, together, strict=True):
        assert (a.text, a.tokens, a.finish_reason) == (b.text, b.tokens, b.finish_reason)
    assert max(map(len, engine.steps)) <= batch
    assert max(sum(step) for step in engine.steps) <= max(batch, chunk)


def test_finished_requests_leave(engine: Recorded, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("The king was")
    _run(engine, tokenizer, [Request(prompt, GREEDY, n) for n in (1, 2, 4)])
    n = len(prompt)
    assert engine.steps == [[n, n, n], [1, 1], [1], [1]]


def test_chunks() -> None:
    assert take_chunks([[1, 2, 3], [4], [5, 6]], 4) == [[1, 2, 3], [4], [5]]
    assert take_chunks([[1, 2, 3], [4, 5], [6]], 2) == [[1, 2], [], [6]]


def test_the_models_own_end(recite: Callable[..., Completion], tokenizer: Tokenizer) -> None:
    said = recite("A whole sentence.")
    assert said.text == "A whole sentence."
    assert said.finish_reason == "stop"
    assert said.tokens[-1] == tokenizer.eos_id
    assert said.usage.completion_tokens == len(said.tokens)
    turn = tokenizer.definition.tokens.index("<|im_end|>")
    assert recite([*tokenizer.encode("Yes."), turn, 5, 6]).text == "Yes."


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        (("quick",), "The ", "stop"),
        (("k br",), "The quic", "stop"),
        (("dog.",), "The quick brown fox jumps over the lazy ", "stop"),
        (("fox", "brown"), "The quick ", "stop"),
        (("dog. And",), "The quick brown fox jumps over the lazy dog.", "stop"),
        (("The",), "", "stop"),
        (("never",), "The quick brown fox jumps over the lazy dog.", "stop"),
    ],
)
def test_stop_strings(
    recite: Callable[..., Completion], stop: tuple[str, ...], text: str, reason: str
) -> None:
    found = recite("The quick brown fox jumps over the lazy dog.", stop=stop)
    assert (found.text, found.finish_reason) == (text, reason)


def test_a_limit_shows_what_was_held_back(
    recite: Callable[..., Completion], tokenizer: Tokenizer
) -> None:
    n = len(tokenizer.encode("The quick"))
    found = recite("The quick brown", stop=("quick as",), max_tokens=n)
    assert (found.text, found.finish_reason) == ("The quick", "length")
    emoji = tokenizer.encode("🙂")
    assert len(emoji) > 1
    assert recite(emoji, max_tokens=len(emoji) - 1).text == "\ufffd"
    assert recite(emoji, max_tokens=len(emoji)).text == "🙂"


def test_the_context_is_the_limit(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a b c d e f g")
    engine = _reciting(checkpoint, tokenizer.encode("word " * 200), len(ids))
    (found,) = _run(engine, tokenizer, [Request(ids, GREEDY)], context=len(ids) + 5)
    assert len(found.tokens) == 5
    assert found.finish_reason == "length"
    with pytest.raises(ContextError, match=f"has {len(ids)} tokens and the context holds 3"):
        _run(engine, tokenizer, [Request(ids, GREEDY)], context=3)
    with pytest.raises(ContextError):  # no room for an answer
        _run(engine, tokenizer, [Request(ids, GREEDY)], context=len(ids))
    with pytest.raises(UsageError, match="prompt is empty"):
        _run(engine, tokenizer, [Request([], GREEDY)])
    assert engine.idle


def test_bad_logits_end_in_an_error(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    def rows(tokens: list[int]) -> npt.ArrayLike:
        row = np.zeros(checkpoint.config.vocab_size, np.float32)
        row[7] = math.nan if len(tokens) > 4 else 0
        return row

    engine = SpokenEngine(checkpoint.config.vocab_size, 1024, rows)
    prompt = tokenizer.encode("The")
    with pytest.raises(DataError, match="finite, got nan for token 7"):
        _run(engine, tokenizer, [Request(prompt, GREEDY, 20), Request([1, 2], GREEDY, 20)])
    assert engine.idle


def test_memory_that_runs_out(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    engine = Recorded(load_engine(checkpoint, threads=1, kv_tokens=32))
    with pytest.raises(CacheFullError):  # even alone
        _run(engine, tokenizer, [Request(tokenizer.encode(p), GREEDY, 60) for p in PROMPTS])
    assert engine.idle


def test_requests_make_room_for_each_other(
    checkpoint: Checkpoint, engine: Recorded, tokenizer: Tokenizer
) -> None:
    sampling = Sampling(temperature=0.9, repetition_penalty=1.1, logit_bias={4093: -math.inf})
    requests = [
        Request(tokenizer.encode(p), replace(sampling, seed=i), 40) for i, p in enumerate(PROMPTS)
    ]
    tight = Recorded(load_engine(checkpoint, threads=1, kv_tokens=96))
    assert _run(tight, tokenizer, requests) == _run(engine, tokenizer, requests)
    assert len(tight.steps) > len(engine.steps)
    assert max(map(len, tight.steps)) > 1
    assert tight.idle


def test_whoever_stops_listening_frees_all(engine: Recorded, tokenizer: Tokenizer) -> None:
    requests = [Request(tokenizer.encode(p), GREEDY, 50) for p in PROMPTS]
    pieces = generate(engine, tokenizer, requests, context=engine.context)
    next(pieces)
    assert not engine.idle
    pieces.close()
    assert engine.idle


def test_pieces_have_all_the_tokens(engine: Recorded, tokenizer: Tokenizer) -> None:
    request = Request(tokenizer.encode("Once"), Sampling(temperature=0, logprobs=1), 12, ("zzz",))
    pieces = [p for _, p in generate(engine, tokenizer, [request], context=engine.context)]
    assert sum(len(p.tokens) for p in pieces) == 12
    assert all(len(p.tokens) == len(p.logprobs) for p in pieces)
    assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    for piece in pieces:
        for token, logprob in zip(piece.tokens, piece.logprobs, strict=True):
            assert logprob.token == token == logprob.top[0][0]
    assert f"{pieces[0]}!" == str(pieces[0]) + "!"
