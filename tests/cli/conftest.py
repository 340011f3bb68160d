"""The command line, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import kvant
from kvant.cli.main import main
from oracles.models import LLAMA, make_folder


class Result(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("inspect", path)`` calls the command line in this process."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse: --help, or a command line it cannot read
            status = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


@pytest.fixture
def spawn(tmp_path: Path) -> Run:
    """``spawn("inspect", path)`` runs ``python -m kvant`` in ``tmp_path``."""

    def call(*arguments: object, python: tuple[str, ...] = ("-m", "kvant"), **env: str) -> Result:
        path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
        done = subprocess.run(
            [sys.executable, *python, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, **env},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a small llama in BF16."""
    return make_folder(tmp_path_factory.mktemp("cli") / "Tiny", LLAMA, dtype="BF16")
