"""Optional packages, imported when first needed, with a clear word where one is missing."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

from kvant.errors import MissingExtraError

__all__ = ["need", "onnx", "onnxruntime"]


def need(module: str, extra: str = "onnx") -> Any:
    """Import ``module``.

    Raises:
        MissingExtraError: it, or something it needs, is not installed.
    """
    # onnxruntime 1.29 and later send telemetry unless this is set before their import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise MissingExtraError(
            f"{missing} is not installed; ONNX models need it. Install it with: "
            f"pip install 'kvant[{extra}]'."
        ) from None


def onnx() -> Any:
    """The package onnx."""
    return need("onnx")


def onnxruntime() -> Any:
    """The package onnxruntime, silent: what goes wrong comes as an exception."""
    runtime = need("onnxruntime")
    runtime.set_default_logger_severity(4)
    # Its quantisers warn through Python's root logger about what kvant has done already.
    logging.getLogger().addFilter(_not_from_onnxruntime)
    return runtime


def _not_from_onnxruntime(record: logging.LogRecord) -> bool:
    return "onnxruntime" not in record.pathname
