"""What configs share: reading and writing them, and the fields that most have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from kvant.arch._fields import Field, GgufSource, HfSource, count, flag, real, vocabulary
from kvant.arch._keys import check_fixed, ignored_keys
from kvant.arch._rope import Rope, check_turned, rope_field
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.gguf import GgufFile, Value

__all__ = ["DecoderConfig", "ModelConfig", "check_heads", "check_turned"]

#: Read by the registry and by other rooms, or said by the weights themselves.
_READ_ELSEWHERE = frozenset(
    {
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "layer_types",
        "model_type",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
    }
)


#: The same of GGUF's keys.
_GGUF_READ_ELSEWHERE = frozenset({"pooling_type"})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The fields of any decoder, by their names in config.json; each says its GGUF keys.

    An architecture's ``Config`` adds fields, replaces some, and lists in ``FIXED`` the keys of
    which it supports only certain values, and in ``GGUF_FIXED`` those of GGUF.
    """

    FIXED: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    GGUF_FIXED: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    UNUSED: ClassVar[frozenset[str]] = frozenset()
    """Keys without effect as long as ``FIXED`` holds."""
    STATED: ClassVar[frozenset[str]] = frozenset()
    """Fields a config.json must state: where transformers' default is not the usual one."""

    hidden_size: int = count("hidden_size", "embedding_length", most=2**20)
    intermediate_size: int = count("intermediate_size", "feed_forward_length", most=2**22)
    num_hidden_layers: int = count("num_hidden_layers", "block_count", most=2**12)
    num_attention_heads: int = count("num_attention_heads", "attention.head_count", most=2**14)
    num_key_value_heads: int = count(
        "num_key_value_heads",
        "attention.head_count_kv",
        most=2**14,
        default=lambda done: done["num_attention_heads"],
    )
    head_dim: int = count(
        "head_dim",
        "attention.key_length",
        "attention.value_length",
        most=2**13,
        default=lambda done: _quotient(done["hidden_size"], done["num_attention_heads"]),
    )
    vocab_size: int = vocabulary("vocab_size", "vocab_size", most=2**24)
    max_position_embeddings: int = count(
        "max_position_embeddings", "context_length", most=2**31 - 1
    )
    tie_word_embeddings: bool = flag("tie_word_embeddings", tensor="output.weight", present=False)

    @classmethod
    def fields(cls) -> dict[str, Field]:
        """The description of every field by its name."""
        return {f.name: f.metadata["field"] for f in dataclasses.fields(cls)}

    @classmethod
    def from_hf(cls, values: Mapping[str, object], where: str) -> tuple[Self, list[str]]:
        """Read a config.json's object; also gives the keys that were ignored.

        Raises:
            FileFormatError: a value is missing, of the wrong type or out of bounds.
            UnsupportedError: a value or a key kvant does not know would change the computation.
        """
        fields = cls.fields()
        known = {key for f in fields.values() for key in f.hf_keys}
        known |= {*cls.FIXED, *cls.UNUSED, *_READ_ELSEWHERE}
        ignored = ignored_keys(values, known, where)
        check_fixed(values, cls.FIXED, where)
        source = HfSource(where, values)
        done: dict[str, Any] = {}
        for name, described in fields.items():
            if name in cls.STATED and values.get(name) is None:
                raise FileFormatError(
                    f"{where}: {name!r} is missing, expected a number: its default differs "
                    "between versions of the field's tools. Add it as the model was trained."
                )
            done[name] = described.from_hf(source, done)
        config = cls(**done)
        config.check(where)
        if not any("layer_types" in described.hf_keys for described in fields.values()):
            _check_layer_types(values.get("layer_types"), config.num_hidden_layers, where)
        return config, ignored

    @classmethod
    def from_gguf(cls, file: GgufFile, prefix: str) -> tuple[Self, list[str]]:
        """Read the keys ``prefix.*`` of a GGUF file; also gives the keys that were ignored.

        Raises: as ``from_hf``.
        """
        source = GgufSource(file, prefix)
        values = source.values
        fields = cls.fields()
        known = {key for f in fields.values() for key in f.gguf_keys} | set(cls.GGUF_FIXED)
        known |= _GGUF_READ_ELSEWHERE
        ignored = [f"{prefix}.{key}" for key in ignored_keys(values, known, source.where)]
        check_fixed(values, cls.GGUF_FIXED, source.where)
        done: dict[str, Any] = {}
        for name, described in fields.items():
            done[name] = described.from_gguf(source, done)
        config = cls(**done)
        config.check(source.where)
        return config, ignored

    def to_gguf(self, prefix: str) -> dict[str, Value]:
        """The metadata ``prefix.*`` that says this config."""
        metadata: dict[str, Value] = {}
        for name, described in self.fields().items():
            metadata.update(described.to_gguf(getattr(self, name)))
        return {f"{prefix}.{key}": value for key, value in metadata.items()}

    def to_hf(self) -> dict[str, object]:
        """The entries of a config.json that say this config; not which architecture it is of.

        Raises:
            UnsupportedError: a value that a config.json has no place for.
        """
        done = vars(self)
        values: dict[str, object] = {}
        for name, described in self.fields().items():
            values.update(described.to_hf(done[name], done))
        # What is supported with one value only is said where that is not transformers' default too.
        fixed = {k: v[0] for k, v in self.FIXED.items() if v[0] is not None}
        return {**fixed, **values}

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """What of this config a GGUF file says in tensors."""
        found: dict[str, npt.NDArray[np.float32]] = {}
        for name, described in self.fields().items():
            found.update(described.tensors(getattr(self, name)))
        return found

    def check(self, where: str) -> None:
        """Check what fields must have in common.

        Raises:
            FileFormatError: heads that do not divide.
        """
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            raise FileFormatError(
                f"{where}: {heads} attention heads cannot share {kv_heads} key-value heads, "
                "expected a divisor. Correct the config, or fetch the file again."
            )


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """The fields of Llama's kind: gated by silu, normed by root mean squares, rotated."""

    FIXED: ClassVar[Mapping[str, tuple[object, ...]]] = {"hidden_act": ("silu", "swish")}

    rms_norm_eps: float = real(
        "rms_norm_eps", "attention.layer_norm_rms_epsilon", above=0, most=0.1
    )
    rope: Rope = rope_field("linear")  # noqa: RUF009 - a field, not a value

    def check(self, where: str) -> None:
        """Also refuse heads that cannot be rotated.

        Raises:
            FileFormatError: an odd number of elements.
        """
        super().check(where)
        check_turned(self.rope.turned, where)


def check_heads(config: ModelConfig, where: str) -> None:
    """Check that heads add up to the hidden size, where GGUF has no place for anything else.

    Raises:
        UnsupportedError: they do not.
    """
    width = config.num_attention_heads * config.head_dim
    if width != config.hidden_size:
        raise UnsupportedError(
            f"{where}: {config.num_attention_heads} heads of {config.head_dim} should add up to "
            f"the hidden size {config.hidden_size} in such a model, got {width}. "
            "Correct the config if it is wrong; kvant computes nothing else."
        )


def _quotient(total: int, parts: int) -> int | float:
    """Whole where it can be, so that anything else is refused as a number of elements."""
    return total / parts if total % parts else total // parts


def _check_layer_types(value: object, layers: int, where: str) -> None:
    if value is None:
        return
    if value != ["full_attention"] * layers:
        raise UnsupportedError(
            f"{where}: 'layer_types' should be \"full_attention\" for each of the {layers} layers, "
            "got something else. kvant does not compute other layers for this architecture yet."
        )
