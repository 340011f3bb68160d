"""The process that renders chat templates: started by ``chat.py``, run as a script.

A chat template is a program by a stranger. Jinja's sandbox keeps it from Python's objects, but
not from taking for ever: ``'a' * 10**9``, ``10**10**10`` or comparing two lists that hold each
other forty times over run inside one C call, where no thread, signal handler or trace function of
Python gets a word in. So the template runs in a process of its own, which the kernel ends: after
some processor time (a timer whose signal nobody catches) and when it asks for too much memory. It
also cannot open files or sockets, so that even a way out of the sandbox leads nowhere.

Requests and answers are JSON texts, each after its length in eight bytes. This file imports
nothing but the standard library and Jinja, to start soon; ``sys.argv`` says where Jinja is.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None  # type: ignore[assignment]

if __name__ == "__main__":
    sys.path += sys.argv[4:]

import jinja2
import jinja2.debug
import jinja2.ext
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

__all__ = ["environment", "main"]


class _RefusedError(TemplateError):
    """The template called ``raise_exception``."""


class _TooMuchError(Exception):
    """More output than allowed."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the model writes; for rendering it is only a scope."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own interface)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class _SafeNamespace(Namespace):
    """Jinja's namespace, without names that Python itself looks at."""

    # No named parameter, so that ``namespace(self=1)`` works as it does in Jinja.
    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _refuse(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: JSON, not JSON safe for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def environment(now: datetime) -> ImmutableSandboxedEnvironment:
    """The environment templates are written for: transformers', in a sandbox."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _refuse
    env.globals["strftime_now"] = now.strftime
    env.globals["namespace"] = _SafeNamespace
    env.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
    del env.globals["lipsum"]
    return env


def _render(request: Mapping[str, Any], most: int) -> str:
    env = environment(datetime.fromisoformat(request["now"]))
    parts: list[str] = []
    size = 0
    for part in env.from_string(request["template"]).generate(request["context"]):
        size += len(part)
        if size > most:
            raise _TooMuchError
        parts.append(part)
    return "".join(parts)


def _answer(request: Mapping[str, Any], most: int) -> dict[str, str]:
    try:
        return {"text": _render(request, most)}
    except TemplateSyntaxError as error:
        return {"kind": "syntax", "message": f"line {error.lineno}: {error.message}"}
    except _RefusedError as error:
        return {"kind": "refused", "message": str(error)}
    except SecurityError as error:
        return {"kind": "security", "message": str(error)}
    except _TooMuchError:
        return {"kind": "output", "message": ""}
    except MemoryError:
        return {"kind": "memory", "message": ""}
    except (RecursionError, OverflowError) as error:
        return {"kind": "depth", "message": str(error)}
    except Exception as error:  # whatever a template can raise is an answer
        return {"kind": "failed", "message": f"{type(error).__name__}: {error}"}


def _confine(memory: int) -> None:
    """Take away files, sockets and memory for good.

    Where the system has no such limits (they are POSIX's), the parent's clock is left.
    """
    if resource is None:
        return
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        used = 200 << 20
    for kind, limit in (
        (resource.RLIMIT_AS, used + memory),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _timer(seconds: float) -> None:
    """Let the kernel end this process after ``seconds`` of processor time; 0 for never."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Answer requests until the input ends."""
    seconds, memory, most = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    # Whatever Python imports or reads on first use must be used before files are out of reach.
    warm = {"template": "{{ x | pprint }}{{ strftime_now('%c') }}{{ y.z }}", "context": {"x": [1]}}
    _answer({**warm, "now": datetime.now().isoformat()}, most)
    _confine(memory)
    while len(head := source.read(8)) == 8:
        request = json.loads(source.read(int.from_bytes(head, "little")))
        _timer(seconds)
        answer = json.dumps(_answer(request, most)).encode()
        _timer(0)
        sink.write(len(answer).to_bytes(8, "little") + answer)
        sink.flush()


if __name__ == "__main__":
    main()
