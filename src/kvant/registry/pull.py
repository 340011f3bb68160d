"""Pulling and pushing: the only commands that reach out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from kvant.errors import KvantError, UsageError
from kvant.files.source import quote, with_home
from kvant.registry.errors import AbsentError, UnreachableError
from kvant.registry.fetch import fetch_blob, link_file
from kvant.registry.http import Patience
from kvant.registry.layout import Layout
from kvant.registry.local import Entry
from kvant.registry.making import Base, assemble, from_files
from kvant.registry.manifest import Descriptor, Manifest, hex_of, parse_manifest
from kvant.registry.modelfile import Modelfile
from kvant.registry.name import Name, Reference, parse_name, parse_reference
from kvant.registry.oci import Registry
from kvant.registry.progress import Progress, Step, silent
from kvant.registry.store import Store

__all__ = ["ollama_folder", "pull", "push"]

_OLLAMA = "registry.ollama.ai"
_REFUSED = {
    "application/vnd.ollama.image.adapter": (
        "an adapter in a GGUF file, which kvant does not merge. Convert it to PEFT's form, or "
        "merge it before"
    ),
    "application/vnd.ollama.image.tensor": "single tensors. Pull the model in a GGUF file",
}


def pull(
    store: Store,
    source: str,
    *,
    name: str | None = None,
    offline: bool = False,
    paths: bool = True,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Entry:
    """Have a model in the store, from wherever its name says; what is there is not fetched again.

    Args:
        store: where to.
        source: as `parse_reference` reads it.
        name: what to call it, in place of the name that follows from the source.
        offline: use only what is on this machine: Hugging Face's cache and Ollama's folder.
        paths: whether the source may be a path. False for requests.
        progress: told what happens.
        patience: how long a registry may take.

    Raises:
        BadNameError: no name.
        RegistryError: there is no such model, credentials are missing, the registry failed or is
            not honest; AbsentError, DeniedError, UnreachableError, HostileError.
        InputError: a file is damaged.
        OutputError: no space, no permission.
    """
    tell = progress or silent
    found = parse_reference(source, paths=paths)
    if source in store.builtin and found.kind != "path":
        found = replace(found, kind="path", path=store.builtin[source])
    called = found.name if name is None else parse_name(name)
    with store.layout.adding():
        if found.kind == "path":
            assert found.path is not None
            place = found.path.resolve()
            base = from_files(store, place, tell)
            entry = _commit(store, called, base, str(place), tell)
        elif found.kind == "hub":
            from kvant.registry.hub import from_hub

            tell(Step("pulling manifest"))
            base = from_hub(store, found, tell, offline=offline)
            entry = _commit(store, called, base, str(found), tell)
        else:
            entry = _pull_oci(store, found, called, tell, offline, patience)
    tell(Step("success"))
    return entry


def push(
    store: Store,
    name: str,
    target: str | None = None,
    *,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> str:
    """Send a model to a registry; blobs it has are not sent again.

    Args:
        store: where it is.
        name: what it is called here.
        target: ``oci://host/repository[:tag]``; by default the name itself, where it has a host.
        progress: told what happens.
        patience: how long the registry may take.

    Returns:
        What it is called there.

    Raises:
        NotInStoreError: there is no such model.
        UsageError: a target that is no registry.
        RegistryError: refused or failed.
    """
    tell = progress or silent
    to = parse_reference(target or name, paths=False)
    if to.kind != "oci":
        raise UsageError(
            f"{quote(target or name)} names no registry to push to. Write `kvant push {name} "
            "oci://REGISTRY/REPOSITORY:TAG`."
        )
    manifest = store.manifest(name)
    resolved = store.resolve(name)  # complete, or an error that says what is missing
    registry = Registry(to.host, to.repository, scheme=to.scheme, patience=patience)
    mount = _mount_from(store.entry(name).source, to)
    tell(Step("retrieving manifest"))
    for blob in manifest.blobs:
        status = f"pushing {hex_of(blob.digest)[:12]}"

        def moved(done: int, blob: Descriptor = blob, status: str = status) -> None:
            tell(Step(status, blob.digest, done, blob.size, blob.title))

        moved(0)
        registry.push_blob(blob, store.layout.blob(blob.digest), moved, mount=mount)
        moved(blob.size)
    tell(Step("pushing manifest"))
    registry.push_manifest(manifest, to.tag)
    tell(Step("success", resolved.digest))
    return str(to)


def ollama_folder() -> Path:
    """Where Ollama keeps its models."""
    return with_home(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models")


def _commit(store: Store, name: Name, base: Base, source: str, tell: Progress) -> Entry:
    manifest = assemble(store, base, Modelfile())
    tell(Step("writing manifest"))
    return store.commit(name, manifest, source)


def _pull_oci(
    store: Store,
    found: Reference,
    called: Name,
    tell: Progress,
    offline: bool,
    patience: Patience | None,
) -> Entry:
    host, scheme, repository = found.host, found.scheme, found.repository
    if found.kind == "name":
        given = os.environ.get("KVANT_REGISTRY") or _OLLAMA
        scheme, _, host = given.rpartition("://")
        host = host.rstrip("/")
        if host == _OLLAMA and "/" not in repository:
            repository = f"library/{repository}"
    tell(Step("pulling manifest"))
    registry: Registry | None = None
    if offline:
        manifest = _ollama_manifest(host, repository, found.tag)
        if manifest is None:
            raise UnreachableError(
                f"{found} is not on this machine, and nothing may be fetched. Run without "
                "--offline, with a network."
            )
    else:
        registry = Registry(host, repository, scheme=scheme, patience=patience)
        try:
            manifest = registry.manifest(found.tag)
        except AbsentError as error:
            if found.kind == "name":
                raise AbsentError(
                    f"{host} has no model {quote(str(called))}. Check name and tag; models of "
                    "Hugging Face are named hf://ORG/REPO[:QUANT]."
                ) from None
            raise error
    for layer in manifest.layers:
        if (why := _REFUSED.get(layer.media_type)) is not None:
            raise UsageError(f"{found} has {why}.")
    for blob in manifest.blobs:
        _get_blob(store, registry, blob, tell, patience)
    tell(Step("verifying sha256 digest"))
    tell(Step("writing manifest"))
    return store.commit(called, manifest, str(found))


def _get_blob(
    store: Store,
    registry: Registry | None,
    blob: Descriptor,
    tell: Progress,
    patience: Patience | None,
) -> None:
    layout: Layout = store.layout
    if layout.has(blob.digest, blob.size):
        status = f"pulling {hex_of(blob.digest)[:12]}"
        tell(Step(status, blob.digest, blob.size, blob.size, blob.title))
        return
    there = ollama_folder() / "blobs" / f"sha256-{hex_of(blob.digest)}"
    if there.is_file() and there.stat().st_size == blob.size:
        digest, _ = link_file(layout, there, store.index, tell)
        if digest == blob.digest:
            return
    if registry is None:
        raise UnreachableError(
            f"Blob {blob.digest[:19]} is not on this machine, and nothing may be fetched."
        )
    fetch_blob(layout, blob, registry.open_blob(blob), tell, patience)


def _ollama_manifest(host: str, repository: str, tag: str) -> Manifest | None:
    """The manifest of a model that Ollama has pulled."""
    path = ollama_folder() / "manifests" / host / repository / tag
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except OSError:
        return None


def _mount_from(source: str, to: Reference) -> str | None:
    """The repository of the same registry that a model came from, which has its blobs."""
    try:
        came = parse_reference(source, paths=False)
    except KvantError:
        return None
    same = came.kind == "oci" and came.host.lower() == to.host.lower()
    return came.repository if same and came.repository != to.repository else None
