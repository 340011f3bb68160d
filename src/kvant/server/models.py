"""The models of a server as its APIs list and manage them: those named at the start, and a store's.

What somebody may not use is not listed for them, and cannot be asked for either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvant.errors import KvantError, UnsupportedError, UsageError
from kvant.server import scope as scopes
from kvant.server.catalogue import Details, Entry, NewModel, Progress, Report, Shown
from kvant.server.jobs import ModelNotFoundError
from kvant.server.library import Library, Resolved

if TYPE_CHECKING:
    from kvant.registry import Step, Store

__all__ = ["Models"]

_READ = 1 << 20


class Models:
    """Implements `kvant.server.catalogue.Catalogue`.

    Args:
        library: names, and what they stand for.
        store: the local store; None where a server has none, which then manages nothing.
    """

    def __init__(self, library: Library, store: Store | None) -> None:
        self._library, self._store = library, store

    def list(self) -> Sequence[Entry]:
        """All models that are here, and may be seen by whoever asks."""
        stored = [] if self._store is None else [_entry(row) for row in self._store.list()]
        known = {entry.name for entry in stored}
        named = [n for n in self._library.own() if n not in known and f"{n}:latest" not in known]
        own = [self._own(self._library.resolve(name)) for name in named]
        return [entry for entry in [*own, *stored] if _visible(entry.name)]

    def show(self, name: str) -> Shown:
        """One of them."""
        found = self._library.resolve(name)
        if not _visible(found.name):
            raise ModelNotFoundError(f"There is no model called {name[:100]!r} here.")
        info, details, capabilities, template = _described(found)
        d = found.defaults
        shown = None if self._store is None or not found.digest else self._store.show(name)
        entry = self._own(found) if shown is None else _entry(shown.entry)
        return Shown(
            entry=Entry(entry.name, entry.digest, entry.size, entry.modified, details),
            modelfile=f"FROM {found.name}\n" if shown is None else str(shown.modelfile),
            template=d.template or template or "",
            system=d.system or "",
            parameters={} if shown is None else shown.modelfile.parameters,
            license="" if shown is None else shown.license,
            info=info,
            capabilities=capabilities,
        )

    # ---- managing --------------------------------------------------------------------------------

    def pull(self, name: str, report: Report, *, insecure: bool) -> None:
        """Fetch a model."""
        _refuse_insecure(insecure)
        self._managed().pull(name, paths=False, progress=_telling(report))

    def push(self, name: str, report: Report, *, insecure: bool) -> None:
        """Send a model to where its name says."""
        _refuse_insecure(insecure)
        self._found(lambda: self._managed().push(name, progress=_telling(report)), name)

    def create(self, name: str, new: NewModel, report: Report) -> None:
        """Make a model of others, or of blobs."""
        from kvant.registry.modelfile import Modelfile

        said = Modelfile.of(
            base=new.base or "",
            parameters=new.parameters,
            template=new.template,
            system=new.system,
            licenses=new.license,
            messages=new.messages,
        )
        store = self._managed()
        self._found(
            lambda: store.create(
                name,
                said,
                quantize=new.quantize,
                files=new.files or None,
                adapters=new.adapters or None,
                paths=False,
                progress=_telling(report),
            ),
            new.base or name,
        )

    def copy(self, source: str, destination: str) -> None:
        """Give a model another name."""
        self._found(lambda: self._managed().copy(source, destination), source)

    def remove(self, name: str) -> None:
        """Forget a model."""
        self._found(lambda: self._managed().remove(name), name)

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is here."""
        return self._managed().has_blob(digest)

    def add_blob(self, digest: str, file: Path) -> None:
        """Take a file, whose content should have ``digest``."""

        def pieces() -> Iterator[bytes]:
            with file.open("rb") as source:
                while data := source.read(_READ):
                    yield data

        self._managed().add_blob(digest, pieces())
        file.unlink(missing_ok=True)

    def _managed(self) -> Store:
        if self._store is None:
            raise UnsupportedError("This server has no store of models; it serves those it has.")
        return self._store

    def _found(self, work: Callable[[], Any], name: str) -> None:
        from kvant.registry.errors import NotInStoreError

        try:
            work()
        except NotInStoreError as error:
            raise ModelNotFoundError(str(error)) from None

    def _own(self, found: Resolved) -> Entry:
        try:
            modified = found.path.stat().st_mtime
        except OSError:
            modified = 0.0
        return Entry(found.name, found.digest, found.size, modified)


def _visible(name: str) -> bool:
    scope = scopes.current.get()
    return scope is None or scope.principal.may_use(name)


def _refuse_insecure(insecure: bool) -> None:
    if insecure:
        raise UsageError(
            "insecure is not supported: registries are asked over HTTPS, except on this machine."
        )


def _telling(report: Report) -> Callable[[Step], None]:
    def tell(step: Step) -> None:
        sized = bool(step.digest)
        total, done = (step.total, step.done) if sized else (None, None)
        report(Progress(step.status, step.digest, total, done))

    return tell


def _entry(row: Any) -> Entry:
    try:
        modified = datetime.fromisoformat(row.created).timestamp()
    except ValueError:
        modified = 0.0
    details = Details(
        row.format, row.family, _count(row.parameters), row.quantization, row.source or ""
    )
    return Entry(row.name, row.digest, row.size, modified, details)


def _count(parameters: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if parameters >= size:
            return f"{parameters / size:.1f}{unit}"
    return str(parameters or "")


def _described(found: Resolved) -> tuple[dict[str, Any], Details, tuple[str, ...], str | None]:
    """Metadata, details, what it can do, and its own template; from the model's files."""
    from kvant.api.source import open_source

    try:
        checkpoint = open_source(found.path)
        definition = checkpoint.tokenizer()
    except KvantError:
        return {}, Details(), ("completion",), None
    family, config = checkpoint.architecture.name, checkpoint.config
    info: dict[str, Any] = {
        "general.architecture": family,
        "general.parameter_count": checkpoint.parameters,
        f"{family}.context_length": config.max_position_embeddings,
        f"{family}.embedding_length": config.hidden_size,
    }
    details = Details(
        "gguf" if checkpoint.gguf is not None else "safetensors",
        family,
        _count(checkpoint.parameters),
    )
    template = None if definition is None else definition.chat_template
    can = ["embedding"] if checkpoint.graph.encodes else ["completion"]
    used = found.defaults.template or template or ""
    if "tools" in used:
        can.append("tools")
    if "enable_thinking" in used or "<think>" in used:
        can.append("thinking")
    if definition is not None and definition.token_id("fim_mid") is not None:
        can.append("insert")
    return info, details, tuple(can), template
