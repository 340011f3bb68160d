"""Tokens that llama.cpp knows by their text, whatever type the file gives them.

The converter writes some added tokens as control tokens though the source does not call them
special, and llama.cpp, when it loads a file, makes the tokens that end a generation or mark code
to fill in control tokens too: text in a prompt never becomes one of these unless the caller asks
for special tokens to be parsed. Both lists matter for getting the same ids.

Sources: ``does_token_look_special`` in ``conversion/base.py`` and ``llama_vocab::impl::load`` in
``src/llama-vocab.cpp`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Set

__all__ = ["END_TEXTS", "always_control", "looks_special"]

#: Tokens that end a generation.
END_TEXTS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
    }
)

#: For code to fill in: before, after, between, padding, repository, file.
_FILL_TEXTS = (
    (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>"),
        *("▁<PRE>", "<|code_prefix|>", "<|prefix|>"),
    ),
    (
        *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>"),
        *("▁<SUF>", "<|code_suffix|>", "<|suffix|>"),
    ),
    (
        *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>"),
        *("▁<MID>", "<|code_middle|>", "<|middle|>"),
    ),
    ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    ("<|file_sep|>",),
)
_FILL_NAMES = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")


def always_control(named: Collection[str], texts: Set[str]) -> frozenset[str]:
    """The texts among ``texts`` that llama.cpp makes control tokens.

    ``named`` are the special tokens the file names (of ``SPECIALS``): for code to fill in, the
    text counts only where the file is silent. Where a vocabulary has two texts of one kind,
    llama.cpp takes whichever its hash table holds first; here all of them count.
    """
    silent = (
        t
        for n, kinds in zip(_FILL_NAMES, _FILL_TEXTS, strict=True)
        if n not in named
        for t in kinds
    )
    return frozenset(t for t in (*END_TEXTS, *silent) if t in texts)


def looks_special(text: str) -> bool:
    """Whether the converter takes an added token for a control token by its text alone."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
