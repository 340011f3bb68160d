"""Hugging Face folders whose config.json is not JSON, or not what a config may be.

Each case makes a folder with proper weights and returns it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from attacks.build import CONFIG, hf_folder, small_safetensors, sparse

Case = Callable[[Path], Path]


def _raw(make: Callable[[], bytes]) -> Case:
    return lambda folder: hf_folder(folder, small_safetensors(), make())


def _text(text: str) -> Case:
    return _raw(text.encode)


def _with(field: str | Callable[[], str]) -> Case:
    """A proper config with one more field, given as JSON text."""
    return _raw(
        lambda: (
            json.dumps(CONFIG)[:-1] + "," + (field if isinstance(field, str) else field()) + "}"
        ).encode()
    )


def _sparse(folder: Path) -> Path:
    model = hf_folder(folder, small_safetensors())
    sparse(model / "config.json", b"{", 10**10)
    return model


def _pipe(folder: Path) -> Path:
    model = hf_folder(folder, small_safetensors())
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    return model


def _directory(folder: Path) -> Path:
    model = hf_folder(folder, small_safetensors())
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    return model


def _missing(folder: Path) -> Path:
    model = hf_folder(folder, small_safetensors())
    (model / "config.json").unlink()
    return model


CASES: dict[str, Case] = {
    "config-missing": _missing,
    "config-empty": _text(""),
    "config-spaces": _text(" \n"),
    "config-not-json": _text("hidden_size = 32"),
    "config-truncated": _text(json.dumps(CONFIG)[:-10]),
    "config-two": _text(json.dumps(CONFIG) * 2),
    "config-comment": _text("// ours\n" + json.dumps(CONFIG)),
    "config-trailing-comma": _text(json.dumps(CONFIG)[:-1] + ",}"),
    "config-not-utf8": _raw(lambda: json.dumps(CONFIG).encode()[:-1] + b',"\xff":1}'),
    "config-utf16": _raw(lambda: json.dumps(CONFIG).encode("utf-16")),
    "config-bom": _raw(lambda: b"\xef\xbb\xbf" + json.dumps(CONFIG).encode()),
    "config-nul": _with('"a":"\0"'),
    "config-pickle": _raw(lambda: b"\x80\x04}\x94."),
    "config-web-page": _text("<!DOCTYPE html><html></html>"),
    "config-lfs-pointer": _text("version https://git-lfs.github.com/spec/v1\n"),
    "config-key-twice": _with('"hidden_size":64'),
    "config-key-twice-deep": _with('"rope_scaling":{"factor":2,"factor":4}'),
    "config-nan": _with('"rope_scaling":{"factor":NaN}'),
    "config-infinity": _with('"rope_scaling":{"factor":-Infinity}'),
    "config-overflow": _with('"rope_scaling":{"factor":1e999}'),
    "config-digits": _with('"a":' + "9" * 100_000),
    "config-surrogate": _with('"a":"\\ud800"'),
    "config-surrogate-key": _with('"\\udfff":1'),
    "config-deep": _with('"a":' + "[" * 100_000),
    "config-deep-closed": _with('"a":' + "[" * 100 + "]" * 100),
    "config-deep-objects": _with('"a":' + '{"a":' * 5_000 + "1" + "}" * 5_000),
    "config-many-values": _with(lambda: '"a":[' + "0," * 1_000_000 + "0]"),
    "config-many-keys": _with(lambda: ",".join(f'"k{i}":0' for i in range(600_000))),
    "config-wide-escape": _with(lambda: '"a":"\\ud83d\\ude00' + "a" * 3_000_000 + '"'),
    "config-large": _with(lambda: '"a":"' + "a" * 5_000_000 + '"'),
    "config-sparse": _sparse,
    "config-pipe": _pipe,
    "config-folder": _directory,
}

#: JSON that can be read but is no config: for the room that knows what a config is.
MEANINGLESS: dict[str, Case] = {
    "config-null": lambda folder: hf_folder(folder, small_safetensors(), b"[null]"),
    "config-list": lambda folder: hf_folder(folder, small_safetensors(), b'["llama"]'),
    "config-no-object": lambda folder: hf_folder(folder, small_safetensors(), b'"llama"'),
    "config-number": lambda folder: hf_folder(folder, small_safetensors(), b"7"),
    "config-empty-object": lambda folder: hf_folder(folder, small_safetensors(), b"{}"),
    "config-many-layers": lambda folder: hf_folder(
        folder, small_safetensors(), json.dumps({**CONFIG, "num_hidden_layers": 4096}).encode()
    ),
}
