"""A model is made in the store: from files, from another model, by a Modelfile."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from kvant.errors import InputError, UsageError
from kvant.files.gguf import read_gguf_split
from kvant.files.source import quote, with_home
from kvant.registry.describe import (
    describe_folder,
    describe_gguf,
    folder_files,
    gguf_details,
    gguf_files,
    is_license,
)
from kvant.registry.details import Details, license_of
from kvant.registry.errors import HostileError
from kvant.registry.fetch import link_file
from kvant.registry.local import Contents, Entry, distinct, read_contents, to_layer, view_files
from kvant.registry.manifest import (
    CONFIG_TYPE,
    ROLE_TYPES,
    TITLE,
    Descriptor,
    Manifest,
    Role,
)
from kvant.registry.modelfile import Message, Modelfile, parse_modelfile
from kvant.registry.name import parse_name, parse_reference
from kvant.registry.progress import Progress, Step, silent
from kvant.registry.store import Store

__all__ = ["Base", "Quantizer", "create", "from_files"]

Quantizer: TypeAlias = Callable[[Path, Path | None, str, Path, Progress], None]
"""Writes a quantised GGUF file: source, adapter to merge, recipe, file to write, whom to tell."""

_BLOB = re.compile(r"@?(sha256[:-][0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Base:
    """What a model is made from: its files as layers, what they say, and the small parts."""

    layers: tuple[Descriptor, ...]
    details: Details
    contents: Contents | None = None


def create(
    store: Store,
    name: str,
    modelfile: Modelfile | str,
    *,
    files: Mapping[str, str] | None = None,
    adapters: Mapping[str, str] | None = None,
    folder: Path | None = None,
    paths: bool = True,
    quantize: str | None = None,
    quantizer: Quantizer | None = None,
    progress: Progress | None = None,
) -> Entry:
    """Make a model by a Modelfile; one of that name is replaced.

    Args:
        store: where.
        name: what it is called.
        modelfile: the file's text, or what it says.
        files: digest by file name of blobs that were sent before (`Store.add_blob`), in place of
            FROM.
        adapters: likewise, in place of ADAPTER.
        folder: what relative paths in the Modelfile start from; the current folder by default.
        paths: whether FROM and ADAPTER may name files of this machine. False for requests.
        quantize: a recipe's name: the model's files are replaced by a GGUF file of that kind, an
            adapter being merged into it.
        quantizer: what writes that file.
        progress: told what happens.

    Raises:
        BadNameError, ModelfileError, UsageError: a name or instruction that makes no sense.
        NotInStoreError: FROM names a model that is not in the store.
        InputError: a file is missing or damaged.
        OutputError: no space, no permission.
    """
    tell = progress or silent
    called = parse_name(name)
    said = (
        parse_modelfile(modelfile, need_base=not files) if isinstance(modelfile, str) else modelfile
    )
    folder = Path.cwd() if folder is None else folder
    with store.layout.adding():
        found = _from_blobs(store, files) if files else _base(store, said.base, folder, paths, tell)
        if adapters:
            found = _with_adapter(found, _adapter_blobs(store, adapters))
        elif said.adapter is not None:
            found = _with_adapter(found, _adapter(store, said.adapter, folder, paths, tell))
        if quantize is not None:
            if quantizer is None:
                raise UsageError("This store cannot quantise. Open it by kvant.api.models.store().")
            found = _quantized(store, found, quantize, quantizer, tell)
        manifest = assemble(store, found, said)
        tell(Step("writing manifest"))
        entry = store.commit(called, manifest, said.base)
    tell(Step("success"))
    return entry


def _quantized(store: Store, base: Base, recipe: str, quantizer: Quantizer, tell: Progress) -> Base:
    """The same model in a GGUF file of another kind."""
    if not re.fullmatch(r"[A-Za-z0-9_]{1,40}", recipe, re.ASCII):  # a recipe's file is a path
        raise UsageError(f"{quote(recipe)} is no recipe's name, such as Q4_K_M.")
    whole = assemble(store, base, Modelfile())
    files, main, adapter = view_files(whole, base.details)
    view = store.layout.view(whole, files)
    with store.layout.workplace() as folder:
        stem = main.rpartition("/")[2].removesuffix(".gguf")
        out = folder / f"{stem}-{recipe.upper()}.gguf"
        quantizer(view / main, None if adapter is None else view / adapter, recipe, out, tell)
        made = from_files(store, out, tell, ours=True)
    kept = tuple(d for d in base.layers if d.role not in ("gguf", "file", "adapter"))
    old = base.details
    name, license_ = old.name or made.details.name, made.details.license or old.license
    details = replace(made.details, name=name, license=license_)
    return Base((*made.layers, *kept), details, base.contents)


def from_files(
    store: Store,
    path: Path,
    progress: Progress,
    *,
    ours: bool = False,
    check: Callable[[Path, str], None] | None = None,
) -> Base:
    """A GGUF file (with its other shards) or a folder of safetensors as layers, in place.

    Args:
        store: where.
        path: the file, any shard, or the folder.
        progress: told what happens.
        ours: the files may be moved away.
        check: as for `link_file`.

    Raises:
        InputError: it is neither, or damaged.
        HostileError: two files would have one name.
    """
    if path.is_dir():
        details = describe_folder(path)
        named = folder_files(path)
        role: Role = "file"
    else:
        file = read_gguf_split(path)
        details = gguf_details(file)
        parts = gguf_files(file)
        named = dict(zip(distinct([_title(p.name) for p in parts]), parts, strict=True))
        role = "gguf"
    layers = []
    licenses = []
    for title, place in named.items():
        digest, size = link_file(store.layout, place, store.index, progress, ours=ours, check=check)
        progress(Step("using existing file", digest, size, size, title))
        layers.append(Descriptor(ROLE_TYPES[role], digest, size, {TITLE: title}))
        if is_license(title) and size < 1 << 20:
            licenses.append(Descriptor(ROLE_TYPES["license"], digest, size))
            if not details.license:
                text = store.layout.read(layers[-1]).decode(errors="replace")
                details = replace(details, license=license_of(text))
    return Base((*layers, *licenses), details)


def assemble(store: Store, base: Base, said: Modelfile) -> Manifest:
    """The manifest of a model: what the base has, with what the Modelfile says in its place."""
    had = base.contents or Contents(base.details)
    template = said.template if said.template is not None else had.template
    system = said.system if said.system is not None else had.system
    parameters = {**had.parameters, **said.parameters}
    messages: Sequence[Message] = said.messages or had.messages
    layers = [d for d in base.layers if d.role in ("gguf", "file", "adapter")]

    def add(role: Role, data: bytes) -> None:
        layers.append(Descriptor(ROLE_TYPES[role], store.layout.add_bytes(data), len(data)))

    if template is not None:
        add("template", template.encode())
    if system:
        add("system", system.encode())
    if parameters:
        add("parameters", to_layer(parameters))
    if messages:
        add("messages", to_layer([{"role": m.role, "content": m.content} for m in messages]))
    details = base.details
    if said.licenses:
        for text in said.licenses:
            add("license", text.encode())
        details = replace(details, license=license_of(said.licenses[0]))
    else:
        for layer in base.layers:
            if layer.role == "license":
                layers.append(Descriptor(ROLE_TYPES["license"], layer.digest, layer.size))
    config = to_layer(details.to_json())
    notes = {}
    if details.name:
        notes[TITLE] = details.name
    if details.license:
        notes["org.opencontainers.image.licenses"] = details.license
    return Manifest.build(
        Descriptor(CONFIG_TYPE, store.layout.add_bytes(config), len(config)), tuple(layers), notes
    )


def _local_path(store: Store, base: str, folder: Path, paths: bool) -> Path | None:
    """The file or folder that FROM names; None where it names a model.

    Without ``paths`` the disk is not looked at: what is there is nobody's business.
    """
    if _BLOB.fullmatch(base) or "://" in base:
        return None
    path = with_home(base)
    path = path if path.is_absolute() else folder / path
    looks = base.startswith((".", "/", "~")) or base.lower().endswith(".gguf")
    if looks or (paths and path.exists() and base not in store):
        return path
    return None


def _base(store: Store, base: str, folder: Path, paths: bool, tell: Progress) -> Base:
    if match := _BLOB.fullmatch(base):
        return _from_blobs(store, {"model.gguf": match[1].replace("-", ":")})
    path = _local_path(store, base, folder, paths)
    if base in store.builtin and base not in store:
        path, paths = store.builtin[base], True
    if path is not None:
        if not paths:
            raise UsageError(
                f"FROM should name a model of the store here, or files that were sent, got "
                f"{quote(base)}."
            )
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; FROM names it. Check the path.")
        return from_files(store, path, tell)
    manifest = store.manifest(str(parse_reference(base, paths=False).name))
    contents = read_contents(manifest, store.layout.read)
    return Base(manifest.layers, contents.details, contents)


def _from_blobs(store: Store, files: Mapping[str, str]) -> Base:
    """Files that were sent before, by digest."""
    layers = []
    titles = distinct([_title(name) for name in files])
    for title, (name, digest) in zip(titles, files.items(), strict=True):
        if not store.has_blob(digest):
            raise UsageError(f"Blob {quote(digest)} of {quote(name)} was not sent. Send it first.")
        role: Role = "gguf" if title.lower().endswith(".gguf") else "file"
        size = store.layout.blob(digest).stat().st_size
        layers.append(Descriptor(ROLE_TYPES[role], digest, size, {TITLE: title}))
    ggufs = [d for d in layers if d.role == "gguf"]
    with store.layout.workplace() as folder:
        for layer in ggufs or layers:
            place = folder / layer.title
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(store.layout.blob(layer.digest).absolute())
        details = describe_gguf(folder / ggufs[0].title) if ggufs else describe_folder(folder)
    if details.name.lower() == Path(layers[0].title).stem.lower():
        details = replace(details, name="")
    return Base(tuple(layers), details)


def _adapter_blobs(store: Store, adapters: Mapping[str, str]) -> tuple[Descriptor, ...]:
    found = []
    titles = distinct([_title(Path(name).name) for name in adapters])
    for title, (name, digest) in zip(titles, adapters.items(), strict=True):
        if not store.has_blob(digest):
            raise UsageError(f"Blob {quote(digest)} of {quote(name)} was not sent. Send it first.")
        size = store.layout.blob(digest).stat().st_size
        found.append(Descriptor(ROLE_TYPES["adapter"], digest, size, {TITLE: title}))
    return tuple(found)


def _adapter(
    store: Store, text: str, folder: Path, paths: bool, tell: Progress
) -> tuple[Descriptor, ...]:
    if not paths:
        raise UsageError(f"ADAPTER cannot name a file here, got {quote(text)}. Send its files.")
    place = with_home(text)
    place = place if place.is_absolute() else folder / place
    found = []
    for title in ("adapter_config.json", "adapter_model.safetensors"):
        if not (place / title).is_file():
            raise InputError(
                f"{place}: expected a LoRA adapter's folder with {title}; ADAPTER names it. "
                "Name the folder that PEFT saved."
            )
        digest, size = link_file(store.layout, place / title, store.index, tell)
        found.append(Descriptor(ROLE_TYPES["adapter"], digest, size, {TITLE: title}))
    return tuple(found)


def _with_adapter(base: Base, adapter: tuple[Descriptor, ...]) -> Base:
    kept = tuple(d for d in base.layers if d.role != "adapter")
    return replace(base, layers=(*kept, *adapter))


def _title(name: str) -> str:
    """A file's name as it may stand in a manifest."""
    clean = re.sub(r"[^A-Za-z0-9_.+/-]+", "-", name, flags=re.ASCII)
    parts = clean.split("/")
    if len(parts) > 2 or any(not p or p.startswith(".") for p in parts) or name.startswith("/"):
        raise HostileError(f"{quote(name)} is no plain file name. Nothing was kept.")
    parts = [p.lstrip("+-")[:100] or "file" for p in parts]
    return "/".join(parts)
