"""A conversation on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kvant.cli import show
from kvant.cli.meter import Meter
from kvant.errors import ContextError, KvantError

if TYPE_CHECKING:
    from kvant.api.model import Model
    from kvant.engine.results import Piece

__all__ = ["shown", "talk"]

_HELP = '''\
/clear   forget the conversation
/help    this
/bye     leave; Ctrl-D does it too
"""      begin and end a message of several lines
Ctrl-C   stop the answer; on an empty line, twice: leave'''

_PROMPT, _MORE = ">>> ", "... "
_QUOTES = '"""'


def shown(text: str) -> str:
    """Model output as it may reach a terminal: without controls that would steer it."""
    if not sys.stdout.isatty():
        return str(text)
    return "".join(
        c if c.isprintable() or c in "\n\t" or ord(c) > 0x9F else f"\\x{ord(c):02x}" for c in text
    )


def talk(
    model: Model, options: dict[str, Any], *, system: str | None, template: bool, verbose: bool
) -> int:
    """Talk until the user leaves; returns the exit status.

    Args:
        model: what answers.
        options: of `Model.chat_stream`.
        system: the message the conversation begins with.
        template: by the model's chat template; otherwise every message is a text to continue.
        verbose: say after each answer what it took.

    Raises:
        KvantError: the model cannot chat.
    """
    if template:
        model.require_chat_template()
    talk = _Conversation(model, options, system) if template else _Continuation(model, options)
    show.line(f"Chat with {model.checkpoint.info.name}. /help lists commands.")
    try:
        for message in _messages(talk.clear):
            meter = _reply(talk.answer, message)
            if meter.reason == "length" and options["max_tokens"] is None:
                show.note("(The context is full; /clear begins a new conversation.)")
            if verbose:
                show.note(meter.summary())
    finally:
        talk.clear()
    return 0


class _Conversation:
    """Turns so far. What the engine read of them, its cache has for the next one."""

    def __init__(self, model: Model, options: dict[str, Any], system: str | None) -> None:
        self._model, self._options = model, options
        self._start = [] if system is None else [{"role": "system", "content": system}]
        self._turns = list(self._start)

    def clear(self) -> None:
        self._turns = list(self._start)

    def answer(self, message: str) -> Iterator[Piece]:
        turns = [*self._turns, {"role": "user", "content": message}]
        try:
            pieces = self._model.chat_stream(turns, **self._options)
        except ContextError as error:
            if self._turns == self._start:
                raise
            told = f"{error} The conversation is too long now: /clear begins a new one."
            raise ContextError(error.needed, error.context, told) from None
        said: list[str] = []
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
        finally:  # what was said before an interrupt was said
            self._turns = [*turns, {"role": "assistant", "content": "".join(said)}]


class _Continuation:
    """Every message is a text by itself."""

    def __init__(self, model: Model, options: dict[str, Any]) -> None:
        self._model, self._options = model, options

    def clear(self) -> None: ...

    def answer(self, message: str) -> Iterator[Piece]:
        return self._model.stream(message, **self._options)


def _messages(clear: Callable[[], None]) -> Iterator[str]:
    """What the user types, commands carried out, until they leave."""
    typed: Callable[[], str] = str
    with suppress(ImportError):
        import readline  # lines can be edited, and earlier ones found again

        typed = readline.get_line_buffer
    interrupted = False
    while True:
        try:
            message = _read()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if typed():  # it took back a line
                interrupted = False
                continue
            if interrupted:
                return
            interrupted = True
            print("Ctrl-C once more, or /bye, leaves.")
            continue
        interrupted = False
        command = message.strip()
        if command == "/bye":
            return
        if command == "/clear":
            clear()
            print("The conversation is forgotten.")
        elif command in ("/help", "/?"):
            print(_HELP)
        elif command.startswith("/") and " " not in command and "\n" not in command:
            show.line(f"There is no command {command}; /help lists them.")
        elif command:
            yield message


def _read() -> str:
    """One message: a line, or several between triple quotes."""
    line = input(_PROMPT)
    if not line.lstrip().startswith(_QUOTES):
        return line
    text = line.lstrip().removeprefix(_QUOTES)
    while not text.rstrip().endswith(_QUOTES):
        text += "\n" + input(_MORE)
    return text.rstrip().removesuffix(_QUOTES).strip("\n")


def _reply(answer: Callable[[str], Iterator[Piece]], message: str) -> Meter:
    """Print an answer; an error or Ctrl-C ends it, not the conversation."""
    meter = Meter()
    try:
        pieces = answer(message)
        try:
            for piece in meter.watch(pieces):
                print(shown(piece), end="", flush=True)
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        print()
    except KeyboardInterrupt:
        print("\n(stopped)")
    except KvantError as error:
        print(f"kvant: {error}", file=sys.stderr)
    return meter
