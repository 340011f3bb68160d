"""Which models there are, as the HTTP side asks for it; the local store answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Catalogue", "Details", "Entry", "NewModel", "Progress", "Shown"]


@dataclass(frozen=True, slots=True)
class Details:
    """What is known of a model at a glance, in Ollama's words; empty where it is not."""

    format: str = ""
    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""
    parent_model: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the list. ``modified`` is a time stamp in seconds, ``size`` in bytes."""

    name: str
    digest: str = ""
    size: int = 0
    modified: float = 0.0
    details: Details = Details()


@dataclass(frozen=True, slots=True)
class Shown:
    """All that is known of a model.

    Attributes:
        entry: as in the list.
        modelfile: instructions that make it again.
        template: its chat template, Jinja.
        system: its system message.
        parameters: its own settings, under Ollama's names.
        license: texts.
        info: its metadata, under GGUF's keys where it has such.
        capabilities: ``completion``, ``tools``, ``thinking``, ``insert``, ``embedding``.
    """

    entry: Entry
    modelfile: str = ""
    template: str = ""
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ("completion",)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far something is. ``total`` and ``completed`` are bytes of the blob ``digest``."""

    status: str
    digest: str = ""
    total: int | None = None
    completed: int | None = None


@dataclass(frozen=True, slots=True)
class NewModel:
    """What ``create`` makes a model of.

    Attributes:
        base: name of a model here; None with ``files``.
        files: file name to the digest of a blob that was sent.
        adapters: the same, of adapters.
        template, system, parameters, license, messages: as in a Modelfile; None keeps the base's.
        quantize: a level, to quantise to.
    """

    base: str | None
    files: Mapping[str, str]
    adapters: Mapping[str, str]
    template: str | None
    system: str | None
    parameters: Mapping[str, Any]
    license: tuple[str, ...]
    messages: tuple[Mapping[str, Any], ...]
    quantize: str | None


Report = Callable[[Progress], None]
"""Hears progress; raises when nobody listens any more, which ends the work."""


class Catalogue(Protocol):
    """Models under names. All of it reads disks or networks, and is called in threads.

    Every method raises `ModelNotFoundError` for a name that is not there, and other `KvantError`
    for what cannot be done.
    """

    def list(self) -> Sequence[Entry]:
        """All models that are here."""
        ...

    def show(self, name: str) -> Shown:
        """One of them."""
        ...

    def pull(self, name: str, report: Report, *, insecure: bool) -> None:
        """Fetch a model."""
        ...

    def push(self, name: str, report: Report, *, insecure: bool) -> None:
        """Send a model to where its name says."""
        ...

    def create(self, name: str, new: NewModel, report: Report) -> None:
        """Make a model of others, or of blobs."""
        ...

    def copy(self, source: str, destination: str) -> None:
        """Give a model another name."""
        ...

    def remove(self, name: str) -> None:
        """Forget a model."""
        ...

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is here."""
        ...

    def add_blob(self, digest: str, pieces: Iterable[bytes]) -> None:
        """Take content whose digest should be ``digest``."""
        ...
