"""Every attack file through the command line: one message, a status, nothing written, at once."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# What commands import is not the file's doing: it is there before a clock runs.
import kvant.api.conversion
import kvant.api.inspection
import kvant.api.model  # noqa: F401
from attacks.make import CASES, MEANINGLESS

Run = Callable[..., Any]


@pytest.mark.parametrize("name", [*CASES, *MEANINGLESS])
def test_refused(run: Run, tmp_path: Path, name: str) -> None:
    place = tmp_path / "in"
    place.mkdir()
    source = {**CASES, **MEANINGLESS}[name](place)
    out = tmp_path / "out"
    out.mkdir()
    before = sorted(tmp_path.rglob("*"))
    commands: list[tuple[str, ...]] = [
        ("inspect", str(source)),
        ("quantize", str(source), "Q4_K_M", "-o", str(out)),
        ("run", str(source), "Once"),
    ]
    if name.startswith("gguf-"):
        commands.append(("verify", str(source)))
    gc.collect()
    gc.freeze()  # nor is what earlier tests left behind, which a collection would go through
    for command in commands:
        start = time.process_time()
        found = run(*command)
        assert time.process_time() - start < 1, command
        assert found.status == 1, (command, found)
        message = _message(found, command[0])
        assert message.isprintable(), command
        assert str(tmp_path) in message
        assert len(message.replace(str(tmp_path), "")) < 700
    assert sorted(tmp_path.rglob("*")) == before


def _message(found: Any, command: str) -> str:
    """The one message; an unsupported model is described by ``inspect`` on stdout."""
    if command == "inspect" and found.out:
        assert "Traceback" not in found.err
        (line,) = [x for x in found.out.splitlines() if x.startswith("It does not convert: ")]
        return str(line)
    assert found.out == ""
    assert found.err.startswith("kvant: ")
    assert found.err.count("\n") == 1
    return str(found.err.rstrip("\n"))
