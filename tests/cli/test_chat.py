"""A conversation on a terminal, as typed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from terminal import CTRL_C, CTRL_D, Terminal

from kvant.api.models import store
from kvant.builtin import demo_path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

CALM = ("--temperature", "0", "-n", "5")
PROMPT = r"(?m)^>>> $"


def test_a_conversation() -> None:
    with Terminal("run", "demo", *CALM, "--verbose") as t:
        assert "Chat with Demo" in t.expect(PROMPT)
        t.say("Tell me a story.")
        assert "5 tokens (length), the first after" in t.expect(PROMPT)
        t.say("/help")
        assert "/clear" in t.expect(PROMPT)
        t.say("/nonsense")
        assert "no command /nonsense; /help lists them" in t.expect(PROMPT)
        t.say("   ")
        t.expect(PROMPT)
        t.say("/clear")
        assert "forgotten" in t.expect(PROMPT)
        t.say("/bye")
        assert t.status() == 0


def test_messages_of_several_lines() -> None:
    with Terminal("run", "demo", *CALM) as t:
        t.expect(PROMPT)
        t.say('"""Tell me')
        t.expect(r"(?m)^\.\.\. $")
        t.say("/bye is not a command here")
        t.expect(r"(?m)^\.\.\. $")
        t.say('a story."""')
        t.expect(PROMPT)
        t.say('"""in one line"""')
        t.expect(PROMPT)
        t.send(CTRL_D)
        assert t.status() == 0


def test_ctrl_c_stops_the_answer_and_not_the_conversation() -> None:
    with Terminal("run", "demo", "--temperature", "0", slow=True) as t:
        t.expect(PROMPT)
        t.say("Tell me a story.")
        t.expect(r"story\.\n.*[a-z]")
        t.send(CTRL_C)
        answer = t.expect(PROMPT, seconds=5)
        assert "(stopped)" in answer
        assert "Traceback" not in answer
        t.say("Another one.")
        t.expect(r"one\.\n.*[a-z]")
        t.send(CTRL_C)
        assert "(stopped)" in t.expect(PROMPT, seconds=5)
        t.interrupt()
        assert "once more, or /bye, leaves" in t.expect(PROMPT)
        t.send("half a line")
        t.expect("half a line")
        t.interrupt()  # takes the line back
        assert "leaves" not in t.expect(PROMPT)
        t.interrupt()
        assert "once more" in t.expect(PROMPT)
        t.interrupt()
        assert t.status() == 0


def test_a_conversation_that_becomes_too_long() -> None:
    with Terminal("run", "demo", "--temperature", "0", "--context", "60") as t:
        t.expect(PROMPT)
        t.say("Tell me a story.")
        assert "The context is full; /clear begins" in t.expect(PROMPT)
        t.say("Go on.")
        error = t.expect(PROMPT)
        assert re.search(r"kvant: The prompt has \d+ tokens and the context holds 60", error)
        assert "/clear begins a new one" in error
        t.say("/clear")
        t.expect(PROMPT)
        t.say("Hello.")
        assert "kvant:" not in t.expect(PROMPT)
        t.say("/bye")
        assert t.status() == 0


def test_without_a_template_texts_are_continued() -> None:
    with Terminal("run", "demo", *CALM, "--no-template") as t:
        t.expect(PROMPT)
        t.say("/set system Be kind.")
        assert "kvant: A system message is part of a chat template" in t.expect(PROMPT)
        t.say("Once upon a time")
        assert "there was" in t.expect(PROMPT)
        t.say("/bye")
        assert t.status() == 0


def test_ctrl_c_ends_a_single_answer() -> None:
    with Terminal("run", "demo", "Once upon a time", "--temperature", "0", slow=True) as t:
        t.expect("there was")
        t.send(CTRL_C)
        t.expect("kvant: interrupted", seconds=5)
        assert t.status() == 130


def test_commands_and_saved_conversations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVANT_HOME", str(tmp_path))
    monkeypatch.setenv("KVANT_REGISTRY", "http://127.0.0.1:9")
    mute = tmp_path / "mute"
    shutil.copytree(demo_path(), mute)
    settings = json.loads((mute / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (mute / "tokenizer_config.json").write_text(json.dumps(settings))
    with Terminal("run", "demo", *CALM) as t:
        t.expect(PROMPT)
        t.say("/set parameter temperature 0.5")
        assert "temperature is 0.5." in t.expect(PROMPT)
        t.say("/set parameter temperature hot")
        assert "kvant: Parameter temperature should be a number" in t.expect(PROMPT)
        t.say("/set parameter top_p 7")
        assert "kvant: top_p should be" in t.expect(PROMPT)
        t.say("/set parameter colour red")
        assert "kvant: There is no parameter 'colour'" in t.expect(PROMPT)
        t.say("/set parameter stop zzz")
        assert "stop is zzz." in t.expect(PROMPT)
        t.say('/set system """Be')
        t.expect(r"(?m)^\.\.\. $")
        t.say('kind."""')
        assert "The system message is set." in t.expect(PROMPT)
        t.say("/show system")
        assert "Be\nkind." in t.expect(PROMPT)
        t.say("/show parameters")
        shown = t.expect(PROMPT)
        assert re.search(r"temperature +0\.5", shown)
        assert re.search(r"stop +'zzz'", shown)
        t.say("/set nonsense")
        assert "kvant: Write /set parameter NAME VALUE" in t.expect(PROMPT)
        t.say("Tell me a story.")
        t.expect(PROMPT)
        t.say("/show modelfile")
        shown = t.expect(PROMPT)
        assert "FROM demo" in shown
        assert "MESSAGE user Tell me a story." in shown
        t.say("/save talk")
        assert "Saved as talk:latest." in t.expect(PROMPT)
        t.say("/load nothing/at/all")
        assert "kvant: nothing/at/all: no such file" in t.expect(PROMPT)
        t.say("/load nothing-of-this-name")  # nor does a name that cannot be pulled end it
        assert "nobody answers at that port" in t.expect(PROMPT)
        t.say(f"/load {tmp_path}")
        assert "expected a model, got no config.json" in t.expect(PROMPT)
        t.say("/show modelfile")  # and what was said is still there
        assert "MESSAGE" in t.expect(PROMPT)
        t.say(f"/load {mute}")
        assert "the model has no chat template" in t.expect(PROMPT)
        t.say("/load talk")
        loaded = t.expect(PROMPT)
        assert "Chat with Demo" in loaded
        assert "It begins with 2 messages" in loaded
        t.say("/show info")
        assert "talk:latest" in t.expect(PROMPT)
        t.say("/set verbose")
        t.expect(PROMPT)
        t.say("/etc/passwd is a path, not a command")
        assert "5 tokens" in t.expect(PROMPT)
        t.say("/bye")
        assert t.status() == 0
    assert "/show modelfile" in (tmp_path / "history").read_text()
    with Terminal("run", "talk", *CALM) as t:
        assert "It begins with 2 messages" in t.expect(PROMPT)
        t.send("\x1b[A")  # what was typed last, the last time
        t.expect("/bye")
        t.say("")
        assert t.status() == 0


def test_what_a_model_says_of_itself_steers_no_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KVANT_HOME", str(tmp_path))
    store().create("odd", "FROM demo\nSYSTEM a\x1b[31mb\nLICENSE c\x1b[31md\nTEMPLATE e\x1b[31mf\n")
    parts = {"system": "ab", "license": "cd", "template": "ef"}
    with Terminal("run", "odd", *CALM) as t:
        t.expect(PROMPT)
        for part, (left, right) in parts.items():
            t.say(f"/show {part}")
            assert rf"{left}\x1b[31m{right}" in t.expect(PROMPT)
        t.say("/bye")
        assert t.status() == 0
    for part, (left, right) in {**parts, "modelfile": "ab"}.items():
        with Terminal("show", "odd", f"--{part}") as t:
            assert rf"{left}\x1b[31m{right}" in t.expect(rf"{left}\W.*31m{right}")
            assert t.status() == 0
