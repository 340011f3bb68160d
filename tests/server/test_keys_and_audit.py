"""Keys, rates and the audit log: alone, from the command line, and in a running server."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import serving

from kvant.cli.main import main
from kvant.errors import FileFormatError, InputError, UsageError
from kvant.server.audit import AuditLog, read_lines, verify
from kvant.server.keys import KeyFile
from kvant.server.limits import Rates

ASK = {"model": "demo", "prompt": "Once", "max_tokens": 2}


Kvant = Callable[..., tuple[int, str]]


@pytest.fixture
def kvant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Kvant:
    """The command line, with keys and log in ``tmp_path``."""
    monkeypatch.setenv("KVANT_HOME", str(tmp_path))

    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        return main(list(words)), capsys.readouterr().out

    return call


# ---- keys ----------------------------------------------------------------------------------------


def test_keys_are_hashed_and_checked(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path)
    key, secret = keys.create("ann", "user", models=["llama*"])
    raw = keys.path.read_text()
    assert secret.rpartition("-")[2] not in raw
    assert secret not in raw
    assert keys.path.stat().st_mode & 0o077 == 0
    found = KeyFile(tmp_path).check(secret)
    assert found is not None
    assert (found.name, found.role) == (f"ann/{key.id}", "user")
    assert found.may_use("llama-3:latest")
    assert not found.may_use("qwen")
    for wrong in (
        "",
        "kvant",
        secret[:-1],
        secret + "x",
        f"kvant-{key.id}-",
        "kvant--x",
        "x" * 9999,
    ):
        assert keys.check(wrong) is None
    other = KeyFile(tmp_path)
    other.revoke(key.id)
    assert keys.check(secret) is None  # another process's change is seen
    _, gone = keys.create("bob", "admin", expires=time.time() - 1)
    assert keys.check(gone) is None
    with pytest.raises(UsageError, match="no key with the id 'nope'"):
        keys.revoke("nope")
    with pytest.raises(UsageError, match="role"):
        keys.create("x", "king")


def test_a_damaged_file_lets_nobody_in(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path)
    _, secret = keys.create("ann", "admin")
    for text in ("", "{", "[]", '{"keys": [{"id": 1}]}', '{"keys": 3}', "[" * 100_000):
        keys.path.write_text(text)
        with pytest.raises(FileFormatError, match="no file of keys"):
            keys.check(secret)


def test_keys_made_at_once_are_all_kept(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda: KeyFile(tmp_path).create("a", "user")) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({k.id for k in KeyFile(tmp_path).all()}) == 12


# ---- rates ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 20), max_size=200), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_no_more_than_the_rate(pauses: list[float], per_minute: int) -> None:
    now = 0.0
    rates = Rates(lambda: now)
    passed = []
    for i, pause in enumerate(pauses):
        now += pause
        wait = rates.wait("a", per_minute)
        assert rates.wait(f"b{i}", per_minute) == 0  # others are not held up
        if wait == 0:
            passed.append(now)
        else:
            assert 0 < wait <= 60 / per_minute + 1e-6
    for i, begin in enumerate(passed):
        window = [t for t in passed[i:] if t < begin + 60]
        assert len(window) <= 2 * per_minute


# ---- the audit log -------------------------------------------------------------------------------


def _log(folder: Path, count: int) -> Path:
    log = AuditLog(folder)
    for i in range(count):
        log.add("answer", user="ann", model="demo", prompt_tokens=i)
    log.close()
    return log.path


def test_a_log_that_nobody_wrote_yet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no log yet"):
        verify(tmp_path / "audit.jsonl")


def test_the_chain_holds_and_goes_on(tmp_path: Path) -> None:
    path = _log(tmp_path, 5)
    count, last, broken = verify(path)
    assert (count, broken) == (5, [])
    _log(tmp_path, 3)
    count, newer, broken = verify(path)
    assert (count, broken) == (8, [])
    assert newer != last
    assert [line["n"] for line in read_lines(path)] == list(range(1, 9))
    assert path.stat().st_mode & 0o077 == 0


def test_every_change_is_found(tmp_path: Path) -> None:
    path = _log(tmp_path, 6)
    lines = path.read_bytes().splitlines(keepends=True)
    changes = {
        "changed": [*lines[:2], lines[2].replace(b'"ann"', b'"eve"'), *lines[3:]],
        "taken out": [*lines[:2], *lines[3:]],
        "first taken out": lines[1:],
        "swapped": [lines[1], lines[0], *lines[2:]],
        "doubled": [*lines[:3], *lines[2:]],
        "no JSON": [*lines[:3], b"x\n", *lines[4:]],
    }
    for what, changed in changes.items():
        path.write_bytes(b"".join(changed))
        assert verify(path)[2], what


def test_half_a_line_after_a_crash(tmp_path: Path) -> None:
    path = _log(tmp_path, 3)
    with path.open("ab") as file:
        file.write(b'{"n":4,"event":"ans')
    assert verify(path)[2] == []
    _log(tmp_path, 2)
    count, _, broken = verify(path)
    assert (count, broken) == (5, [])


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_lines_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """A disk that is full, also in the midst of a line: the next one follows what is there."""
    write, full = os.write, threading.Event()

    def half(fd: int, data: bytes) -> int:
        if full.is_set() and b'"number"' in data:
            full.clear()
            write(fd, data[: int(len(data) * share)])
            raise OSError(errno.ENOSPC, "no space left")
        return write(fd, data)

    log = AuditLog(tmp_path)
    monkeypatch.setattr(os, "write", half)
    for i in range(6):
        if i == 2:
            full.set()
        log.add("answer", number=i)
        while not log._lines.empty():
            time.sleep(0.001)
        time.sleep(0.02)
    log.close()
    count, _, broken = verify(log.path)
    assert (count, broken) == (5, [])


def test_a_line_longer_than_most(tmp_path: Path) -> None:
    """With prompts, one line may be longer than what is looked at first."""
    for size in (10, 3 << 20, 10):
        log = AuditLog(tmp_path)
        log.add("answer", prompt="x" * size)
        log.close()
    count, _, broken = verify(log.path)
    assert (count, broken) == (3, [])


def test_two_servers_write_one_chain(tmp_path: Path) -> None:
    logs = [AuditLog(tmp_path), AuditLog(tmp_path)]
    for i in range(40):
        logs[i % 2].add("answer", number=i)
    for log in logs:
        log.close()
    count, _, broken = verify(logs[0].path)
    assert (count, broken) == (40, [])


# ---- in a server ---------------------------------------------------------------------------------


def test_roles_grants_and_revoking(tmp_path: Path, kvant: Kvant) -> None:
    def make(*words: str) -> dict[str, str]:
        status, out = kvant("key", "create", *words, "--json")
        assert status == 0
        found: dict[str, str] = json.loads(out)
        return found

    user, other = make("ann"), make("bob", "--models", "llama*")
    operator = make("olga", "--role", "operator", "--rate", "3")
    with serving(tmp_path, "--api-key-required", "--kv-tokens", "8192") as server:

        def ask(key: dict[str, str] | None, path: str = "/v1/completions") -> httpx.Response:
            headers = {} if key is None else {"Authorization": f"Bearer {key['key']}"}
            if path == "/v1/completions":
                return server.http.post(path, json=ASK, headers=headers)
            return server.http.get(path, headers=headers)

        assert ask(None).status_code == 401
        assert ask(None).headers["www-authenticate"] == "Bearer"
        assert ask({"key": "kvant-00000000-wrong"}).status_code == 401
        assert ask(None, "/health").status_code == 200
        assert ask(None, "/metrics").status_code == 401
        assert ask(user).status_code == 200
        assert ask(other).status_code == 404
        assert ask(user, "/metrics").status_code == 403
        assert (
            server.http.delete("/api/delete", headers={"x-api-key": user["key"]})
            .json()["error"]
            .startswith("This takes a key of role operator")
        )
        found = [ask(operator, "/metrics").status_code for _ in range(5)]
        assert found[:3] == [200, 200, 200]
        late = ask(operator, "/metrics")
        assert late.status_code == 429
        assert int(late.headers["retry-after"]) >= 1
        assert kvant("key", "revoke", user["id"])[0] == 0
        assert ask(user).status_code == 401
    listed = kvant("key", "list")[1]
    assert "revoked" in listed
    assert user["key"] not in listed
    text = (tmp_path / "audit.jsonl").read_text()
    assert "Once" not in text
    assert not any(k["key"] in text for k in (user, other, operator))
    answers = [line for line in read_lines(tmp_path / "audit.jsonl") if line["event"] == "answer"]
    assert [(a["user"], a["model"], a["completion_tokens"]) for a in answers] == [
        (f"ann/{user['id']}", "demo", 2)
    ]
    assert kvant("audit", "verify")[0] == 0
    head = answers[0]["hash"]
    assert kvant("audit", "verify", "--head", head)[0] == 0
    assert kvant("audit", "verify", "--head", "0" * 64)[0] == 1
    assert f"user=ann/{user['id']}" in kvant("audit", "show")[1]
