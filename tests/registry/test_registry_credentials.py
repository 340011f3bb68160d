"""Who is told a password, and which one: tokens, docker's files and helpers, this machine."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fake_registry import MODEL, PASSWORD, FakeRegistry, Handler, Start, digest

from kvant.registry import (
    DeniedError,
    HostileError,
    Store,
    UnreachableError,
)
from kvant.registry.auth import Credentials, find_credentials
from kvant.registry.http import is_loopback, origin_of
from kvant.registry.oci import Registry


def test_a_registry_with_a_password(
    docker_registry: Start,
    store: Store,
    gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = docker_registry(password=True)
    store.pull(str(gguf), name="mine")
    target = f"oci://{host}/mine:1"
    with pytest.raises(DeniedError, match="wants a password or token, and none is known"):
        store.push("mine", target)
    monkeypatch.setenv("KVANT_REGISTRY_AUTH", f"other.host=a:b {host}=somebody:wrong")
    with pytest.raises(DeniedError, match="does not accept"):
        store.push("mine", target)
    monkeypatch.setenv("KVANT_REGISTRY_AUTH", f"{host}=somebody:{PASSWORD}")
    store.push("mine", target)
    monkeypatch.delenv("KVANT_REGISTRY_AUTH")
    secret = base64.b64encode(f"somebody:{PASSWORD}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": secret}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert store.pull(target, name="back").digest == store.entry("mine").digest


# ---- credentials -------------------------------------------------------------------------------


def _wants_token(registry: FakeRegistry, realm: str) -> None:
    def ask(handler: Handler) -> Any:
        if handler.headers.get("Authorization") == "Bearer good-token":
            return False
        scope = 'scope="repository:x:pull"'
        handler.answer(401, WWW_Authenticate=f'Bearer realm="{realm}/token",service="here",{scope}')
        return True

    registry.rules.append((r" /v2/", ask))


def test_tokens_and_who_sees_the_password(
    registry: FakeRegistry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add(MODEL)
    secret = base64.b64encode(b"me:mine").decode()
    given: list[tuple[str, str | None]] = []
    with FakeRegistry() as elsewhere:

        def token(handler: Handler) -> None:
            given.append((handler.path, handler.headers.get("Authorization")))
            handler.answer(200, b'{"token": "good-token"}')

        def away(handler: Handler) -> None:
            handler.answer(307, Location=f"http://{elsewhere.host}{handler.path}")

        elsewhere.blobs = registry.blobs
        registry.rules += [(r"GET /token", token)]
        _wants_token(registry, f"http://{registry.host}")
        registry.rules += [(r"GET /v2/x/blobs/", away)]
        monkeypatch.setenv("KVANT_REGISTRY_AUTH", f"{registry.host}=me:mine")
        store.pull(f"oci://{registry.host}/x")
        assert given[0][1] == f"Basic {secret}"
        assert "scope=repository%3Ax%3Apull" in given[0][0]
        # The storage it redirects to sees neither password nor token.
        assert elsewhere.asked("GET /v2/x/blobs/")
        assert not any("Authorization" in headers for _, _, headers in elsewhere.seen)
    assert store.verify().problems == ()


def test_a_realm_without_encryption_elsewhere(
    registry: FakeRegistry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add(MODEL)
    _wants_token(registry, "http://token.example.com")
    monkeypatch.setenv("KVANT_REGISTRY_AUTH", f"{registry.host}=me:mine")
    with pytest.raises(HostileError, match="sends for a token to"):
        store.pull(f"oci://{registry.host}/x")


def test_passwords_are_not_shown_in_errors(
    registry: FakeRegistry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add(MODEL)
    registry.rules.append((" /v2/", lambda h: h.answer(401, WWW_Authenticate="Basic realm=x")))
    monkeypatch.setenv("KVANT_REGISTRY_AUTH", f"{registry.host}=me:top-secret")
    with pytest.raises(DeniedError) as caught:
        store.pull(f"oci://{registry.host}/x")
    assert "top-secret" not in str(caught.value)
    assert registry.asked("GET") == 2


def test_no_password_without_encryption(registry: FakeRegistry) -> None:
    known = Credentials("me", "mine")
    asked = Registry("192.0.2.1", "x", scheme="http", credentials=known)
    with pytest.raises(DeniedError, match="so no password is sent there"):
        asked._authenticate('Basic realm="x"', "pull", "")
    with pytest.raises(UnreachableError, match="no encrypted connection"):
        Registry(registry.host, "x", scheme="https").manifest("latest")


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's folder of settings, beside a helper whose secrets are the hosts it is asked for."""
    helper = tmp_path / "docker-credential-mine"
    helper.write_text(
        '#!/bin/sh\nread host\necho "{\\"Username\\":\\"u\\",\\"Secret\\":\\"$host\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


def test_what_docker_knows(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = base64.b64encode(b"me:a:b").decode()
    config = {
        "auths": {
            "https://one.example/v1/": {"auth": pair},
            "two.example": {"identitytoken": "refresh"},
            "three.example": {"auth": "no base64"},
            "https://index.docker.io/v1/": {"username": "d", "password": "h"},
        },
        "credHelpers": {"four.example": "mine", "five.example": "../../bin/sh"},
    }
    (docker / "config.json").write_text(json.dumps(config))
    assert find_credentials("one.example") == Credentials("me", "a:b")
    assert find_credentials("two.example") == Credentials(identity="refresh")
    assert find_credentials("three.example") is None
    assert find_credentials("docker.io") == Credentials("d", "h")
    assert find_credentials("four.example") == Credentials("u", "four.example")
    assert find_credentials("five.example") is None
    assert find_credentials("six.example") is None
    monkeypatch.setenv("KVANT_REGISTRY_AUTH", "one.example=token-of-mine")
    assert find_credentials("ONE.example") == Credentials(bearer="token-of-mine")
    assert "a:b" not in repr(Credentials("me", "a:b"))
    (docker / "config.json").write_text("{")
    with pytest.raises(DeniedError, match=r"config\.json: not JSON.*Credentials"):
        find_credentials("two.example")


def test_what_a_helper_is_asked(docker: Path) -> None:
    login = "https://index.docker.io/v1/"  # what `docker login` writes

    def known(**config: Any) -> Credentials | None:
        (docker / "config.json").write_text(json.dumps(config))
        return find_credentials("docker.io")

    assert known(credsStore="mine", auths={login: {}}) == Credentials("u", login)
    assert known(credsStore="mine") == Credentials("u", login)
    assert known(credHelpers={login: "mine"}) == Credentials("u", login)
    assert known(credHelpers={"docker.io": "mine"}) == Credentials("u", "docker.io")
    assert known(credsStore="mine", auths={}) is None


@pytest.mark.parametrize(
    ("host", "here"),
    [
        *[(host, True) for host in ("localhost", "LOCALHOST:5000", "127.0.0.1", "127.0.0.1:5000")],
        *[(host, True) for host in ("::1", "[::1]", "[::1]:5000")],
        *[(host, False) for host in ("example.com:5000", "[::2]:5000", "::2", "127.x.com", "[::1")],
    ],
)
def test_this_machine(host: str, here: bool) -> None:
    assert is_loopback(host) is here


def test_an_address_of_numbers() -> None:
    assert Registry("[::1]:5000", "x")._base == "http://[::1]:5000/v2/x/"
    assert origin_of("http://[::1]:5000/token") == "http://[::1]:5000"
    with pytest.raises(UnreachableError):  # asked, and not refused for its realm
        Registry("[::1]:9", "x")._token({"realm": "http://[::1]:9/token"}, "pull", "")


@pytest.mark.parametrize("part", [400_000, 1 << 30], ids=["by parts", "at once"])
def test_a_token_that_runs_out_during_an_upload(
    registry: FakeRegistry, store: Store, gguf: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr("kvant.registry.oci._CHUNK", part)
    tokens: list[str] = []
    got: dict[str, bytes] = {}
    place = f"http://{registry.host}/up/1?a=b"

    def token(handler: Handler) -> None:
        tokens.append(f"token-{len(tokens)}")
        handler.answer(200, json.dumps({"token": tokens[-1]}).encode())

    def takes(handler: Handler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        used = handler.headers.get("Authorization")
        # Each token is good until the second part that is sent with it.
        sent = registry.asked("(PATCH|PUT) /up")
        if used != f"Bearer {tokens[-1] if tokens else ''}" or (body and sent in (1, 3)):
            challenge = f'Bearer realm="http://{registry.host}/token",service="here"'
            handler.answer(401, WWW_Authenticate=challenge)
            return
        if handler.command == "HEAD":
            handler.answer(404)
        elif handler.command == "POST":
            got["up"] = b""
            handler.answer(202, Location=place)
        else:
            got["up"] += body
            if "digest=" in handler.path:
                got[handler.path.partition("digest=")[2]] = got["up"]
            handler.answer(202 if handler.command == "PATCH" else 201, Location=place)

    registry.rules += [("GET /token", token), (r" /(v2|up)/", takes)]
    store.pull(str(gguf), name="m")
    store.push("m", f"oci://{registry.host}/x")
    assert len(tokens) > 2
    assert got[digest(gguf.read_bytes()).replace(":", "%3A")] == gguf.read_bytes()
