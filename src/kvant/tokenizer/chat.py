"""Chat templates: a conversation to the text a model was trained on, within bounds.

Templates are programs that came with a model. They run in a process of their own
(``chat_worker.py`` says why), which costs about a tenth of a second to start; a ``ChatRenderer``
keeps it for the next conversation.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from kvant.errors import FileFormatError, KvantError, UnsupportedError, UsageError
from kvant.files.source import quote

__all__ = ["MAX_TEMPLATE_CHARS", "ChatRenderer", "Limits", "render"]

#: The largest published template has 40,000.
MAX_TEMPLATE_CHARS = 400_000
_WORKER = Path(__file__).with_name("chat_worker.py")


@dataclass(frozen=True, slots=True)
class Limits:
    """What rendering one conversation may take.

    ``seconds`` of processor time; ``patience`` seconds in all, which a busy machine may need;
    ``memory`` bytes beyond Python's own; ``output`` characters.
    """

    seconds: float = 0.5
    patience: float = 10.0
    memory: int = 128 << 20
    output: int = 8 << 20


class ChatRenderer:
    """Renders one template, for any number of conversations. Close it, or use ``with``.

    Raises:
        FileFormatError: the template is too large to be one.
    """

    def __init__(self, template: str, limits: Limits | None = None) -> None:
        if len(template) > MAX_TEMPLATE_CHARS:
            raise FileFormatError(
                f"A chat template of {len(template)} characters, expected at most "
                f"{MAX_TEMPLATE_CHARS}. Pass another template."
            )
        self._template = template
        self._limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        bos_token: str = "",
        eos_token: str = "",
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        now: datetime | None = None,
        **context: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: JSON-like objects, usually with ``role`` and ``content``.
            add_generation_prompt: end where the model's answer starts.
            bos_token: what the template calls so; many put it first.
            eos_token: likewise.
            tools: JSON schemas of functions the model may call.
            now: the time that ``strftime_now`` tells; the present by default.
            context: further values the template reads.

        Raises:
            FileFormatError: the template is not valid Jinja.
            UsageError: it refuses or cannot take this conversation.
            UnsupportedError: it wants what no template needs: time, memory, Python's insides.
        """
        values: dict[str, Any] = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": bos_token,
            "eos_token": eos_token,
            "tools": tools,
            "documents": None,
            **context,
        }
        request = {
            "template": self._template,
            "context": values,
            "now": (now or datetime.now()).isoformat(),
        }
        try:
            body = json.dumps(request, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"The conversation is not plain data: {quote(str(error), 200)}. Pass texts, "
                "numbers, lists and dicts."
            ) from None
        with self._lock:
            answer = self._ask(body)
        if "text" in answer:
            return answer["text"]
        raise _error(answer["kind"], answer["message"], self._limits)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def __enter__(self) -> ChatRenderer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, body: bytes) -> dict[str, str]:
        """Send a request and wait for its answer; a process that fails is not used again."""
        complete = False
        try:
            process = self._process = self._process or _start(self._limits)
            deadline = time.monotonic() + self._limits.patience
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(len(body).to_bytes(8, "little") + body)
                process.stdin.flush()
            except BrokenPipeError:
                return {"kind": "died", "message": ""}
            out = process.stdout.fileno()
            size = int.from_bytes(_read(out, 8, deadline), "little")
            # Six bytes a character is the most that JSON takes, and an error is short.
            if size > 6 * self._limits.output + 4096 * 6:
                raise _LateError("output")
            answer: dict[str, str] = json.loads(_read(out, size, deadline))
            complete = True
            return answer
        except _LateError as error:
            return {"kind": str(error), "message": ""}
        finally:
            if not complete:
                self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


class _LateError(Exception):
    """No answer: "time" when it takes too long, "died" when the process is gone."""


def _start(limits: Limits) -> subprocess.Popen[bytes]:
    folders: list[str] = []
    for name in ("jinja2", "markupsafe"):
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise UnsupportedError(
                f"The Python package {name} is missing; chat templates need it. Install kvant "
                "again."
            )
        folders.append(str(Path(spec.origin).parent.parent))
    # Isolated: neither the environment nor the working folder decides what the child imports.
    numbers = [str(limits.seconds), str(limits.memory), str(limits.output)]
    command = [sys.executable, "-I", "-S", str(_WORKER), *numbers, *dict.fromkeys(folders)]
    kept = {k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "SYSTEMROOT")}
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept,
            start_new_session=True,  # Ctrl-C is for kvant, which then ends the child
        )
    except OSError as error:
        raise UnsupportedError(
            f"Cannot start Python for the chat template: {error.strerror}. Check {sys.executable}."
        ) from None


def _read(descriptor: int, count: int, deadline: float) -> bytes:
    parts: list[bytes] = []
    while count:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise _LateError("time")
        part = os.read(descriptor, min(count, 1 << 16))
        if not part:
            raise _LateError("died")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _error(kind: str, message: str, limits: Limits) -> KvantError:
    shown = quote(message, 300)
    too_much = {
        "time": f"needs more than {limits.patience:g} seconds",
        "died": f"needs more than {limits.seconds:g} seconds of processor time, or crashes",
        "memory": f"needs more than {limits.memory >> 20} MB of memory",
        "output": f"writes more than {limits.output} characters",
        "depth": f"nests or counts too far ({shown})",
        "security": f"reaches for Python's insides ({shown})",
    }
    if kind in too_much:
        return UnsupportedError(
            f"The chat template {too_much[kind]}, which no honest template does. Pass another "
            "template."
        )
    if kind == "syntax":
        return FileFormatError(
            f"The chat template is not valid Jinja, {shown}. Fetch the model again, or pass "
            "another template."
        )
    if kind == "refused":
        return UsageError(f"The chat template refuses this conversation: {shown}. Change it so.")
    return UsageError(
        f"The chat template fails on this conversation: {shown}. It may need roles or values "
        "that were not given."
    )


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    **context: Any,
) -> str:
    """The text of one conversation; see ``ChatRenderer.render``."""
    with ChatRenderer(template) as renderer:
        return renderer.render(
            messages, add_generation_prompt, bos_token, eos_token, tools, **context
        )
