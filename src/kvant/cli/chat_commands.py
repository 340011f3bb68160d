"""What is typed after a slash in a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kvant.cli import show
from kvant.errors import KvantError, UsageError

if TYPE_CHECKING:
    from kvant.api.model import Model
    from kvant.registry import Modelfile

__all__ = ["HELP", "LeaveError", "Session", "run_command"]

HELP = '''\
/set parameter NAME VALUE    temperature, top_k, seed, stop, num_predict, ...
/set system TEXT             the system message, from the next message on
/set verbose | quiet         say after each answer what it took, or not
/set history | nohistory     remember what was typed for the next time, or not
/show [info | parameters | system | template | license | modelfile]
/save NAME   keep the conversation, system message and parameters as a model
/load NAME   go on with another model, or a conversation that was saved
/clear       forget the conversation
/? or /help  this
/bye         leave; Ctrl-D does it too
"""          begin and end a message of several lines
Ctrl-C       stop the answer; on an empty line, twice: leave'''

_PARTS = ("info", "parameters", "system", "template", "license", "modelfile")


class LeaveError(Exception):
    """The conversation ends; ``load`` names the model to go on with, if there is one."""

    def __init__(self, load: str | None = None) -> None:
        super().__init__(load)
        self.load = load


@dataclass
class Session:
    """A conversation as commands may change it.

    Attributes:
        name: what the user called the model.
        model: what answers.
        options: of `Model.chat_stream`; changed by ``/set parameter``.
        system: the system message in place of the model's own, or None.
        turns: what was said so far; empty where texts are only continued.
        clear: forgets them.
        verbose: whether each answer is followed by what it took.
        remember: whether lines are kept for the next time.
        given: parameters that were set, by Ollama's names.
        template: whether messages are answered by a chat template.
        find: what makes sure that a model can be opened, before this one is left for it.
    """

    name: str
    model: Model
    options: dict[str, Any]
    system: str | None
    turns: list[Mapping[str, Any]]
    clear: Callable[[], None]
    verbose: bool = False
    remember: bool = True
    given: dict[str, Any] = field(default_factory=dict)
    template: bool = True
    find: Callable[[str], str] = str


def run_command(session: Session, line: str) -> bool:
    """Carry out a line that begins with a slash; False where it is no command but a message.

    Raises:
        LeaveError: the user leaves, or goes on with another model.
    """
    word, _, rest = line.partition(" ")
    command = _COMMANDS.get(word)
    if command is None:
        if " " in line or "\n" in line:
            return False  # a path, say, that is asked about
        show.line(f"There is no command {word}; /help lists them.")
        return True
    try:
        command(session, rest.strip())
    except KvantError as error:
        show.note(f"kvant: {error}")
    return True


def _bye(session: Session, rest: str) -> None:
    raise LeaveError


def _help(session: Session, rest: str) -> None:
    print(HELP)


def _clear(session: Session, rest: str) -> None:
    session.clear()
    print("The conversation is forgotten.")


def _load(session: Session, rest: str) -> None:
    if not rest:
        raise UsageError("Write /load NAME, with a model's name or path.")
    raise LeaveError(session.find(rest))


def _set(session: Session, rest: str) -> None:
    what, _, value = rest.partition(" ")
    if what == "parameter":
        _set_parameter(session, value.strip())
    elif what == "system":
        if not session.template:
            raise UsageError(
                "A system message is part of a chat template, and --no-template leaves that out. "
                "Start without it."
            )
        session.system = _unquoted(value.strip())
        print("The system message is set.")
    elif what in ("verbose", "quiet"):
        session.verbose = what == "verbose"
    elif what in ("history", "nohistory"):
        session.remember = what == "history"
    else:
        raise UsageError(
            "Write /set parameter NAME VALUE, /set system TEXT, /set verbose, quiet, history or "
            "nohistory."
        )


def _set_parameter(session: Session, text: str) -> None:
    from kvant.registry.parameters import normal, parse_parameter, split_parameters

    name, _, value = text.partition(" ")
    name, value = name.lower(), _unquoted(value.strip())
    if not name or not value:
        raise UsageError("Write /set parameter NAME VALUE, such as /set parameter temperature 0.7.")
    found = parse_parameter(name, value)
    if name == "stop":
        local = session.model.local
        before = session.given.get("stop") or (local.settings.stop if local else ())
        found = (*before, value)
    given = normal({**session.given, name: found}, "this conversation")
    settings = split_parameters(given)
    sampling = replace(session.options["sampling"], **settings.sampling)  # checks the range
    session.given = given
    session.options["sampling"] = sampling
    if settings.stop:
        session.options["stop"] = list(settings.stop)
    if settings.max_tokens is not None:
        session.options["max_tokens"] = settings.max_tokens
    if name == "num_ctx":
        print("The context is set when a model is loaded: /save, and /load what was saved.")
    elif name in settings.idle:
        show.line(f"{name} makes no difference here.")
    else:
        show.line(f"{name} is {value}.")


def _show(session: Session, rest: str) -> None:
    model, what = session.model, rest or "info"
    local = model.local
    if what == "info":
        info = model.checkpoint.info
        show.line(f"{info.name}: {model.checkpoint.architecture.name}, {model.describe()}")
        if local is not None:
            show.line(f"{local.name}, {local.details.quantization or local.details.format}")
    elif what == "parameters":
        from dataclasses import asdict

        for name, value in asdict(session.options["sampling"]).items():
            if value not in (None, {}):
                show.line(f"{name:24}{value}")
        for stop in session.options["stop"]:
            show.line(f"{'stop':24}{stop!r}")
    elif what == "system":
        text = session.system if session.system is not None else local and local.system
        print(show.shown(text or "There is no system message."))
    elif what == "template":
        print(show.shown(model.require_chat_template()))
    elif what == "license":
        text = (local and local.license) or model.checkpoint.info.license
        print(show.shown(text or "Nobody states one."))
    elif what == "modelfile":
        print(show.shown(str(_modelfile(session))), end="")
    else:
        raise UsageError(f"There is no {what!r} to show. Expected one of {', '.join(_PARTS)}.")


def _save(session: Session, rest: str) -> None:
    if not rest or " " in rest:
        raise UsageError("Write /save NAME, with the name the model is to have.")
    from kvant.api.models import store

    entry = store().create(rest, _modelfile(session))
    show.line(f"Saved as {entry.name}. `kvant run {entry.name}` goes on.")


def _modelfile(session: Session) -> Modelfile:
    """The conversation as a model: what it began from, and what was said and set since."""
    from kvant.api.models import store
    from kvant.builtin import DEMO
    from kvant.registry import Modelfile

    local = session.model.local
    base = session.name
    if local is not None:
        base = local.name
    elif base != DEMO or base in store():
        base = str(session.model.checkpoint.path.absolute())
    said = [] if local is None else [{"role": m.role, "content": m.content} for m in local.messages]
    said += [
        {"role": turn["role"], "content": turn["content"]}
        for turn in session.turns
        if turn["role"] != "system"
    ]
    return Modelfile.of(base=base, parameters=session.given, system=session.system, messages=said)


def _unquoted(text: str) -> str:
    for mark in ('"""', '"'):
        if len(text) >= 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            return text[len(mark) : -len(mark)].strip("\n")
    return text


_COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "/bye": _bye,
    "/exit": _bye,
    "/help": _help,
    "/?": _help,
    "/clear": _clear,
    "/set": _set,
    "/show": _show,
    "/save": _save,
    "/load": _load,
}
