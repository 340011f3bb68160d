r"""llama.cpp's pre-tokenizer names and what each computes, as regular expressions.

Before byte-level BPE merges anything, the text is cut into words. ``tokenizer.json`` says how, in
its ``pre_tokenizer``; a GGUF file carries only a name that llama.cpp knows. This table joins the
two: ``recognise`` brings a definition into one normal form (the regular expressions whose matches
are isolated, one after the other) and finds the name that means the same computation; ``describe``
writes the definition a name stands for. Nothing is derived from a model's name.

Where several names compute the same, the table has one entry, and the others are its ``aliases``.
llama.cpp's own computation is compared with each entry in the tests. Where it departs from what
published models mean by the name, the definition is among the ``near`` ones and ``differs`` says
how; only of the others is it claimed that both give the same words.

Sources: the expressions and flags of ``llm_tokenizer_bpe`` and ``llama_vocab::impl::load``
(llama.cpp, ``src/llama-vocab.cpp``, which quotes the original expressions), the published
tokenizer.json files, and the documentation of the ``tokenizers`` library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvant.errors import UnsupportedError
from kvant.files.source import quote
from kvant.tokenizer import regexes as r

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "describe", "find", "known_names", "recognise"]

_REMEDY = "Pass the name llama.cpp has for it with --pre-tokenizer NAME."


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One computation: ``splits`` in turn isolate their matches, then bytes become characters.

    ``ignore_merges``: a word that is a token is taken whole. ``add_bos``: what llama.cpp does
    where the file does not say. ``spellings``: other lists that isolate the same words. ``near``:
    lists that the name is used for though llama.cpp ``differs``.
    """

    name: str
    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    aliases: tuple[str, ...] = ()
    spellings: tuple[tuple[str, ...], ...] = ()
    near: tuple[tuple[str, ...], ...] = ()
    differs: str = ""


_CASE = "llama.cpp counts letters beyond ASCII as both upper and lower case, and marks as neither"
_DEEPSEEK_LLM_HERE = (
    *(r.NEWLINE, r.LETTERS_DEEPSEEK, r.not_spaces(r.MARKS_DEEPSEEK)),
    *(r"\s+$", r.not_spaces(r.CJK_DEEPSEEK), r.DIGITS),
)
_DEEPSEEK_LLM = (r.NEWLINE, r.LETTERS_DEEPSEEK, r.MARKS_DEEPSEEK, r"\s+$", r.CJK_DEEPSEEK)
_TINY_AYA = (r"\d{1,3}(?=(?:\d{3})*\b)", r.GPT4O)

#: The first entry with a computation is the one whose name is written.
PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer(
        "gpt-2",
        (r.GPT2,),
        aliases=(
            *("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "mellum"),
            *("jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0"),
            "modern-bert",
        ),
        spellings=((r.GPT2.removesuffix(r"|\s+"),),),
    ),
    PreTokenizer(
        "llama-bpe",
        (r.LLAMA3,),
        ignore_merges=True,
        add_bos=True,
        aliases=(
            *("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
            "jina-v5-nano",
        ),
        spellings=((r.spelt(r.LLAMA3),),),
    ),
    PreTokenizer("glm4", (r.LLAMA3,), ignore_merges=True, aliases=("glm5",)),
    PreTokenizer(
        "dbrx",
        (r.LLAMA3,),
        aliases=("smaug-bpe", "chatglm-bpe"),
        spellings=((r.spelt(r.LLAMA3),),),
    ),
    PreTokenizer(
        "qwen2",
        (r.QWEN2,),
        aliases=(
            *("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"),
            *("solar-open", "grok-2"),
        ),
        spellings=((r.spelt(r.QWEN2),),),
    ),
    PreTokenizer("qwen35", (r.QWEN35,), spellings=((r.spelt(r.QWEN35),),)),
    PreTokenizer(
        "smollm",
        (r.DIGIT, r.GPT2),
        aliases=(
            *("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
            "mellum2",
        ),
        spellings=((r.DIGIT, r.GPT2.removesuffix(r"|\s+")),),
    ),
    PreTokenizer(
        "minicpm5",
        (r.DIGITS3, r.words(r.DIGITS)),
        ignore_merges=True,
        spellings=((r.DIGITS3, r.spelt(r.words(r.DIGITS))),),
    ),
    PreTokenizer(
        "deepseek-v3",
        (r.DIGITS3, r.CJK, r.DEEPSEEK3),
        aliases=("hunyuan-dense", "joyai-llm", "hy_v4"),
    ),
    PreTokenizer("spark2_5", (r.DIGITS3, r.CJK, r.SPARK, r.DIGIT)),
    PreTokenizer(
        "deepseek-coder", (r.NEWLINE, r"\s?\p{L}+", r"\s?\p{P}+", r.CJK_DEEPSEEK, r.DIGIT)
    ),
    PreTokenizer(
        "deepseek-llm",
        _DEEPSEEK_LLM_HERE,
        near=((*_DEEPSEEK_LLM, r.DIGIT),),
        differs="llama.cpp keeps runs of digits together, which matters where a token has two, and "
        "takes no spaces beyond ASCII for marks or ideographs",
    ),
    PreTokenizer(
        "tekken",
        (r.TEKKEN,),
        ignore_merges=True,
        add_bos=True,
        near=((r.TEKKEN,),),
        differs=_CASE,
    ),
    PreTokenizer(
        "gpt-4o",
        (r.GPT4O,),
        aliases=("llama4", "kanana2", "talkie", "minimax-m2"),
        near=((r.GPT4O,),),
        differs=_CASE,
    ),
    PreTokenizer(
        "tiny_aya",
        _TINY_AYA,
        aliases=("cohere2moe",),
        near=(_TINY_AYA,),
        differs="llama.cpp groups digits by a rule of its own",
    ),
    PreTokenizer("seed-coder", (r.SEED_CODER,), spellings=((r.spelt(r.SEED_CODER),),)),
    PreTokenizer("bailingmoe", (r.BAILING,), aliases=("bailingmoe2", "llada-moe")),
    PreTokenizer("exaone-moe", (r.EXAONE_MOE,), spellings=((r.spelt(r.EXAONE_MOE),),)),
    PreTokenizer("jais-2", (r.JAIS2,), spellings=((r.spelt(r.JAIS2),),)),
    PreTokenizer("ufakzeka", (r.QWEN2.removeprefix(r.CONTRACTIONS + "|"),)),
    PreTokenizer(
        "laguna", (r"[^\n]+|[\n]+", r.QWEN2), spellings=((r"[^\n]+|[\n]+", r.spelt(r.QWEN2)),)
    ),
    PreTokenizer(
        "bloom",
        (r.BLOOM,),
        aliases=("poro-chat", "gpt3-finnish"),
        spellings=((r.BLOOM_FLAT,),),
    ),
    PreTokenizer(
        "viking",
        (r.BLOOM, r.DIGIT),
        spellings=((r.BLOOM_FLAT, r.DIGIT),),
        # Digits first leaves several spaces before a digit in one piece.
        near=((r.DIGIT, r.BLOOM),),
        differs="llama.cpp cuts several spaces before a digit apart",
    ),
    PreTokenizer(
        "falcon",
        (r.PUNCTUATION, r.GPT2, r"[0-9][0-9][0-9]"),
        near=((r.PUNCTUATION, r.GPT2, r.BYTES, r.DIGITS, r"[0-9][0-9][0-9]"),),
        differs="llama.cpp leaves a space in one word with the digits after it",
    ),
    PreTokenizer(
        "default",
        (r"[\p{P}\$\+<=>\^~\|]+", r.GPT2, r.DIGITS, r"[0-9][0-9][0-9]"),
    ),
)


def known_names() -> list[str]:
    """Every name that ``find`` takes, sorted."""
    return sorted(n for p in PRE_TOKENIZERS for n in (p.name, *p.aliases))


def find(name: str, where: str) -> PreTokenizer:
    """What llama.cpp's pre-tokenizer ``name`` computes.

    Raises:
        UnsupportedError: kvant does not know the name, or not exactly what it computes.
    """
    for entry in PRE_TOKENIZERS:
        if name == entry.name or name in entry.aliases:
            return entry
    raise UnsupportedError(
        f"{where}: the pre-tokenizer {quote(name)} is not known; kvant knows "
        f"{', '.join(known_names())}. If one of these computes the same, pass it with "
        "--pre-tokenizer NAME."
    )


def recognise(
    definition: object, ignore_merges: bool, is_neutral: Callable[[], bool], where: str
) -> tuple[PreTokenizer, str]:
    """Find the entry that computes what a ``pre_tokenizer`` of tokenizer.json says.

    Args:
        definition: that part of the file.
        ignore_merges: the flag of the file's model.
        is_neutral: answers whether the flag makes no difference, because merging alone leads to
            every token; asked only where no entry has the same flag.
        where: the file, for messages.

    Returns:
        the entry, and how llama.cpp's computation still differs ("" where it does not).

    Raises:
        UnsupportedError: no entry computes the same.
    """
    steps = tuple(_steps(definition, where))
    found = [p for p in PRE_TOKENIZERS if steps in map(_whole, _forms(p))]
    same_flag = [p for p in found if p.ignore_merges == ignore_merges]
    if same_flag or (found and is_neutral()):
        entry = (same_flag or found)[0]
        return entry, entry.differs if steps in map(_whole, entry.near) else ""
    flag = f" with ignore_merges {str(ignore_merges).lower()}" if found else ""
    shown = ", then ".join(quote(s, 160) for s in steps)
    raise UnsupportedError(
        f"{where}: no pre-tokenizer of llama.cpp is known to cut words the way this file does, "
        f"by {shown}{flag}. {_REMEDY}"
    )


def _forms(entry: PreTokenizer) -> tuple[tuple[str, ...], ...]:
    return (entry.splits, *entry.spellings, *entry.near)


def _whole(form: tuple[str, ...]) -> tuple[str, ...]:
    """``form`` with the step that makes bytes characters, which most have at the end."""
    return form if r.BYTES in form else (*form, r.BYTES)


def _steps(definition: object, where: str) -> list[str]:
    """The normal form: expressions whose matches are isolated, and ``BYTES``."""
    if not isinstance(definition, Mapping):
        raise _unknown(definition, where)
    kind = definition.get("type")
    if kind == "Sequence":
        parts = definition.get("pretokenizers")
        if not isinstance(parts, list) or len(parts) > 64:
            raise _unknown(definition, where)
        return [s for part in parts for s in _steps(part, where)]
    if kind == "Split":
        return [_split(definition, where)]
    if kind == "Digits":
        return [r.DIGIT if definition.get("individual_digits") is True else r.DIGITS]
    if kind == "Punctuation" and definition.get("behavior") == "Contiguous":
        return [r.PUNCTUATION]
    if kind == "ByteLevel" and definition.get("add_prefix_space") is False:
        return [r.BYTES] if definition.get("use_regex") is False else [r.GPT2, r.BYTES]
    raise _unknown(definition, where)


def _split(step: Mapping[object, object], where: str) -> str:
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    if not isinstance(regex, str):
        raise _unknown(step, where)
    # Some files hold the line breaks themselves where others hold the escapes.
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")
    how = (step.get("behavior"), step.get("invert", False))
    # Removing all but the matches is isolating the matches where nothing else can be.
    if how == ("Isolated", False) or (how == ("Removed", True) and regex in r.COVER_EVERYTHING):
        return regex
    raise _unknown(step, where)


def _unknown(step: object, where: str) -> UnsupportedError:
    return UnsupportedError(
        f"{where}: the pre-tokenizer has a step that llama.cpp has nothing like: "
        f"{quote(str(step), 200)}. {_REMEDY}"
    )


def describe(entry: PreTokenizer) -> dict[str, object]:
    """The ``pre_tokenizer`` of a tokenizer.json that computes ``entry``."""
    *first, last = entry.splits
    by_regex = last == r.GPT2
    steps = [_step(s) for s in (first if by_regex else entry.splits)]
    steps.append(
        {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": by_regex,
        }
    )
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _step(split: str) -> dict[str, object]:
    if split == r.DIGIT:
        return {"type": "Digits", "individual_digits": True}
    pattern = {"Regex": split}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
