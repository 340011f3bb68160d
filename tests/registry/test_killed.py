"""Killed at random moments, the store stays whole: a short run of bench/store_kills.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kvant


def test_random_kills() -> None:
    script = Path(__file__).resolve().parents[2] / "bench" / "store_kills.py"
    path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "12", "--seed", str(os.getpid())],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every store was whole" in done.stdout
