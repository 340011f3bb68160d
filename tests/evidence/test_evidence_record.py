"""The record and its JSON: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import FileFormatError
from kvant.evidence import (
    QUALITY_BYTES,
    Base,
    ClassSize,
    Evidence,
    FileDigest,
    Made,
    Quality,
    Sizes,
    Speed,
    TextUsed,
    quality_text,
    read_evidence,
    read_quality,
    tensor_class,
)

DIGEST = "0123456789abcdef" * 4
TEXT = TextUsed("a text", DIGEST, DIGEST, 512, 30, 7650)
QUALITY = Quality(
    *(TEXT, Base("base", DIGEST), 101.78950556, 6.2732, 0.016336470541, 0.00055511392),
    *(0.0123667, 0.0706069, 0.4068, 0.88601307, 0.0036985, 0.005117, 0.0018916),
)
RECORD = Evidence(
    files=(FileDigest("m.gguf", 1000, DIGEST),),
    made=Made(
        *("Q4_K_M", {"name": "Q4_K_M", "rules": []}, ("a=Q6_K",), "search", "best", DIGEST, None),
        *(7, "--fit 1MB", DIGEST, "demo", {"kvant": "1"}),
    ),
    sizes=Sizes(1000, {"ffn": ClassSize(1024, 576, {"Q4_K": 1})}),
    quality=(QUALITY,),
    speed=(Speed("cpu", 2, "avx2", "generate", 64, 1, 0, 55.5, 0.9, 123456),),
)


def test_there_and_back(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(RECORD.text())
    assert read_evidence(tmp_path / "e.json") == RECORD
    bare = replace(RECORD, made=None, quality=(), speed=())
    (tmp_path / "e.json").write_text(bare.text())
    assert read_evidence(tmp_path / "e.json") == bare


def test_figures_in_a_header() -> None:
    text = quality_text(QUALITY)
    assert len(text) == len(quality_text(None)) == QUALITY_BYTES
    found = read_quality(text, "m.gguf")
    assert found == QUALITY.rounded()
    assert found is not None
    assert (found.perplexity, found.perplexity_se) == (101.8, 6.3)
    assert (found.kld, found.kld_se, found.kld_p99) == (0.01634, 0.00056, 0.07061)
    assert read_quality(quality_text(None), "m.gguf") is None


def test_the_longest_figures_fit() -> None:
    names = replace(TEXT, name='"ü\\' * 300, tokens=10**15, chunks=10**12)
    low = {
        f: -1.2345678912345e-300 for f in Quality.__dataclass_fields__ if f not in ("text", "base")
    }
    text = quality_text(Quality(names, Base('"\n' * 400, DIGEST), **low))
    assert len(text) == QUALITY_BYTES
    assert read_quality(text, "m.gguf") is not None


def test_the_same_measurement_replaces_the_old_one() -> None:
    again = replace(QUALITY, kld=0.02)
    assert RECORD.with_quality(again).quality == (again,)
    other = replace(QUALITY, base=None)
    assert RECORD.with_quality(other).quality == (QUALITY, other)
    faster = replace(RECORD.speed[0], rate=60.0)
    assert RECORD.with_speed((faster,)).speed == (faster,)
    elsewhere = replace(faster, machine="another")
    assert RECORD.with_speed((elsewhere,)).speed == (*RECORD.speed, elsewhere)


@pytest.mark.parametrize(
    ("name", "shape", "found"),
    [
        ("token_embd.weight", (8, 4), "embedding"),
        ("output.weight", (8, 4), "output"),
        ("blk.0.attn_output.weight", (4, 4), "attention"),
        ("blk.0.attn_q.bias", (4,), "norms"),
        ("blk.3.ffn_down_exps.weight", (2, 4, 8), "ffn"),
        ("output_norm.weight", (4,), "norms"),
        ("blk.0.ssm_in.weight", (4, 4), "other"),
    ],
)
def test_classes(name: str, shape: tuple[int, ...], found: str) -> None:
    assert tensor_class(name, shape) == found


def _changed(path: tuple[Any, ...], value: object) -> str:
    document = json.loads(RECORD.text())
    at = document
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{" * 100_000,
        '{"kvant_evidence": 1, "kvant_evidence": 1}',
        '{"kvant_evidence": NaN}',
        '{"files": [' + "1," * 200_000 + "1]}",
        _changed(("kvant_evidence",), 2),
        _changed(("kvant_evidence",), True),
        _changed(("files",), {}),
        _changed(("files", 0), []),
        _changed(("files", 0, "bytes"), -1),
        _changed(("files", 0, "bytes"), 1e300),
        _changed(("files", 0, "bytes"), True),
        _changed(("files", 0, "header_sha256"), "0" * 63 + "g"),
        _changed(("files", 0, "name"), "n" * 5000),
        _changed(("files",), [{}] * 5000),
        _changed(("made",), "Q4_K_M"),
        _changed(("made", "seed"), 1 << 63),
        _changed(("made", "overrides"), [1]),
        _changed(("made", "versions"), ["0.1"]),
        _changed(("size",), ...),
        _changed(("size", "bpw"), 4.0),
        _changed(("size", "classes", "magic"), {"weights": 1, "bytes": 1, "packings": {}}),
        _changed(("size", "classes", "ffn", "weights"), "many"),
        _changed(("quality", 0, "perplexity"), None),
        _changed(("quality", 0, "kld"), "0.01"),
        _changed(("quality", 0, "kld"), False),
        _changed(("quality", 0, "text"), ...),
        _changed(("quality", 0, "base"), {"name": "x"}),
        _changed(("speed", 0, "rate"), {}),
    ],
    ids=range(31),
)
def test_hostile_records(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.evidence.json").write_text(text)
    with pytest.raises(FileFormatError) as caught:
        read_evidence(tmp_path / "m.evidence.json")
    message = str(caught.value)
    assert str(tmp_path) in message
    assert message.isprintable()
    assert len(message) < 700 + len(str(tmp_path))


@pytest.mark.parametrize("text", ["x", "{}", "[1]", '{"text":{}}', "{" * 5000, '{"a":1e999}'])
def test_hostile_figures(text: str) -> None:
    with pytest.raises(FileFormatError, match=r"m\.gguf"):
        read_quality(text, "m.gguf")
