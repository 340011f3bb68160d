"""What a key that is bounded to some models may do with models: use, list, fetch, make, remove."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from served import serving
from starlette.requests import Request

from kvant.api.models import store
from kvant.registry import Store
from kvant.server import scope as scopes
from kvant.server.backend import ServingBackend
from kvant.server.catalogue import NewModel, Progress
from kvant.server.failures import HttpError
from kvant.server.jobs import LoadedModel, ModelNotFoundError
from kvant.server.keys import KeyFile
from kvant.server.library import Library
from kvant.server.models import Models
from kvant.server.ollama_models import processes
from kvant.server.ollama_requests import seconds_of
from kvant.server.scope import Principal, Scope

BOUNDED = Principal("ann", "operator", ("Mine*",))


def _nothing(progress: Progress) -> None:
    pass


def _new(base: str) -> NewModel:
    return NewModel(base, {}, {}, None, "Be brief.", {}, (), (), None)


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    found = store(tmp_path / "models")
    found.pull("demo")
    for name in ("mine-one", "theirs", "mine-two"):
        found.copy("demo", name)
    return found


@pytest.fixture
def models(kept: Store) -> Iterator[Models]:
    """As somebody sees them who may use ``mine*`` only."""
    token = scopes.current.set(Scope("r", BOUNDED, 0.0))
    yield Models(Library((), kept), kept)
    scopes.current.reset(token)


def test_others_models_are_not_there_to_change(models: Models, kept: Store) -> None:
    before = {e.name: e.digest for e in kept.list()}
    with pytest.raises(ModelNotFoundError):
        models.remove("theirs")
    with pytest.raises(ModelNotFoundError):
        models.copy("theirs", "mine-three")
    with pytest.raises(ModelNotFoundError):
        models.create("mine-three", _new("theirs"), _nothing)
    with pytest.raises(ModelNotFoundError):
        models.create("mine-three", _new("demo"), _nothing)
    with pytest.raises(ModelNotFoundError):
        models.push("theirs", _nothing, insecure=False)
    assert {e.name: e.digest for e in kept.list()} == before


def test_others_names_are_not_theirs_to_give(models: Models, kept: Store) -> None:
    before = {e.name: e.digest for e in kept.list()}
    for name in ("theirs", "new", "hf.co/org/mine-x", "localhost:1/mine"):
        with pytest.raises(HttpError, match="for some models only"):
            models.copy("mine-one", name)
        with pytest.raises(HttpError, match="for some models only"):
            models.create(name, _new("mine-one"), _nothing)
        with pytest.raises(HttpError, match="for some models only"):
            models.pull(name, _nothing, insecure=False)
    assert {e.name: e.digest for e in kept.list()} == before


def test_their_own_are_theirs(models: Models, kept: Store) -> None:
    models.copy("MINE-one", "mine-three")  # capitals do not make another name
    models.create("mine-four", _new("mine-three"), _nothing)
    models.remove("mine-one")
    names = {e.name for e in models.list()}
    assert names == {"mine-two:latest", "mine-three:latest", "mine-four:latest"}
    assert "theirs:latest" in {e.name for e in kept.list()}


def test_what_is_like_a_name_is_not_told(models: Models, kept: Store) -> None:
    kept.copy("demo", "secret/mine-x")
    with pytest.raises(ModelNotFoundError) as caught:
        models.remove("mine-x")
    assert "secret" not in str(caught.value)


class _Loaded:
    """A backend with two models in memory."""

    def loaded(self) -> list[LoadedModel]:
        names = ("mine-one:latest", "theirs:latest")
        return [LoadedModel(n, "", 1, 1, 1, 0, 0, None) for n in names]


def test_what_is_loaded_for_others_is_not_shown(models: Models) -> None:
    async def ask() -> dict[str, Any]:
        request = Request({"type": "http"})
        response = await processes(cast(ServingBackend, _Loaded()), models, request)
        found: dict[str, Any] = json.loads(bytes(response.body))
        return found

    assert [m["name"] for m in asyncio.run(ask())["models"]] == ["mine-one:latest"]


def test_over_http(tmp_path: Path) -> None:
    """Work that reports its progress runs in a thread: it is for the same somebody there."""
    kept = store(tmp_path / "models")
    kept.pull("demo")
    kept.copy("demo", "mine")
    _, secret = KeyFile(tmp_path).create("ann", "operator", models=["mine*"])
    _, whole = KeyFile(tmp_path).create("bob", "operator")
    with serving(tmp_path, "--api-key-required", "--model", "demo") as server:
        ann = {"authorization": f"Bearer {secret}"}

        def post(path: str, **body: Any) -> int:
            return server.http.post(path, json={**body, "stream": False}, headers=ann).status_code

        assert post("/api/create", model="mine-2", **{"from": "demo"}) == 404
        assert post("/api/create", model="other", **{"from": "mine"}) == 403
        assert post("/api/pull", model="demo") == 403
        assert post("/api/push", model="demo") == 404
        assert post("/api/copy", source="demo", destination="mine-2") == 404
        assert server.http.request(
            "DELETE", "/api/delete", json={"model": "demo"}, headers=ann
        ).is_error
        assert post("/api/create", model="mine-2", **{"from": "mine"}) == 200
        assert server.http.get("/api/ps", headers=ann).json()["models"] == []
        status = server.http.get("/status", headers=ann).json()
        assert (status["models"], status["tokens"]) == ([], 0)
        bob = {"authorization": f"Bearer {whole}"}
        assert len(server.http.get("/status", headers=bob).json()["models"]) == 1
        # A method may be any word; figures are not to grow by them.
        for word in ("PROPFIND", "M-SEARCH", "LOCK"):
            server.http.request(word, "/health")
        metrics = server.http.get("/metrics", headers=bob).text
        assert 'method="other"' in metrics
        assert "PROPFIND" not in metrics


def test_durations_that_no_calendar_has() -> None:
    assert seconds_of("5m") == 300
    assert seconds_of("-1m") == -1
    for endless in (1e999, 1e15, "999999999999999", "99999999999999h", -3, "-7"):
        assert seconds_of(endless) == -1
