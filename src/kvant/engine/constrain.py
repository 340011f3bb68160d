"""What an answer must match, and the tokens that keep it possible; llguidance finds them.

A constraint becomes a grammar over bytes. After every token the grammar says which tokens may come
next, as a mask, and the sampler draws among those; so what is written matches whatever the model
would have liked. Masks are computed for guesses too: a guess that breaks the grammar is never
tried.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from kvant.engine.stopping import end_tokens
from kvant.errors import DataError, MissingExtraError, NoTokenError, UsageError
from kvant.tokenizer.build import Tokenizer

if TYPE_CHECKING:
    import llguidance

__all__ = ["Constraint", "Grammars", "Masks", "Matcher"]

_SPACE = r"[ \n\t\r]{0,32}"
"""Between the parts of JSON: what indentation needs. Without a bound, a small model may write
spaces until its tokens are used up."""
_KEPT = 64
"""Grammars kept ready for the next request with the same constraint."""
_FUEL, _STEP_FUEL = 300_000, 50_000
"""Work to begin with a constraint, and for each token, in the library's measure. Its own bounds
allow four seconds to begin, these half a second, and a schema of twenty thousand values fits."""
Masks = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must match: a JSON schema, a regular expression, or a grammar in Lark's form.

    ``json_object`` with an empty ``text`` is any JSON object. Lark's form is llguidance's
    (docs/syntax.md there); its rule ``start`` is the whole answer.
    """

    kind: Literal["json_schema", "json_object", "regex", "grammar"]
    text: str


class Matcher:
    """One answer's place in its grammar."""

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self.inner = inner

    def valid(self, guesses: Sequence[int]) -> int:
        """How many of ``guesses`` may follow, one after another."""
        return self.inner.validate_tokens(list(guesses)) if guesses else 0

    def take(self, token: int) -> bool:
        """``token`` follows; whether the answer is complete with it, and nothing more may come."""
        self.inner.consume_token(token)
        return self.inner.is_stopped()

    def fault(self) -> DataError | None:
        """What went wrong within the grammar, if anything did."""
        if not self.inner.is_error():
            return None
        return NoTokenError(
            "What the text must match became too complex to follow, or no token can go on: "
            f"{_line(self.inner.get_error())}. Use a simpler constraint."
        )


class Grammars:
    """Makes matchers for one model's tokens; the first takes a second with a large vocabulary.

    Args:
        tokenizer: the model's.
        vocab_size: length of a row of logits.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._lock = threading.Lock()
        self._built: tuple[llguidance.LLTokenizer, llguidance.LLExecutor] | None = None
        self._known: dict[Constraint, llguidance.LLMatcher] = {}

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher at the beginning of an answer.

        Raises:
            MissingExtraError: the library is not installed.
            UsageError: the constraint is not a valid one; says what is wrong with it.
        """
        known = self._known.get(constraint)
        if known is None:
            known = self._compile(constraint)
            with self._lock:  # who prepares requests and who runs them may both be here
                while len(self._known) >= _KEPT:
                    del self._known[next(iter(self._known))]
                self._known[constraint] = known
        return Matcher(known.deep_copy())

    def masks(self, wanted: Sequence[tuple[Matcher, Sequence[int]]]) -> Masks:
        """The tokens that may come next, and those after each guess.

        Args:
            wanted: matchers, each with guesses that are `Matcher.valid`.

        Returns:
            uint32 [sum of guesses + 1 each, words]: a bit for each token, from the lowest on.
        """
        tokens, executor = self._ready()
        count = sum(len(guesses) + 1 for _, guesses in wanted)
        found = np.zeros((count, -(-tokens.vocab_size // 32)), np.uint32)
        plain: list[tuple[llguidance.LLMatcher, int]] = []
        guessed: list[tuple[llguidance.LLMatcher, int, list[int]]] = []
        row = 0
        for matcher, guesses in wanted:
            if guesses:
                guessed.append((matcher.inner, row, list(guesses)))
            else:
                plain.append((matcher.inner, row))
            row += len(guesses) + 1
        place = found.ctypes.data, found.shape[1] * 4, count
        if plain:
            executor.unsafe_compute_mask_ptr(plain, *place)
        if guessed:
            executor.unsafe_compute_mask_ptr_with_draft_token(guessed, *place)
        words = -(-self._vocab_size // 32)
        if found.shape[1] == words:
            return found
        # Rows of logits may be longer than the vocabulary; nothing there is a token.
        wide = np.zeros((count, words), np.uint32)
        wide[:, : found.shape[1]] = found[:, :words]
        return wide

    def _ready(self) -> tuple[llguidance.LLTokenizer, llguidance.LLExecutor]:
        with self._lock:
            if self._built is None:
                self._built = _build(self._tokenizer)
            return self._built

    def _compile(self, constraint: Constraint) -> llguidance.LLMatcher:
        tokens, _ = self._ready()
        from llguidance import LLMatcher, LLParserLimits

        try:
            if constraint.kind == "regex":
                grammar = LLMatcher.grammar_from_regex(constraint.text)
            elif constraint.kind == "grammar":
                grammar = LLMatcher.grammar_from_lark(constraint.text)
            else:
                schema = _schema(constraint)
                grammar = LLMatcher.grammar_from_json_schema(
                    schema, defaults={"whitespace_pattern": _SPACE}
                )
        except RecursionError:  # its text, or writing it again for the library
            raise _refused(constraint, "it nests too deep") from None
        except ValueError as error:
            raise _refused(constraint, str(error)) from None
        limits = LLParserLimits(initial_lexer_fuel=_FUEL, step_lexer_fuel=_STEP_FUEL)
        matcher = LLMatcher(tokens, grammar, log_level=0, limits=limits)
        # What it takes to begin is spent here, and not in the step that all requests wait for.
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refused(constraint, matcher.get_error())
        return matcher


class _Tokens:
    """A vocabulary as the library asks for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        definition = tokenizer.definition
        self._tokenizer = tokenizer
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        # Control tokens and those never used: no text is made of them.
        self.special_token_ids = [i for i, text in enumerate(self.tokens) if not text]
        for i in self.special_token_ids:
            self.tokens[i] = definition.tokens[i].encode()
        self.ends = sorted(end_tokens(definition))
        self.eos_token_id = self.ends[0] if self.ends else 0

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace"), add_special=False)


def _build(tokenizer: Tokenizer) -> tuple[llguidance.LLTokenizer, llguidance.LLExecutor]:
    try:
        from llguidance import LLExecutor, LLTokenizer, TokenizerWrapper
    except ImportError:
        raise MissingExtraError(
            "Text that must match something needs the package llguidance. Install it: "
            'pip install "kvant[constrain]"'
        ) from None
    tokens = _Tokens(tokenizer)
    if not tokens.ends:
        raise UsageError(
            "The model has no token that ends a text, so nothing it writes can be said to match. "
            "Use another model, or no constraint."
        )
    return LLTokenizer(TokenizerWrapper(tokens), eos_token=tokens.ends), LLExecutor()


def _schema(constraint: Constraint) -> Any:
    text = constraint.text or '{"type": "object"}'
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise _refused(constraint, str(error)) from None
    if not isinstance(schema, (dict, bool)):
        raise _refused(constraint, "a schema is an object")
    return schema if isinstance(schema, dict) else {} if schema else {"not": {}}


_NAMES = {
    "json_schema": "JSON schema",
    "json_object": "JSON schema",
    "regex": "regular expression",
    "grammar": "grammar",
}


def _refused(constraint: Constraint, why: str) -> UsageError:
    return UsageError(f"The {_NAMES[constraint.kind]} cannot be used: {_line(why)}. Correct it.")


def _line(text: str) -> str:
    """A message of the library in one line, without its end."""
    return " ".join(text.split())[:300].rstrip(". ")
