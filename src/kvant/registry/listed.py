"""A line of a store's ``index.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvant.registry.manifest import Descriptor, hex_of

__all__ = ["Listed"]

_REF = "org.opencontainers.image.ref.name"
_CREATED = "org.opencontainers.image.created"
_SOURCE = "dev.kvant.source"


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of ``index.json``: a model's name, its manifest, when and from where it came."""

    name: str
    manifest: Descriptor
    created: str
    source: str

    @property
    def key(self) -> str:
        """As `Name.key`."""
        return self.name.casefold()

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Listed:
        """From the file's JSON.

        Raises:
            KeyError, TypeError, ValueError, HostileError: it is not of that form.
        """
        notes = entry["annotations"]
        digest, size = str(entry["digest"]), int(entry["size"])
        hex_of(digest)
        return cls(
            str(notes[_REF]),
            Descriptor(str(entry["mediaType"]), digest, size),
            str(notes.get(_CREATED, "")),
            str(notes.get(_SOURCE, "")),
        )

    def to_entry(self) -> dict[str, Any]:
        """As it stands in the file."""
        notes = {_REF: self.name, _CREATED: self.created, _SOURCE: self.source}
        return {
            **self.manifest.to_json(),
            "annotations": {key: value for key, value in notes.items() if value},
        }
