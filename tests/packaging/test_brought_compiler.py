"""Where no C++ compiler is, the build brings one: the backend is run with every compiler hidden."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_ASK = """
import build_backend
print(build_backend.get_requires_for_build_wheel())
"""

_BUILD = """
import os, subprocess, sys, build_backend
with build_backend.compiler():
    options = ["-std=c++20", "-O1", "-fPIC", "-c", "-DKVANT_ISA=scalar", "-Inative", "-Wno-psabi"]
    subprocess.run([os.environ["CXX"], *options, sys.argv[2], "-o", sys.argv[1]], check=True)
"""


def run(script: str, *arguments: str, hidden: bool) -> str:
    shell = "" if hidden else f"{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={
            **{k: v for k, v in os.environ.items() if k not in ("CC", "CXX")},
            "PATH": shell,
            "PYTHONPATH": str(ROOT / "native"),
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_compiler_is_asked_for_where_there_is_none() -> None:
    pytest.importorskip("scikit_build_core")
    assert "ziglang" in run(_ASK, hidden=True)


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler here")
def test_no_compiler_is_asked_for_where_there_is_one() -> None:
    pytest.importorskip("scikit_build_core")
    assert "ziglang" not in run(_ASK, hidden=False)


def test_the_brought_compiler_compiles_kernels(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core")
    pytest.importorskip("ziglang")
    made = tmp_path / "kernels.o"
    run(_BUILD, str(made), "native/kernels/q4_0.cc", hidden=True)
    assert made.read_bytes()[:4] in (b"\x7fELF", b"\xcf\xfa\xed\xfe")
