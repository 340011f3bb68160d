"""A registry on loopback that answers as a test wants, honest or not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from kvant.registry import Store

OCI = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.kvant.model.config.v1+json"
PASSWORD = "secret-word"
GGUF = "application/vnd.kvant.model.gguf.v1"
MODEL = os.urandom(300_000)
"""Bytes that are taken for a model's."""


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def kept(store: Store) -> list[str]:
    """Blobs and partial blobs in the store."""
    return [p.name for place in ("blobs/sha256", "partial") for p in (store.root / place).glob("*")]


def layer(
    data: bytes, media: str = GGUF, title: str | None = None, **change: Any
) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": media, "digest": digest(data), "size": len(data)}
    if title is not None:
        found["annotations"] = {"org.opencontainers.image.title": title}
    return {**found, **change}


class Handler(BaseHTTPRequestHandler):
    """Asks the server's rules first, then serves what it has."""

    protocol_version = "HTTP/1.1"
    server: FakeRegistry

    def log_message(self, *arguments: Any) -> None: ...

    def _any(self) -> None:
        registry = self.server
        with registry.lock:
            registry.seen.append((self.command, self.path, dict(self.headers)))
        try:
            for pattern, rule in registry.rules:
                if re.search(pattern, f"{self.command} {self.path}") and rule(self) is not False:
                    return
            self._serve()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _any  # noqa: N815 - the base class's

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if not {"Content-Length", "Transfer-Encoding"} & set(named):
            named["Content-Length"] = str(len(body))
        for name, value in named.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _serve(self) -> None:
        registry = self.server
        if match := re.search(r"/manifests/([^/?]+)$", self.path):
            found = registry.manifests.get(match[1])
            if found is None:
                self.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}')
            else:
                self.answer(200, found[1], Content_Type=found[0])
            return
        if match := re.search(r"/blobs/(sha256:[0-9a-f]+)$", self.path):
            data = registry.blobs.get(match[1])
            if data is None:
                self.answer(404)
                return
            start = 0
            if wanted := re.fullmatch(r"bytes=(\d+)-\d+", self.headers.get("Range", "")):
                start = int(wanted[1])
                self.answer(
                    206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}"
                )
            else:
                self.answer(200, data)
            return
        self.answer(404)


Start = Callable[..., str]
Rule = Callable[[Handler], Any]


class FakeRegistry(ThreadingHTTPServer):
    """``rules`` are pairs of an expression over ``METHOD /path`` and what to do; False: go on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.rules: list[tuple[str, Rule]] = []
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def add(
        self,
        model: bytes,
        tag: str = "latest",
        *,
        said: dict[str, Any] | None = None,
        layers: list[dict[str, Any]] | None = None,
        media: str = OCI,
        **change: Any,
    ) -> str:
        """A model of one file, or of ``layers``; returns the manifest's digest."""
        config = json.dumps(said or {"format": "gguf"}).encode()
        self.blobs[digest(config)] = config
        self.blobs[digest(model)] = model
        body = {
            "schemaVersion": 2,
            "mediaType": media,
            "config": layer(config, CONFIG),
            "layers": [layer(model)] if layers is None else layers,
            **change,
        }
        raw = json.dumps(body).encode()
        self.manifests[tag] = self.manifests[digest(raw)] = (media, raw)
        return digest(raw)

    def asked(self, pattern: str) -> int:
        """How many requests match."""
        with self.lock:
            return sum(bool(re.search(pattern, f"{m} {p}")) for m, p, _ in self.seen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()
        self.server_close()
