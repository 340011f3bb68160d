"""Stores, models and registries of their own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_registry import FakeRegistry, Start

from kvant.api.conversion import convert
from kvant.api.models import store as open_store
from kvant.registry import Store
from kvant.registry.http import Patience
from oracles.models import LLAMA, make_folder

#: Of fake_registry.PASSWORD, by bcrypt.
_HASHED = "$2b$04$fSiVV4hVpdMPlR1ge9rmr.AS.caHt6LwLEpiHyd6zIk/ChR6eY1W."


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def other_store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "other")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a small llama."""
    made = make_folder(tmp_path_factory.mktemp("models") / "Tiny", LLAMA, dtype="BF16")
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    return made


@pytest.fixture(scope="session")
def gguf(folder: Path) -> Path:
    """The same as a GGUF file."""
    return convert(folder, folder.parent / "tiny-bf16.gguf").paths[0]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def impatient() -> Patience:
    return Patience(connect=2, silence=1.0, answer=1.5, rate=20_000, window=1.0)


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """``docker_registry()`` starts Debian's registry on loopback; returns its host."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("Debian's docker-registry is not installed")
    running: list[subprocess.Popen[bytes]] = []

    def start(*, password: bool = False) -> str:
        home = tmp_path_factory.mktemp("registry")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        auth = ""
        if password:
            (home / "users").write_text(f"somebody:{_HASHED}\n")
            auth = f"auth:\n  htpasswd:\n    realm: test\n    path: {home / 'users'}\n"
        (home / "config.yml").write_text(
            "version: 0.1\nlog:\n  level: error\n"
            f"storage:\n  filesystem:\n    rootdirectory: {home / 'data'}\n"
            f"http:\n  addr: 127.0.0.1:{port}\n{auth}"
        )
        with (home / "log").open("wb") as log:
            running.append(
                subprocess.Popen(
                    [program, "serve", str(home / "config.yml")], stdout=log, stderr=log
                )
            )
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=2).close()
                return f"127.0.0.1:{port}"
            except urllib.error.HTTPError:
                return f"127.0.0.1:{port}"  # it wants a password
            except OSError:
                time.sleep(0.05)
        raise AssertionError((home / "log").read_text())

    yield start
    for process in running:
        process.terminate()
        process.wait(10)
