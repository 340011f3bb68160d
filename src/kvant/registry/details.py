"""What a list says of a model, as a config keeps it. Opens no file; describe.py does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Details", "license_of"]

_KNOWN_TEXTS = (
    ("Apache License", "apache-2.0"),
    ("MIT License", "mit"),
    ("LLAMA 3.3 COMMUNITY", "llama3.3"),
    ("LLAMA 3.2 COMMUNITY", "llama3.2"),
    ("LLAMA 3.1 COMMUNITY", "llama3.1"),
    ("META LLAMA 3 COMMUNITY", "llama3"),
    ("LLAMA 2 COMMUNITY", "llama2"),
    ("Gemma Terms of Use", "gemma"),
    ("GNU AFFERO GENERAL PUBLIC", "agpl-3.0"),
    ("BSD 3-Clause", "bsd-3-clause"),
)


@dataclass(frozen=True, slots=True)
class Details:
    """What is known of a model; empty or 0 for what nobody says.

    ``format`` is ``gguf`` or ``safetensors``; ``family`` the architecture as the file calls it;
    ``quantization`` a recipe's name, or the type of most weights; ``license`` an SPDX id or the
    name its publisher gave; ``context`` in tokens.
    """

    format: str
    family: str = ""
    name: str = ""
    parameters: int = 0
    quantization: str = ""
    license: str = ""
    context: int = 0

    def to_json(self) -> dict[str, Any]:
        """As a config; what is not known is left out."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Details:
        """From kvant's config, or Ollama's; what is of the wrong type is left out."""

        def text(*keys: str) -> str:
            found = next((config[k] for k in keys if isinstance(config.get(k), str)), "")
            return "".join(c for c in found[:200] if c.isprintable())

        def count(key: str) -> int:
            value = config.get(key)
            return value if type(value) is int and 0 <= value < 1 << 60 else 0

        return cls(
            format=text("format", "model_format") or "gguf",
            family=text("family", "model_family"),
            name=text("name"),
            parameters=count("parameters") or _from_label(text("model_type")),
            quantization=text("quantization", "file_type"),
            license=text("license"),
            context=count("context"),
        )


def license_of(text: str) -> str:
    """The short name of a licence, from its text: a well-known one, or its first line."""
    head = text[:2000]
    for mark, name in _KNOWN_TEXTS:
        if mark.casefold() in head.casefold():
            return name
    line = next((line.strip() for line in head.splitlines() if line.strip()), "")
    return "".join(c for c in line[:60] if c.isprintable())


def _from_label(label: str) -> int:
    """``1.2B`` as a number of parameters."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMBT])", label)
    return int(float(match[1]) * 1000 ** (1 + "KMBT".index(match[2]))) if match else 0
