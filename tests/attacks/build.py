"""Raw bytes of GGUF and safetensors files, right or wrong in any field.

Written against the format documents with ``struct`` alone, so that neither kvant's writers nor
their checks stand between a test and the bytes it wants.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = range(11)

F32, F16, Q4_0, Q8_0, Q4_K = 0, 1, 2, 8, 12


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string; ``length`` lies about it."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def kv(key: str | bytes, type_id: int, payload: bytes) -> bytes:
    """One metadata entry."""
    return text(key) + struct.pack("<I", type_id) + payload


def array(item_type: int, count: int, payload: bytes) -> bytes:
    """The payload of an array value."""
    return struct.pack("<IQ", item_type, count) + payload


def architecture(name: str = "llama") -> bytes:
    """``general.architecture``, which every real file starts with."""
    return kv("general.architecture", STRING, text(name))


def tensor(
    name: str | bytes,
    dimensions: tuple[int, ...] = (32, 2),
    type_id: int = F32,
    offset: int = 0,
    rank: int | None = None,
) -> bytes:
    """One tensor's entry; ``dimensions`` as in the file, row length first."""
    return (
        text(name)
        + struct.pack("<I", len(dimensions) if rank is None else rank)
        + struct.pack(f"<{len(dimensions)}Q", *dimensions)
        + struct.pack("<IQ", type_id, offset)
    )


def gguf(
    metadata: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    metadata_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts may lie."""
    metadata = [architecture()] if metadata is None else metadata
    tensors = tensors or []
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(metadata) if metadata_count is None else metadata_count,
    )
    head += b"".join(metadata) + b"".join(tensors)
    if data:
        head += b"\0" * (-len(head) % alignment)
    return head + data


def small_gguf() -> bytes:
    """A valid file with a value of every kind and three tensors, about a kilobyte."""
    metadata = [
        architecture(),
        kv("general.alignment", UINT32, struct.pack("<I", 32)),
        kv("a.u8", UINT8, b"\x07"),
        kv("a.i8", INT8, b"\xf9"),
        kv("a.u16", UINT16, struct.pack("<H", 7)),
        kv("a.i16", INT16, struct.pack("<h", -7)),
        kv("a.f32", FLOAT32, struct.pack("<f", 0.5)),
        kv("a.bool", BOOL, b"\x01"),
        kv("a.u64", UINT64, struct.pack("<Q", 1 << 40)),
        kv("t.tokens", ARRAY, array(STRING, 3, text("a") + text("") + text("ĝé😀"))),
        kv("t.scores", ARRAY, array(FLOAT32, 2, struct.pack("<2f", 0.0, -1.0))),
        kv("t.flags", ARRAY, array(BOOL, 2, b"\0\1")),
    ]
    tensors = [
        tensor("token_embd.weight", (32, 2), F32, 0),
        tensor("blk.0.attn_q.weight", (32, 3), Q8_0, 256),
        tensor("output_norm.weight", (5,), F32, 384),
    ]
    return gguf(metadata, tensors, bytes(range(256)) + b"\x11" * 128 + b"\x22" * 32)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A whole file; ``header`` is JSON text, bytes, or what to dump as JSON."""
    if isinstance(header, str):
        header = header.encode()
    elif not isinstance(header, bytes):
        header = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    """One tensor of a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def small_safetensors() -> bytes:
    """A valid file with several dtypes, a scalar and an empty tensor."""
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [2, 3], [0, 24]),
        "b": entry("BF16", [4], [24, 32]),
        "c": entry("U8", [3], [32, 35]),
        "d": entry("I64", [], [35, 43]),
        "e": entry("F16", [0, 7], [43, 43]),
    }
    return safetensors(header, bytes(range(43)))


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 16,
}


def hf_folder(folder: Path, weights: bytes | None = None, config: bytes | None = None) -> Path:
    """A Hugging Face folder around a weights file or a config that is to be wrong."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_bytes(json.dumps(CONFIG).encode() if config is None else config)
    if weights is not None:
        (model / "model.safetensors").write_bytes(weights)
    return model


def sparse(path: Path, head: bytes, size: int) -> Path:
    """A file of ``size`` bytes that starts with ``head`` and goes on with zeros, taking no disk."""
    path.write_bytes(head)
    os.truncate(path, size)
    return path
