"""Options that would change nothing are refused: silence would look as if they had been heeded."""

from __future__ import annotations

from collections.abc import Mapping

from kvant.errors import UsageError

__all__ = ["refuse_of_gguf", "refuse_of_targets", "refuse_without_effect"]


def refuse_without_effect(given: Mapping[str, object], why: str) -> None:
    """Refuse whatever of ``given`` is there, by the option's name.

    Raises:
        UsageError: "``OPTION`` ``why``".
    """
    for option, value in given.items():
        if value:
            raise UsageError(f"{option} {why}")


def refuse_of_gguf(to: str, given: Mapping[str, object]) -> None:
    """Refuse options that only GGUF files have a meaning for, where another target is written."""
    refuse_without_effect(given, f"is for GGUF files; leave it out with --to {to}.")


def refuse_of_targets(
    *, dtype: str | None = None, verify: bool = True, settings: Mapping[str, object] | None = None
) -> None:
    """Refuse options that only other targets have a meaning for, where GGUF is written."""
    named = {f"--set {name.replace('_', '-')}": True for name in settings or {}}
    refuse_without_effect(
        {"--dtype": dtype, "--no-verify": not verify, **named},
        "is for other targets; add --to TARGET or leave it out.",
    )
