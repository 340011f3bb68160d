"""HTTP for registries: bounded, patient only so long, and careful with whom credentials reach.

Python's own client does the protocol. What is added is what a registry may not do: keep a client
waiting for ever, send more than was asked for, or lead it to another host with its credentials.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from kvant.files.source import quote
from kvant.registry.errors import HostileError, RegistryError, UnreachableError
from kvant.version import __version__

__all__ = ["Http", "Patience", "Response", "is_loopback", "origin_of"]

_MOST_REDIRECTS = 6
_PIECE = 1 << 18
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server may take: seconds to connect, to send anything at all, to begin an answer;
    and the least bytes a second over ``window`` seconds of a transfer."""

    connect: float = 15.0
    silence: float = 30.0
    answer: float = 60.0
    rate: float = 1000.0
    window: float = 60.0


def origin_of(url: str) -> str:
    """Scheme, host and port: what credentials belong to.

    Raises:
        HostileError: it is no address of a web server.
    """
    parts = _split(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    name = (parts.hostname or "").lower()
    return f"{parts.scheme}://{f'[{name}]' if ':' in name else name}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host (with or without a port) is this machine."""
    if host.count(":") > 1 and not host.startswith("["):
        name = host.lower()  # an IPv6 address without brackets, so without a port
    else:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
    return name in ("localhost", "::1") or (
        name.startswith("127.") and name.replace(".", "").isdigit()
    )


class Response:
    """An answer. Close it, or use ``with``."""

    def __init__(
        self,
        url: str,
        connection: http.client.HTTPConnection,
        raw: http.client.HTTPResponse,
        patience: Patience,
    ) -> None:
        self.url = url
        self.status = raw.status
        self.headers = {name.lower(): value for name, value in raw.getheaders()}
        self._connection, self._raw, self._patience = connection, raw, patience

    def read(self, most: int) -> bytes:
        """All of a small body.

        Raises:
            HostileError: it is longer than ``most`` bytes.
            UnreachableError: it stalls, or breaks off.
        """
        parts: list[bytes] = []
        size = 0
        for piece in self.pieces():
            size += len(piece)
            if size > most:
                raise HostileError(
                    f"{_host(self.url)} sent more than {most} bytes where few were expected. "
                    "Nothing was kept."
                )
            parts.append(piece)
        return b"".join(parts)

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes.

        Raises:
            UnreachableError: it stalls, or breaks off.
        """
        pace = _Pace(self._patience, self.url)
        while True:
            try:
                piece = self._raw.read1(_PIECE)
            except (OSError, http.client.HTTPException) as error:
                raise _broken(self.url, error) from None
            if not piece:
                left = self._raw.length
                if left:
                    raise UnreachableError(
                        f"{_host(self.url)} closed the connection with {left} bytes to come."
                    )
                return
            pace.moved(len(piece))
            yield piece

    def close(self) -> None:
        """Give the connection back to the system."""
        self._raw.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(slots=True)
class Http:
    """A client. ``credentials`` are Authorization headers by origin, and go nowhere else."""

    patience: Patience = field(default_factory=Patience)
    credentials: dict[str, str] = field(default_factory=dict)

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
        length: int | None = None,
    ) -> Response:
        """Ask; redirects of GET and HEAD are followed.

        Args:
            method: GET, HEAD, POST, PUT, PATCH.
            url: absolute.
            headers: further ones.
            body: bytes, or pieces of ``length`` bytes together.
            length: of a body in pieces.

        Raises:
            UnreachableError: no connection, or it stalls.
            HostileError: redirects without end, or to where nobody should be sent.
        """
        for _ in range(_MOST_REDIRECTS):
            response = self._once(method, url, dict(headers or {}), body, length)
            target = response.headers.get("location")
            follow = response.status in _REDIRECTS and method in ("GET", "HEAD") and target
            if not follow:
                return response
            response.close()
            assert target is not None
            url = self._redirected(url, target)
        raise HostileError(f"{_host(url)} redirects in circles. Nothing was fetched.")

    def _redirected(self, url: str, target: str) -> str:
        new = urljoin(url, target)
        old, parts = _split(url), _split(new)
        if old.scheme == "https" and parts.scheme != "https":
            raise HostileError(
                f"{_host(url)} redirects from https to {quote(new[:100])}, which anybody on the "
                "way could change. Not followed."
            )
        if is_loopback(parts.hostname or "") and not is_loopback(old.hostname or ""):
            raise HostileError(
                f"{_host(url)} redirects to this machine ({quote(new[:100])}). Not followed."
            )
        return new

    def _once(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | Iterable[bytes] | None,
        length: int | None,
    ) -> Response:
        parts = _split(url)
        headers["User-Agent"] = f"kvant/{__version__}"
        headers["Accept-Encoding"] = "identity"  # nothing is unpacked, so no bomb goes off
        if (known := self.credentials.get(origin_of(url))) is not None:
            headers.setdefault("Authorization", known)
        if length is not None:
            headers["Content-Length"] = str(length)
        connection, prefix = _connection(parts, self.patience)
        path = prefix + (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        watch = _Watch(connection, self.patience.answer)
        try:
            connection.connect()
            if connection.sock is not None:
                connection.sock.settimeout(self.patience.silence)
            sent = (
                body if isinstance(body, bytes) or body is None else self._paced(body, url, watch)
            )
            if sent is None or isinstance(sent, bytes):
                watch.start()
            connection.request(method, path, body=sent, headers=headers, encode_chunked=False)
            raw = connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            watch.stop()
            connection.close()
            if watch.fired:
                raise _stalls(url, self.patience.answer) from None
            raise _broken(url, error) from None
        except BaseException:
            watch.stop()
            connection.close()
            raise
        watch.stop()
        if watch.fired:  # headers that break off look as if they were complete
            connection.close()
            raise _stalls(url, self.patience.answer)
        return Response(url, connection, raw, self.patience)

    def _paced(self, body: Iterable[bytes], url: str, watch: _Watch) -> Iterator[bytes]:
        pace = _Pace(self.patience, url)
        for piece in body:
            yield piece
            pace.moved(len(piece))
        watch.start()  # now it is the server's turn


class _Pace:
    """Notices a transfer that only pretends to go on."""

    def __init__(self, patience: Patience, url: str) -> None:
        self._patience, self._url = patience, url
        self._since, self._bytes = time.monotonic(), 0

    def moved(self, count: int) -> None:
        self._bytes += count
        passed = time.monotonic() - self._since
        if passed < self._patience.window:
            return
        if self._bytes < self._patience.rate * passed:
            raise _stalls(self._url, passed)
        self._since, self._bytes = time.monotonic(), 0


class _Watch:
    """Ends a connection whose answer does not begin in time, byte by byte though it may come."""

    def __init__(self, connection: http.client.HTTPConnection, seconds: float) -> None:
        self._connection = connection
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self.fired = False

    def start(self) -> None:
        self._timer.start()

    def stop(self) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        self.fired = True
        sock = self._connection.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _connection(parts: SplitResult, patience: Patience) -> tuple[http.client.HTTPConnection, str]:
    """A connection to a host, through the proxy that the environment names for it."""
    host, port = parts.hostname or "", parts.port
    proxy = None
    if not is_loopback(host) and not urllib.request.proxy_bypass(host):
        proxy = urllib.request.getproxies().get(parts.scheme)
    secure = parts.scheme == "https"
    context = ssl.create_default_context() if secure else None
    if proxy is None:
        if secure:
            return http.client.HTTPSConnection(
                host, port, timeout=patience.connect, context=context
            ), ""
        return http.client.HTTPConnection(host, port, timeout=patience.connect), ""
    way = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    secret = {}
    if way.username:
        import base64

        pair = f"{unquote(way.username)}:{unquote(way.password or '')}"
        secret["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    if secure:
        tunnel = http.client.HTTPSConnection(
            way.hostname or "", way.port or 3128, timeout=patience.connect, context=context
        )
        tunnel.set_tunnel(host, port or 443, headers=secret)
        return tunnel, ""
    plain = http.client.HTTPConnection(
        way.hostname or "", way.port or 3128, timeout=patience.connect
    )
    return plain, f"http://{parts.netloc}"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise HostileError(f"{quote(url[:200])} is no address of a registry. Not followed.")
    if parts.username is not None:
        raise HostileError("An address with a user's name in it was not followed.")
    return parts


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _stalls(url: str, seconds: float) -> UnreachableError:
    return UnreachableError(
        f"{_host(url)} stalls: next to nothing came in {seconds:.0f} s. Try again later."
    )


def _broken(url: str, error: Exception) -> RegistryError:
    host = _host(url)
    if isinstance(error, TimeoutError):
        return UnreachableError(f"{host} stalls: it does not answer in time. Try again later.")
    if isinstance(error, socket.gaierror):
        return UnreachableError(f"{host}: there is no such host, or no network. Check the name.")
    if isinstance(error, ConnectionRefusedError):
        return UnreachableError(f"{host}: nobody answers at that port. Check host and port.")
    if isinstance(error, ssl.SSLCertVerificationError):
        return UnreachableError(
            f"{host}: its certificate is not trusted: {error.verify_message}. If it is your own, "
            "name your authority's file in SSL_CERT_FILE."
        )
    if isinstance(error, ssl.SSLError):
        return UnreachableError(
            f"{host}: no encrypted connection: {error.reason or error}. A registry without TLS is "
            "named oci+http://HOST/…"
        )
    return UnreachableError(f"{host}: the connection broke: {quote(str(error)[:200])}.")
