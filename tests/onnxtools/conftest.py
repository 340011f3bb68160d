"""Nothing here without the extra `onnx`."""

from __future__ import annotations

import importlib.util

_MISSING = [n for n in ("onnx", "onnxruntime", "onnxslim") if importlib.util.find_spec(n) is None]
collect_ignore_glob = ["test_onnx_*.py"] if _MISSING else []
