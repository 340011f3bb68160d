"""The status page: one file, its script and style allowed by their hashes and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from starlette.responses import HTMLResponse

__all__ = ["page", "policy"]


def page() -> HTMLResponse:
    """The page, with its policy."""
    text = (resources.files("kvant.server") / "page.html").read_text("utf-8")
    return HTMLResponse(
        text,
        headers={
            "Content-Security-Policy": policy(text),
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
            "Cache-Control": "no-cache",
        },
    )


def policy(text: str) -> str:
    """What the page may do: run its own script and talk to its own server."""
    script = _hashes(text, "script")
    style = _hashes(text, "style")
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(text: str, tag: str) -> str:
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (hashlib.sha256(part.encode()).digest() for part in parts)
    return " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)
