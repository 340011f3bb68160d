"""Text from tokens as they come: whole characters, all spaces, the same text as at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.builtin import demo_path
from kvant.checkpoint import open_checkpoint
from kvant.engine.detokenize import TokenDecoder
from kvant.errors import UsageError
from kvant.files.gguf import read_gguf
from kvant.tokenizer import from_folder, from_metadata
from kvant.tokenizer.build import Tokenizer, build
from tokenizer.conftest import sentencepiece_json, write_folder


def _demo() -> Tokenizer:
    definition = open_checkpoint(demo_path()).tokenizer()
    assert definition is not None
    return build(definition)


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small SentencePiece tokenizer: spaces as ▁, bytes as fallback, a space before texts."""
    folder = write_folder(
        tmp_path_factory.mktemp("spm"),
        tokenizer=sentencepiece_json(),
        config={"bos_token_id": 1, "eos_token_id": 2},
    )
    definition = from_folder(folder, len(sentencepiece_json()["model"]["vocab"]))
    assert definition is not None
    return build(definition)


DEMO = _demo()
TEXT = "Once upon a time, 日本語 – naïve 🙂🏽‍♀️ blåbærsyltetøy\n\tdef f(x):  return x"


def _streamed(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    decoder = TokenDecoder(tokenizer, prompt)
    return [*(decoder.add(i) for i in ids), decoder.finish()]


@pytest.mark.parametrize("text", [TEXT, "", " leading", "trailing ", "\n", "é"])
def test_a_text_comes_back_as_it_was(text: str, spm: Tokenizer) -> None:
    for tokenizer in (DEMO, spm):
        pieces = _streamed(tokenizer, tokenizer.encode(text))
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)


def test_characters_of_several_tokens_come_whole() -> None:
    for character in "é日🙂":
        raw = character.encode()
        ids = [next(i for i in range(300) if DEMO.token_bytes(i) == bytes([b])) for b in raw]
        assert _streamed(DEMO, ids) == [*[""] * (len(raw) - 1), character, ""]
        assert _streamed(DEMO, ids[:-1])[-1] == "\ufffd"  # cut off: said at the end
        broken = _streamed(DEMO, [*ids[:-1], DEMO.encode("a")[0]])
        assert "".join(broken) == "\ufffda"


@given(st.lists(st.integers(0, DEMO.vocab_size - 1), max_size=40))
def test_any_tokens_give_the_text_they_give_at_once(ids: list[int]) -> None:
    pieces = _streamed(DEMO, ids)
    whole = DEMO.decode(ids)
    assert "".join(pieces) == whole
    shown = ""
    for piece in pieces:
        shown += piece
        assert whole.startswith(shown)


@given(st.lists(st.integers(0, 265), max_size=30))
def test_any_tokens_of_a_sentencepiece_vocabulary(spm: Tokenizer, ids: list[int]) -> None:
    assert "".join(_streamed(spm, ids)) == spm.decode(ids)


def test_the_space_between_prompt_and_answer_stays(spm: Tokenizer) -> None:
    prompt, answer = spm.encode("ab"), [spm.definition.tokens.index("▁ab")]
    assert "".join(_streamed(spm, answer, prompt)) == " ab"
    for start in ([], [1], [*prompt, 2]):  # where encoding itself puts a space
        assert "".join(_streamed(spm, answer, start)) == "ab"
    assert "".join(_streamed(spm, [*answer, *answer], [1])) == "ab ab"
    assert "".join(_streamed(DEMO, DEMO.encode(" a"), [DEMO.eos_id or 0])) == " a"


def test_control_tokens_have_no_text(spm: Tokenizer) -> None:
    assert _streamed(spm, [1, *spm.encode("ab", add_special=False), 2]) == ["", "ab", "", ""]


def test_a_token_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="does not exist"):
        TokenDecoder(DEMO).add(DEMO.vocab_size)


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "qwen2", "gpt-2", "phi-3"])
def test_real_vocabularies(shared_data: Path, name: str) -> None:
    path = shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf"
    tokenizer = build(from_metadata(read_gguf(path)))
    texts = Path(f"{path}.inp").read_text().split("\n__ggml_vocab_test__\n")
    for text in [*texts, TEXT]:
        ids = tokenizer.encode(text)
        assert "".join(_streamed(tokenizer, ids)) == tokenizer.decode(ids)
        half = len(ids) // 2
        start = tokenizer.encode("x") + ids[:half]  # never empty, and ends in text
        if tokenizer.token_bytes(start[-1]):
            raw = b"".join(map(tokenizer.token_bytes, ids[half:]))
            pieces = _streamed(tokenizer, ids[half:], start)
            assert "".join(pieces) == raw.decode(errors="replace")
