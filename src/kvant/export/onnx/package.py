"""The onnx package: imported when a graph is made, not before."""

from __future__ import annotations

from typing import Any

from kvant.errors import MissingExtraError

__all__ = ["onnx_package"]


def onnx_package() -> Any:
    """The module ``onnx``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError(
            "Writing ONNX needs the package onnx, which is not installed. Install it with "
            "`pip install 'kvant[onnx]'`."
        ) from None
    return onnx
