"""A conversation on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from kvant.cli import show
from kvant.cli.chat_commands import LeaveError, Session, run_command
from kvant.cli.meter import Meter
from kvant.errors import ContextError, KvantError

if TYPE_CHECKING:
    from kvant.api.model import Model
    from kvant.engine.results import Piece

__all__ = ["talk"]

_PROMPT, _MORE = ">>> ", "... "
_QUOTES = '"""'
_MOST_LINES = 1000
"""Lines that are remembered."""


def talk(
    name: str,
    model: Model,
    options: dict[str, Any],
    *,
    system: str | None,
    template: bool,
    verbose: bool,
    find: Callable[[str], str],
) -> str | None:
    """Talk until the user leaves.

    Args:
        name: what the user called the model.
        model: what answers.
        options: of `Model.chat_stream`.
        system: the message the conversation begins with.
        template: by the model's chat template, which it has; otherwise every message is a text
            to continue.
        verbose: say after each answer what it took.
        find: makes sure that a model can be opened, and says what it is called.

    Returns:
        The name of a model to go on with; None where the user left.
    """
    session = Session(
        *(name, model, options, system, [], lambda: None),
        verbose=verbose,
        template=template,
        find=find,
    )
    talk = _Conversation(session) if template else _Continuation(session)
    session.clear = talk.clear
    show.line(f"Chat with {model.checkpoint.info.name}. /help lists commands.")
    if model.local is not None and model.local.messages:
        show.note(f"(It begins with {len(model.local.messages)} messages that were said before.)")
    try:
        for message in _messages(session):
            meter = _reply(talk.answer, message)
            if meter.reason == "length" and options["max_tokens"] is None:
                show.note("(The context is full; /clear begins a new conversation.)")
            if session.verbose:
                show.note(meter.summary())
    except LeaveError as leave:
        return leave.load
    return None


class _Conversation:
    """Turns so far. What the engine read of them, its cache has for the next one."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def clear(self) -> None:
        self._session.turns.clear()

    def answer(self, message: str) -> Iterator[Piece]:
        session = self._session
        said_before = list(session.turns)
        turns = [*said_before, {"role": "user", "content": message}]
        start = [] if session.system is None else [{"role": "system", "content": session.system}]
        try:
            pieces = session.model.chat_stream([*start, *turns], **session.options)
        except ContextError as error:
            if not said_before:
                raise
            told = f"{error} The conversation is too long now: /clear begins a new one."
            raise ContextError(error.needed, error.context, told) from None
        said: list[str] = []
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
        finally:  # what was said before an interrupt was said
            session.turns[:] = [*turns, {"role": "assistant", "content": "".join(said)}]


class _Continuation:
    """Every message is a text by itself."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def clear(self) -> None: ...

    def answer(self, message: str) -> Iterator[Piece]:
        return self._session.model.stream(message, **self._session.options)


def _messages(session: Session) -> Iterator[str]:
    """What the user types, commands carried out, until they leave."""
    with _history(session) as typed:
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
            if command.startswith("/") and run_command(session, command):
                continue
            if command:
                yield message


@contextmanager
def _history(session: Session) -> Iterator[Callable[[], str]]:
    """Lines can be edited, and earlier ones found again, also those of earlier times.

    Yields what tells the line that is being typed.
    """
    try:
        import readline
    except ImportError:  # a Python without it
        yield str
        return
    from kvant.registry import kvant_home

    file = kvant_home() / "history"
    readline.set_history_length(_MOST_LINES)
    with suppress(OSError):
        readline.read_history_file(file)
    try:
        yield readline.get_line_buffer
    finally:
        if session.remember:
            with suppress(OSError):  # a home that cannot be written is no reason to fail
                file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                readline.write_history_file(file)
                file.chmod(0o600)
        readline.clear_history()


def _read() -> str:
    """One message: a line, or several between triple quotes."""
    line = input(_PROMPT)
    head, quotes, text = line.partition(_QUOTES)
    # Quotes begin a text of several lines at the start, or after `/set system`.
    if not quotes or head.split() not in ([], ["/set", "system"]):
        return line
    while not text.rstrip().endswith(_QUOTES):
        text += "\n" + input(_MORE)
    text = text.rstrip().removesuffix(_QUOTES).strip("\n")
    return f"{head}{_QUOTES}{text}{_QUOTES}" if head.strip() else text


def _reply(answer: Callable[[str], Iterator[Piece]], message: str) -> Meter:
    """Print an answer; an error or Ctrl-C ends it, not the conversation."""
    meter = Meter()
    try:
        pieces = answer(message)
        try:
            for piece in meter.watch(pieces):
                print(show.shown(piece), end="", flush=True)
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        print()
    except KeyboardInterrupt:
        print("\n(stopped)")
    except KvantError as error:
        show.note(f"kvant: {error}")
    return meter
