"""What is known about a model besides its numbers: name, licence, languages, origins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvant.checkpoint.card import Card, read_card
from kvant.checkpoint.model_name import ModelName, file_stem, parse_model_id, size_label, title
from kvant.files.gguf import GgufFile, Value, ValueType, string, strings, uint32

__all__ = ["ModelInfo", "Origin", "info_from_folder", "info_from_gguf"]

#: Entries of a list; cards name a hundred languages, merges a dozen models.
_MAX_ENTRIES = 256
_MAX_TEXT = 2000
_REPOSITORY = re.compile(r"https?://huggingface\.co/(?:datasets/)?([^/\s]+/[^/\s]+)/?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_CACHED = re.compile(r"models--(.+?)--(.+)")

#: Field of ModelInfo to key in GGUF and the keys of a model card that say it, best first.
_TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "name": ("general.name", ("name", "model_name")),
    "author": ("general.author", ("author", "model_author", "model_creator")),
    "organization": ("general.organization", ("organization", "model_organization")),
    "version": ("general.version", ("version", "model_version")),
    "basename": ("general.basename", ("basename", "model_basename")),
    "finetune": ("general.finetune", ("finetune", "model_finetune")),
    "size_label": ("general.size_label", ("size_label", "model_size_label")),
    "description": ("general.description", ("description", "model_description")),
    "license": ("general.license", ("license",)),
    "license_name": ("general.license.name", ("license_name",)),
    "license_link": ("general.license.link", ("license_link",)),
    "source_url": ("general.source.url", ("url", "model_url")),
    "source_repo_url": ("general.source.repo_url", ("repo_url", "model_repo_url")),
}
_LISTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tags": ("general.tags", ("tags", "pipeline_tag")),
    "languages": ("general.languages", ("languages", "language")),
}
_ORIGINS: dict[str, tuple[str, tuple[str, ...]]] = {
    "base_models": ("general.base_model", ("base_model", "base_models", "base_model_sources")),
    "datasets": ("general.dataset", ("datasets", "dataset", "dataset_sources")),
}
_ORIGIN_KEYS = ("name", "organization", "version", "repo_url")


@dataclass(frozen=True, slots=True)
class Origin:
    """A model or data set that this model was made from."""

    name: str | None = None
    organization: str | None = None
    version: str | None = None
    repo_url: str | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Descriptive metadata; None or empty for what the source does not say."""

    name: str
    author: str | None = None
    organization: str | None = None
    version: str | None = None
    basename: str | None = None
    finetune: str | None = None
    size_label: str | None = None
    description: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    source_url: str | None = None
    source_repo_url: str | None = None
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    base_models: tuple[Origin, ...] = ()
    datasets: tuple[Origin, ...] = ()

    def file_stem(self, encoding: str) -> str:
        """The name of a GGUF file of this model, without ``.gguf``: ``Name-1B-v2-Q4_K_M``."""
        parts = ModelName(
            self.name, None, self.basename, self.size_label, self.finetune, self.version
        )
        return file_stem(parts, encoding)

    def to_gguf(self) -> dict[str, Value]:
        """The metadata ``general.*`` that says this."""
        metadata: dict[str, Value] = {"general.type": string("model")}
        for field, (key, _) in _TEXTS.items():
            if (text := getattr(self, field)) is not None:
                metadata[key] = string(text)
        for field, (key, _) in _ORIGINS.items():
            origins: tuple[Origin, ...] = getattr(self, field)
            if origins:
                metadata[f"{key}.count"] = uint32(len(origins))
            for i, origin in enumerate(origins):
                for part in _ORIGIN_KEYS:
                    if (text := getattr(origin, part)) is not None:
                        metadata[f"{key}.{i}.{part}"] = string(text)
        for field, (key, _) in _LISTS.items():
            if items := getattr(self, field):
                metadata[key] = strings(items)
        return metadata


def info_from_folder(folder: Path, config: Mapping[str, object], parameters: int) -> ModelInfo:
    """What a Hugging Face folder says: its model card, ``_name_or_path``, and the folder's name.

    The first that says something wins, as in the field's converters; a size label nobody states
    follows from ``parameters``.
    """
    card = read_card(folder)
    found: dict[str, Any] = {field: _text(card, keys) for field, (_, keys) in _TEXTS.items()}
    for model_id in _model_ids(folder, config):
        parts = parse_model_id(model_id, parameters)
        candidates = {
            "name": title(parts.full),
            "organization": parts.organization and title(parts.organization),
            "basename": parts.basename,
            "finetune": parts.finetune,
            "version": parts.version,
            "size_label": parts.size_label,
        }
        for field, value in candidates.items():
            found[field] = found[field] or value or None
    found["name"] = found["name"] or "Model"
    found["size_label"] = found["size_label"] or size_label(parameters)
    for field, (_, keys) in _LISTS.items():
        found[field] = tuple(_items(card, keys))
    for field, (_, keys) in _ORIGINS.items():
        entries = _first_items(card, keys)
        found[field] = tuple(_origin(entry, field, parameters) for entry in entries)
    return ModelInfo(**found)


def info_from_gguf(file: GgufFile, parameters: int) -> ModelInfo:
    """What a GGUF file says about itself; the file's name where it says none."""

    def text(key: str) -> str | None:
        value = file.metadata.get(key)
        if value is None or value.type is not ValueType.STRING:
            return None  # only described by it: a wrong type here does not spoil the model
        return _clean(str(value.value))

    found: dict[str, Any] = {field: text(key) for field, (key, _) in _TEXTS.items()}
    found["name"] = found["name"] or title(file.path.stem)
    found["size_label"] = found["size_label"] or size_label(parameters)
    for field, (key, _) in _LISTS.items():
        value = file.metadata.get(key)
        items = (value.texts if value is not None else None) or ()
        found[field] = tuple(filter(None, map(_clean, items[:_MAX_ENTRIES])))
    for field, (key, _) in _ORIGINS.items():
        value = file.metadata.get(f"{key}.count")
        count = value.value if value is not None and isinstance(value.value, int) else 0
        found[field] = tuple(
            Origin(*(text(f"{key}.{i}.{part}") for part in _ORIGIN_KEYS))
            for i in range(min(count, _MAX_ENTRIES))
        )
    return ModelInfo(**found)


def _model_ids(folder: Path, config: Mapping[str, object]) -> list[str]:
    """Ids that may name the model, best first."""
    place = folder.absolute()
    cached = _CACHED.fullmatch(place.parent.parent.name)
    if cached and place.parent.name == "snapshots":
        return [f"{cached[1]}/{cached[2]}"]  # Hugging Face's cache: the folder is called by a hash
    stated = config.get("_name_or_path")
    ids = [stated] if isinstance(stated, str) and _HUB_ID.fullmatch(stated) else []
    return [text for model_id in (*ids, place.name) if (text := _clean(model_id))]


def _clean(text: str) -> str | None:
    """One bounded line without control characters; None where nothing is left."""
    printable = "".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT])
    return printable.strip() or None


def _text(card: Card, keys: tuple[str, ...]) -> str | None:
    for key in keys:
        value = card.get(key, "")
        if text := _clean(value if isinstance(value, str) else ",".join(value)):
            return text
    return None


def _items(card: Card, keys: tuple[str, ...]) -> list[str]:
    return [item for key in keys for item in _first_items(card, (key,))]


def _first_items(card: Card, keys: tuple[str, ...]) -> list[str]:
    for key in keys:
        value = card.get(key)
        if value:
            items = [value] if isinstance(value, str) else value
            return [text for item in items[:_MAX_ENTRIES] if (text := _clean(item))]
    return []


def _origin(text: str, field: str, parameters: int) -> Origin:
    """An entry of a model card: a URL, or an id on the hub."""
    url: str | None = None
    if text.startswith(("http://", "https://", "ssh://")):
        url = text
        match = _REPOSITORY.fullmatch(text)
        if match is None:
            return Origin(repo_url=url)
        text = match[1]
    parts = parse_model_id(text, parameters)
    if parts.organization and url is None:
        kind = "datasets/" if field == "datasets" else ""
        url = f"https://huggingface.co/{kind}{text}"
    owner = title(parts.organization) if parts.organization else None
    return Origin(title(parts.full) or None, owner, parts.version, url)
