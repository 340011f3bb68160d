"""Texts on which tokenizers tend to disagree."""

from __future__ import annotations

import unicodedata

from hypothesis import strategies as st

_ATOMS = (
    *(" ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u0085"),
    *("'s", "'S", "'LL", "'re", "'Ve", "'", " '", "don't", "’s"),
    *("1", "12", "123", "1234", "٣٤٥", "½", "²", "Ⅷ"),
    *("a", "B", "hello", "World", "HTTPServer", "straße", "naïve", "ñ", "Я", "мир", "Ǆ", "ǅ"),
    *("漢字", "天", "あ", "ア", "한국", "नमस्ते", "ก็", "العربية", "ُ", "\u0301", "\u200d", "\u200b"),
    *("😀", "👍🏽", "🏳️‍🌈", "𝒳", "𐐀", "\ufeff", "\ufffd"),
    *("…", "“", "—", "。", "，", "$", "+", "<", ">", "|", "~", "`", "^", "_", "(", ")", ",", "."),
    *("!", "?", "/", "\\", "#", "▁", "Ġ", "\x00", "\x7f", "{", "}", "==", "->", "...", "!!!"),
    *("<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_end|>", "<0x0A>", "[PAD1]"),
)

#: Characters that Python's Unicode data knows: a library with older data classes newer ones
#: differently, and that is not what the tests are about.
_characters = st.characters(exclude_categories=("Cs", "Cn", "Co"))

texts = st.lists(
    st.one_of(st.sampled_from(_ATOMS), _characters, st.text(_characters, max_size=6)),
    max_size=24,
).map("".join)

FIXED = (
    "",
    " ",
    "Hello, world! I'm sure they'LL say it's 12345.67 — don’t you?",
    "  leading,   inner\t\ttabs\n\n\nand trailing   ",
    "def f(x):\n    return x ** 2  # comment\r\n",
    "Blåbærsyltetøy på brødskiva, hver søndag kl. 07:30.",
    "3 33 333 3333 33333 ٣٤٥ Ⅷ ½",
    "我想在apple工作1314151天～ こんにちは 안녕하세요",
    "👍🏽🏳️‍🌈 e\u0301 \u200b\ufeff",
)


def composed(text: str) -> str:
    """``text`` in the form that a tokenizer with NFC works on."""
    return unicodedata.normalize("NFC", text)
