"""Names of models to what is loaded for them.

A request names a model and nothing else: what it says is looked up among names that are known, and
is never a path. Paths come from whoever started the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from kvant.api.source import resolve as resolve_source
from kvant.builtin import DEMO
from kvant.engine.sampling import Sampling
from kvant.errors import InputError, KvantError, UsageError
from kvant.files.source import quote
from kvant.server.jobs import ModelNotFoundError
from kvant.server.prepare import Defaults

__all__ = ["Library", "Resolved", "defaults_of"]

_PARAMETERS = {"repeat_penalty": "repetition_penalty"}
_SAMPLING = frozenset(f.name for f in fields(Sampling))


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model that is here: its full name, and what is loaded for it."""

    name: str
    path: Path
    adapter: Path | None
    defaults: Defaults
    digest: str
    size: int


class Store(Protocol):
    """What is asked of the local store (`kvant.registry.Store`)."""

    def list(self) -> Sequence[Any]:
        """Models, each with a ``name``."""
        ...

    def resolve(self, name: str) -> Any:
        """A model's files and settings."""
        ...


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

    def names(self) -> list[str]:
        """All names, sorted; ``demo`` is always there."""
        stored = [] if self._store is None else [m.name for m in self._store.list()]
        return sorted({*self._paths, *stored, DEMO})

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
        try:
            local = self._store.resolve(name)
        except InputError:
            return None
        except KvantError:
            return None
        path = Path(local.path)
        full = getattr(local, "name", None) or name
        messages = tuple(
            {"role": m.role, "content": m.content} if hasattr(m, "role") else dict(m)
            for m in local.messages or ()
        )
        defaults = defaults_of(
            local.parameters or {}, template=local.template, system=local.system, messages=messages
        )
        adapter = None if local.adapter is None else Path(local.adapter)
        return Resolved(str(full), path, adapter, defaults, local.digest, _size(path))


def defaults_of(
    parameters: Mapping[str, Any],
    *,
    template: str | None = None,
    system: str | None = None,
    messages: Sequence[Mapping[str, Any]] = (),
) -> Defaults:
    """Parameters under Ollama's names (``num_ctx``, ``repeat_penalty``, ...) as defaults.

    Parameters that mean nothing to this engine (``mirostat``, ``num_gpu``, ...) are left out.
    """
    sampling: dict[str, Any] = {}
    for key, value in parameters.items():
        own = _PARAMETERS.get(key, key)
        if own in _SAMPLING:
            sampling[own] = value
    stop = parameters.get("stop", ())
    most = parameters.get("num_predict")
    context = parameters.get("num_ctx")
    return Defaults(
        template=template,
        system=system,
        messages=messages,
        sampling=sampling,
        max_tokens=int(most) if most is not None and int(most) > 0 else None,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        context=None if context is None else int(context),
    )


def _split(model: str) -> tuple[str, Path | None]:
    name, equals, text = model.partition("=")
    if not equals:
        text = model
        path = Path(model).expanduser()
        if not path.exists():
            return model, None  # a name, for the store
        name = path.name.removesuffix(".gguf") or path.resolve().name
    path = Path(text).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder. Give a model's path, or its name.")
    return name, path.resolve()


def _is_name(name: str) -> bool:
    """Whether it can be a model's name, and is no path."""
    if not 1 <= len(name) <= 300 or not name.isprintable() or "\\" in name:
        return False
    return not name.startswith(("/", ".", "~", "file:")) and ".." not in name.split("/")


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.glob("*.safetensors"))
