"""The store: models by name, on this machine. Only `pull` and `push` use the network.

What lies where, and why a process may be killed at any moment, is said in layout.py. A `Store`
keeps no state of its own: any number of them, in any number of processes and threads, may use one
folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kvant.errors import FileFormatError, InputError, KvantError
from kvant.files.source import quote, with_home
from kvant.registry.checking import Verified, verify
from kvant.registry.errors import BadNameError, NotInStoreError
from kvant.registry.index import Blobs, Index
from kvant.registry.layout import Layout
from kvant.registry.listed import Listed
from kvant.registry.local import Contents, Entry, Local, Shown, read_contents, view_files
from kvant.registry.manifest import Descriptor, Manifest
from kvant.registry.modelfile import Modelfile
from kvant.registry.name import Name, parse_name
from kvant.registry.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kvant.registry.making import Quantizer

__all__ = ["Store", "Swept", "Verified", "kvant_home"]


def kvant_home() -> Path:
    """Where kvant keeps what outlives a command: ``KVANT_HOME``, or ``~/.local/share/kvant``."""
    if given := os.environ.get("KVANT_HOME"):
        return with_home(given)
    return with_home(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "kvant"


@dataclass(frozen=True, slots=True)
class Swept:
    """What was removed; ``busy`` where somebody was adding to the store, so nothing was."""

    blobs: int = 0
    bytes: int = 0
    busy: bool = False


class Store:
    """Models by name.

    Args:
        root: its folder; by default ``models`` in `kvant_home`. It is made when first written to.
        quantizer: what `create` quantises with; `kvant.api.models.store` brings one.
        builtin: paths of models that `pull` and FROM know by a name, where the store has none so
            called.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        quantizer: Quantizer | None = None,
        builtin: Mapping[str, Path] | None = None,
    ) -> None:
        self.root = kvant_home() / "models" if root is None else Path(root)
        self._layout = Layout(self.root)
        self._index = Index(self.root / "index.sqlite")
        self._quantizer = quantizer
        self.builtin = dict(builtin or {})

    # ---- reading -----------------------------------------------------------------------------

    def list(self) -> Sequence[Entry]:
        """All models that are complete, by name.

        Raises:
            FileFormatError: the store is damaged.
        """
        return [row for row in self._rows() if self._complete(row.digest)]

    def incomplete(self) -> Sequence[str]:
        """Names of models that lack a file: somebody deleted what they were used from in place."""
        return [row.name for row in self._rows() if not self._complete(row.digest)]

    def __contains__(self, name: str) -> bool:
        try:
            return self._find(parse_name(name)) is not None
        except BadNameError:
            return False

    def entry(self, name: str) -> Entry:
        """What a list says of one model.

        Raises:
            NotInStoreError: there is none of that name.
        """
        wanted = parse_name(name)
        for row in self._rows():
            if row.name.casefold() == wanted.key:
                return row
        raise self._absent(wanted)

    def stamp(self) -> tuple[int, int, int] | None:
        """Differs whenever the models that are listed changed; costs a look at one file."""
        try:
            stat = self._layout.index_file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def resolve(self, name: str) -> Local:
        """A model, ready to be opened.

        Raises:
            BadNameError: it can be no name.
            NotInStoreError: there is none of that name.
            InputError: it is incomplete or damaged.
        """
        listed = self._get(name)
        manifest = self._manifest(listed)
        for blob in manifest.blobs:
            if not self._layout.has(blob.digest, blob.size):
                raise self._lacks(listed, manifest, blob.digest)
        contents = read_contents(manifest, self._layout.read)
        files, main, adapter = view_files(manifest, contents.details)
        view = self._layout.view(manifest, files)
        return Local(
            name=listed.name,
            digest=listed.manifest.digest,
            path=view / main,
            adapter=None if adapter is None else view / adapter,
            template=contents.template,
            system=contents.system,
            parameters=contents.parameters,
            messages=contents.messages,
            license="\n\n".join(contents.licenses),
            details=contents.details,
            size=manifest.size,
            notes=contents.notes,
        )

    def show(self, name: str) -> Shown:
        """Everything about a model.

        Raises:
            As `resolve`.
        """
        listed = self._get(name)
        manifest = self._manifest(listed)
        contents = read_contents(manifest, self._layout.read)
        modelfile = Modelfile(
            base=listed.name.removesuffix(":latest"),
            parameters=contents.parameters,
            template=contents.template,
            system=contents.system,
            licenses=contents.licenses,
            messages=contents.messages,
        )
        entry = self._row(listed, manifest, contents)
        text = "\n\n".join(contents.licenses)
        return Shown(entry, modelfile, contents.details, manifest, text, contents.notes)

    # ---- changing ----------------------------------------------------------------------------

    def copy(self, source: str, target: str) -> None:
        """Give a model a second name; one that has the name already is replaced.

        Raises:
            NotInStoreError: there is no ``source``.
            BadNameError: one can be no name.
        """
        old, new = parse_name(source), parse_name(target)
        with self._layout.adding(), self._layout.changing() as listed:
            if old.key not in listed:
                raise self._absent(old)
            listed[new.key] = replace(listed[old.key], name=str(new), created=_now())

    def remove(self, *names: str) -> Swept:
        """Forget models, and remove what no other model needs.

        Raises:
            NotInStoreError: one of them is not there; then nothing is removed.
        """
        wanted = [parse_name(name) for name in names]
        if not self._layout.exists and wanted:
            raise self._absent(wanted[0])
        with self._layout.adding(), self._layout.changing() as listed:
            for name in wanted:
                if name.key not in listed:
                    raise self._absent(name)
            for name in wanted:
                listed.pop(name.key, None)
        return self.collect()

    def collect(self) -> Swept:
        """Remove what no model needs. While somebody adds to the store nothing is removed.

        Raises:
            FileFormatError: the store is damaged; then nothing is removed either.
        """
        if not self._layout.exists:
            return Swept()
        with self._layout.alone() as free:
            if not free:
                return Swept(busy=True)
            _, listed = self._layout.models()
            used: set[str] = set()
            for entry in listed:
                used.add(entry.manifest.digest)
                used.update(blob.digest for blob in self._manifest(entry).blobs)
            return Swept(*self._layout.sweep(used, {e.manifest.digest for e in listed}))

    def verify(self, progress: Progress | None = None) -> Verified:
        """Read every byte of every model and compare it with its digest.

        Raises:
            FileFormatError: ``index.json`` itself is damaged.
        """
        return verify(self._layout, progress)

    # ---- from elsewhere, and made here ---------------------------------------------------------

    def pull(
        self,
        source: str,
        *,
        name: str | None = None,
        offline: bool = False,
        paths: bool = True,
        progress: Progress | None = None,
    ) -> Entry:
        """Have a model here, from wherever its name says; see `kvant.registry.pull.pull`."""
        from kvant.registry.pull import pull

        return pull(self, source, name=name, offline=offline, paths=paths, progress=progress)

    def push(self, name: str, target: str | None = None, progress: Progress | None = None) -> str:
        """Send a model to a registry; see `kvant.registry.pull.push`."""
        from kvant.registry.pull import push

        return push(self, name, target, progress=progress)

    def create(
        self,
        name: str,
        modelfile: Modelfile | str,
        *,
        quantize: str | None = None,
        files: Mapping[str, str] | None = None,
        adapters: Mapping[str, str] | None = None,
        folder: Path | None = None,
        paths: bool = True,
        progress: Progress | None = None,
    ) -> Entry:
        """Make a model by a Modelfile; see `kvant.registry.making.create`."""
        from kvant.registry.making import create

        return create(
            self,
            name,
            modelfile,
            files=files,
            adapters=adapters,
            folder=folder,
            paths=paths,
            quantize=quantize,
            quantizer=self._quantizer,
            progress=progress,
        )

    # ---- blobs (for those who send files piece by piece) --------------------------------------

    def has_blob(self, digest: str) -> bool:
        """Whether the content of a digest is in the store.

        Raises:
            HostileError: it is no digest.
        """
        return self._layout.has(digest)

    def add_blob(self, digest: str, pieces: Iterable[bytes]) -> None:
        """Store content that somebody sends, if it is what the digest says.

        It stays until the next `collect` that finds it unused.

        Raises:
            HostileError: it is something else; nothing was kept.
            OutputError: no space, no permission.
        """
        from kvant.registry.fetch import store_pieces

        with self._layout.adding():
            store_pieces(self._layout, digest, pieces)

    # ---- what the other files of this room use -------------------------------------------------

    @property
    def layout(self) -> Layout:
        """The files."""
        return self._layout

    @property
    def index(self) -> Index:
        """The database."""
        return self._index

    def manifest(self, name: str) -> Manifest:
        """The manifest of a model.

        Raises:
            NotInStoreError: there is none of that name.
        """
        return self._manifest(self._get(name))

    def commit(self, name: Name, manifest: Manifest, source: str) -> Entry:
        """List a model whose blobs are all there; within `Layout.adding`.

        Raises:
            FileFormatError: one is missing, which is a bug in what put them there.
        """
        for blob in manifest.blobs:
            if not self._layout.has(blob.digest, blob.size):
                raise FileFormatError(f"{name}: blob {blob.digest} is missing. Try again.")
        contents = read_contents(manifest, self._layout.read)  # nothing unreadable is ever listed
        self._layout.add_bytes(manifest.raw)
        files, _, _ = view_files(manifest, contents.details)
        self._layout.view(manifest, files)
        descriptor = Descriptor(manifest.media_type, manifest.digest, len(manifest.raw))
        listed = Listed(str(name), descriptor, _now(), source)
        with self._layout.changing() as models:
            models[name.key] = listed
        return self._row(listed, manifest, contents)

    # ---- inside ------------------------------------------------------------------------------

    def _rows(self) -> Sequence[Entry]:
        if not self._layout.exists:
            return []
        state, listed = self._layout.models()
        by_key = {entry.key: entry for entry in listed}

        def describe(key: str) -> tuple[Entry, Blobs]:
            entry = by_key[key]
            try:
                manifest = self._manifest(entry)
                row = self._row(entry, manifest, read_contents(manifest, self._layout.read))
            except KvantError:  # damaged: not complete, so never listed
                return _unreadable(entry), [(entry.manifest.digest, -1, "", "")]
            blobs = [(d.digest, d.size, d.role or "", d.title) for d in manifest.blobs]
            return row, [*blobs, (manifest.digest, len(manifest.raw), "manifest", "")]

        keys = [(entry.key, entry.manifest.digest) for entry in listed]
        return self._index.rows(state, keys, describe)

    def _row(self, listed: Listed, manifest: Manifest, contents: Contents) -> Entry:
        d = contents.details
        return Entry(
            name=listed.name,
            digest=listed.manifest.digest,
            size=manifest.size,
            created=listed.created,
            source=listed.source,
            format=d.format,
            family=d.family,
            parameters=d.parameters,
            quantization=d.quantization,
            license=d.license,
            context=d.context,
        )

    def _complete(self, manifest: str) -> bool:
        return all(self._layout.has(d, size) for d, size in self._index.blobs(manifest))

    def _find(self, name: Name) -> Listed | None:
        if not self._layout.exists:
            return None
        _, listed = self._layout.models()
        return next((entry for entry in listed if entry.key == name.key), None)

    def _get(self, text: str) -> Listed:
        name = parse_name(text)
        found = self._find(name)
        if found is None:
            raise self._absent(name)
        return found

    def _absent(self, name: Name) -> NotInStoreError:
        near = [row.name for row in self._rows() if name.path.casefold() in row.name.casefold()]
        hint = f" Similar: {', '.join(near[:4])}." if near else ""
        return NotInStoreError(
            f"There is no model {quote(str(name))} in the store. `kvant pull {name}` gets it, "
            f"`kvant list` shows what is there.{hint}"
        )

    def _manifest(self, listed: Listed) -> Manifest:
        return self._layout.manifest(listed)

    def _lacks(self, listed: Listed, manifest: Manifest, digest: str) -> InputError:
        path = self._layout.blob(digest)
        what = f"blob {digest[:19]}…"
        if path.is_symlink():
            what = f"{path.readlink()}, which it was used from in place"
        return InputError(
            f"{listed.name} is not complete any more: {what} is gone or changed. "
            f"`kvant pull {listed.source or listed.name}` gets it again."
        )


def _unreadable(entry: Listed) -> Entry:
    return Entry(
        entry.name, entry.manifest.digest, 0, entry.created, entry.source, "", "", 0, "", "", 0
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
