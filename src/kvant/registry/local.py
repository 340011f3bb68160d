"""A model of the store, as those who run it or show it need it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvant.errors import FileFormatError, UnsupportedError, UsageError
from kvant.files.config_json import parse_json
from kvant.files.source import quote
from kvant.registry.details import Details, license_of
from kvant.registry.errors import HostileError
from kvant.registry.index import Row
from kvant.registry.manifest import MOST_TEXT, Descriptor, Manifest, Role
from kvant.registry.modelfile import Message, Modelfile, jinja_of
from kvant.registry.parameters import Parameters, normal, split_parameters

__all__ = ["Contents", "Entry", "Local", "Shown", "distinct", "read_contents", "view_files"]

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")

Entry = Row
"""A model in a list: ``name``, ``digest`` and ``size`` (bytes, with everything), ``created`` (UTC,
ISO 8601), ``source``, and what `Details` says: ``format``, ``family``, ``parameters``,
``quantization``, ``license``, ``context``."""


@dataclass(frozen=True, slots=True)
class Local:
    """A model ready to be opened.

    Attributes:
        name: as the store calls it.
        digest: of its manifest.
        path: the GGUF file (the first shard), or the folder.
        adapter: folder of a PEFT adapter to merge, or None.
        template: chat template in Jinja in place of the file's own, or None.
        system: the system message where the conversation has none, or None.
        parameters: Ollama's names to values (``stop`` is a list); `settings` sorts them.
        messages: turns every conversation begins with.
        license: texts of its licences, joined; empty where it came with none.
        details: what is known of it.
        size: bytes of all blobs.
        notes: what a user should know, such as a template that was left out.
    """

    name: str
    digest: str
    path: Path
    adapter: Path | None
    template: str | None
    system: str | None
    parameters: Mapping[str, Any]
    messages: tuple[Message, ...]
    license: str
    details: Details
    size: int
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> Parameters:
        """The parameters, by what they are for."""
        return split_parameters(self.parameters)

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """A conversation with what it begins with here: the model's own turns, and before them its
        system message, unless the conversation has one."""
        own: list[Mapping[str, Any]] = [
            {"role": m.role, "content": m.content} for m in self.messages
        ]
        if messages and messages[0].get("role") == "system":
            return [messages[0], *own, *messages[1:]]
        if self.system and not (own and own[0]["role"] == "system"):
            own.insert(0, {"role": "system", "content": self.system})
        return [*own, *messages]


@dataclass(frozen=True, slots=True)
class Shown:
    """Everything about a model: what `show` prints."""

    entry: Entry
    modelfile: Modelfile
    details: Details
    manifest: Manifest
    license: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What the small layers of a model say."""

    details: Details
    template: str | None = None
    system: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    licenses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_contents(manifest: Manifest, read: Callable[[Descriptor], bytes]) -> Contents:
    """Take the small layers apart. Templates of Ollama's are translated, or named in a note.

    Raises:
        FileFormatError: a layer is damaged or not what its type says.
    """
    notes: list[str] = []

    def text(layer: Descriptor) -> str:
        try:
            return read(layer).decode()
        except UnicodeDecodeError:
            raise FileFormatError(
                f"Layer {layer.digest[:19]} ({layer.role}) should be text in UTF-8. Pull the model "
                "again, or tell its publisher."
            ) from None

    def first(role: Role) -> Descriptor | None:
        found = manifest.of(role)
        return found[0] if found else None

    config = _object(read(manifest.config), "config", {})
    template = None
    if (layer := first("template")) is not None:
        template = text(layer)
        if layer.from_ollama:
            try:
                template = jinja_of(template)
            except UnsupportedError as error:
                template = None
                notes.append(str(error).replace("This TEMPLATE", "The model's template", 1))
    parameters: dict[str, Any] = {}
    if (layer := first("parameters")) is not None:
        for name, value in _object(read(layer), "parameters", {}).items():
            try:
                parameters |= normal({name: value}, "parameters")
            except UsageError as error:
                notes.append(f"Left out: {error}")
    messages: list[Message] = []
    if (layer := first("messages")) is not None:
        for turn in _object(read(layer), "messages", []):
            if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
                raise FileFormatError("A message of the model has no text. Tell its publisher.")
            messages.append(Message(str(turn.get("role")), turn["content"]))
    licenses = tuple(text(layer) for layer in manifest.of("license"))
    details = Details.from_config(config)
    if not details.license and licenses:
        details = Details(**{**details.to_json(), "license": license_of(licenses[0])})
    unknown = sorted({d.media_type for d in manifest.layers if d.role is None})
    if unknown:
        notes.append(f"Layers that make no difference here: {', '.join(unknown)[:300]}.")
    system = first("system")
    return Contents(
        details,
        template,
        None if system is None else text(system),
        parameters,
        tuple(messages),
        licenses,
        tuple(notes),
    )


def view_files(manifest: Manifest, details: Details) -> tuple[dict[str, str], str, str | None]:
    """A model's files as a folder.

    Returns:
        Digest by path in the folder; the path of what is opened; that of the adapter's folder.

    Raises:
        HostileError: two files would have one path.
    """
    stem = "".join(c if (c.isalnum() and c.isascii()) or c in "._-" else "-" for c in details.name)
    stem = stem.strip(".-")[:80] or "model"
    if stem.casefold() == "adapter":
        stem = "model"
    files: list[tuple[str, str]] = []
    if ggufs := manifest.of("gguf"):
        names = []
        for number, layer in enumerate(ggufs):
            title = layer.title.rpartition("/")[2]
            if not title.endswith(".gguf"):
                title = f"{stem}.gguf" if number == 0 else f"{stem}-{number}.gguf"
            names.append(title)
            files.append((f"{stem}/{title}", layer.digest))
        # Shards are opened by the first of them, whatever order they are listed in.
        main = f"{stem}/{min(names) if all(map(_SHARD.search, names)) else names[0]}"
    else:
        files += [(f"{stem}/{layer.title}", layer.digest) for layer in manifest.of("file")]
        main = stem
    adapter = [(f"adapter/{layer.title}", layer.digest) for layer in manifest.of("adapter")]
    distinct([path for path, _ in files + adapter])
    return dict(files + adapter), main, "adapter" if adapter else None


def distinct(names: Sequence[str]) -> Sequence[str]:
    """The names files are to have in a folder; they were cleaned, which may have made two one.

    Raises:
        HostileError: two are the same.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise HostileError(
                f"{count} files would be called {quote(name)}, expected one. No model "
                "was made of them; give them other names."
            )
    return names


def _object(raw: bytes, what: str, like: Any) -> Any:
    if not raw:
        return like
    value = parse_json(raw, f"The model's {what}", 4 * MOST_TEXT)
    if not isinstance(value, type(like)):
        raise FileFormatError(f"The model's {what} should be JSON {type(like).__name__}.")
    return value


def to_layer(value: object) -> bytes:
    """JSON as it is stored: the same values give the same bytes."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
