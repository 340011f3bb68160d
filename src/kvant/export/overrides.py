"""``REGEX=LEVEL`` texts, and levels by name: levels of single tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from kvant.errors import UsageError

__all__ = ["Overrides"]


@dataclass(slots=True)
class Overrides:
    """Expressions in order; the first that is found in a name decides, then ``mixture``."""

    rules: list[tuple[re.Pattern[str], str, str]]
    mixture: Mapping[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @classmethod
    def parse(
        cls,
        texts: Sequence[str],
        levels: Collection[str],
        mixture: Mapping[str, str] | None = None,
    ) -> Overrides:
        """Read the texts; ``mixture`` has levels of tensors by their whole names.

        Raises:
            UsageError: not of this form, no such level, or no regular expression.
        """
        rules = []
        for text in texts:
            expression, equals, level = text.rpartition("=")
            if not equals or not expression or level.lower() not in levels:
                raise UsageError(
                    f"--tensor {text!r}: expected REGEX=LEVEL with one of {', '.join(levels)}."
                )
            try:
                rules.append((re.compile(expression), level.lower(), text))
            except re.error as error:
                raise UsageError(
                    f"--tensor {text!r}: {expression!r} is no regular expression: {error}."
                ) from None
        return cls(rules, mixture or {})

    def find(self, name: str) -> str | None:
        """The level for a tensor, or None."""
        for expression, level, text in self.rules:
            if expression.search(name):
                self.used.add(text)
                return level
        return self.mixture.get(name)

    def refuse_unused(self) -> None:
        """Raise UsageError where an expression was found in no name."""
        for _, _, text in self.rules:
            if text not in self.used:
                raise UsageError(f"--tensor {text!r}: no tensor has a name like that.")
