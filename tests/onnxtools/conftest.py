"""Nothing here without the extra `onnx`."""

from __future__ import annotations

import importlib.util
from functools import partial

import pytest

_MISSING = [n for n in ("onnx", "onnxruntime", "onnxslim") if importlib.util.find_spec(n) is None]
collect_ignore_glob = ["test_onnx_*.py"] if _MISSING else []


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of latency takes a second; here it only has to be one."""
    if _MISSING:
        return
    from kvant.onnxtools import job

    monkeypatch.setattr(job, "latencies", partial(job.latencies, seconds=0.02))
