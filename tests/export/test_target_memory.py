"""Peak memory of writing folders does not grow with the model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kvant
from export.test_memory import _CHILD, _sparse_model

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)


def peak(arguments: list[str]) -> int:
    """Kilobytes of resident memory at most, in a process of its own."""
    path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *arguments, "--threads", "2"],
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_bounded_and_independent_of_the_model(tmp_path: Path) -> None:
    peaks = {}
    for layers in (1, 4):
        folder = tmp_path / str(layers)
        _sparse_model(folder, layers)
        for to, level in (("mlx", "4bit"), ("vllm", "w4a16-asym-g32"), ("hf", None)):
            out = tmp_path / f"{to}-{layers}"
            command = ["quantize", str(folder), level] if level else ["convert", str(folder)]
            peaks[to, layers] = peak([*command, "--to", to, "-o", str(out)])
            for file in out.iterdir():
                file.unlink()
    assert max(peaks.values()) < 200_000
    for to in ("mlx", "vllm", "hf"):
        assert peaks[to, 4] - peaks[to, 1] < 30_000
