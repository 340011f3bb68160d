r"""The regular expressions of pre-tokenizers, in the words of the published tokenizer.json files.

The dialect is Oniguruma's (Ruby's), which the ``tokenizers`` library runs. Line breaks are written
as escapes.

``(?i:'s)`` also matches ``'ſ`` (U+017F, whose upper case is S) and the spelt-out ``'[sS]``, which
llama.cpp runs, does not. That one character aside, ``spelt`` changes nothing.
"""

from __future__ import annotations

__all__ = [
    "BAILING",
    "BLOOM",
    "BLOOM_FLAT",
    "BYTES",
    "CJK",
    "CJK_DEEPSEEK",
    "CONTRACTIONS",
    "COVER_EVERYTHING",
    "DEEPSEEK3",
    "DIGIT",
    "DIGITS",
    "DIGITS3",
    "EXAONE_MOE",
    "GPT2",
    "GPT4O",
    "JAIS2",
    "LETTERS_DEEPSEEK",
    "LLAMA3",
    "MARKS_DEEPSEEK",
    "NEWLINE",
    "PUNCTUATION",
    "QWEN2",
    "QWEN35",
    "SEED_CODER",
    "SPARK",
    "TEKKEN",
    "not_spaces",
    "spelt",
    "words",
]

#: Not an expression: the step at which bytes become characters.
BYTES = "ByteLevel"

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s+(?!\S)|\s+"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"

DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"
DIGITS3 = r"\p{N}{1,3}"
NEWLINE = r"[\r\n]"
#: What the step Punctuation isolates: Unicode's punctuation and ASCII's symbols.
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES


def words(digits: str) -> str:
    """The expression of GPT-4, which most have followed, by how it groups digits."""
    return rf"{CONTRACTIONS}|{_LEAD}\p{{L}}+|{digits}|{_SYMBOLS}|{_SPACES}"


def not_spaces(expression: str) -> str:
    """``expression``, a class that repeats, without the spaces beyond ASCII in it."""
    lead, _, ranges = expression.partition("[")
    return rf"{lead}(?:(?![{_WIDE_SPACES}])[{ranges.removesuffix('+')})+"


def spelt(expression: str) -> str:
    """``expression`` with the case of its contractions spelt out."""
    return expression.replace(CONTRACTIONS, _SPELT)


LLAMA3 = words(DIGITS3)
QWEN2 = words(DIGIT)
QWEN35 = (
    rf"{CONTRACTIONS}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    rf"|\s*[\r\n]+|{_SPACES}"
)
SEED_CODER = (
    rf"{CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|{_SPACES}"
)
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|" + _SPACES
)
EXAONE_MOE = (
    rf"{CONTRACTIONS}|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}"
)
JAIS2 = LLAMA3.removesuffix(_SPACES) + "|".join(
    [*(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)), r"\s{1,2}(?!\S)", r"\s{1}"]
)

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(digits: str, ending: str) -> str:
    """Words that also end where the case changes: GPT-4o, and Mistral's Tekken."""
    return (
        f"{_LEAD}{_UPPER}*{_LOWER}+{ending}|{_LEAD}{_UPPER}+{_LOWER}*{ending}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACES}"
    )


GPT4O = _cased(DIGITS3, CONTRACTIONS + "?")
TEKKEN = _cased(DIGIT, "")

CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_MARKED_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
)
DEEPSEEK3 = _MARKED_WORDS + r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
SPARK = _MARKED_WORDS + r"| ?[\p{P}\p{S}]+|[\r\n]|" + _SPACES
_WIDE_SPACES = "\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
CJK_DEEPSEEK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
MARKS_DEEPSEEK = r"\s?[!-/:-~" + "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
# Escapes, because some of these letters would not survive a tool that normalises text.
LETTERS_DEEPSEEK = (
    r"\s?[A-Za-z"
    "\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124"
    "\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
    "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f"
    "\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_STOPS = ".,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c"
BLOOM = rf" ?[^(\s|[{_STOPS}])]+"
#: The same set without the set inside it.
BLOOM_FLAT = rf" ?[^(\s|{_STOPS})]+"

#: Every character is in some match: it is a space, a letter, a number or none of these.
COVER_EVERYTHING = frozenset(
    f(e) for e in (GPT2, LLAMA3, QWEN2, QWEN35, GPT4O, TEKKEN) for f in (str, spelt)
)
