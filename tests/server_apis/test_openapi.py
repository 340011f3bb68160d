"""The OpenAPI document: complete, valid, and what schemathesis makes of it."""

from __future__ import annotations

import importlib.util
import json
from contextlib import suppress
from pathlib import Path

import pytest
from starlette.routing import Route

from kvant.server import anthropic, ollama, openai
from kvant.server.openapi import OPERATIONS, document

schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402

EXAMPLES = 4


def test_every_route_is_in_it(scripted):
    found = scripted.http.get("/openapi.json").json()
    served = {
        (method, route.path.replace(":path}", "}"))
        for module in (openai, ollama, anthropic)
        for route in module.routes(scripted.backend, scripted.shelf)
        if isinstance(route, Route)
        for method in route.methods
        if not (method == "HEAD" and "GET" in route.methods)
    }
    described = {(m.upper(), path) for path, ms in found["paths"].items() for m in ms}
    assert described == served == {(o.method, o.path) for o in OPERATIONS}
    assert found == json.loads(json.dumps(document(OPERATIONS)))


def test_it_is_valid():
    from jsonschema import Draft202012Validator

    made = document(OPERATIONS)
    schemas = made["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    asked = {"$ref": "#/$defs/openai_ChatRequest", "$defs": schemas}
    text = json.dumps(asked).replace("#/components/schemas/", "#/$defs/")
    validator = Draft202012Validator(json.loads(text))
    good = {"model": "x", "messages": [{"role": "user", "content": "x"}], "temperature": 1}
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "temperature": 3})
    assert not validator.is_valid({**good, "messages": [{"role": "king"}]})
    assert not validator.is_valid({"model": "x"})


def fuzz(url: str, mode: GenerationMode, most: int, only: str | None = None) -> set[int]:
    """Statuses of requests that schemathesis makes; none of them is 5xx."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if only is not None and only not in operation.path:
            continue

        @settings(
            max_examples=most,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case) -> None:
            response = case.call(timeout=60)
            statuses.add(response.status_code)
            case.validate_response(response, checks=[not_a_server_error])

        with suppress(Unsatisfiable):  # what takes nothing cannot be asked wrongly
            run()
    return statuses


def test_schemathesis_finds_no_5xx(scripted):
    assert fuzz(scripted.url, GenerationMode.POSITIVE, EXAMPLES) >= {200, 400, 404}


def test_wrong_requests_are_refused(scripted):
    assert fuzz(scripted.url, GenerationMode.NEGATIVE, EXAMPLES) >= {400}


@pytest.mark.parametrize("only", ["/v1/chat", "/api/generate", "/v1/embeddings", "/api/show"])
def test_the_real_model_finds_no_5xx_either(demo, only):
    """Names are made to be the model's now and then, so that requests go all the way."""
    schema = schemathesis.openapi.from_url(f"{demo.url}/openapi.json")
    [operation] = [o.ok() for o in schema.get_all_operations() if o.ok().path.startswith(only)]

    @settings(
        max_examples=10,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(
        case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE), most=st.integers(1, 8)
    )
    def run(case, most) -> None:
        if isinstance(case.body, dict):
            case.body["model"] = "demo"
            for key in ("max_tokens", "max_completion_tokens"):
                if key in case.body:
                    case.body[key] = most
            case.body["options"] = {"num_predict": most}
            case.body.pop("n", None)
        response = case.call(timeout=60)
        case.validate_response(response, checks=[not_a_server_error])

    run()


def test_the_page_is_what_the_classes_say():
    place = Path(__file__).resolve().parents[2] / "scripts" / "api_page.py"
    spec = importlib.util.spec_from_file_location("api_page", place)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.PAGE.read_text() == page.text(), "run scripts/api_page.py"
