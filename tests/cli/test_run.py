"""``kvant run``: one text continued, from the command line or standard input."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvant
from oracles.models import LLAMA, make_folder

Run = Callable[..., Any]
STORY = "Once upon a time"
TURN = ("--temperature", "0", "-n", "12")
CALM = (*TURN, "--no-template")


def _expected(prompt: str = STORY, **options: Any) -> str:
    with kvant.load("demo") as model:
        options = {"max_tokens": 12, **options}
        return model.generate(prompt, kvant.Sampling(temperature=0), **options).text


def test_a_prompt_is_continued(run: Run) -> None:
    found = run("run", "demo", STORY, *CALM)
    assert (found.status, found.err) == (0, "")
    assert found.out == _expected()
    assert found.out.startswith(", there was a little")


def test_the_prompt_may_stand_anywhere(run: Run) -> None:
    expected = _expected()
    assert run("run", "demo", *CALM, STORY).out == expected
    assert run("run", *CALM, "demo", STORY).out == expected


def test_a_seed_gives_the_same_text(run: Run) -> None:
    first = run("run", "demo", STORY, "-n", "10", "--seed", "7")
    assert first.out == run("run", "demo", STORY, "-n", "10", "--seed", "7").out
    texts = {run("run", "demo", STORY, "-n", "10", "--seed", str(i)).out for i in range(4)}
    assert len(texts) > 1


def test_options_reach_the_sampler(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvant.api.model import Model

    seen: list[Any] = []

    def stream(self: Model, prompt: str, **options: Any) -> Any:
        seen.append((prompt, options))
        return iter(())

    monkeypatch.setattr(Model, "stream", stream)
    words = "--temperature 0.5 --top-k 7 --top-p 0.8 --min-p 0.1 --repeat-penalty 1.1 "
    words += "--presence-penalty 0.2 --frequency-penalty 0.3 --seed 4 --max-tokens 9 "
    words += "--stop a --stop b --context 99 --threads 1 --kv q8_0 --no-template"
    assert run("run", "demo", "x", *words.split()).status == 0
    sampling = kvant.Sampling(
        temperature=0.5,
        top_k=7,
        top_p=0.8,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        seed=4,
    )
    assert seen == [
        ("x", {"sampling": sampling, "max_tokens": 9, "stop": ["a", "b"], "constraint": None})
    ]
    assert run("run", "demo", "x", "--top-p", "0.8", "--no-template").status == 0
    # What is not given stays the model's own recommendation.
    assert seen[1][1]["sampling"] == kvant.Sampling(temperature=0.7, top_k=40, top_p=0.8)


def test_stop_strings(run: Run) -> None:
    assert run("run", "demo", STORY, *CALM, "--stop", "little").out == ", there was a "


def test_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _expected()
    for arguments in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO(STORY + "\n"))
        assert run("run", "demo", *arguments, *CALM).out == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    found = run("run", "demo")
    assert found.status == 1
    assert found.err.startswith("kvant: Standard input is empty")
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\udcffb"))  # as a byte 0xff is read
    found = run("run", "demo")
    assert found.status == 1
    assert "got byte 0xff" in found.err
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed" in run("run", "demo").err


def test_a_prompt_answered_by_the_template(run: Run) -> None:
    with kvant.load("demo") as model:
        greedy = kvant.Sampling(temperature=0)
        turn = {"role": "user", "content": "Tell me a story."}
        plain = model.chat([turn], greedy, max_tokens=12).text
        brief = {"role": "system", "content": "Say no."}
        told = model.chat([brief, turn], greedy, max_tokens=12).text
    for more in ([], ["--chat"]):
        assert run("run", "demo", "Tell me a story.", *TURN, *more).out == plain
        arguments = ["run", "demo", "Tell me a story.", "--system", "Say no.", *TURN, *more]
        assert run(*arguments).out == told


def test_a_model_without_a_template_continues(run: Run, tmp_path: Path) -> None:
    plain = make_folder(tmp_path / "plain", LLAMA)
    with kvant.load(plain) as model:
        expected = model.generate("ab", kvant.Sampling(temperature=0), max_tokens=12).text
    assert run("run", plain, "ab", *TURN).out == expected
    assert "no chat template" in run("run", plain, "ab", *TURN, "--system", "x").err


def test_json(run: Run) -> None:
    for more in ([], ["--no-template"]):
        found = json.loads(run("run", "demo", STORY, *TURN, "--json", *more).out)
        assert set(found) == {"text", "tokens", "finish_reason", "usage", "logprobs"}
        assert found["usage"]["completion_tokens"] == len(found["tokens"]) == 12


def test_what_it_took(run: Run) -> None:
    found = run("run", "demo", STORY, *CALM, "--verbose")
    assert "context of 1,024 tokens" in found.err
    assert "12 tokens (length), the first after" in found.err
    assert "tokens/s" in found.err


def test_controls_do_not_reach_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvant.cli.show import shown

    text = "a\x1b[31m\n\tb\x00\x7f\x9b é 日 🙂\u200b"
    assert shown(text) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert shown(text) == "a\\x1b[31m\n\tb\\x00\\x7f\\x9b é 日 🙂\u200b"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["word " * 2000], "tokens and the context holds 1,024"),
        (
            [STORY, "--context", "3", "--no-template"],
            "The prompt has 4 tokens and the context holds 3",
        ),
        ([STORY, "--context", "2000"], "from 1 to the 1024 tokens the model takes, got 2000"),
        ([STORY, "--temperature", "-1"], "temperature should be a number from 0 to 100"),
        ([STORY, "--top-p", "0"], "top_p should be a number above 0"),
        ([STORY, "--stop", ""], "stop string is empty"),
        ([STORY, "--system", "x", "--no-template"], "leave one of the two out"),
    ],
)
def test_mistakes(run: Run, arguments: list[str], words: str) -> None:
    found = run("run", "demo", *arguments)
    assert found.status == 1
    assert found.out == ""
    assert words in found.err
    assert found.err.startswith("kvant: ")
    assert found.err.count("\n") == 1


def test_models_that_cannot(run: Run, tmp_path: Path) -> None:
    assert "no such file" in run("run", tmp_path / "nothing", "x").err
    bare = make_folder(tmp_path / "bare", LLAMA, tokenizer=False)
    assert "has no tokenizer" in run("run", bare, "x").err
    plain = make_folder(tmp_path / "plain", LLAMA)
    assert "no chat template" in run("run", plain, "x", "--chat").err


def test_command_lines_that_cannot_be_read(run: Run) -> None:
    for arguments in (
        [],
        ["demo", "x", "y"],
        ["demo", "x", "--kv", "q4"],
        ["demo", "x", "-n", "0"],
    ):
        assert run("run", *arguments).status == 2
    assert run("run", "demo", "x", "--chat", "--no-template").status == 2


def test_as_typed(spawn: Run) -> None:
    found = spawn("run", "demo", STORY, *CALM)
    assert (found.status, found.err) == (0, "")
    assert found.out == _expected()


def test_guesses_change_nothing(run: Run) -> None:
    for how in ("ngram", "demo"):
        assert run("run", "demo", STORY, *CALM, "--speculate", how).out == _expected()


def test_text_that_must_match(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    calm = CALM[:2]
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}')
    grammar.write_text('start: "yes" | "no"')
    said = json.loads(run("run", "demo", STORY, *calm, "--json-schema", schema).out)
    assert set(said) <= {"a", "b"}
    assert run("run", "demo", STORY, *calm, "--grammar", grammar).out in ("yes", "no")
    said = run("run", "demo", STORY, *calm, "--regex", "[a-z]{5}", "--speculate", "ngram").out
    assert len(said) == 5
    found = run("run", "demo", STORY, "--regex", "(")
    assert found.status != 0
    assert "regular expression cannot be used" in found.err
    found = run("run", "demo", STORY, "--json-schema", tmp_path / "none")
    assert "cannot be read as text: No such file" in found.err
    with kvant.load("demo", speculate="ngram") as model:
        schema_of = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
        said = model.generate(
            "The", max_tokens=300, constraint={**schema_of, "additionalProperties": False}
        )
        assert json.loads(said.text)["n"] in (1, 2)
