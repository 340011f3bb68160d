"""GGUF files that are not what they say. Each case writes into a folder and returns the file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from attacks.build import (
    ARRAY,
    BOOL,
    F32,
    Q4_0,
    Q4_K,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    architecture,
    array,
    gguf,
    kv,
    safetensors,
    small_gguf,
    small_safetensors,
    sparse,
    tensor,
    text,
)

Case = Callable[[Path], Path]


def _file(make: Callable[[], bytes]) -> Case:
    def case(folder: Path) -> Path:
        path = folder / "model.gguf"
        path.write_bytes(make())
        return path

    return case


def _sparse(head: Callable[[], bytes], size: int) -> Case:
    return lambda folder: sparse(folder / "model.gguf", head(), size)


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def _with(*metadata: bytes) -> Case:
    """Metadata after a proper start, and one proper tensor."""
    return _file(
        lambda: gguf([architecture(), *metadata], [tensor("token_embd.weight")], bytes(256))
    )


def _tensors(*entries: bytes, data: int = 256) -> Case:
    return _file(lambda: gguf(None, list(entries), bytes(data)))


def _alignment(payload: bytes, type_id: int = UINT32) -> Case:
    return _with(kv("general.alignment", type_id, payload))


_WHOLE: dict[str, Case] = {
    "gguf-empty": _file(lambda: b""),
    "gguf-one-byte": _file(lambda: b"G"),
    "gguf-magic-only": _file(lambda: b"GGUF"),
    "gguf-magic-wrong": _file(lambda: b"GGUG" + small_gguf()[4:]),
    "gguf-magic-swapped": _file(lambda: b"FUGG" + small_gguf()[4:]),
    "gguf-zeros": _sparse(lambda: b"", 1 << 30),
    "gguf-big-endian": _file(lambda: gguf(version=3 << 24)),
    "gguf-version-0": _file(lambda: gguf(version=0)),
    "gguf-version-1": _file(lambda: gguf(version=1)),
    "gguf-version-4": _file(lambda: gguf(version=4)),
    "gguf-version-huge": _file(lambda: gguf(version=0xFFFF_FFFF)),
    "gguf-ggjt": _file(lambda: b"tjgg" + small_gguf()[4:]),
    "gguf-is-pickle-zip": _file(lambda: b"PK\x03\x04" + bytes(60)),
    "gguf-is-pickle": _file(lambda: b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s."),
    "gguf-is-safetensors": _file(small_safetensors),
    "gguf-is-lfs-pointer": _file(
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    ),
    "gguf-is-web-page": _file(lambda: b"\n<!DOCTYPE html><html><body>404</body></html>"),
    "gguf-truncated-header": _file(lambda: small_gguf()[:200]),
    "gguf-truncated-data": _file(lambda: small_gguf()[:-64]),
    "gguf-no-data": _file(lambda: gguf(None, [tensor("token_embd.weight")])),
    "gguf-tensor-count-max": _file(lambda: gguf(tensor_count=2**64 - 1)),
    "gguf-tensor-count-negative": _file(lambda: gguf(tensor_count=2**63)),
    "gguf-tensor-count-sparse": _sparse(lambda: gguf(tensor_count=200_000_000), 10**10),
    "gguf-tensor-count-one-more": _file(
        lambda: gguf(None, [tensor("token_embd.weight")], bytes(256), tensor_count=2)
    ),
    "gguf-metadata-count-max": _file(lambda: gguf(metadata_count=2**64 - 1)),
    "gguf-metadata-count-sparse": _sparse(lambda: gguf(metadata_count=500_000_000), 10**10),
    "gguf-metadata-count-one-more": _file(lambda: gguf(metadata_count=2)),
}

_METADATA: dict[str, Case] = {
    "gguf-key-length-max": _file(lambda: gguf([text("k", 2**64 - 1) + bytes(40)])),
    "gguf-key-length-past-end": _file(lambda: gguf([text("k", 5_000) + bytes(40)])),
    "gguf-key-long": _with(kv("k" * 70_000, UINT8, b"\0")),
    "gguf-key-empty": _with(kv("", UINT8, b"\0")),
    "gguf-key-not-utf8": _with(kv(b"\xff\xfe", UINT8, b"\0")),
    "gguf-key-twice": _with(kv("a", UINT8, b"\0"), kv("a", UINT8, b"\1")),
    "gguf-value-type-13": _with(kv("a", 13, bytes(8))),
    "gguf-value-type-max": _with(kv("a", 2**32 - 1, bytes(8))),
    "gguf-bool-2": _with(kv("a", BOOL, b"\2")),
    "gguf-bool-array-7": _with(kv("a", ARRAY, array(BOOL, 3, b"\0\1\7"))),
    "gguf-string-length-max": _with(kv("a", STRING, text("x", 2**64 - 1))),
    "gguf-string-length-signed": _with(kv("a", STRING, text("x", 2**63))),
    "gguf-string-long": _file(lambda: gguf([kv("a", STRING, text("x" * 5_000_000))])),
    "gguf-string-not-utf8": _with(kv("a", STRING, text(b"\xc3\x28"))),
    "gguf-string-surrogate": _with(kv("a", STRING, text(b"\xed\xa0\x80"))),
    "gguf-string-overlong": _with(kv("a", STRING, text(b"\xc0\xaf"))),
    "gguf-array-count-max": _with(kv("a", ARRAY, array(UINT8, 2**64 - 1, bytes(8)))),
    "gguf-array-count-wraps": _with(kv("a", ARRAY, array(UINT64, 2**61 + 1, bytes(8)))),
    "gguf-array-type-13": _with(kv("a", ARRAY, array(13, 1, bytes(8)))),
    "gguf-array-of-arrays": _with(kv("a", ARRAY, array(ARRAY, 1, array(UINT8, 1, b"\0")))),
    "gguf-array-nested-deep": _with(kv("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 20_000)),
    "gguf-array-sparse": _sparse(
        lambda: gguf([kv("a", ARRAY, array(UINT8, 9 * 10**9, b""))]), 10**10
    ),
    "gguf-array-header-cap": _sparse(
        lambda: gguf([kv("a", ARRAY, array(UINT8, 60_000_000, b""))]), 80_000_000
    ),
    "gguf-strings-count-max": _with(kv("a", ARRAY, array(STRING, 2**64 - 1, bytes(8)))),
    "gguf-strings-count-wraps": _with(kv("a", ARRAY, array(STRING, 2**61, bytes(8)))),
    "gguf-strings-sparse": _sparse(
        lambda: gguf([kv("a", ARRAY, array(STRING, 10**9, b""))]), 10**10
    ),
    "gguf-strings-many-empty": _sparse(
        lambda: gguf([kv("a", ARRAY, array(STRING, 1_600_000, b""))]), 20_000_000
    ),
    "gguf-strings-then-truncated": _file(
        lambda: gguf(
            [kv("a", ARRAY, array(STRING, 400_000, text("ab") * 399_999))], metadata_count=1
        )
    ),
    "gguf-strings-item-past-end": _with(
        kv("a", ARRAY, array(STRING, 3, text("a") + text("b", 2**40) + text("c")))
    ),
    "gguf-strings-item-not-utf8": _with(
        kv("a", ARRAY, array(STRING, 3, text("a") + text(b"\xff") + text("c")))
    ),
    "gguf-alignment-0": _alignment(struct.pack("<I", 0)),
    "gguf-alignment-3": _alignment(struct.pack("<I", 3)),
    "gguf-alignment-4": _alignment(struct.pack("<I", 4)),
    "gguf-alignment-33": _alignment(struct.pack("<I", 33)),
    "gguf-alignment-2g": _alignment(struct.pack("<I", 1 << 31)),
    "gguf-alignment-text": _alignment(text("32"), STRING),
    "gguf-alignment-array": _alignment(array(UINT32, 1, struct.pack("<I", 32)), ARRAY),
    "gguf-alignment-u64": _alignment(_u64(32), UINT64),
}

_TENSORS: dict[str, Case] = {
    "gguf-tensor-name-empty": _tensors(tensor("")),
    "gguf-tensor-name-long": _tensors(tensor("n" * 2_000)),
    "gguf-tensor-name-not-utf8": _tensors(tensor(b"\xfftoken")),
    "gguf-tensor-name-twice": _tensors(tensor("a"), tensor("a", offset=256), data=512),
    "gguf-tensor-no-dimensions": _tensors(tensor("a", ())),
    "gguf-tensor-5-dimensions": _tensors(tensor("a", (32, 1, 1, 1, 1))),
    "gguf-tensor-rank-max": _tensors(tensor("a", (32, 2), rank=2**32 - 1)),
    "gguf-tensor-zero": _tensors(tensor("a", (32, 0))),
    "gguf-tensor-zero-row": _tensors(tensor("a", (0, 32), Q4_0)),
    "gguf-tensor-elements-wrap": _tensors(tensor("a", (2**32, 2**32))),
    "gguf-tensor-bytes-wrap": _tensors(tensor("a", (2**62, 4))),
    "gguf-tensor-bytes-wrap-quantised": _tensors(tensor("a", (2**63, 2), Q4_K)),
    "gguf-tensor-negative": _tensors(tensor("a", (2**64 - 1, 2**64 - 1))),
    "gguf-tensor-type-99": _tensors(tensor("a", type_id=99)),
    "gguf-tensor-type-removed": _tensors(tensor("a", type_id=4)),
    "gguf-tensor-type-repacked": _tensors(tensor("a", type_id=31)),
    "gguf-tensor-type-max": _tensors(tensor("a", type_id=2**32 - 1)),
    "gguf-tensor-row-not-blocks": _tensors(tensor("a", (33, 2), Q4_0)),
    "gguf-tensor-row-half-block": _tensors(tensor("a", (128, 2), Q4_K)),
    "gguf-tensor-misaligned": _tensors(tensor("a", offset=8), data=512),
    "gguf-tensor-past-end": _tensors(tensor("a", offset=1 << 40)),
    "gguf-tensor-offset-wraps": _tensors(tensor("a", offset=2**64 - 32)),
    "gguf-tensor-offset-max": _tensors(tensor("a", offset=2**64 - 1)),
    "gguf-tensor-ends-past-end": _tensors(tensor("a", (32, 3))),
    "gguf-tensor-same-place": _tensors(tensor("a"), tensor("b")),
    "gguf-tensor-overlap": _tensors(tensor("a", offset=32), tensor("b"), data=512),
    "gguf-tensor-inside-another": _tensors(
        tensor("a", (32, 8)), tensor("b", (1,), F32, 512), data=1024
    ),
}


def _shard(
    number: int, count: int, total: int, names: tuple[str, ...], extra: tuple[bytes, ...] = ()
) -> bytes:
    metadata = [
        *(() if number else (architecture(),)),
        *extra,
        kv("split.no", UINT16, struct.pack("<H", number)),
        kv("split.count", UINT16, struct.pack("<H", count)),
        kv("split.tensors.count", 5, struct.pack("<i", total)),
    ]
    entries = [tensor(name, offset=256 * i) for i, name in enumerate(names)]
    return gguf(metadata, entries, bytes(256 * len(names)))


def _split(*shards: tuple[str, bytes]) -> Case:
    def case(folder: Path) -> Path:
        for name, data in shards:
            (folder / name).write_bytes(data)
        return folder / shards[0][0]

    return case


_ONE, _TWO = "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"

_SPLIT: dict[str, Case] = {
    "gguf-split-missing": _split((_ONE, _shard(0, 2, 2, ("a",)))),
    "gguf-split-name": _split(("model.gguf", _shard(0, 2, 2, ("a",)))),
    "gguf-split-name-count": _split(("m-00001-of-00003.gguf", _shard(0, 2, 2, ("a",)))),
    "gguf-split-many": _split(("m-00001-of-65535.gguf", _shard(0, 65_535, 2, ("a",)))),
    "gguf-split-count-huge": _split(
        ("model.gguf", gguf([architecture(), kv("split.count", UINT64, _u64(2**64 - 1))]))
    ),
    "gguf-split-count-text": _split(
        ("model.gguf", gguf([architecture(), kv("split.count", STRING, text("2"))]))
    ),
    "gguf-split-number": _split((_ONE, _shard(0, 2, 2, ("a",))), (_TWO, _shard(0, 2, 2, ("b",)))),
    "gguf-split-no-number": _split(
        (_ONE, _shard(0, 2, 2, ("a",))), (_TWO, gguf([], [tensor("b")], bytes(256)))
    ),
    "gguf-split-tensor-twice": _split(
        (_ONE, _shard(0, 2, 2, ("a",))), (_TWO, _shard(1, 2, 2, ("a",)))
    ),
    "gguf-split-total": _split((_ONE, _shard(0, 2, 3, ("a",))), (_TWO, _shard(1, 2, 3, ("b",)))),
    "gguf-split-other-model": _split(
        (_ONE, _shard(0, 2, 2, ("a",))),
        (_TWO, _shard(1, 2, 2, ("b",), (architecture("qwen2"),))),
    ),
    "gguf-split-damaged": _split(
        (_ONE, _shard(0, 2, 2, ("a",))), (_TWO, _shard(1, 2, 2, ("b",))[:-8])
    ),
    "gguf-split-other-format": _split(
        (_ONE, _shard(0, 2, 2, ("a",))), (_TWO, safetensors({}, b""))
    ),
}


def _most_text() -> bytes:
    """As many and as wide texts as the header may hold; the one tensor is missing."""
    short = b"".join(text(f"{a}{b}") for a in "abcdefghij" for b in "abcdefghij")
    wide = text("😀" + "a" * 3_900_000)
    return gguf(
        [
            architecture(),
            kv("short", ARRAY, array(STRING, 1_490_000, short * 14_900)),
            *(kv(f"wide.{i}", STRING, wide) for i in range(6)),
        ],
        [tensor("a")],
    )


def _most_entries() -> bytes:
    """As many keys and tensors as there may be; the last tensor lies on the first."""
    keys = [kv(f"k{i}", UINT8, b"\0") for i in range(20_000)]
    tensors = [tensor(f"t{i}", (8,), F32, 32 * (i % 49_999)) for i in range(50_000)]
    return gguf(keys, tensors, bytes(32 * 50_000))


_LARGEST: dict[str, Case] = {
    "gguf-most-text": _file(_most_text),
    "gguf-most-entries": _file(_most_entries),
}

CASES: dict[str, Case] = {**_WHOLE, **_METADATA, **_TENSORS, **_SPLIT, **_LARGEST}
