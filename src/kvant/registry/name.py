"""Names of models, and the places they are pulled from.

::

    llama3.2:1b                      a name; pulled from Ollama's registry
    org/name:tag                     likewise
    hf://org/repo:Q4_K_M             Hugging Face: the GGUF file of that kind; hf.co/org/repo:Q4_K_M
    hf://org/repo:model.Q8_0.gguf    a file of that name
    hf://org/repo@revision           the folder of safetensors, at a branch, tag or commit
    oci://host:5000/team/name:tag    any OCI registry; host:5000/team/name:tag
    ./model.gguf, /models/folder     a file or folder, used where it lies

In the store a model is called by one text: ``llama3.2:1b``, ``hf.co/org/repo:Q4_K_M``,
``host:5000/team/name:tag``. A tag nobody gives is ``latest``. Two names that differ only in case
are one, as in Ollama; the first spelling is kept.

Everything that may come from a client or a hostile manifest goes through `parse_name`; the grammar
has no way to spell a path out of a folder.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvant.files.source import quote, with_home
from kvant.registry.errors import BadNameError

__all__ = ["HUB_HOST", "LATEST", "Name", "Reference", "parse_name", "parse_reference"]

LATEST = "latest"
HUB_HOST = "hf.co"
"""How names of models from Hugging Face begin, as in Ollama."""

_HUB_HOSTS = ("hf.co", "huggingface.co")
_MOST = 350
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:]{2,39}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)(?::[0-9]{1,5})?",
    re.ASCII,
)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}", re.ASCII)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_FORMS = "Write NAME[:TAG], hf://org/repo[:quant], oci://registry/repo[:tag], or the path of a file"


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """What a model is called in a store: ``host`` is empty for names without one."""

    host: str
    path: str
    tag: str = LATEST

    def __str__(self) -> str:
        place = f"{self.host}/{self.path}" if self.host else self.path
        return f"{place}:{self.tag}"

    @property
    def key(self) -> str:
        """Equal for names that mean the same model."""
        return str(self).casefold()


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a model is.

    ``kind`` is ``name`` (Ollama's registry, or only the store), ``hub``, ``oci`` or ``path``.
    ``name`` is what it is called in the store; ``host`` and ``repository`` where it is asked for;
    ``tag`` the tag, for the hub what selects the file (empty: nothing was said); ``revision`` is
    the hub's. ``scheme`` is what somebody insists on: ``http``, ``https``, or nothing.
    """

    kind: Literal["name", "hub", "oci", "path"]
    name: Name
    host: str = ""
    repository: str = ""
    tag: str = ""
    revision: str = ""
    path: Path | None = None
    scheme: str = ""

    def __str__(self) -> str:
        if self.kind == "path":
            return str(self.path)
        if self.kind == "hub":
            at = f"@{self.revision}" if self.revision else ""
            return f"hf://{self.repository}{at}" + (f":{self.tag}" if self.tag else "")
        if self.kind == "oci":
            scheme = f"oci+{self.scheme}" if self.scheme else "oci"
            return f"{scheme}://{self.host}/{self.repository}:{self.tag}"
        return str(self.name)


def parse_name(text: str) -> Name:
    """A name, as people and clients write it; ``hf://`` and ``oci://`` are understood too.

    Raises:
        BadNameError: it can be no name.
    """
    reference = parse_reference(text, paths=False)
    return reference.name


def parse_reference(text: str, *, paths: bool = True) -> Reference:
    """Where to find what somebody named.

    Args:
        text: any of the forms above.
        paths: whether it may be a path of this machine.

    Raises:
        BadNameError: none of the forms.
    """
    if not text or (len(text) > _MOST and not paths):
        raise _bad(text, "expected a model's name")
    scheme = _SCHEME.fullmatch(text)
    if scheme is not None:
        return _with_scheme(scheme[1].lower(), scheme[2], text)
    parts = text.split("/")
    if len(parts) > 1 and parts[0].lower() in _HUB_HOSTS:
        return _hub("/".join(parts[1:]), text)
    if paths and _is_path(text):
        path = with_home(text)
        return Reference("path", _name_of(path), path=path)
    if len(parts) > 1 and _looks_like_host(parts[0]):
        return _oci(text, text, "")
    path_, tag = _path_and_tag(text, text)
    if path_.count("/") > 1:
        raise _bad(text, "expected at most ORG/NAME before the tag")
    path_ = path_.removeprefix("library/")  # what Ollama calls names without an organisation
    return Reference("name", Name("", path_, tag), repository=path_, tag=tag)


def _with_scheme(scheme: str, rest: str, text: str) -> Reference:
    if scheme in ("hf", "huggingface"):
        return _hub(rest, text)
    if scheme in ("oci", "oci+http", "oci+https"):
        return _oci(rest, text, scheme.partition("+")[2])
    raise _bad(text, f"expected hf:// or oci://, got {scheme[:20]}://")


def _hub(rest: str, text: str) -> Reference:
    place, _, chosen = rest.partition(":")
    place, at, revision = place.partition("@")
    parts = place.split("/")
    if len(parts) != 2 or not all(map(_PART.fullmatch, parts)):
        raise _bad(text, "expected hf://ORG/REPO")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise _bad(text, "expected a branch, tag or commit after the @")
    if chosen and not _TAG.fullmatch(chosen):
        raise _bad(
            text, "expected a quantisation such as Q4_K_M, or a file's name, after the colon"
        )
    tag = chosen or LATEST
    if at:
        tag = f"{revision.replace('/', '-')}-{chosen}" if chosen else revision.replace("/", "-")
    if not _TAG.fullmatch(tag):
        raise _bad(text, "the revision and the file's name together are too long")
    return Reference(
        "hub",
        Name(HUB_HOST, place, tag),
        host=HUB_HOST,
        repository=place,
        tag="" if chosen.lower() == LATEST else chosen,
        revision=revision,
    )


def _oci(rest: str, text: str, scheme: str) -> Reference:
    host, slash, place = rest.partition("/")
    if not slash or not _HOST.fullmatch(host) or ".." in host:
        raise _bad(text, "expected oci://REGISTRY/REPOSITORY[:TAG]")
    path, tag = _path_and_tag(place, text)
    # What the distribution specification takes; others only get a registry's error.
    if path != path.lower():
        raise _bad(text, "a repository's name is written in small letters")
    return Reference(
        "oci", Name(host, path, tag), host=host, repository=path, tag=tag, scheme=scheme
    )


def _path_and_tag(rest: str, text: str) -> tuple[str, str]:
    path, colon, tag = rest.partition(":")
    if not all(_PART.fullmatch(part) and ".." not in part for part in path.split("/")):
        raise _bad(text, "expected letters, digits, and . _ - within, in parts divided by /")
    if colon and not _TAG.fullmatch(tag):
        raise _bad(text, "expected letters, digits, and . _ - after the colon")
    return path, tag or LATEST


def _looks_like_host(part: str) -> bool:
    """Docker's rule: a first part with a dot or a port is a host; so is ``localhost``."""
    if part.startswith("."):
        return False
    return part.lower() == "localhost" or "." in part or ":" in part or part.startswith("[")


def _is_path(text: str) -> bool:
    if text.startswith(("/", "./", "../", "~/", ".\\")) or text in (".", "..", "~"):
        return True
    if "\0" in text:
        return False
    return text.lower().endswith(".gguf") or os.path.lexists(text)


def _name_of(path: Path) -> Name:
    """What a file or folder is called in the store unless somebody says otherwise."""
    stem = path.name if path.suffix.lower() != ".gguf" else path.stem
    stem = stem or path.resolve().name
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem, flags=re.ASCII)[:96].strip(".-")
    clean = re.sub(r"\.{2,}", ".", clean)
    return Name("", clean or "model")


def _bad(text: str, why: str) -> BadNameError:
    return BadNameError(f"{quote(text)} is no name of a model: {why}. {_FORMS}.")
