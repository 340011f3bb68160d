"""What the server and a model's process say to each other: JSON in frames, over a socket.

A frame is four bytes of length, little-endian, and a JSON object. JSON because it can express
nothing but data: a process that runs untrusted weights and templates sends no objects.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant import errors
from kvant.engine.sampling import TokenLogprob
from kvant.server import jobs
from kvant.server.jobs import Constraint, Delta, EngineLostError, Job

__all__ = [
    "FrameError",
    "Frames",
    "delta_from",
    "delta_to",
    "error_from",
    "error_to",
    "job_from",
    "job_to",
    "pack",
    "vectors_from",
    "vectors_to",
]

MOST_BYTES = 256 << 20
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Message = dict[str, Any]


class FrameError(Exception):
    """What came is no frame; the other side is broken."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as a frame.

    Raises:
        UsageError: it is longer than the other side takes.
    """
    data = _ENCODE(message).encode("utf-8", "surrogatepass")
    if len(data) > MOST_BYTES:
        raise errors.UsageError(
            f"A message of {len(data):,} bytes is more than a model's process and the server "
            f"say at once, {MOST_BYTES:,}. Ask for less."
        )
    return len(data).to_bytes(4, "little") + data


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that ``data`` completes.

        Raises:
            FrameError: a frame is too long, or no JSON object.
        """
        held = self._held
        held += data
        start = 0
        while len(held) - start >= 4:
            size = int.from_bytes(held[start : start + 4], "little")
            if size > MOST_BYTES:
                raise FrameError(f"a frame of {size} bytes")
            if len(held) - start - 4 < size:
                break
            text = bytes(held[start + 4 : start + 4 + size])
            start += 4 + size
            try:
                message = json.loads(text.decode("utf-8", "surrogatepass"))
            except (ValueError, RecursionError) as error:
                raise FrameError(str(error)) from None
            if not isinstance(message, dict):
                raise FrameError("a frame that is no object")
            yield message
        del held[:start]


# ---- jobs ------------------------------------------------------------------------------------


def job_to(job: Job) -> Message:
    """What a model's process needs to know of a job."""
    constraint = None
    if job.constraint is not None:
        constraint = [job.constraint.kind, job.constraint.text]
    prompt = job.prompt
    sampling = dict(job.sampling)
    if sampling.get("logit_bias"):
        sampling["logit_bias"] = list(sampling["logit_bias"].items())
    return {
        "prompt": prompt if prompt is None or isinstance(prompt, str) else list(prompt),
        "raw": job.raw,
        "suffix": job.suffix,
        "messages": None if job.messages is None else [dict(m) for m in job.messages],
        "tools": [dict(t) for t in job.tools],
        "template": dict(job.template),
        "chat_template": job.chat_template,
        "sampling": sampling,
        "max_tokens": job.max_tokens,
        "stop": list(job.stop),
        "constraint": constraint,
        "ignore_end": job.ignore_end,
        "user": job.user,
    }


def job_from(message: Message) -> Job:
    """The other way."""
    constraint = message["constraint"]
    sampling = message["sampling"]
    if sampling.get("logit_bias"):
        sampling["logit_bias"] = {int(k): float(v) for k, v in sampling["logit_bias"]}
    return Job(
        model="",
        prompt=message["prompt"],
        raw=message["raw"],
        suffix=message["suffix"],
        messages=message["messages"],
        tools=message["tools"],
        template=message["template"],
        chat_template=message["chat_template"],
        sampling=sampling,
        max_tokens=message["max_tokens"],
        stop=tuple(message["stop"]),
        constraint=None if constraint is None else Constraint(*constraint),
        ignore_end=message["ignore_end"],
        user=message["user"],
    )


# ---- deltas ----------------------------------------------------------------------------------


def delta_to(delta: Delta) -> list[Any]:
    """A delta, as short as it can be: most have a text and a token only."""
    short: list[Any] = [delta.text, list(delta.tokens), delta.finish_reason]
    if delta.logprobs or delta.pieces or delta.tops:
        short += [
            [[p.token, p.logprob, p.top] for p in delta.logprobs],
            [_text(b) for b in delta.pieces],
            [[_text(b) for b in top] for top in delta.tops],
        ]
    return short


def delta_from(short: list[Any]) -> Delta:
    """The other way."""
    text, tokens, reason, *more = short
    if not more:
        return Delta(text, tuple(tokens), finish_reason=reason)
    logprobs, pieces, tops = more
    return Delta(
        text,
        tuple(tokens),
        tuple(TokenLogprob(t, p, tuple((i, v) for i, v in top)) for t, p, top in logprobs),
        tuple(_bytes(p) for p in pieces),
        tuple(tuple(_bytes(p) for p in top) for top in tops),
        reason,
    )


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")  # every byte is a character of it


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def vectors_to(vectors: npt.NDArray[np.float32]) -> Message:
    """Rows of numbers."""
    data = base64.b64encode(np.ascontiguousarray(vectors, "<f4").tobytes()).decode()
    return {"rows": len(vectors), "data": data}


def vectors_from(message: Message) -> npt.NDArray[np.float32]:
    """The other way."""
    flat = np.frombuffer(base64.b64decode(message["data"]), "<f4").astype(np.float32)
    return flat.reshape(message["rows"], -1 if message["rows"] else 0)


# ---- errors ----------------------------------------------------------------------------------

_KINDS: dict[str, type[errors.KvantError]] = {
    kind.__name__: kind
    for kind in (
        errors.KvantError,
        errors.InputError,
        errors.FileFormatError,
        errors.UnsupportedError,
        errors.DataError,
        errors.NoTokenError,
        errors.UsageError,
        errors.CacheFullError,
        errors.NotEnoughMemoryError,
        errors.MissingExtraError,
        jobs.ModelNotFoundError,
        jobs.DeadlineError,
        EngineLostError,
    )
}


def error_to(error: BaseException) -> Message:
    """An error that is meant for users, or the news that there was another one."""
    if isinstance(error, errors.ContextError):
        return {
            "kind": "ContextError",
            "message": str(error),
            "needed": error.needed,
            "context": error.context,
        }
    if isinstance(error, jobs.BusyError):
        return {"kind": "BusyError", "message": str(error), "retry_after": error.retry_after}
    for kind in type(error).__mro__:
        if kind.__name__ in _KINDS:
            return {"kind": kind.__name__, "message": str(error)}
    return {
        "kind": "EngineLostError",
        "message": f"The model's process failed on this request ({type(error).__name__}).",
    }


def error_from(message: Message) -> errors.KvantError:
    """The other way."""
    text = str(message["message"])
    if message["kind"] == "ContextError":
        return errors.ContextError(int(message["needed"]), int(message["context"]), text)
    if message["kind"] == "BusyError":
        return jobs.BusyError(text, float(message["retry_after"]))
    return _KINDS.get(str(message["kind"]), EngineLostError)(text)
