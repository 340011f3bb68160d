"""Keys: who may use the server, for what, and until when.

A key is ``kvant-ID-SECRET``. The file has the secret's SHA-256 only: a secret of 256 random bits
cannot be guessed from it, so no slow hash is needed, and checking one costs microseconds. A running
server sees changes of the file at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from kvant.errors import FileFormatError, UsageError
from kvant.files.atomic import write_atomic
from kvant.files.source import quote
from kvant.server.scope import RANKS, Principal, Role

__all__ = ["Key", "KeyFile"]

_PREFIX = "kvant"
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it is kept. Times are seconds since 1970.

    Attributes:
        id: what it is called in lists and logs.
        name: whose it is.
        role: ``user`` asks models; ``operator`` also fetches, makes and removes them and sees
            metrics; ``admin`` may do everything.
        models: patterns of models it may use; None for all.
        hash: SHA-256 of the secret, in hexadecimal.
        created: when it was made.
        expires: when it ends; None for never.
        requests_per_minute: its own bound.
        revoked: when it was revoked.
    """

    id: str
    name: str
    role: Role
    models: tuple[str, ...] | None
    hash: str
    created: float
    expires: float | None = None
    requests_per_minute: int | None = None
    revoked: float | None = None

    def state(self, now: float) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


class KeyFile:
    """The keys in ``folder/keys.json``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}

    def all(self) -> list[Key]:
        """All keys, oldest first.

        Raises:
            FileFormatError: the file is damaged. Nobody gets in then.
        """
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._stamp, self._keys = None, {}
            return []
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp != self._stamp:
            self._keys = {key.id: key for key in self._read()}
            self._stamp = stamp
        return list(self._keys.values())

    def check(self, token: str) -> Principal | None:
        """Whose key this is; None where it is none, or has expired or been revoked."""
        prefix, _, rest = token.partition("-")
        ident, _, secret = rest.partition("-")
        self.all()
        key = self._keys.get(ident)
        if prefix != _PREFIX or key is None or not secret:
            return None
        # Compared in a time that tells nothing, though 256 bits could not be tried anyway.
        same = hmac.compare_digest(_hash(secret), key.hash)
        if not same or key.state(time.time()) != "valid":
            return None
        return Principal(f"{key.name}/{key.id}", key.role, key.models, key.requests_per_minute)

    def create(
        self,
        name: str,
        role: str,
        *,
        models: Sequence[str] | None = None,
        expires: float | None = None,
        requests_per_minute: int | None = None,
    ) -> tuple[Key, str]:
        """Make a key; the second of what is returned is the key itself, which is kept nowhere.

        Raises:
            UsageError: no such role, or a name that cannot be one.
        """
        if role not in RANKS:
            raise UsageError(f"A role is one of {', '.join(RANKS)}, got {role!r}.")
        if not 1 <= len(name) <= 100 or not name.isprintable():
            raise UsageError(f"A key's name has 1 to 100 printable characters, got {quote(name)}.")
        ident, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        key = Key(
            id=ident,
            name=name,
            role=cast(Role, role),
            models=None if models is None else tuple(models),
            hash=_hash(secret),
            created=time.time(),
            expires=expires,
            requests_per_minute=requests_per_minute,
        )
        with self._change() as keys:
            keys.append(key)
        return key, f"{_PREFIX}-{ident}-{secret}"

    def revoke(self, which: str) -> Key:
        """End a key, by its id.

        Raises:
            UsageError: there is none of that id.
        """
        with self._change() as keys:
            for i, key in enumerate(keys):
                if key.id == which:
                    keys[i] = key if key.revoked else replace(key, revoked=time.time())
                    return keys[i]
            raise UsageError(
                f"There is no key with the id {quote(which)}. `kvant key list` shows the ids."
            )

    @contextmanager
    def _change(self) -> Iterator[list[Key]]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._stamp = None
            keys = self.all()
            yield keys
            text = json.dumps({"version": 1, "keys": [asdict(k) for k in keys]}, indent=1)
            write_atomic(self.path, text.encode(), force=True)
            self.path.chmod(0o600)
        finally:
            os.close(lock)

    def _read(self) -> list[Key]:
        try:
            raw = self.path.read_bytes()
            if len(raw) > _MOST_BYTES:
                raise ValueError("it is too large")
            document = json.loads(raw)
            return [_key(entry) for entry in document["keys"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise FileFormatError(
                f"{self.path}: is no file of keys ({quote(str(error), 100)}). Restore it, or "
                "remove it and create keys again."
            ) from None


def _key(entry: dict[str, Any]) -> Key:
    key = Key(**{**entry, "models": None if entry["models"] is None else tuple(entry["models"])})
    if key.role not in RANKS or not isinstance(key.hash, str) or len(key.hash) != 64:
        raise ValueError(f"key {key.id!r}")
    return key


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
