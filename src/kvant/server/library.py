"""Names of models to what is loaded for them.

A request names a model and nothing else: what it says is looked up among names that are known, and
is never a path. Paths come from whoever started the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvant.api.source import resolve as resolve_source
from kvant.builtin import DEMO
from kvant.errors import InputError, UsageError
from kvant.files.source import quote, with_home
from kvant.registry.errors import BadNameError, NotInStoreError
from kvant.server.jobs import ModelNotFoundError
from kvant.server.prepare import Defaults

if TYPE_CHECKING:
    from kvant.registry import Store

__all__ = ["Library", "Resolved"]

_KEPT = 256
"""Names of the store whose meaning is remembered until the store changes: every request asks."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model that is here: its full name, and what is loaded for it."""

    name: str
    path: Path
    adapter: Path | None
    defaults: Defaults
    digest: str
    size: int


class Library:
    """Models under names: those named at the start, the built-in one, and the store's.

    Args:
        models: ``NAME``, ``PATH`` or ``NAME=PATH``, from the command line.
        store: the local store, where there is one.

    Raises:
        InputError: a path does not exist.
        UsageError: two models of one name.
    """

    def __init__(self, models: Sequence[str] = (), store: Store | None = None) -> None:
        self._store = store
        self._known: dict[str, tuple[object, Resolved]] = {}
        self._paths: dict[str, Path] = {}
        self.named: list[str] = []
        """Names given at the start, in order."""
        for model in models:
            name, path = _split(model)
            if path is not None:
                if name in self._paths:
                    raise UsageError(f"Two models are called {name!r}. Write OTHER={path}.")
                self._paths[name] = path
            self.named.append(name)

    def own(self) -> list[str]:
        """Names that are not the store's, sorted; ``demo`` is always one."""
        return sorted({*self._paths, DEMO})

    def resolve(self, name: str) -> Resolved:
        """What a name stands for. Reads the disk.

        Raises:
            ModelNotFoundError: there is none of that name.
        """
        wanted = name.removesuffix(":latest")
        path = self._paths.get(wanted)
        if path is None and wanted == DEMO:
            path = resolve_source(DEMO)
        if path is not None:
            if not path.exists():
                raise ModelNotFoundError(
                    f"The files of {quote(name, 100)} are not there any more. Put them back."
                )
            return Resolved(wanted, path, None, Defaults(), "", _size(path))
        found = self._stored(name)
        if found is None:
            raise ModelNotFoundError(
                f"There is no model called {quote(name, 100)} here. `kvant list` shows those there "
                "are, `kvant pull` fetches others."
            )
        return found

    def _stored(self, name: str) -> Resolved | None:
        if self._store is None or not _is_name(name):
            return None
        stamp = self._store.stamp()
        known, found = self._known.get(name, (None, None))
        if found is not None and known == stamp and _is_there(found):
            return found
        try:
            local = self._store.resolve(name)
        except (NotInStoreError, BadNameError):
            return None
        settings = local.settings
        defaults = Defaults(
            template=local.template,
            system=local.system,
            messages=[{"role": m.role, "content": m.content} for m in local.messages],
            sampling=settings.sampling,
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            context=settings.context,
        )
        found = Resolved(local.name, local.path, local.adapter, defaults, local.digest, local.size)
        if len(self._known) >= _KEPT:  # a name has many spellings
            self._known.clear()
        self._known[name] = stamp, found
        return found


def _split(model: str) -> tuple[str, Path | None]:
    name, equals, text = model.partition("=")
    if not equals:
        text = model
        path = with_home(model)
        if not path.exists():
            return model, None  # a name, for the store
        name = path.name.removesuffix(".gguf") or path.resolve().name
    path = with_home(text)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder. Give a model's path, or its name.")
    return name, path.resolve()


def _is_name(name: str) -> bool:
    """Whether it can be a model's name, and is no path."""
    if not 1 <= len(name) <= 300 or not name.isprintable() or "\\" in name:
        return False
    return not name.startswith(("/", ".", "~", "file:")) and ".." not in name.split("/")


def _is_there(found: Resolved) -> bool:
    return found.path.exists() and (found.adapter is None or found.adapter.exists())


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.glob("*.safetensors"))
