"""``kvant run``: answer or continue one text, or chat."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvant.cli import chat, show
from kvant.cli.meter import Meter
from kvant.cli.options import Commands, positive
from kvant.errors import InputError, KvantError, UsageError

if TYPE_CHECKING:
    from kvant.api.model import Model
    from kvant.engine.constrain import Constraint
    from kvant.engine.sampling import Sampling

__all__ = ["add"]

_DESCRIPTION = """\
PROMPT, or text on standard input, is answered as a turn of a conversation, by the model's chat
template; a model without one continues the text as it stands, and with --no-template any model
does. With neither, a chat begins. MODEL may be the name of a model of the store; it is pulled where
it is not there.

How tokens are chosen follows the model's own recommendation (generation_config.json, or
general.sampling.* in a GGUF file), and where there is none: temperature 0.8, top-k 40, top-p 0.95,
min-p 0.05. Each option replaces one value of these.
"""

_SAMPLING = {
    "temperature": (float, "T", "0 always takes the likeliest token"),
    "top_k": (int, "K", "choose among the K likeliest tokens; 0 for all"),
    "top_p": (float, "P", "choose among the likeliest tokens that together hold this share"),
    "min_p": (float, "P", "leave out what is less than this share as likely as the likeliest"),
    "repeat_penalty": (float, "X", "above 1: tokens of prompt and answer become less likely"),
    "presence_penalty": (float, "X", "tokens that are in the answer become less likely"),
    "frequency_penalty": (float, "X", "the same, for every time they are in it"),
    "seed": (int, "N", "the same request gives the same text"),
}


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "run",
        help="answer or continue a text, or chat",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="demo, a Hugging Face folder, a GGUF file, or a name"
    )
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="text to answer; - reads standard input"
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--chat", action="store_true", help="answer by the chat template, or fail if there is none"
    )
    way.add_argument("--no-template", action="store_true", help="continue every text as it stands")
    parser.add_argument("--system", metavar="TEXT", help="the system message of a chat")
    sampling = parser.add_argument_group("sampling")
    for name, (kind, metavar, text) in _SAMPLING.items():
        option = "--" + name.replace("_", "-")
        sampling.add_argument(option, type=kind, metavar=metavar, help=text)
    sampling.add_argument(
        "-n",
        "--max-tokens",
        type=positive,
        metavar="N",
        help="write no more than N tokens (default: until the model stops or the context is full)",
    )
    sampling.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; repeatable"
    )
    bound = parser.add_argument_group("what the text must match").add_mutually_exclusive_group()
    bound.add_argument("--json-schema", metavar="FILE", help="JSON that fits this schema")
    bound.add_argument("--regex", metavar="RE", help="this regular expression, as a whole")
    bound.add_argument("--grammar", metavar="FILE", help="this grammar, in Lark's form")
    parser.add_argument(
        "--speculate",
        metavar="ngram|MODEL",
        help="guess tokens where that is faster, from the text itself or by a smaller model of the "
        "same vocabulary; the text stays the same",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="processors to use (default: all)"
    )
    parser.add_argument(
        "--context", type=positive, metavar="N", help="tokens of prompt and answer together"
    )
    parser.add_argument(
        "--kv",
        choices=("f16", "q8_0"),
        default="f16",
        help="how keys and values are kept (default: f16)",
    )
    parser.add_argument(
        "--offline", action="store_true", help="do not pull a model that is not here"
    )
    parser.add_argument("--verbose", action="store_true", help="say what it took, on stderr")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON, when done")
    parser.set_defaults(run=_run, late="prompt")


def _run(arguments: argparse.Namespace) -> int:
    prompt = _prompt(arguments)
    _check(arguments, prompt)
    name = _present(arguments.model, offline=arguments.offline)
    if prompt is None:
        return _chat(name, arguments)
    with _loaded(name, arguments) as model:
        return _answer(model, prompt, _options(model, arguments), arguments)


def _chat(name: str, arguments: argparse.Namespace) -> int:
    """Talk, with one model after the other."""
    before: str | None = None
    while True:
        try:
            with _loaded(name, arguments) as model:
                if not arguments.no_template:
                    model.require_chat_template()
                before = name
                following = chat.talk(
                    name,
                    model,
                    _options(model, arguments),
                    system=arguments.system,
                    template=not arguments.no_template,
                    verbose=arguments.verbose,
                    find=partial(_openable, offline=arguments.offline),
                )
            if following is None:
                return 0
            name = following
        except KvantError as error:
            if before is None or before == name:
                raise
            show.note(f"kvant: {error}")
            name = before  # back to the one that could be loaded


@contextmanager
def _loaded(name: str, arguments: argparse.Namespace) -> Iterator[Model]:
    from kvant.api.model import load

    start = time.perf_counter()
    with load(
        name,
        threads=arguments.threads,
        context=arguments.context,
        kv_type=arguments.kv,
        speculate=arguments.speculate,
    ) as model:
        loaded = time.perf_counter() - start
        if arguments.verbose:
            show.note(f"loaded {model.checkpoint.path} in {loaded:.2f} s, {model.describe()}")
        yield model


def _options(model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "sampling": _sampling(arguments, model.default_sampling),
        "max_tokens": arguments.max_tokens,
        "stop": arguments.stop,
        "constraint": _constraint(arguments),
    }


def _present(model: str, *, offline: bool) -> str:
    """The model's path, or its name in the store, into which it is pulled where it is not here."""
    from kvant.api.source import named
    from kvant.builtin import DEMO
    from kvant.registry import BadNameError, RegistryError, parse_reference

    if model == DEMO or os.path.lexists(model) or named(model) is not None:
        return model
    try:
        if parse_reference(model).kind == "path":
            return model  # which is not there: the error is the same as always
    except BadNameError:
        if "://" in model:
            raise
        return model
    if offline:
        raise UsageError(
            f"{model}: there is no such path and no such model in the store, and with --offline "
            f"nothing is pulled. Use `kvant pull {model}` with a network."
        )
    from kvant.cli.pull import pull_with_bar

    try:
        return pull_with_bar(model)
    except RegistryError as error:
        show.note(f"{model} is no path and not in the store, so it was to be pulled.")
        raise error


def _openable(model: str, *, offline: bool) -> str:
    """As `_present`, of a model that is one: so a chat ends for nothing else."""
    from kvant.api.source import open_source

    name = _present(model, offline=offline)
    open_source(name)
    return name


def _prompt(arguments: argparse.Namespace) -> str | None:
    """The text to answer; None where somebody sits there to be talked to."""
    given: str | None = arguments.prompt
    if given is None and sys.stdin is not None and sys.stdin.isatty():
        return None
    if given not in (None, "-"):
        return given
    if sys.stdin is None:
        raise UsageError("There is no PROMPT, and standard input is closed. Give one of them.")
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"Standard input should be text in {error.encoding}, got byte "
            f"0x{error.object[error.start]:02x}. Convert it first."
        ) from None
    if odd := next((c for c in text if "\udc80" <= c <= "\udcff"), None):  # as some locales read it
        raise UsageError(
            f"Standard input should be text in {sys.stdin.encoding}, got byte "
            f"0x{ord(odd) - 0xDC00:02x}. Convert it first."
        )
    # What `echo` and editors put at the end is not part of the text to continue.
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise UsageError("Standard input is empty, and there is no PROMPT. Give one of them.")
    return text


def _check(arguments: argparse.Namespace, prompt: str | None) -> None:
    if arguments.system is not None and arguments.no_template:
        raise UsageError("--system is part of a chat template; leave one of the two out.")
    if arguments.json and prompt is None:
        raise UsageError("--json prints one answer; give a PROMPT.")


def _constraint(arguments: argparse.Namespace) -> Constraint | None:
    """What the text must match, if anything."""
    from kvant.engine.constrain import Constraint

    if arguments.json_schema is not None:
        return Constraint("json_schema", _text(arguments.json_schema))
    if arguments.grammar is not None:
        return Constraint("grammar", _text(arguments.grammar))
    return None if arguments.regex is None else Constraint("regex", arguments.regex)


def _text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"{name}: cannot be read as text: {why}. Name a text file.") from None


def _sampling(arguments: argparse.Namespace, default: Sampling) -> Sampling:
    from dataclasses import replace

    names = {"repeat_penalty": "repetition_penalty"}
    given = {
        names.get(name, name): value
        for name in _SAMPLING
        if (value := getattr(arguments, name)) is not None
    }
    return replace(default, **given)


def _by_template(model: Model, arguments: argparse.Namespace) -> bool:
    """Whether PROMPT is a turn of a conversation."""
    if arguments.no_template:
        return False
    if arguments.chat or arguments.system is not None:
        return True  # without a template that is an error
    return model.chat_template is not None


def _answer(
    model: Model, prompt: str, options: dict[str, Any], arguments: argparse.Namespace
) -> int:
    if _by_template(model, arguments):
        messages = [{"role": "user", "content": prompt}]
        if arguments.system is not None:
            messages.insert(0, {"role": "system", "content": arguments.system})
        if arguments.json:
            show.print_json(model.chat(messages, **options).to_json())
            return 0
        pieces = model.chat_stream(messages, **options)
    elif arguments.json:
        show.print_json(model.generate(prompt, **options).to_json())
        return 0
    else:
        pieces = model.stream(prompt, **options)
    meter = Meter()
    try:
        for piece in meter.watch(pieces):
            print(show.shown(piece), end="", flush=True)
    finally:
        if sys.stdout.isatty():
            print()
    if arguments.verbose:
        show.note(meter.summary())
    return 0
