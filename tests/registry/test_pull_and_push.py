"""Pulling and pushing: Debian's registry, and one on loopback that may be anything but honest."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_registry import MODEL, FakeRegistry, Handler, Start, digest, layer

import kvant
from kvant.errors import UsageError
from kvant.registry import (
    AbsentError,
    DeniedError,
    HostileError,
    Step,
    Store,
    UnreachableError,
)
from kvant.registry.http import Patience
from kvant.registry.oci import Registry
from kvant.registry.pull import pull, push

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


@pytest.mark.parametrize("whole", [False, True], ids=["broken off", "whole answers"])
def test_a_registry_that_drips_is_given_up(
    registry: FakeRegistry,
    store: Store,
    impatient: Patience,
    monkeypatch: pytest.MonkeyPatch,
    whole: bool,
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
            Content_Length="1" if whole else str(len(MODEL) - at),
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
