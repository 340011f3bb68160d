"""The OCI distribution protocol (distribution-spec v1.1): what pulling and pushing need of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote as url_quote
from urllib.parse import urlencode, urljoin

from kvant.errors import KvantError
from kvant.files.config_json import parse_json
from kvant.files.source import printable, quote
from kvant.registry.auth import Credentials, find_credentials, parse_challenge
from kvant.registry.errors import (
    AbsentError,
    DeniedError,
    HostileError,
    RegistryError,
    UnreachableError,
)
from kvant.registry.fetch import Opener
from kvant.registry.http import Http, Patience, Response, is_loopback, origin_of
from kvant.registry.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MOST_MANIFEST,
    Descriptor,
    Manifest,
    digest_of,
    parse_index,
    parse_manifest,
)

__all__ = ["Registry"]

_MOST_ANSWER = 1 << 20
_CHUNK = 64 << 20
"""Bytes of an upload sent at once: what has to be sent again when a connection breaks."""
_READ = 1 << 20
_ATTEMPTS = 4

Body = Callable[[], Iterator[bytes]]
"""What gives the pieces of a body, from its beginning whenever it is called."""


class Registry:
    """One repository of one registry.

    Args:
        host: with its port, where it is not the scheme's own.
        repository: ``team/name``.
        scheme: ``http`` or ``https``; by default https, and http for this machine.
        credentials: by default what the environment and docker's config have for the host.
        patience: how long it may take.
    """

    def __init__(
        self,
        host: str,
        repository: str,
        *,
        scheme: str = "",
        credentials: Credentials | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.host, self.repository = host, repository
        scheme = scheme or ("http" if is_loopback(host) else "https")
        # Docker's own registry answers under another name than the one people write.
        server = "registry-1.docker.io" if host.lower() == "docker.io" else host
        self._base = f"{scheme}://{server}/v2/{repository}/"
        self._http = Http(patience or Patience())
        self._credentials = credentials or find_credentials(host)
        self._plain = scheme == "http"

    # ---- reading -----------------------------------------------------------------------------

    def manifest(self, tag: str) -> Manifest:
        """The manifest of a tag or digest, checked.

        Raises:
            AbsentError: there is none.
            HostileError: it is none, or another than its digest says.
            RegistryError: the registry failed.
        """
        where = f"{self.host}/{self.repository}:{tag}"
        raw, media = self._manifest_bytes(tag, where)
        if media in INDEX_TYPES:
            listed = [d for d in parse_index(raw, where) if d.media_type in MANIFEST_TYPES]
            if not listed:
                raise HostileError(f"{where}: its index lists no manifest. It is no model.")
            raw, media = self._manifest_bytes(listed[0].digest, where)
        if media not in MANIFEST_TYPES:
            raise HostileError(
                f"{where}: expected a manifest, got {quote(media, 100)}. What is there is no model."
            )
        return parse_manifest(raw, where)

    def _manifest_bytes(self, tag: str, where: str) -> tuple[bytes, str]:
        accept = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
        with self._ask("GET", f"manifests/{tag}", {"Accept": accept}, scope="pull") as answer:
            if answer.status != 200:
                raise self._failed(answer, f"{where}: there is no such model")
            raw = answer.read(MOST_MANIFEST)
            media = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            stated = answer.headers.get("docker-content-digest")
        asked = tag if tag.startswith("sha256:") else None
        for expected in (asked, stated if (stated or "").startswith("sha256:") else None):
            if expected is not None and digest_of(raw) != expected:
                raise HostileError(
                    f"{where}: the manifest should have the digest {quote(expected)}, it has "
                    f"{digest_of(raw)}. Nothing was kept."
                )
        if media in ("", "application/json", "text/plain", "application/octet-stream"):
            media = _stated_type(raw, where)
        return raw, media

    def open_blob(self, blob: Descriptor) -> Opener:
        """A function that begins to send a blob at an offset, for `fetch_blob`."""

        def open_at(offset: int) -> tuple[int, Generator[bytes, None, None]]:
            wanted = {"Range": f"bytes={offset}-{blob.size - 1}"} if offset else {}
            answer = self._ask("GET", f"blobs/{blob.digest}", wanted, scope="pull")
            if answer.status == 206 and offset:
                begins = answer.headers.get("content-range", "").removeprefix("bytes ")
                if begins.partition("-")[0].strip() == str(offset):
                    return offset, _closing(answer)
            if answer.status in (206, 416):  # another part than asked for
                answer.close()
                answer = self._ask("GET", f"blobs/{blob.digest}", {}, scope="pull")
            if answer.status != 200:
                with answer:
                    raise self._failed(answer, f"{self.host}: blob {blob.digest[:19]} is missing")
            return 0, _closing(answer)

        return open_at

    # ---- writing -----------------------------------------------------------------------------

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has it already."""
        with self._ask("HEAD", f"blobs/{digest}", {}, scope="pull,push") as answer:
            if answer.status in (200, 404):
                return answer.status == 200
            raise self._failed(answer, f"{self.host}: cannot be asked for blobs")

    def push_blob(
        self,
        blob: Descriptor,
        path: Path,
        tell: Callable[[int], None],
        *,
        mount: str | None = None,
    ) -> str:
        """Send a blob unless it is there; returns ``there``, ``mounted`` or ``sent``.

        ``mount`` is another repository of this registry that has it.

        Raises:
            RegistryError: refused, or failed more than some times.
        """
        if self.has_blob(blob.digest):
            return "there"
        query = "?" + urlencode({"mount": blob.digest, "from": mount}) if mount else ""
        other = f"repository:{mount}:pull" if mount else ""
        with self._ask(
            "POST", f"blobs/uploads/{query}", {"Content-Length": "0"}, b"", "pull,push", other
        ) as answer:
            if answer.status == 201:
                return "mounted"
            if answer.status != 202:
                raise self._failed(answer, f"{self.host}/{self.repository}: takes no uploads")
            place = self._location(answer)
        if blob.size <= _CHUNK:
            self._finish(place, blob, partial(self._slice, path, 0, blob.size, tell), blob.size)
            return "sent"
        place = self._chunks(place, blob, path, tell)
        self._finish(place, blob, b"", 0)
        return "sent"

    def _chunks(self, place: str, blob: Descriptor, path: Path, tell: Callable[[int], None]) -> str:
        """Send a large blob by parts; returns where it is to be finished."""
        at = failures = 0
        while at < blob.size:
            count = min(_CHUNK, blob.size - at)
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{at}-{at + count - 1}",
            }
            body = partial(self._slice, path, at, count, tell)
            try:
                with self._ask("PATCH", place, headers, body, "pull,push", length=count) as answer:
                    if answer.status not in (201, 202, 204):
                        raise self._failed(answer, f"{self.host}: the upload was refused")
                    place = self._location(answer)
                at, failures = at + count, 0
            except UnreachableError:
                failures += 1
                if failures == _ATTEMPTS:
                    raise
                time.sleep(0.5 * 2**failures)
                place, at = self._progress_of(place, at)
        return place

    def _progress_of(self, place: str, at: int) -> tuple[str, int]:
        """After a break: where to go on, and from which byte."""
        with self._ask("GET", place, {}, scope="pull,push") as answer:
            if answer.status != 204:
                raise self._failed(answer, f"{self.host}: the upload cannot go on")
            _, _, last = answer.headers.get("range", "").partition("-")
            new = self._location(answer) if "location" in answer.headers else place
        known = last.isascii() and last.isdecimal() and len(last) < 20 and int(last) > 0
        return new, int(last) + 1 if known else at

    def _finish(self, place: str, blob: Descriptor, body: bytes | Body, length: int) -> None:
        joint = "&" if "?" in place else "?"
        url = f"{place}{joint}digest={url_quote(blob.digest, safe='')}"
        headers = {"Content-Type": "application/octet-stream"}
        with self._ask("PUT", url, headers, body, "pull,push", length=length) as answer:
            if answer.status not in (201, 204):
                raise self._failed(answer, f"{self.host}: blob {blob.digest[:19]} was refused")

    def push_manifest(self, manifest: Manifest, tag: str) -> None:
        """Give what was sent its name.

        Raises:
            RegistryError: refused.
        """
        headers = {"Content-Type": manifest.media_type}
        with self._ask("PUT", f"manifests/{tag}", headers, manifest.raw, "pull,push") as answer:
            if answer.status not in (201, 202):
                raise self._failed(answer, f"{self.host}: the manifest was refused")

    @staticmethod
    def _slice(path: Path, start: int, count: int, tell: Callable[[int], None]) -> Iterator[bytes]:
        with path.open("rb") as file:
            file.seek(start)
            done = 0
            while done < count:
                piece = file.read(min(_READ, count - done))
                if not piece:
                    raise RegistryError(f"{path}: became shorter while it was sent. Try again.")
                done += len(piece)
                yield piece
                tell(start + done)

    def _location(self, answer: Response) -> str:
        place = answer.headers.get("location")
        if not place:
            raise HostileError(f"{self.host} does not say where to send a blob. Nothing was sent.")
        url = urljoin(answer.url, place)
        if url.startswith("http:") and not self._plain:
            raise HostileError(f"{self.host} wants a blob sent without encryption. Not done.")
        return url

    # ---- asking ------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        place: str,
        headers: dict[str, str],
        body: bytes | Body | None = None,
        scope: str = "pull",
        other: str = "",
        *,
        length: int | None = None,
    ) -> Response:
        """A request; once more with credentials where they are asked for.

        That may be in the middle of an upload, whose token has run out; the part is sent again.
        """
        url = place if "://" in place else self._base + place

        def send() -> Response:
            sent = body() if callable(body) else body
            return self._http.request(method, url, headers, sent, length)

        answer = send()
        if answer.status != 401 or origin_of(answer.url) != origin_of(self._base):
            return answer
        with answer:
            challenge = answer.headers.get("www-authenticate", "")
        self._authenticate(challenge, scope, other)
        return send()

    def _authenticate(self, challenge: str, scope: str, other: str) -> None:
        scheme, values = parse_challenge(challenge)
        known = self._credentials
        origin = origin_of(self._base)
        if known is not None and self._plain and not is_loopback(self.host):
            raise DeniedError(
                f"{self.host} is asked without encryption, so no password is sent there. Use "
                "oci://, with TLS."
            )
        if scheme == "basic":
            if known is None or known.basic is None:
                raise self._no_credentials()
            self._http.credentials[origin] = known.basic
        elif scheme == "bearer":
            if known is not None and known.bearer:
                self._http.credentials[origin] = f"Bearer {known.bearer}"
            else:
                token = self._token(values, scope, other)
                self._http.credentials[origin] = f"Bearer {token}"
        else:
            raise DeniedError(
                f"{self.host} wants to be shown {quote(scheme or 'nothing kvant knows', 40)}; "
                "expected a password or a token."
            )

    def _token(self, values: dict[str, str], scope: str, other: str) -> str:
        """Docker's token protocol (distribution/docs, spec/auth/token)."""
        realm = values.get("realm", "")
        if not realm.startswith("https://") and not (
            self._plain and is_loopback(origin_of(realm).split("//")[1])
        ):
            raise HostileError(
                f"{self.host} sends for a token to {quote(realm[:200])}, which is not encrypted. "
                "Not followed."
            )
        scopes = [f"repository:{self.repository}:{scope}"] + ([other] if other else [])
        query = [("service", values["service"])] if "service" in values else []
        known = self._credentials
        client = Http(self._http.patience)
        if known is not None and known.identity:
            form = [
                *query,
                ("grant_type", "refresh_token"),
                ("refresh_token", known.identity),
                ("client_id", "kvant"),
                ("scope", " ".join(scopes)),
            ]
            answer = client.request(
                "POST",
                realm,
                {"Content-Type": "application/x-www-form-urlencoded"},
                urlencode(form).encode(),
            )
        else:
            if known is not None and known.basic is not None:
                client.credentials[origin_of(realm)] = known.basic
            joint = "&" if "?" in realm else "?"
            query += [("scope", s) for s in scopes]
            answer = client.request("GET", f"{realm}{joint}{urlencode(query)}")
        with answer:
            if answer.status != 200:
                raise self._no_credentials() if known is None else self._refused()
            said = _object(answer.read(_MOST_ANSWER), realm)
        token = said.get("token") or said.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise HostileError(
                f"{self.host}: expected a token from {quote(realm[:200])}, got none."
            )
        return token

    def _no_credentials(self) -> DeniedError:
        return DeniedError(
            f"{self.host} wants a password or token, and none is known. Use `docker login "
            f"{self.host}`, or set KVANT_REGISTRY_AUTH to {self.host}=USER:PASSWORD."
        )

    def _refused(self) -> DeniedError:
        return DeniedError(
            f"{self.host} does not accept these credentials for {self.repository}. Check user and "
            "rights."
        )

    def _failed(self, answer: Response, what: str) -> RegistryError:
        if answer.status in (401, 403):
            return self._no_credentials() if self._credentials is None else self._refused()
        if answer.status == 404:
            return AbsentError(f"{what}. Check name and tag.")
        said = ""
        try:
            errors = _object(answer.read(_MOST_ANSWER), self.host).get("errors", [])
            if isinstance(errors, list) and errors and isinstance(errors[0], dict):
                said = printable(f": {errors[0].get('code')}, {errors[0].get('message')}", 200)
        except KvantError:
            pass  # the status alone has to do
        again = " Try again later." if answer.status in (429, 500, 502, 503, 504) else ""
        kind = UnreachableError if again else RegistryError
        return kind(f"{what} (HTTP {answer.status}{said}).{again}")


def _closing(answer: Response) -> Generator[bytes, None, None]:
    with answer:
        yield from answer.pieces()


def _object(raw: bytes, where: str) -> dict[str, Any]:
    value = parse_json(raw, where, 4 * _MOST_ANSWER)
    return value if isinstance(value, dict) else {}


def _stated_type(raw: bytes, where: str) -> str:
    """Some registries name no type; then the manifest's own word counts."""
    try:
        said = json.loads(raw).get("mediaType")
    except (ValueError, AttributeError, RecursionError):
        raise HostileError(f"{where}: expected a manifest, got something else.") from None
    if said is None:
        return MANIFEST_TYPES[0]
    return str(said)[:200]
