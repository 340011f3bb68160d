"""Pulling and pushing: Debian's registry, and one on loopback that may be anything but honest."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_registry import PASSWORD, FakeRegistry, Handler, Start, digest, layer

import kvant
from kvant.errors import UsageError
from kvant.registry import (
    AbsentError,
    DeniedError,
    HostileError,
    RegistryError,
    Step,
    Store,
    UnreachableError,
)
from kvant.registry.auth import Credentials, find_credentials
from kvant.registry.http import Patience, is_loopback, origin_of
from kvant.registry.oci import Registry
from kvant.registry.pull import pull, push

MODEL = os.urandom(300_000)


def kept(store: Store) -> list[str]:
    """Blobs and partial blobs in the store."""
    return [p.name for place in ("blobs/sha256", "partial") for p in (store.root / place).glob("*")]


# ---- Debian's registry -------------------------------------------------------------------------


def test_there_and_back(
    docker_registry: Start, store: Store, other_store: Store, gguf: Path
) -> None:
    host = docker_registry()
    made = store.create("mine", f"FROM {gguf}\nSYSTEM hi\nPARAMETER seed 1")
    steps: list[Step] = []
    assert store.push("mine", f"oci://{host}/team/mine:1", steps.append) == (
        f"oci://{host}/team/mine:1"
    )
    assert steps[-1].status == "success"
    sent = [s for s in steps if s.status.startswith("pushing ") and 0 < s.done < s.total]
    assert sent  # told on the way
    got = other_store.pull(f"oci://{host}/team/mine:1")
    assert got.name == f"{host}/team/mine:1"
    assert got.digest == made.digest
    local = other_store.resolve(got.name)
    assert local.path.read_bytes() == gguf.read_bytes()
    assert (local.system, local.parameters) == ("hi", {"seed": 1})
    assert other_store.verify().problems == ()
    # A second time nothing is sent, and to another repository it is mounted.
    steps.clear()
    store.push("mine", f"oci://{host}/team/mine:2", steps.append)
    assert not [s for s in steps if 0 < s.done < s.total]
    steps.clear()
    other_store.push(got.name, f"oci://{host}/else/mine:1", steps.append)
    assert not [s for s in steps if 0 < s.done < s.total]
    assert store.pull(f"{host}/else/mine:1", name="back").digest == made.digest
    with pytest.raises(AbsentError, match="there is no such model"):
        store.pull(f"oci://{host}/team/mine:3")
    with pytest.raises(UsageError, match="names no registry to push to"):
        store.push("mine", "elsewhere")


def test_large_blobs_are_sent_by_parts(
    docker_registry: Start,
    store: Store,
    other_store: Store,
    gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = docker_registry()
    monkeypatch.setattr("kvant.registry.oci._CHUNK", 700_000)
    store.pull(str(gguf), name="mine")
    store.push("mine", f"oci://{host}/parts:1")
    assert other_store.pull(f"oci://{host}/parts:1").digest == store.entry("mine").digest
    assert other_store.verify().problems == ()


def test_a_folder_there_and_back(
    docker_registry: Start, store: Store, other_store: Store, folder: Path
) -> None:
    host = docker_registry()
    store.pull(str(folder), name="mine")
    store.push("mine", f"oci://{host}/folder:1")
    other_store.pull(f"oci://{host}/folder:1", name="mine")
    place = other_store.resolve("mine").path
    for path in place.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


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


def test_what_docker_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-mine"
    helper.write_text(
        '#!/bin/sh\nread host\necho "{\\"Username\\":\\"u\\",\\"Secret\\":\\"$host\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
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
    (tmp_path / "config.json").write_text(json.dumps(config))
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
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DeniedError, match=r"config\.json: not JSON.*Credentials"):
        find_credentials("two.example")


def test_what_a_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-mine"
    helper.write_text(
        '#!/bin/sh\nread host\necho "{\\"Username\\":\\"u\\",\\"Secret\\":\\"$host\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    login = "https://index.docker.io/v1/"  # what `docker login` writes

    def known(**config: Any) -> Credentials | None:
        (tmp_path / "config.json").write_text(json.dumps(config))
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


def test_a_proxy(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.add(MODEL)
    monkeypatch.setenv("http_proxy", f"http://{registry.host}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    found = Registry("registry.example.com", "x", scheme="http").manifest("latest")
    assert found.layers[0].digest == digest(MODEL)
    assert registry.seen[0][1] == "http://registry.example.com/v2/x/manifests/latest"


# ---- interrupted, resumed, at once ---------------------------------------------------------------


def test_an_interrupted_pull_goes_on(registry: FakeRegistry, store: Store) -> None:
    registry.add(MODEL)
    first = f"GET /v2/x/blobs/{digest(MODEL)}"

    class StopError(Exception):
        pass

    def stop(step: Step) -> None:
        if step.digest == digest(MODEL) and step.done > 100_000:
            raise StopError

    with pytest.raises(StopError):
        store.pull(f"oci://{registry.host}/x", progress=stop)
    assert store.list() == []
    (partial,) = (store.root / "partial").iterdir()
    size = partial.stat().st_size
    assert 100_000 < size < len(MODEL)
    registry.seen.clear()
    store.pull(f"oci://{registry.host}/x")
    ranges = [h.get("Range") for m, p, h in registry.seen if f"{m} {p}" == first]
    assert ranges == [f"bytes={size}-{len(MODEL) - 1}"]
    assert store.verify().problems == ()
    assert list((store.root / "partial").iterdir()) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks(
    registry: FakeRegistry, store: Store, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr("kvant.registry.fetch._FIRST_PAUSE", 0.01)
    registry.add(MODEL)
    times = 0

    def breaks(handler: Handler) -> Any:
        nonlocal times
        times += 1
        if not ranges:
            del handler.headers["Range"]
        if times > 3:
            return False
        start = int((handler.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        part = MODEL[start : start + 50_000]
        status = 206 if start else 200
        handler.answer(
            status,
            part,
            Content_Length=str(len(MODEL) - start),
            Content_Range=f"bytes {start}-{len(MODEL) - 1}/{len(MODEL)}",
        )
        handler.close_connection = True
        return True

    registry.rules.append((f"blobs/{digest(MODEL)}", breaks))
    store.pull(f"oci://{registry.host}/x")
    assert times == 4
    assert store.verify().problems == ()


def test_a_registry_that_drips_is_given_up(
    registry: FakeRegistry, store: Store, impatient: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvant.registry.fetch._FIRST_PAUSE", 0.001)
    registry.add(MODEL)
    times = 0

    def drips(handler: Handler) -> Any:
        nonlocal times
        times += 1
        if times > 20:
            return False  # it would go on for ever
        at = int((handler.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        handler.answer(
            206 if at else 200,
            MODEL[at : at + 1],
            Content_Length=str(len(MODEL) - at),
            Content_Range=f"bytes {at}-{len(MODEL) - 1}/{len(MODEL)}",
        )
        handler.close_connection = True
        return True

    registry.rules.append((f"blobs/{digest(MODEL)}", drips))
    with pytest.raises(UnreachableError, match="6 of 300000 bytes"):
        pull(store, f"oci://{registry.host}/x", patience=impatient)
    assert times == 6
    # What came stays for the next time.
    registry.rules.clear()
    store.pull(f"oci://{registry.host}/x")
    assert store.verify().problems == ()


def test_a_blob_is_downloaded_once(registry: FakeRegistry, store: Store) -> None:
    registry.add(MODEL)
    registry.rules.append((f"blobs/{digest(MODEL)}", lambda handler: time.sleep(0.4) or False))
    told: list[Step] = []
    threads = [
        threading.Thread(
            target=lambda: Store(store.root).pull(f"oci://{registry.host}/x", progress=told.append)
        )
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.asked(f"GET .*{digest(MODEL)}") == 1
    assert sum(step.status == "success" for step in told) == 5


def test_a_blob_is_downloaded_once_by_processes(
    registry: FakeRegistry, store: Store, tmp_path: Path
) -> None:
    registry.add(MODEL)
    registry.rules.append((f"blobs/{digest(MODEL)}", lambda handler: time.sleep(1.5) or False))
    code = f"from kvant.registry import Store; Store({str(store.root)!r}).pull('oci://{registry.host}/x')"
    path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
    running = [
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
        for _ in range(3)
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert registry.asked(f"GET .*{digest(MODEL)}") == 1
    assert store.verify().problems == ()


def test_what_is_there_is_not_fetched(
    registry: FakeRegistry, store: Store, gguf: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    data = gguf.read_bytes()
    registry.add(data)
    store.pull(str(gguf), name="a")
    store.pull(f"oci://{registry.host}/x")
    assert registry.asked(f"GET .*{digest(data)}") == 0
    # Nor what Ollama has.
    registry.add(MODEL, "other")
    blobs = tmp_path / "ollama" / "blobs"
    blobs.mkdir(parents=True)
    theirs = blobs / f"sha256-{digest(MODEL)[7:]}"
    theirs.write_bytes(MODEL)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    entry = store.pull(f"oci://{registry.host}/x:other")
    assert registry.asked(f"GET .*{digest(MODEL)}") == 0
    assert os.path.samefile(store.resolve(entry.name).path, theirs)
    # One that only says so is not taken.
    theirs.unlink()
    store.remove(entry.name)
    theirs.write_bytes(MODEL[:-1] + b"x")
    store.pull(f"oci://{registry.host}/x:other")
    assert registry.asked(f"GET .*{digest(MODEL)}") == 1
    assert store.verify().problems == ()


# ---- hostile -----------------------------------------------------------------------------------


def _gives(registry: FakeRegistry, raw: bytes, media: str) -> None:
    registry.manifests["latest"] = (media, raw)


MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "path out": ({"layers": [layer(MODEL, title="../../up.gguf")]}, "expected a plain name"),
    "absolute": ({"layers": [layer(MODEL, title="/etc/cron.d/x")]}, "expected a plain name"),
    "hidden": ({"layers": [layer(MODEL, title=".bashrc")]}, "expected a plain name"),
    "deep": ({"layers": [layer(MODEL, title="a/b/c.gguf")]}, "expected a plain name"),
    "nul": ({"layers": [layer(MODEL, title="a\0b")]}, "expected a plain name"),
    "no name": (
        {"layers": [layer(MODEL, "application/vnd.kvant.model.file.v1")]},
        "expected a plain name",
    ),
    "twice": (
        {"layers": [layer(MODEL, title="a.gguf"), layer(MODEL, title="A.gguf")]},
        "two files are called",
    ),
    "in a file": (
        {"layers": [layer(MODEL, title="a"), layer(MODEL, title="a/b")]},
        "lies in what is a file too",
    ),
    "digest": ({"layers": [layer(MODEL, digest="sha256:../../x")]}, "expected sha256: and 64"),
    "md5": ({"layers": [layer(MODEL, digest="md5:" + "0" * 32)]}, "expected sha256: and 64"),
    "capital": ({"layers": [layer(MODEL, digest="sha256:" + "A" * 64)]}, "expected sha256: and"),
    "negative": ({"layers": [layer(MODEL, size=-1)]}, "says its size is -1"),
    "huge": ({"layers": [layer(MODEL, size=1 << 60)]}, "says its size is"),
    "float": ({"layers": [layer(MODEL, size=1.5)]}, "says its size is 1.5"),
    "true": ({"layers": [layer(MODEL, size=True)]}, "says its size is True"),
    "many": ({"layers": [layer(MODEL)] * 5000}, "1 to 2000 layers, got 5000"),
    "none": ({"layers": []}, "1 to 2000 layers, got 0"),
    "no list": ({"layers": "x"}, "1 to 2000 layers"),
    "no dict": ({"layers": ["x"]}, "expected a descriptor"),
    "image": (
        {"layers": [layer(MODEL, "application/vnd.oci.image.layer.v1.tar+gzip")]},
        "expected a model, got layers of",
    ),
    "template bomb": (
        {
            "layers": [
                layer(MODEL),
                layer(MODEL, "application/vnd.ollama.image.template", size=1 << 30),
            ]
        },
        "a template of 1073741824 bytes",
    ),
    "many licences": (
        {
            "layers": [
                layer(MODEL),
                *[layer(MODEL, "application/vnd.ollama.image.license", size=4 << 20)] * 9,
            ]
        },
        "37748736 bytes of templates, licences",
    ),
    "config bomb": (
        {"config": layer(MODEL, "application/json", size=1 << 30), "layers": [layer(MODEL)]},
        "a config of 1073741824 bytes",
    ),
    "schema": ({"schemaVersion": 1, "layers": [layer(MODEL)]}, "schema version 2"),
    "type": ({"mediaType": "text/html", "layers": [layer(MODEL)]}, "schema version 2"),
    "media": ({"layers": [layer(MODEL, media=7)]}, "expected a text"),
    "notes": ({"layers": [{**layer(MODEL), "annotations": [1]}]}, "annotations that are no texts"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_hostile_manifests(registry: FakeRegistry, store: Store, case: str) -> None:
    change, message = MANIFESTS[case]
    registry.add(MODEL, **change)
    with pytest.raises(HostileError, match=message):
        store.pull(f"oci://{registry.host}/x")
    assert kept(store) == []
    assert store.list() == []
    assert registry.asked("GET /v2/x/blobs") == 0


def test_files_that_would_have_one_name(registry: FakeRegistry, store: Store) -> None:
    other = MODEL[::-1]
    registry.blobs[digest(other)] = other
    layers = [layer(MODEL, title="a/x.gguf"), layer(other, title="b/x.gguf")]
    registry.add(MODEL, layers=layers)
    with pytest.raises(HostileError, match=r"2 files would be called 'model/x\.gguf'"):
        store.pull(f"oci://{registry.host}/x")
    assert store.list() == []


RAW: dict[str, tuple[bytes, str, str]] = {
    "html": (b"<html>", "text/html", "expected a manifest, got 'text/html'"),
    "no json": (b"{", "application/vnd.oci.image.manifest.v1+json", "not JSON"),
    "list": (b"[]", "application/vnd.oci.image.manifest.v1+json", "expected a JSON object"),
    "long": (b" " * (5 << 20), "application/vnd.oci.image.manifest.v1+json", "sent more than"),
    "deep": (
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "application/vnd.oci.image.manifest.v1+json",
        "nested deeper",
    ),
    "index": (
        b'{"schemaVersion":2,"manifests":[]}',
        "application/vnd.oci.image.index.v1+json",
        "lists no manifest",
    ),
}


@pytest.mark.parametrize("case", RAW)
def test_what_is_no_manifest(registry: FakeRegistry, store: Store, case: str) -> None:
    raw, media, message = RAW[case]
    _gives(registry, raw, media)
    with pytest.raises(HostileError, match=message):
        store.pull(f"oci://{registry.host}/x")
    assert kept(store) == []


def test_wrong_digests(registry: FakeRegistry, store: Store) -> None:
    wanted = registry.add(MODEL)
    registry.blobs[digest(MODEL)] = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    with pytest.raises(HostileError, match="came with other content: its SHA-256 is"):
        store.pull(f"oci://{registry.host}/x")
    registry.blobs[digest(MODEL)] = MODEL + b"more"
    with pytest.raises(HostileError, match="should have 300000 bytes, and more came"):
        store.pull(f"oci://{registry.host}/x")
    assert digest(MODEL)[7:] not in os.listdir(store.root / "blobs" / "sha256")
    assert store.list() == []
    registry.blobs[digest(MODEL)] = MODEL
    registry.rules.append(
        (
            "manifests/",
            lambda h: h.answer(
                200,
                registry.manifests["latest"][1],
                Content_Type=registry.manifests["latest"][0],
                Docker_Content_Digest="sha256:" + "0" * 64,
            ),
        )
    )
    with pytest.raises(HostileError, match="the manifest should have the digest"):
        store.pull(f"oci://{registry.host}/x")
    registry.rules.clear()
    index = {
        "schemaVersion": 2,
        "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": wanted, "size": 1}
        ],
    }
    media = "application/vnd.oci.image.index.v1+json"
    _gives(registry, json.dumps(index).encode(), media)
    assert store.pull(f"oci://{registry.host}/x").digest == wanted
    registry.manifests[wanted] = (registry.manifests[wanted][0], b"{}")
    with pytest.raises(HostileError, match="the manifest should have the digest"):
        store.pull(f"oci://{registry.host}/x")


def test_nothing_is_unpacked(registry: FakeRegistry, store: Store) -> None:
    registry.add(MODEL)
    bomb = gzip.compress(bytes(50_000_000))
    registry.rules.append(("blobs/", lambda h: h.answer(200, bomb, Content_Encoding="gzip")))
    with pytest.raises(RegistryError):
        store.pull(f"oci://{registry.host}/x")
    assert store.list() == []
    assert all(
        (store.root / "partial" / n).stat().st_size < 1000
        for n in os.listdir(store.root / "partial")
    )


REDIRECTS = {
    "in circles": ("http://{host}/v2/x/manifests/latest", "redirects in circles"),
    "file": ("file:///etc/passwd", "no address of a registry"),
    "user": ("http://user:password@127.0.0.1/", "with a user's name in it"),
    "control": ("http://127.0.0.1/\x7f", "no address of a registry"),
}


@pytest.mark.parametrize("case", REDIRECTS)
def test_redirects(registry: FakeRegistry, store: Store, case: str) -> None:
    target, message = REDIRECTS[case]
    place = target.format(host=registry.host)
    registry.rules.append(("manifests/", lambda h: h.answer(302, Location=place)))
    with pytest.raises(HostileError, match=message):
        store.pull(f"oci://{registry.host}/x")
    assert len(registry.seen) <= 6


def _drip(handler: Handler) -> None:
    handler.answer(200, b"", Content_Length="300000")
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def _drip_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize(
    "how", [lambda h: time.sleep(4), _drip, _drip_headers], ids=["silent", "drips", "headers"]
)
@pytest.mark.parametrize("what", ["manifests/", f"blobs/{digest(MODEL)}"], ids=["manifest", "blob"])
def test_a_registry_that_stalls(
    registry: FakeRegistry,
    store: Store,
    impatient: Patience,
    monkeypatch: pytest.MonkeyPatch,
    how: Any,
    what: str,
) -> None:
    monkeypatch.setattr("kvant.registry.fetch._ATTEMPTS", 1)
    registry.add(MODEL)
    registry.rules.append((what, how))
    start = time.monotonic()
    with pytest.raises(UnreachableError, match="stalls"):
        pull(store, f"oci://{registry.host}/x", patience=impatient)
    assert time.monotonic() - start < 3.5
    assert store.list() == []


def test_a_registry_that_takes_nothing(
    registry: FakeRegistry, store: Store, impatient: Patience, gguf: Path
) -> None:
    store.pull(str(gguf), name="m")
    target = f"oci://{registry.host}/x"
    registry.rules.append(("POST", lambda h: h.answer(202, Location="/up?state=1")))

    def stalls(handler: Handler) -> None:
        time.sleep(4)

    registry.rules.append(("PUT /up", stalls))
    with pytest.raises(UnreachableError, match="stalls"):
        push(store, "m", target, patience=impatient)
    registry.rules[-1] = (
        "PUT /up",
        lambda h: (
            h.rfile.read(int(h.headers["Content-Length"])),
            h.answer(500, b'{"errors":[{"code":"X","message":"full\\u001b[31m"}]}'),
        ),
    )
    with pytest.raises(UnreachableError, match=r"HTTP 500: X, full\\x1b.*Try again later"):
        push(store, "m", target)
    registry.rules[0] = ("POST", lambda h: h.answer(202))
    with pytest.raises(HostileError, match="does not say where to send"):
        push(store, "m", target)
    registry.rules[0] = ("POST", lambda h: h.answer(403))
    with pytest.raises(DeniedError):
        push(store, "m", target)


def test_nobody_there(store: Store) -> None:
    with pytest.raises(UnreachableError, match="nobody answers at that port"):
        store.pull("oci://127.0.0.1:9/x")


def test_not_enough_room(registry: FakeRegistry, store: Store) -> None:
    registry.add(MODEL, layers=[layer(MODEL, size=1 << 45)])
    with pytest.raises(Exception, match="MB are to come, its disk has"):
        store.pull(f"oci://{registry.host}/x")
    assert store.list() == []


# ---- Ollama's form -----------------------------------------------------------------------------


def _ollama(registry: FakeRegistry, gguf: Path, template: str = "{{ .Prompt }}") -> None:
    parts = {
        "model": gguf.read_bytes(),
        "template": template.encode(),
        "system": b"Be kind.",
        "params": b'{"stop":["<|end|>","<|user|>"],"temperature":0.5,"num_keep":4,"odd":1}',
        "license": b"MIT License\nCopyright",
        "messages": b'[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]',
        "projector": b"something",
    }
    for data in parts.values():
        registry.blobs[digest(data)] = data
    registry.add(
        parts["model"],
        "1b",
        media="application/vnd.docker.distribution.manifest.v2+json",
        said={
            "model_format": "gguf",
            "model_family": "llama",
            "model_type": "1.2B",
            "file_type": "Q8_0",
        },
        layers=[layer(v, f"application/vnd.ollama.image.{k}") for k, v in parts.items()],
    )


def test_models_of_ollamas_registry(
    registry: FakeRegistry,
    store: Store,
    gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    _ollama(registry, gguf)
    monkeypatch.setenv("KVANT_REGISTRY", f"http://{registry.host}")
    entry = store.pull("tiny:1b")
    assert registry.asked("GET /v2/tiny/manifests/1b")
    assert (entry.name, entry.family, entry.parameters) == ("tiny:1b", "llama", 1_200_000_000)
    assert (entry.quantization, entry.license) == ("Q8_0", "mit")
    local = store.resolve("tiny:1b")
    assert local.path.suffix == ".gguf"
    assert local.system == "Be kind."
    assert local.parameters == {"stop": ["<|end|>", "<|user|>"], "temperature": 0.5, "num_keep": 4}
    assert [m.content for m in local.messages] == ["hi", "ho"]
    assert any("'odd'" in note for note in local.notes)
    assert any("projector" in note for note in local.notes)
    from kvant.tokenizer.chat import render

    assert local.template is not None
    assert render(local.template, [{"role": "user", "content": "hello"}]) == "hello"
    # Made anew it has kvant's form.
    made = store.create("own", "FROM tiny:1b")
    assert store.resolve("own").parameters == local.parameters
    assert store.manifest("own").media_type == "application/vnd.oci.image.manifest.v1+json"
    assert made.license == "mit"
    with pytest.raises(AbsentError, match="has no model 'none:latest'"):
        store.pull("none")
    # Offline it is found where Ollama put it.
    theirs = tmp_path / "ollama"
    place = theirs / "manifests" / registry.host / "tiny" / "1b"
    place.parent.mkdir(parents=True)
    place.write_bytes(registry.manifests["1b"][1])
    (theirs / "blobs").mkdir()
    for name, data in registry.blobs.items():
        (theirs / "blobs" / name.replace(":", "-")).write_bytes(data)
    monkeypatch.setenv("OLLAMA_MODELS", str(theirs))
    registry.seen.clear()
    other = Store(tmp_path / "offline")
    assert other.pull("tiny:1b", offline=True).digest == entry.digest
    assert registry.seen == []
    with pytest.raises(UnreachableError, match="nothing may be fetched"):
        other.pull("tiny:2b", offline=True)


def test_a_template_that_cannot_be_translated(
    registry: FakeRegistry, store: Store, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ollama(registry, gguf, "{{ if .Special }}x{{ end }}{{ .Prompt }}")
    monkeypatch.setenv("KVANT_REGISTRY", f"http://{registry.host}")
    store.pull("tiny:1b")
    local = store.resolve("tiny:1b")
    assert local.template is None
    assert any("The model's template is in Go's" in note for note in local.notes)


def test_adapters_of_ollama_are_refused(registry: FakeRegistry, store: Store) -> None:
    extra = layer(b"x", "application/vnd.ollama.image.adapter")
    registry.add(MODEL, layers=[layer(MODEL), extra])
    with pytest.raises(UsageError, match="an adapter in a GGUF file"):
        store.pull(f"oci://{registry.host}/x")
    assert kept(store) == []
