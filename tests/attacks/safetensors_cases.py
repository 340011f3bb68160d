"""Hugging Face folders whose weights are not what they say.

Each case makes a folder with a proper config.json and returns it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.build import entry, hf_folder, safetensors, small_gguf, small_safetensors, sparse

Case = Callable[[Path], Path]


def _file(make: Callable[[], bytes]) -> Case:
    return lambda folder: hf_folder(folder, make())


def _header(header: Any, data: int = 24) -> Case:
    return _file(lambda: safetensors(header, bytes(data)))


def _one(data: int = 24, **fields: Any) -> Case:
    """One tensor with a field that is wrong."""
    return _header({"a": entry(**fields)}, data)


def _sparse(head: Callable[[], bytes], size: int) -> Case:
    def case(folder: Path) -> Path:
        model = hf_folder(folder)
        sparse(model / "model.safetensors", head(), size)
        return model

    return case


def _info(without: str = "", **extra: Any) -> dict[str, Any]:
    fields = {**entry(), **extra}
    fields.pop(without, None)
    return fields


_FILE: dict[str, Case] = {
    "safetensors-empty": _file(lambda: b""),
    "safetensors-7-bytes": _file(lambda: bytes(7)),
    "safetensors-length-0": _file(lambda: bytes(16)),
    "safetensors-length-1": _file(lambda: safetensors("{", b"}")),
    "safetensors-length-max": _file(lambda: safetensors({}, length=2**64 - 1)),
    "safetensors-length-signed": _file(lambda: safetensors({}, length=2**63)),
    "safetensors-length-past-end": _file(lambda: safetensors({}, length=3)),
    "safetensors-length-sparse": _sparse(lambda: safetensors("{", length=9 * 10**9), 10**10),
    "safetensors-length-cap": _sparse(lambda: safetensors("{", length=90_000_000), 10**8),
    "safetensors-header-zeros": _sparse(lambda: safetensors("{", length=30_000_000), 40_000_000),
    "safetensors-header-spaces": _file(lambda: safetensors("{" + " " * 30_000_000)),
    "safetensors-header-not-json": _header("{nonsense}"),
    "safetensors-header-not-utf8": _header(b'{"\xff":1}'),
    "safetensors-header-utf16": _header('{"a":1}'.encode("utf-16-le")),
    "safetensors-header-list": _header([1, 2, 3]),
    "safetensors-header-two": _header("{}{}", 0),
    "safetensors-header-deep": _header('{"a":' + "[" * 100_000),
    "safetensors-header-deep-closed": _header('{"a":' + "[" * 200 + "]" * 200 + "}"),
    "safetensors-header-many-values": _file(
        lambda: safetensors('{"a":[' + "0," * 2_000_000 + "0]}")
    ),
    "safetensors-header-many-objects": _file(
        lambda: safetensors('{"a":[' + "{}," * 2_000_000 + "{}]}")
    ),
    "safetensors-header-wide-text": _file(lambda: safetensors('{"' + "😀" * 3_000_000 + '":1}')),
    "safetensors-header-wide-escape": _file(
        lambda: safetensors('{"\\ud83d\\ude00' + "a" * 20_000_000 + '":1}')
    ),
    "safetensors-most-names": _file(
        lambda: safetensors("{" + ",".join(f'"{i:0115d}":{{}}' for i in range(249_000)) + "}")
    ),
    "safetensors-most-tensors": _file(
        lambda: safetensors({f"t{i}": entry("U8", [1], [i, i + 1]) for i in range(70_000)})
    ),
    "safetensors-is-pickle-zip": _file(lambda: b"PK\x03\x04" + bytes(60)),
    "safetensors-is-pickle": _file(lambda: b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s."),
    "safetensors-is-gguf": _file(small_gguf),
    "safetensors-is-lfs-pointer": _file(
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    ),
    "safetensors-is-web-page": _file(lambda: b"<!DOCTYPE html><html></html>"),
    "safetensors-truncated-header": _file(lambda: small_safetensors()[:100]),
    "safetensors-truncated-data": _file(lambda: small_safetensors()[:-1]),
    "safetensors-trailing": _file(lambda: small_safetensors() + b"\0"),
    "safetensors-trailing-no-tensor": _header({}, 8),
}

_ENTRY: dict[str, Case] = {
    "safetensors-name-twice": _header(
        '{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
        '"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    ),
    "safetensors-field-twice": _header(
        '{"a":{"dtype":"F32","shape":[2,3],"shape":[6],"data_offsets":[0,24]}}'
    ),
    "safetensors-name-empty": _header({"": entry()}),
    "safetensors-name-surrogate": _header(
        '{"\\ud800":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    ),
    "safetensors-name-terminal": _header({"\x1b[2J\x07": entry(shape=[1])}),
    "safetensors-name-long": _header({"n" * 1_000_000: entry(shape=[1])}),
    "safetensors-info-list": _header({"a": ["F32", [2, 3], [0, 24]]}),
    "safetensors-info-null": _header({"a": None}),
    "safetensors-no-dtype": _header({"a": _info("dtype")}),
    "safetensors-no-shape": _header({"a": _info("shape")}),
    "safetensors-no-offsets": _header({"a": _info("data_offsets")}),
    "safetensors-extra-field": _header({"a": _info(strides=[3, 1])}),
    "safetensors-dtype-number": _one(dtype=32),
    "safetensors-dtype-lower": _one(dtype="float32"),
    "safetensors-dtype-long": _one(dtype="F" * 100_000),
    "safetensors-shape-text": _one(shape="2,3"),
    "safetensors-shape-number": _one(shape=6),
    "safetensors-shape-negative": _one(shape=[-2, -3]),
    "safetensors-shape-float": _one(shape=[2.0, 3.0]),
    "safetensors-shape-bool": _one(shape=[True, 6]),
    "safetensors-shape-nested": _one(shape=[[2, 3]]),
    "safetensors-shape-object": _one(shape={"0": 2, "1": 3}),
    "safetensors-shape-65": _one(shape=[1] * 64 + [6]),
    "safetensors-shape-2-64": _one(shape=[2**64, 1]),
    "safetensors-shape-wraps": _one(shape=[2**32, 2**32], offsets=[0, 0], data=0),
    "safetensors-shape-bytes-wrap": _one(shape=[2**62], offsets=[0, 0], data=0),
    "safetensors-shape-digits": _header(
        '{"a":{"dtype":"F32","shape":[' + "9" * 100_000 + '],"data_offsets":[0,24]}}'
    ),
    "safetensors-shape-astronomic": _one(shape=[2**62] * 64),
    "safetensors-size-mismatch": _one(shape=[2, 2]),
    "safetensors-half-byte": _one(dtype="F4", shape=[3], offsets=[0, 1], data=1),
    "safetensors-offsets-one": _one(offsets=[24]),
    "safetensors-offsets-three": _one(offsets=[0, 12, 24]),
    "safetensors-offsets-text": _one(offsets=["0", "24"]),
    "safetensors-offsets-float": _one(offsets=[0, 24.0]),
    "safetensors-offsets-nan": _header(
        '{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,NaN]}}'
    ),
    "safetensors-offsets-infinity": _header(
        '{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,1e999]}}'
    ),
    "safetensors-offsets-reversed": _one(offsets=[24, 0]),
    "safetensors-offsets-negative": _one(offsets=[-24, 0]),
    "safetensors-offsets-past-end": _one(offsets=[0, 48], shape=[12]),
    "safetensors-offsets-max": _one(shape=[6], offsets=[2**64 - 25, 2**64 - 1]),
    "safetensors-offsets-far": _one(shape=[6], offsets=[2**62, 2**62 + 24]),
    "safetensors-overlap": _header({"a": entry(), "b": entry(offsets=[12, 36])}, 36),
    "safetensors-same-place": _header({"a": entry(), "b": entry()}),
    "safetensors-hole": _header({"a": entry(), "b": entry(offsets=[32, 56])}, 56),
    "safetensors-hole-first": _one(offsets=[8, 32], data=32),
    "safetensors-metadata-list": _header({"__metadata__": ["a"], "a": entry()}),
    "safetensors-metadata-number": _header({"__metadata__": {"a": 1}, "a": entry()}),
    "safetensors-metadata-nested": _header({"__metadata__": {"a": {"b": "c"}}, "a": entry()}),
}

_INDEX = "model.safetensors.index.json"
_A = safetensors({"a": entry()}, bytes(24))
_B = safetensors({"b": entry()}, bytes(24))
_S1, _S2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def _shards(index: Any, **files: bytes) -> Case:
    """A folder with an index and the files ``s1`` and ``s2``."""

    def case(folder: Path) -> Path:
        model = hf_folder(folder)
        raw = index if isinstance(index, bytes) else json.dumps(index).encode()
        (model / _INDEX).write_bytes(raw)
        for key, data in files.items():
            (model / {"s1": _S1, "s2": _S2}[key]).write_bytes(data)
        return model

    return case


def _map(**places: Any) -> dict[str, Any]:
    return {"metadata": {"total_size": 48}, "weight_map": places}


def _only(*names: str) -> Case:
    def case(folder: Path) -> Path:
        model = hf_folder(folder)
        for name in names:
            (model / name).write_bytes(b"PK\x03\x04" + bytes(60))
        return model

    return case


def _linked(make_link: Callable[[Path, Path], None]) -> Case:
    """Both names of the index lead to one file."""

    def case(folder: Path) -> Path:
        model = _shards(_map(a=_S1, b=_S2), s1=_A)(folder)
        make_link(model / _S1, model / _S2)
        return model

    return case


def _outside(folder: Path) -> Path:
    model = _shards(_map(a="../secret.safetensors"))(folder)
    (folder / "secret.safetensors").write_bytes(_A)
    return model


def _pipe(folder: Path) -> Path:
    model = hf_folder(folder)
    os.mkfifo(model / "model.safetensors")
    return model


def _directory(folder: Path) -> Path:
    model = hf_folder(folder)
    (model / "model.safetensors").mkdir()
    return model


def _broken_link(folder: Path) -> Path:
    model = hf_folder(folder)
    (model / "model.safetensors").symlink_to("../../blobs/gone")
    return model


def _circle(folder: Path) -> Path:
    model = hf_folder(folder)
    (model / "model.safetensors").symlink_to("model.safetensors")
    return model


def _index_sparse(folder: Path) -> Path:
    model = hf_folder(folder)
    sparse(model / _INDEX, b"{", 10**10)
    return model


_FOLDER: dict[str, Case] = {
    "folder-no-weights": hf_folder,
    "folder-only-bin": _only("pytorch_model.bin"),
    "folder-only-bin-shards": _only(
        "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    ),
    "folder-only-pth": _only("consolidated.00.pth"),
    "folder-only-pt": _only("model.pt"),
    "folder-shards-without-index": _only(_S1, _S2),
    "folder-index-empty": _shards(b""),
    "folder-index-not-json": _shards(b"{weight_map}"),
    "folder-index-list": _shards([]),
    "folder-index-no-map": _shards({"metadata": {}}),
    "folder-index-map-list": _shards({"weight_map": [_S1]}),
    "folder-index-map-empty": _shards({"weight_map": {}}),
    "folder-index-map-number": _shards(_map(a=1)),
    "folder-index-map-null": _shards(_map(a=None)),
    "folder-index-twice": _shards(
        b'{"weight_map":{"a":"%s","a":"%s"}}' % (_S1.encode(), _S2.encode()), s1=_A, s2=_B
    ),
    "folder-index-sparse": _index_sparse,
    "folder-index-deep": _shards(b'{"weight_map":' + b"{" * 100_000),
    "folder-index-parent": _outside,
    "folder-index-absolute": _shards(_map(a="/etc/passwd.safetensors")),
    "folder-index-subfolder": _shards(_map(a="x/model.safetensors")),
    "folder-index-backslash": _shards(_map(a="..\\model.safetensors")),
    "folder-index-drive": _shards(_map(a="C:model.safetensors")),
    "folder-index-nul": _shards(_map(a="model\0.safetensors")),
    "folder-index-terminal": _shards(_map(a="\x1b[2J.safetensors")),
    "folder-index-hidden": _shards(_map(a=".model.safetensors")),
    "folder-index-bin": _shards(_map(a="pytorch_model.bin")),
    "folder-index-name-long": _shards(_map(a="a" * 100_000 + ".safetensors")),
    "folder-index-surrogate": _shards(
        b'{"weight_map":{"a":"\\udc80.safetensors"}}',
    ),
    "folder-shard-missing": _shards(_map(a=_S1, b=_S2), s1=_A),
    "folder-shard-truncated": _shards(_map(a=_S1, b=_S2), s1=_A, s2=_B[:-1]),
    "folder-shard-pickle": _shards(_map(a=_S1, b=_S2), s1=_A, s2=b"PK\x03\x04" + bytes(60)),
    "folder-tensor-absent": _shards(_map(a=_S1, b=_S2, c=_S2), s1=_A, s2=_B),
    "folder-tensor-elsewhere": _shards(_map(a=_S2, b=_S1), s1=_A, s2=_B),
    "folder-tensor-in-two": _shards(
        _map(a=_S1, b=_S2),
        s1=_A,
        s2=safetensors({"a": entry(), "b": entry(offsets=[24, 48])}, bytes(48)),
    ),
    "folder-shard-twice-link": _linked(lambda old, new: new.symlink_to(old.name)),
    "folder-shard-twice-hardlink": _linked(lambda old, new: new.hardlink_to(old)),
    "folder-weights-pipe": _pipe,
    "folder-weights-folder": _directory,
    "folder-weights-broken-link": _broken_link,
    "folder-weights-link-circle": _circle,
}

CASES: dict[str, Case] = {**_FILE, **_ENTRY, **_FOLDER}
