"""A conversation on a terminal, as typed."""

from __future__ import annotations

import re
import sys

import pytest
from terminal import CTRL_C, CTRL_D, Terminal

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
