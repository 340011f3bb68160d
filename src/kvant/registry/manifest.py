"""Manifests: what a model consists of, by digest. Those of others are hostile until checked.

The form is OCI's image manifest (opencontainers/image-spec v1.1); a model's parts are told apart by
their media types. kvant writes its own types and understands those of Ollama's registry
(``server/internal/manifest`` and ``server/images.go`` in ollama/ollama) and of Docker's model
registry.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from kvant.errors import FileFormatError
from kvant.files.config_json import parse_json
from kvant.files.source import quote, show
from kvant.registry.errors import HostileError

__all__ = [
    "ARTIFACT_TYPE",
    "CONFIG_TYPE",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "MOST_MANIFEST",
    "MOST_TEXT",
    "OCI_MANIFEST",
    "ROLE_TYPES",
    "TITLE",
    "Descriptor",
    "Manifest",
    "Role",
    "digest_of",
    "hex_of",
    "parse_index",
    "parse_manifest",
]

Role: TypeAlias = Literal[
    "gguf", "file", "adapter", "template", "system", "parameters", "messages", "license"
]

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ARTIFACT_TYPE = "application/vnd.kvant.model.v1"
CONFIG_TYPE = "application/vnd.kvant.model.config.v1+json"
TITLE = "org.opencontainers.image.title"

ROLE_TYPES: dict[Role, str] = {
    "gguf": "application/vnd.kvant.model.gguf.v1",
    "file": "application/vnd.kvant.model.file.v1",
    "adapter": "application/vnd.kvant.model.adapter.v1",
    "template": "application/vnd.kvant.model.template.v1.jinja",
    "system": "application/vnd.kvant.model.system.v1+text",
    "parameters": "application/vnd.kvant.model.parameters.v1+json",
    "messages": "application/vnd.kvant.model.messages.v1+json",
    "license": "application/vnd.kvant.model.license.v1+text",
}
"""What kvant writes, by the part a layer plays."""

_ROLES: dict[str, Role] = {
    **{media: role for role, media in ROLE_TYPES.items()},
    "application/vnd.ollama.image.model": "gguf",
    "application/vnd.ollama.image.template": "template",
    "application/vnd.ollama.image.system": "system",
    "application/vnd.ollama.image.params": "parameters",
    "application/vnd.ollama.image.messages": "messages",
    "application/vnd.ollama.image.license": "license",
    "application/vnd.docker.ai.gguf.v3": "gguf",
    "application/vnd.docker.ai.license": "license",
}

MOST_MANIFEST = 4 << 20
"""Bytes of a manifest, as registries limit them."""
MOST_TEXT = 4 << 20
"""Bytes of a template, a licence and the like, and of a config."""
_MOST_TEXTS = 32 << 20
"""Bytes of all templates, licences and the like of one model together."""
_MOST_LAYERS = 2000
_MOST_SIZE = 1 << 46  # 70 TB
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
#: A plain name, or one in a folder (``1_Pooling/config.json``); no part begins with a dot.
_TITLE = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}/)?[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}", re.ASCII
)
_FILES: tuple[Role, ...] = ("gguf", "file", "adapter")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob by digest: ``sha256:`` and 64 hexadecimal digits, and its size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def role(self) -> Role | None:
        """The part it plays in a model; None for what kvant does not know."""
        return _ROLES.get(self.media_type.partition(";")[0].strip())

    @property
    def from_ollama(self) -> bool:
        """Whether it is Ollama's: its templates are written in Go's language."""
        return self.media_type.startswith("application/vnd.ollama.")

    @property
    def title(self) -> str:
        """The name of the file it is; empty where it is none or nobody said."""
        return self.annotations.get(TITLE, "")

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.annotations:
            found["annotations"] = dict(sorted(self.annotations.items()))
        return found


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model: its config and its layers. ``raw`` are the bytes its digest is of."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    raw: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """Of the manifest itself."""
        return digest_of(self.raw)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything that has to be there, each blob once."""
        return tuple({d.digest: d for d in (self.config, *self.layers)}.values())

    @property
    def size(self) -> int:
        """Bytes of all blobs and the manifest."""
        return len(self.raw) + sum(d.size for d in self.blobs)

    def of(self, role: Role) -> tuple[Descriptor, ...]:
        """The layers that play a part."""
        return tuple(d for d in self.layers if d.role == role)

    @classmethod
    def build(
        cls, config: Descriptor, layers: tuple[Descriptor, ...], annotations: Mapping[str, str]
    ) -> Manifest:
        """kvant's own form; the same parts give the same bytes."""
        body: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": config.to_json(),
            "layers": [d.to_json() for d in layers],
        }
        if annotations:
            body["annotations"] = dict(sorted(annotations.items()))
        raw = json.dumps(body, indent=2, ensure_ascii=False).encode()
        return cls(OCI_MANIFEST, config, layers, raw)


def digest_of(data: bytes) -> str:
    """The digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def hex_of(digest: str) -> str:
    """The hexadecimal part of a digest that was checked.

    Raises:
        HostileError: it is none; so no path is ever made of something else.
    """
    if not _DIGEST.fullmatch(digest):
        raise HostileError(
            f"A digest should be sha256: and 64 hexadecimal digits, got {quote(digest)}."
        )
    return digest[7:]


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """Check a manifest and take it apart.

    Raises:
        HostileError: not a manifest, or one that asks for what no model needs: a file name with a
            path in it, a size beyond all bounds, thousands of layers, nothing to run.
    """
    body = _json(raw, where)
    media = body.get("mediaType", OCI_MANIFEST)
    if body.get("schemaVersion") != 2 or media not in MANIFEST_TYPES:
        raise HostileError(
            f"{where}: expected a manifest of an OCI image, schema version 2, got "
            f"{show(media)}. What is there is no model."
        )
    layers = body.get("layers")
    if not isinstance(layers, list) or not 1 <= len(layers) <= _MOST_LAYERS:
        count = len(layers) if isinstance(layers, list) else show(layers)
        raise HostileError(
            f"{where}: the manifest should list 1 to {_MOST_LAYERS} layers, got {count}."
        )
    config = _descriptor(body.get("config"), where)
    found = tuple(_descriptor(layer, where) for layer in layers)
    _check_parts(found, where)
    if config.size > MOST_TEXT:
        raise HostileError(
            f"{where}: a config of {config.size} bytes, expected at most {MOST_TEXT}."
        )
    return Manifest(str(media), config, found, raw)


def parse_index(raw: bytes, where: str) -> list[Descriptor]:
    """The manifests an image index lists.

    Raises:
        HostileError: not an index.
    """
    body = _json(raw, where)
    listed = body.get("manifests")
    if not isinstance(listed, list) or len(listed) > _MOST_LAYERS:
        raise HostileError(f"{where}: expected an index of manifests, got {show(listed)}.")
    return [_descriptor(entry, where) for entry in listed]


def _json(raw: bytes, where: str) -> Mapping[str, Any]:
    if len(raw) > MOST_MANIFEST:
        raise HostileError(
            f"{where}: a manifest of {len(raw)} bytes, expected at most {MOST_MANIFEST}."
        )
    try:
        body = parse_json(raw, where, MOST_MANIFEST, 200_000)
    except FileFormatError as error:
        raise HostileError(str(error)) from None
    if not isinstance(body, dict):
        raise HostileError(f"{where}: expected a JSON object, got {show(body)}.")
    return body


def _descriptor(entry: object, where: str) -> Descriptor:
    if not isinstance(entry, dict):
        raise HostileError(f"{where}: expected a descriptor of a blob, got {show(entry)}.")
    media, digest, size = entry.get("mediaType"), entry.get("digest"), entry.get("size")
    if not isinstance(media, str) or len(media) > 300 or not media.isprintable():
        raise HostileError(f"{where}: a blob has the media type {show(media)}, expected a text.")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise HostileError(
            f"{where}: a blob has the digest {show(digest)}, expected sha256: and 64 digits."
        )
    if type(size) is not int or not 0 <= size <= _MOST_SIZE:
        raise HostileError(
            f"{where}: blob {digest[:19]} says its size is {show(size)}, expected at most "
            f"{_MOST_SIZE} bytes."
        )
    notes = entry.get("annotations") or {}
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise HostileError(f"{where}: blob {digest[:19]} has annotations that are no texts.")
    return Descriptor(media, digest, size, notes)


def _check_parts(layers: tuple[Descriptor, ...], where: str) -> None:
    titles: set[tuple[str, str]] = set()
    for layer in layers:
        role = layer.role
        if role is None:
            continue
        if role not in _FILES:
            if layer.size > MOST_TEXT:
                raise HostileError(
                    f"{where}: a {role} of {layer.size} bytes, expected at most {MOST_TEXT}."
                )
            continue
        title = layer.title
        if (title or role != "gguf") and not _TITLE.fullmatch(title):
            raise HostileError(
                f"{where}: a file is to be called {quote(title)}, expected a plain name. No path "
                "out of the store is followed, and nothing was kept."
            )
        place = ("adapter" if role == "adapter" else "model", title.casefold())
        if title and place in titles:
            raise HostileError(f"{where}: two files are called {quote(title)}. Nothing was kept.")
        titles.add(place)
    texts = sum(d.size for d in layers if d.role is not None and d.role not in _FILES)
    if texts > _MOST_TEXTS:
        raise HostileError(
            f"{where}: {texts} bytes of templates, licences and the like, expected at most "
            f"{_MOST_TEXTS}. Nothing was kept."
        )
    for kind, title in titles:
        if (kind, title.partition("/")[0]) in titles and "/" in title:
            raise HostileError(
                f"{where}: {quote(title)} lies in what is a file too. Nothing was kept."
            )
    if not any(layer.role in ("gguf", "file") for layer in layers):
        kinds = ", ".join(sorted({quote(layer.media_type, 60) for layer in layers})[:4])
        raise HostileError(
            f"{where}: expected a model, got layers of {kinds}. Only models in GGUF files or "
            "safetensors folders can be pulled."
        )
