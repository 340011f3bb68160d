"""Who asks, and what was begun for them: one object a request, found by whoever serves it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kvant.server.running import Running

__all__ = ["ANYBODY", "Principal", "Role", "Scope", "current", "visible"]

Role = Literal["user", "operator", "admin"]
RANKS: dict[str, int] = {"user": 0, "operator": 1, "admin": 2}


@dataclass(frozen=True, slots=True)
class Principal:
    """Whose request it is. ``models`` are patterns such as ``llama*``; None allows all.

    ``local`` is somebody on this machine who needs no key.
    """

    name: str
    role: Role
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    local: bool = False

    def may(self, role: Role) -> bool:
        """Whether they may do what takes ``role``."""
        return RANKS[self.role] >= RANKS[role]

    def may_use(self, model: str) -> bool:
        """Whether a model is theirs to use."""
        if self.models is None:
            return True
        # Names that differ only in case are one.
        names = {model.casefold(), model.casefold().removesuffix(":latest")}
        return any(fnmatchcase(name, p.casefold()) for name in names for p in self.models)


ANYBODY = Principal("local", "admin", local=True)
"""Everybody on this machine, where no keys are asked for."""


@dataclass(slots=True)
class Scope:
    """A request under way."""

    request_id: str
    principal: Principal
    began: float
    running: list[Running] = field(default_factory=list)


current: ContextVar[Scope | None] = ContextVar("kvant_request", default=None)
"""The request that is served in this context."""


def visible(model: str) -> bool:
    """Whether a model is there for whoever asks; what somebody may not use is not."""
    scope = current.get()
    return scope is None or scope.principal.may_use(model)
