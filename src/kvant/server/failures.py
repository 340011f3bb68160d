"""What went wrong, as each API says it: one table from errors to statuses, three shapes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from starlette.responses import JSONResponse

from kvant.errors import (
    ContextError,
    KvantError,
    MissingExtraError,
    NotEnoughMemoryError,
    NoTokenError,
    UnsupportedError,
    UsageError,
)
from kvant.registry import AbsentError, DeniedError, NotInStoreError, RegistryError
from kvant.server.fields import FieldError
from kvant.server.jobs import BusyError, DeadlineError, EngineLostError, ModelNotFoundError

__all__ = ["Api", "HttpError", "api_of", "error_body", "error_response", "http_error_of"]

Api: TypeAlias = Literal["openai", "ollama", "anthropic"]

_LOG = logging.getLogger("kvant.server")

#: Status to OpenAI's ``type`` and Anthropic's, from their documentation of errors.
_TYPES: Mapping[int, tuple[str, str]] = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("invalid_request_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    409: ("conflict_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    501: ("server_error", "api_error"),
    502: ("server_error", "api_error"),
    503: ("server_error", "overloaded_error"),
    504: ("timeout_error", "timeout_error"),
}


@dataclass(eq=False)
class HttpError(Exception):
    """An error with everything the shapes need. May be raised by routes themselves.

    Attributes:
        status: HTTP status.
        message: for the user.
        code: OpenAI's ``code``.
        param: the field that is wrong.
        retry_after: seconds, for the header of that name.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None


def http_error_of(error: Exception) -> HttpError:
    """The status and words for an error; of one that is a bug, no detail leaves the machine."""
    match error:
        case HttpError():
            return error
        case FieldError():
            return HttpError(400, str(error), "invalid_value", error.path or None)
        case ModelNotFoundError():
            return HttpError(404, str(error), "model_not_found", "model")
        case NotInStoreError() | AbsentError():
            return HttpError(404, str(error), "model_not_found", "model")
        case DeniedError():
            return HttpError(403, str(error), "registry_denied")
        case RegistryError():
            return HttpError(502, str(error), "registry_failed")
        case BusyError():
            return HttpError(429, str(error), "rate_limit_exceeded", None, error.retry_after)
        case DeadlineError():
            return HttpError(504, str(error), "timeout")
        case EngineLostError():
            return HttpError(503, str(error), "engine_lost", None, 1.0)
        case ContextError():
            return HttpError(400, str(error), "context_length_exceeded", "messages")
        case NotEnoughMemoryError():
            return HttpError(503, str(error), "not_enough_memory")
        case MissingExtraError():
            return HttpError(501, str(error), "missing_extra")
        case UsageError() | UnsupportedError() | NoTokenError():
            return HttpError(400, str(error), "invalid_value")
        case KvantError():
            status = getattr(error, "status", 500)
            return HttpError(status, str(error), "server_error" if status >= 500 else None)
        case _:
            _LOG.error("a request failed", exc_info=error)
            return HttpError(
                500, "An internal error; the server's log says more.", "internal_error"
            )


def api_of(path: str) -> Api:
    """Whose errors a path speaks."""
    if path == "/" or path.startswith("/api/"):
        return "ollama"
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def error_body(api: Api, failure: HttpError) -> dict[str, Any]:
    """The API's own JSON for an error."""
    ours, theirs = _TYPES.get(failure.status, _TYPES[400 if failure.status < 500 else 500])
    if api == "ollama":
        return {"error": failure.message}
    if api == "anthropic":
        return {"type": "error", "error": {"type": theirs, "message": failure.message}}
    return {
        "error": {
            "message": failure.message,
            "type": ours,
            "param": failure.param,
            "code": failure.code,
        }
    }


def error_response(api: Api, error: Exception) -> JSONResponse:
    """The whole response for an error, with Retry-After where it is known."""
    failure = http_error_of(error)
    headers = {}
    if failure.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(failure.retry_after)))
    return JSONResponse(error_body(api, failure), failure.status, headers)
