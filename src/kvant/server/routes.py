"""All APIs' routes over one backend."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from kvant.server.backend import ServingBackend
from kvant.server.failures import HttpError, error_response
from kvant.server.jobs import Job
from kvant.server.library import Library, Store

__all__ = ["api_routes"]


def api_routes(backend: ServingBackend, library: Library, store: Store | None) -> list[BaseRoute]:
    """The routes."""
    import json

    async def completions(request: Request) -> Response:
        try:
            try:
                body = await request.json()
                body["model"] + ""
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise HttpError(400, str(error)) from None
            job = Job(
                model=body["model"],
                prompt=body["prompt"],
                max_tokens=body.get("max_tokens"),
                ignore_end=bool(body.get("ignore_eos")),
                sampling={"temperature": body["temperature"]} if "temperature" in body else {},
            )
            answer = await backend.answer(job)
        except Exception as error:
            return error_response("openai", error)
        if body.get("stream"):

            async def events() -> AsyncIterator[str]:
                async for d in answer:
                    yield "data: " + json.dumps({"choices": [{"text": d.text}]}) + "\n\n"
                yield "data: [DONE]\n\n"

            return StreamingResponse(events(), media_type="text/event-stream")
        text = "".join([d.text async for d in answer])
        return JSONResponse({"choices": [{"text": text}]})

    return [Route("/v1/completions", completions, methods=["POST"])]
