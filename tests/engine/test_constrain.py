"""Text that must match: it does, whatever the model would rather have said."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_standin import Recorded

pytest.importorskip("llguidance")

from kvant.checkpoint import Checkpoint
from kvant.engine.batch import Batch, Request
from kvant.engine.constrain import Constraint, Grammars
from kvant.engine.results import Completion, Piece, collect
from kvant.engine.sampling import Sampler, Sampling, Turn, draw_turns
from kvant.engine.speculative import Lookup, Pace, Speculator
from kvant.engine.stopping import end_tokens
from kvant.errors import DataError, KvantError, MissingExtraError, UsageError
from kvant.tokenizer.build import Tokenizer

GREEDY = Sampling(temperature=0)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMA = Constraint("json_schema", json.dumps(PERSON))
LARK = Constraint("grammar", 'start: "yes" ", " noun "!"\nnoun: /[a-z]{3,8}/')
REGEX = Constraint("regex", r"[A-Z][a-z]{2,9} (one|two|three)(, [0-9]{1,3}){2}")


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer, checkpoint: Checkpoint) -> Grammars:
    return Grammars(tokenizer, checkpoint.config.vocab_size)


def run(
    engine: Any, tokenizer: Tokenizer, requests: Sequence[Request], **options: Any
) -> tuple[list[Completion], Batch]:
    batch = Batch(engine, tokenizer, context=engine.context, **options)
    pieces: dict[int, list[Piece]] = {batch.add(r): [] for r in requests}
    while not batch.idle:
        for number, piece in batch.step():
            assert isinstance(piece, Piece), piece
            pieces[number].append(piece)
    return [collect(p, 0, bool(p[0].logprobs)) for p in pieces.values()], batch


def matches(constraint: Constraint, text: str) -> bool:
    if constraint.kind == "regex":
        return re.fullmatch(constraint.text, text) is not None
    if constraint.kind == "grammar":
        return re.fullmatch(r"yes, [a-z]{3,8}!", text) is not None
    found = json.loads(text)
    if constraint.kind == "json_object":
        return isinstance(found, dict)
    return (
        set(found) == set(PERSON["required"])  # type: ignore[call-overload]
        and len(found["name"]) <= 12
        and 0 <= found["age"] <= 120
        and isinstance(found["age"], int)
        and 1 <= len(found["tags"]) <= 3
        and set(found["tags"]) <= {"a", "b"}
    )


def test_everything_written_matches(
    engine: Recorded, tokenizer: Tokenizer, grammars: Grammars
) -> None:
    """Many kinds in one batch, with free neighbours, whose texts are the same as without."""
    prompt = tokenizer.encode("Once upon a time there was")
    kinds = [SCHEMA, LARK, REGEX, None] * 4
    hot = Sampling(temperature=1.5)
    requests = [
        Request(prompt, replace(hot, seed=i), 24 if k is None else None, constraint=k)
        for i, k in enumerate(kinds)
    ]
    found, _ = run(engine, tokenizer, requests, grammars=grammars)
    for kind, completion in zip(kinds, found, strict=True):
        if kind is not None:
            assert matches(kind, completion.text), completion.text
            assert completion.finish_reason == "stop"
    free = [r for r in requests if r.constraint is None]
    assert run(engine, tokenizer, free)[0] == [
        c for c, k in zip(found, kinds, strict=True) if k is None
    ]
    greedy, _ = run(
        engine,
        tokenizer,
        [Request(prompt, replace(GREEDY, logprobs=2), constraint=k) for k in (SCHEMA, LARK, REGEX)],
        grammars=grammars,
    )
    for kind, completion in zip((SCHEMA, LARK, REGEX), greedy, strict=True):
        assert matches(kind, completion.text)
        assert completion.logprobs is not None
        for entry in completion.logprobs:  # the model's own opinion, whatever was allowed
            assert entry.logprob <= entry.top[0][1]
        assert any(entry.token != entry.top[0][0] for entry in completion.logprobs)


class Free(Pace):
    """Guessing always pays."""

    def known(self, tokens: int) -> bool:
        return True

    def seconds(self, tokens: int) -> float:
        return 1.0


@pytest.mark.parametrize("most", [1, 6])
def test_with_guesses_the_same(
    engine: Recorded, tokenizer: Tokenizer, grammars: Grammars, most: int
) -> None:
    prompt = tokenizer.encode('{"name": "Lily", "age": 7, "tags": ["a", "b"]} yes, king! Two one')
    requests = [
        Request(prompt, Sampling(temperature=t, seed=i, logprobs=1), constraint=k)
        for i, (t, k) in enumerate((t, k) for t in (0.0, 0.8) for k in (SCHEMA, LARK, REGEX))
    ]
    expected, _ = run(engine, tokenizer, requests, grammars=grammars)
    speculation = Speculator(Lookup(), most, Free())
    found, batch = run(engine, tokenizer, requests, grammars=grammars, speculation=speculation)
    assert found == expected
    assert batch.stats().accepted > 5


def test_any_object(engine: Recorded, tokenizer: Tokenizer, grammars: Grammars) -> None:
    """Cut at its length it is the beginning of an object."""
    request = Request(
        tokenizer.encode("The"), Sampling(seed=3), 30, constraint=Constraint("json_object", "")
    )
    (found,), _ = run(engine, tokenizer, [request], grammars=grammars)
    assert found.text.lstrip().startswith("{")


def test_masks_of_guesses(tokenizer: Tokenizer, grammars: Grammars) -> None:
    matcher = grammars.matcher(REGEX)
    ids = tokenizer.encode("The one, 1, 23", add_special=False)
    assert matcher.valid(ids) == len(ids)
    assert matcher.valid([*ids[:2], 5, *ids[2:]]) == 2
    masks = grammars.masks([(matcher, ids), (grammars.matcher(LARK), [])])
    assert masks.shape == (len(ids) + 2, 4096 // 32)
    allowed = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little").astype(bool)
    for row, token in enumerate(ids):
        assert allowed[row, token]
        one_by_one = grammars.masks([(matcher, [])])
        assert (one_by_one[0] == masks[row]).all()
        assert not matcher.take(token)
    ends = end_tokens(tokenizer.definition)
    assert {i for i in ends if allowed[len(ids), i]} == ends  # it may end here, or go on
    assert allowed[len(ids)].sum() > len(ends)
    yes = {i for i in np.flatnonzero(allowed[-1]) if tokenizer.token_bytes(int(i))}
    assert {tokenizer.token_bytes(int(i)) for i in yes} <= {b"y", b"ye", b"yes"}


def test_masked_rows_draw_as_if_all_else_were_impossible() -> None:
    rng = np.random.default_rng(5)
    vocab = 1000
    logits = rng.normal(0, 3, (40, vocab)).astype(np.float32)
    allowed = rng.random((40, vocab)) < np.linspace(0.001, 0.99, 40)[:, None]
    allowed[:, 17] = True
    bits = np.packbits(np.pad(allowed, ((0, 0), (0, 24))), axis=1, bitorder="little")
    masks = np.ascontiguousarray(bits).view(np.uint32)
    for sampling in (
        GREEDY,
        Sampling(seed=1, logprobs=3),
        Sampling(seed=1, top_p=0.7, top_k=9, temperature=0.5, repetition_penalty=1.3),
    ):
        found = draw_turns(
            [Turn(Sampler(sampling, vocab), mask=39 - i) for i in range(40)],
            logits,
            masks[::-1].copy(),
        )
        cut = np.where(allowed, logits, np.float32(-1e6))
        expected = draw_turns([Turn(Sampler(sampling, vocab)) for _ in range(40)], cut)
        for row, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert not isinstance(a, DataError)
            assert not isinstance(b, DataError)
            assert a[0].token == b[0].token
            assert allowed[row, a[0].token]
    nothing = draw_turns([Turn(Sampler(GREEDY, vocab), mask=0)], logits[:1], masks[:1] * 0)
    assert isinstance(nothing[0], DataError)
    assert "must match leave no token" in str(nothing[0])


def test_no_step_waits_long_for_a_constraint(grammars: Grammars) -> None:
    """What a hostile one costs is bounded, and spent before its request is in a step."""
    matcher = grammars.matcher(Constraint("regex", "(a{1000}){1000}"))
    started = time.process_time()
    grammars.masks([(matcher, [])])
    assert time.process_time() - started < 1  # it was more than two
    many = json.dumps({"enum": [f"value number {i} of many, {i * 7919}" for i in range(20_000)]})
    assert grammars.matcher(Constraint("json_schema", many)).fault() is None


def test_rows_longer_than_the_vocabulary(tokenizer: Tokenizer) -> None:
    grammars = Grammars(tokenizer, 4096 + 70)
    masks = grammars.masks([(grammars.matcher(LARK), [])])
    assert masks.shape == (1, -(-(4096 + 70) // 32))
    assert not masks[0, 128:].any()


@pytest.mark.parametrize(
    ("constraint", "why"),
    [
        (Constraint("json_schema", '{"type": "nope"}'), "JSON schema cannot be used: .*nope"),
        (Constraint("json_schema", "{"), "JSON schema cannot be used: Expecting property name"),
        (Constraint("json_schema", "[1]"), "a schema is an object"),
        (Constraint("json_schema", '{"a":' + "[" * 3000 + "]" * 3000 + "}"), "nests too deep"),
        (Constraint("json_schema", '{"a":' + "[" * 960 + "]" * 960 + "}"), "cannot be used"),
        (Constraint("json_schema", '{"$ref": "http://localhost/x"}'), "JSON schema cannot be used"),
        (Constraint("regex", "(a"), "regular expression cannot be used: .*unclosed group"),
        (Constraint("grammar", "start: missing"), "grammar cannot be used: .*unknown name"),
        (Constraint("grammar", "start: start"), "grammar cannot be used"),
    ],
)
def test_what_is_no_constraint(grammars: Grammars, constraint: Constraint, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        grammars.matcher(constraint)
    assert "\n" not in str(caught.value)


def test_too_complex_ends_alone(
    engine: Recorded, tokenizer: Tokenizer, grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matcher that fails in the midst ends its request, and no other."""
    batch = Batch(engine, tokenizer, context=engine.context, grammars=grammars)  # type: ignore[arg-type]
    prompt = tokenizer.encode("The")
    bad = batch.add(Request(prompt, GREEDY, 30, constraint=LARK))
    good = batch.add(Request(prompt, GREEDY, 30, constraint=REGEX))
    batch.step()
    inner = batch._answers[batch._scheduled[bad]].matcher
    assert inner is not None
    inner.inner.consume_token(0)  # not what the grammar allows
    events: list[tuple[int, Any]] = []
    while not batch.idle:
        events += batch.step()
    assert [n for n, e in events if isinstance(e, KvantError)] == [bad]
    text = "".join(e for n, e in events if n == good and isinstance(e, Piece))
    assert text


def test_without_the_library(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r'pip install "kvant\[constrain\]"'):
        Grammars(tokenizer, 4096).matcher(REGEX)
