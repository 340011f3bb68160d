"""Every byte of a store compared with its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from kvant.errors import KvantError
from kvant.registry.layout import Layout
from kvant.registry.manifest import hex_of
from kvant.registry.progress import Progress, Step, silent

__all__ = ["Verified", "verify"]

_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """What checking every byte found. ``problems`` is empty where all is well."""

    models: int
    blobs: int
    bytes: int
    problems: tuple[str, ...]
    unused: int
    """Blobs nothing refers to: an interrupted pull, a removed model. No problem; `collect` them."""


def verify(layout: Layout, progress: Progress | None = None) -> Verified:
    """As `Store.verify`."""
    tell = progress or silent
    _, listed = layout.models()
    problems: list[str] = []
    seen: dict[str, str] = {}
    total = 0
    for entry in listed:
        try:
            manifest = layout.manifest(entry)
        except KvantError as error:
            problems.append(f"{entry.name}: {error}")
            continue
        seen[entry.manifest.digest] = ""
        for blob in manifest.blobs:
            if blob.digest not in seen:
                total += blob.size
                seen[blob.digest] = _check(layout, blob.digest, blob.size, tell)
            if found := seen[blob.digest]:
                problems.append(f"{entry.name}: blob {blob.digest}: {found}")
    stored = set()
    if layout.blobs.is_dir():
        stored = {p.name for p in layout.blobs.iterdir() if not p.name.startswith(".")}
    unused = len(stored - {hex_of(d) for d in seen})
    return Verified(len(listed), len(seen), total, tuple(problems), unused)


def _check(layout: Layout, digest: str, size: int, tell: Progress) -> str:
    """What is wrong with a blob; empty where nothing is."""
    sha, done = hashlib.sha256(), 0
    try:
        with layout.blob(digest).open("rb") as file:
            while part := file.read(_READ):
                sha.update(part)
                done += len(part)
                tell(Step("verifying sha256 digest", digest, done, size))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if done != size:
        return f"has {done} bytes, expected {size}"
    return "" if sha.hexdigest() == hex_of(digest) else "its content is not what its name says"
