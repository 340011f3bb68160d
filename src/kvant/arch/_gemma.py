"""Fields of Gemma's: soft caps, and the scale of the queries, which GGUF has no key for."""

from __future__ import annotations

from typing import Any

from kvant.arch._config import ModelConfig
from kvant.arch._fields import Done, GgufSource, Real, field, real
from kvant.errors import UnsupportedError
from kvant.files.gguf import Value

__all__ = ["check_query_scalar", "query_scalar", "soft_cap"]


class _QueryScalar(Real):
    """Stated in config.json; in GGUF it follows from the model's shape, as llama.cpp has it."""

    def __init__(self, largest: int) -> None:
        super().__init__("query_pre_attn_scalar", (), (0, 1e6), lambda done: 256)
        self.largest = largest

    def from_gguf(self, source: GgufSource, done: Done) -> float:
        """See the class."""
        return _implied(done, self.largest)

    def to_gguf(self, value: Any) -> dict[str, Value]:
        """Nothing."""
        return {}

    def to_hf(self, value: Any, done: Done) -> dict[str, object]:
        """A whole number where it is one: transformers takes no other then."""
        return {self.hf_keys[0]: int(value) if value == int(value) else value}


def _implied(done: Done, largest: int) -> float:
    """The size of a head; in the model of so many layers, the row's share of one."""
    if done["num_hidden_layers"] == largest:
        return float(done["hidden_size"] // done["num_attention_heads"])
    return float(done["head_dim"])


def query_scalar(*, largest: int) -> Any:
    """A dataclass field: queries are divided by its root. ``largest`` is a number of layers."""
    return field(_QueryScalar(largest))


def soft_cap(key: str, gguf_default: float) -> Any:
    """A dataclass field: a bound that is always on, and llama.cpp's where a file lacks it."""
    return real(key, key, above=0, most=1e6, gguf_default=lambda done: gguf_default)


def check_query_scalar(config: ModelConfig, value: float, largest: int, where: str) -> None:
    """Check that readers of a GGUF file will compute what is meant.

    Raises:
        UnsupportedError: they would compute another scale.
    """
    expected = _implied(vars(config), largest)
    if value != expected:
        raise UnsupportedError(
            f"{where}: 'query_pre_attn_scalar' should be {expected:g} for a model of this shape, "
            f"got {value:g}. GGUF has no place for it, and its readers would compute with the "
            "former; kvant computes nothing else."
        )
