"""The models of a server as its APIs list and manage them: those named at the start, and a store's.

What somebody may not use is not listed for them, and cannot be asked for either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kvant.api.source import open_source, tokenizer_of
from kvant.checkpoint import Checkpoint
from kvant.errors import InputError, UsageError
from kvant.files.source import quote
from kvant.registry import Entry as Row
from kvant.registry import Modelfile, Step, Store
from kvant.registry.describe import Details as Described
from kvant.registry.describe import describe_folder, describe_gguf
from kvant.registry.errors import NotInStoreError
from kvant.registry.name import parse_name
from kvant.server import scope as scopes
from kvant.server.catalogue import Details, Entry, NewModel, Progress, Report, Shown
from kvant.server.failures import HttpError
from kvant.server.jobs import ModelNotFoundError
from kvant.server.library import Library, Resolved
from kvant.server.scope import visible
from kvant.server.template_traits import traits_of
from kvant.units import count_text

__all__ = ["Models"]


class Models:
    """`kvant.server.catalogue.Catalogue` over what the server knows.

    Args:
        library: names to what is loaded for them.
        store: the local store; without one nothing can be pulled or made.
    """

    def __init__(self, library: Library, store: Store | None) -> None:
        self._library, self._store = library, store
        self._described: dict[Path, tuple[int, Described]] = {}

    def list(self) -> Sequence[Entry]:
        """All models that whoever asks may use, by name."""
        found = {} if self._store is None else {e.name: _entry(e) for e in self._store.list()}
        for name in self._library.own():
            if name not in found and f"{name}:latest" not in found:
                found[name] = self._named(self._library.resolve(name))
        return [found[name] for name in sorted(found) if visible(name)]

    def show(self, name: str) -> Shown:
        """One of them.

        Raises:
            ModelNotFoundError: there is none of that name.
            InputError: its files are damaged.
        """
        resolved = self._library.resolve(name)
        if not visible(resolved.name):
            raise ModelNotFoundError(f"There is no model called {quote(name, 100)} here.")
        if self._store is not None and resolved.digest:
            shown = self._store.show(resolved.name)
            return self._shown(
                _entry(shown.entry), resolved, shown.modelfile, shown.license, shown.details
            )
        base = Modelfile(base=resolved.name)
        return self._shown(self._named(resolved), resolved, base, "", self._describe(resolved.path))

    def pull(self, name: str, report: Report, *, insecure: bool) -> None:
        """Fetch a model."""
        kept = self._writable(insecure)
        _check_grant(name)
        kept.pull(name, paths=False, progress=_told(report))

    def push(self, name: str, report: Report, *, insecure: bool) -> None:
        """Send a model to where its name says."""
        kept = self._writable(insecure)
        with _theirs(name):
            kept.push(name, progress=_told(report))

    def create(self, name: str, new: NewModel, report: Report) -> None:
        """Make a model of others, or of blobs."""
        said = Modelfile.of(
            base=new.base or "",
            parameters=new.parameters,
            template=new.template,
            system=new.system,
            licenses=new.license,
            messages=new.messages,
        )
        kept = self._writable()
        _check_grant(name)
        with _theirs(new.base):
            kept.create(
                name,
                said,
                files=new.files,
                adapters=new.adapters,
                quantize=new.quantize,
                paths=False,
                progress=_told(report),
            )

    def copy(self, source: str, destination: str) -> None:
        """Give a model another name."""
        kept = self._writable()
        _check_grant(destination)
        with _theirs(source):
            kept.copy(source, destination)

    def remove(self, name: str) -> None:
        """Forget a model."""
        kept = self._writable()
        with _theirs(name):
            kept.remove(name)

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is here."""
        return self._writable().has_blob(digest)

    def add_blob(self, digest: str, pieces: Iterable[bytes]) -> None:
        """Take content whose digest should be ``digest``."""
        self._writable().add_blob(digest, pieces)

    def _writable(self, insecure: bool = False) -> Store:
        if insecure:
            raise UsageError(
                "insecure is decided by whoever runs the server, not by a request: without TLS it "
                "reaches registries on this machine only. Leave it out."
            )
        if self._store is None:
            raise UsageError("This server has no store of models. Start it with one.")
        return self._store

    def _named(self, resolved: Resolved) -> Entry:
        try:
            modified = resolved.path.stat().st_mtime
            details = _details(self._describe(resolved.path))
        except (OSError, InputError):  # it is listed all the same; loading it says what is wrong
            modified, details = 0.0, Details()
        return Entry(resolved.name, resolved.digest, resolved.size, modified, details)

    def _describe(self, path: Path) -> Described:
        changed = path.stat().st_mtime_ns
        known = self._described.get(path)
        if known is None or known[0] != changed:
            found = describe_folder(path) if path.is_dir() else describe_gguf(path)
            known = self._described[path] = (changed, found)
        return known[1]

    def _shown(
        self,
        entry: Entry,
        resolved: Resolved,
        modelfile: Modelfile,
        license_text: str,
        details: Described,
    ) -> Shown:
        checkpoint = open_source(resolved.path)
        definition = tokenizer_of(checkpoint).definition
        template = modelfile.template or definition.chat_template or ""
        info: dict[str, Any] = {
            "general.architecture": details.family,
            "general.parameter_count": details.parameters,
            f"{details.family}.context_length": details.context,
        }
        if checkpoint.gguf is not None:
            info |= {k: _plain(v.value) for k, v in checkpoint.gguf.metadata.items()}
        fills = all(definition.token_id(n) is not None for n in ("fim_pre", "fim_suf", "fim_mid"))
        return Shown(
            entry=entry,
            modelfile=str(modelfile),
            template=template,
            system=modelfile.system or "",
            parameters=modelfile.parameters,
            license=license_text or details.license,
            info=info,
            capabilities=_capabilities(template, fills, checkpoint),
        )


def _bounded() -> bool:
    """Whether some models are not there for whoever asks."""
    scope = scopes.current.get()
    return scope is not None and scope.principal.models is not None


def _check_grant(name: str) -> None:
    """Refuse a name for a model that whoever asks could not use then, nor might replace."""
    if _bounded() and not visible(str(parse_name(name))):
        raise HttpError(
            403,
            f"Your key is for some models only, and {quote(name, 100)} would be none of them. Use "
            "another name.",
        )


@contextlib.contextmanager
def _theirs(name: str | None) -> Iterator[None]:
    """Use a model, if it is there for whoever asks; that others are like it is not said."""
    if name is None or not _bounded():
        yield
        return
    absent = ModelNotFoundError(f"There is no model called {quote(name, 100)} here.")
    if not visible(str(parse_name(name))):
        raise absent
    try:
        yield
    except NotInStoreError:
        raise absent from None


def _capabilities(template: str, fills: bool, checkpoint: Checkpoint) -> tuple[str, ...]:
    """In Ollama's words."""
    encodes = checkpoint.graph.encodes
    traits = traits_of(template or None)
    found = {
        "completion": not encodes,
        "embedding": encodes or checkpoint.pooling is not None,
        "insert": fills,
        "tools": traits.tools,
        "thinking": traits.tags is not None or traits.switchable,
    }
    return tuple(name for name, has in found.items() if has)


def _entry(row: Row) -> Entry:
    modified = datetime.fromisoformat(row.created).timestamp() if row.created else 0.0
    size = count_text(row.parameters) if row.parameters else ""
    details = Details(row.format, row.family, size, row.quantization)
    return Entry(row.name, row.digest, row.size, modified, details)


def _details(found: Described) -> Details:
    size = count_text(found.parameters) if found.parameters else ""
    return Details(found.format, found.family, size, found.quantization)


def _plain(value: Any) -> Any:
    """A GGUF value as JSON; numbers that JSON has not as text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def _told(report: Report) -> Any:
    def tell(step: Step) -> None:
        total = step.total or None
        report(Progress(step.status, step.digest, total, step.done if total else None))

    return tell
