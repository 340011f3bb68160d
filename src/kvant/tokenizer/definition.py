"""What a tokenizer is, apart from any file format: the hub between Hugging Face and GGUF."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import cast

import numpy as np
import numpy.typing as npt

from kvant.errors import FileFormatError
from kvant.files.source import quote

__all__ = [
    "MAX_MERGES",
    "MAX_TOKENS",
    "MAX_TOKEN_CHARS",
    "SPACE",
    "SPECIALS",
    "TokenType",
    "TokenizerDefinition",
    "check_merges",
    "split_merges",
]

SPACE = "▁"
"""How SentencePiece and WordPiece vocabularies write a space."""

#: The largest published vocabularies of decoders have 262,144 tokens.
MAX_TOKENS = 1 << 19
#: The largest published merge lists have 580,000 entries.
MAX_MERGES = 1 << 20
#: Runs of spaces and dashes reach some hundred characters.
MAX_TOKEN_CHARS = 65_535

#: The special tokens a definition may name, in the order they are written.
SPECIALS = (
    "bos",
    "eos",
    "unk",
    "sep",
    "pad",
    "cls",
    "mask",
    "eot",
    "eom",
    "fim_pre",
    "fim_suf",
    "fim_mid",
    "fim_pad",
    "fim_rep",
    "fim_sep",
)


_DEFAULT_IDS = {
    "llama": {"unk": 0, "bos": 1, "eos": 2},
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
}


class TokenType(IntEnum):
    """What a token is for. The numbers are GGUF's (and SentencePiece's)."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, eq=False)
class TokenizerDefinition:
    """The content of a tokenizer, checked: sizes agree, ids exist, tokens are different.

    ``model`` is ``"gpt2"`` (byte-level BPE: ``merges`` in order of rank, tokens in GPT-2's byte
    alphabet) or ``"llama"`` (SentencePiece-style BPE: the pair whose union has the highest of
    ``scores`` [vocab] merges first, bytes are the fallback, ``▁`` stands for a space), or
    ``"bert"`` (WordPiece: words are cut into the longest pieces there are, ``▁`` begins a word,
    text is lowercased and accents are taken away where the flags do not say no). ``pre`` is
    llama.cpp's name of the pre-tokenizer, ``"default"`` for all but ``"gpt2"``.

    ``tokens[i]`` and ``token_types[i]`` (int32 [vocab]) belong to id i. ``special_ids`` maps names
    of ``SPECIALS`` to ids. The ``add_*`` flags are None where the source does not say; what
    llama.cpp then does is in ``pretokenizers``. ``end_ids`` are all tokens that the source names
    as ends of generation. ``notes`` are sentences for the report: what the source says that this
    definition, or llama.cpp, does not carry out.

    ``where`` names the source in error messages.

    Raises:
        FileFormatError: the parts contradict each other or are larger than any real tokenizer.
    """

    model: str
    pre: str
    tokens: list[str]
    token_types: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32] | None = None
    merges: list[str] | None = None
    special_ids: dict[str, int] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_sep: bool | None = None
    add_space_prefix: bool | None = None
    remove_extra_whitespaces: bool | None = None
    lowercase: bool | None = None
    strip_accents: bool | None = None
    chat_template: str | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    end_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    where: str = "tokenizer"

    def __post_init__(self) -> None:
        _check_tokens(self)
        if self.merges is not None and len(self.merges) > MAX_MERGES:
            raise FileFormatError(
                f"{self.where}: expected at most {MAX_MERGES} merges, got {len(self.merges)}. "
                "Fetch or convert the file again."
            )
        ids = [*self.special_ids.items(), *(("end of generation", i) for i in self.end_ids)]
        for name, token in ids:
            if not 0 <= token < len(self.tokens):
                raise FileFormatError(
                    f"{self.where}: the {name} token is {token}, but there are only "
                    f"{len(self.tokens)} tokens. Fetch or convert the file again."
                )

    def token_id(self, name: str) -> int | None:
        """The id of special token ``name``, with llama.cpp's defaults for the kind of tokenizer."""
        default = _DEFAULT_IDS.get(self.model, {}).get(name)
        found = self.special_ids.get(name, default)
        return found if found is not None and found < len(self.tokens) else None


def _check_tokens(d: TokenizerDefinition) -> None:
    count = len(d.tokens)
    if not 1 <= count <= MAX_TOKENS:
        raise FileFormatError(
            f"{d.where}: expected 1 to {MAX_TOKENS} tokens, got {count}. "
            "Fetch or convert the file again."
        )
    for name, array in (("token types", d.token_types), ("scores", d.scores)):
        if array is not None and array.shape != (count,):
            raise FileFormatError(
                f"{d.where}: expected one entry for each of the {count} tokens in the {name}, "
                f"got {array.size}. Fetch or convert the file again."
            )
    wrong = np.flatnonzero((d.token_types < 0) | (d.token_types > TokenType.BYTE))
    if wrong.size:
        raise FileFormatError(
            f"{d.where}: token {wrong[0]} has type {d.token_types[wrong[0]]}, expected 0 to "
            f"{int(TokenType.BYTE)}. Fetch or convert the file again."
        )
    if d.scores is not None and not np.isfinite(d.scores).all():
        first = int(np.flatnonzero(~np.isfinite(d.scores))[0])
        raise FileFormatError(
            f"{d.where}: token {first} has the score {d.scores[first]}, expected a finite number. "
            "Fetch or convert the file again."
        )
    longest = max(d.tokens, key=len)
    if len(longest) > MAX_TOKEN_CHARS:
        raise FileFormatError(
            f"{d.where}: a token is {len(longest)} characters long, expected at most "
            f"{MAX_TOKEN_CHARS}. Fetch or convert the file again."
        )
    _check_unique(d)


def _check_unique(d: TokenizerDefinition) -> None:
    # llama.cpp renames empty tokens, so any number of them may be.
    if len(set(d.tokens)) + max(0, d.tokens.count("") - 1) == len(d.tokens):
        return
    first: dict[str, int] = {}
    for i, token in enumerate(d.tokens):
        if token and first.setdefault(token, i) != i:
            raise FileFormatError(
                f"{d.where}: tokens {first[token]} and {i} are both {quote(token)}; every token "
                "must be different. Fetch or convert the file again."
            )


def split_merges(merges: Sequence[str], where: str) -> list[tuple[str, str]]:
    """The two sides of each merge, which is written ``"left right"``.

    The first space that is not the first character separates, as llama.cpp reads it, so a left
    side may begin with a space and a right side may contain some.

    Raises:
        FileFormatError: a merge has no two sides.
    """
    quick = [tuple(m.split(" ")) for m in merges]
    if all(map(all, quick)) and set(map(len, quick)) <= {2}:
        return cast("list[tuple[str, str]]", quick)
    pairs: list[tuple[str, str]] = []
    for rank, merge in enumerate(merges):
        at = merge.find(" ", 1)
        if not 0 < at < len(merge) - 1:
            raise FileFormatError(
                f"{where}: merge {rank} is {quote(merge)}, expected two tokens with a space "
                "between. Fetch or convert the file again."
            )
        pairs.append((merge[:at], merge[at + 1 :]))
    return pairs


def check_merges(pairs: Iterable[tuple[str, str]], vocab: Container[str], where: str) -> None:
    """Check that both sides and the union of every merge are tokens.

    Takes as long as building a tokenizer, which finds the same faults; so only who writes a
    definition without building one has to ask.

    Raises:
        FileFormatError: some are not.
    """
    for rank, (left, right) in enumerate(pairs):
        union = left + right
        if left not in vocab or right not in vocab or union not in vocab:
            missing = next(t for t in (left, right, union) if t not in vocab)
            raise FileFormatError(
                f"{where}: merge {rank}, {quote(f'{left} {right}')}, needs the token "
                f"{quote(missing)}, which the vocabulary lacks. Fetch or convert the file again."
            )
