"""Models over HTTP: the APIs that clients already speak, many users on one engine.

`jobs` is the seam: the protocols on one side of it, the processes that run models on the other.
"""

__all__ = ["DEFAULT_PORT", "MAX_BODY"]

DEFAULT_PORT = 11434
"""Ollama's, so that its clients find this server without being told."""

MAX_BODY = 16 << 20
"""Bytes of a request, unless told otherwise. A million tokens of text are about four million."""
