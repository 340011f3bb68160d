"""Every hostile or damaged ONNX file: one clear message, a status, nothing written, at once."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
pytest.importorskip("onnxslim", reason="needs the extra `onnx`")

from kvant.cli.main import main
from kvant.errors import KvantError
from kvant.onnxtools import apart, model
from kvant.onnxtools.model import open_model
from onnxtools.onnx_attacks import CASES
from onnxtools.onnx_small import network

COMMANDS = (("quantize", "int8-dynamic"), ("optimize",))


@pytest.mark.parametrize("name", list(CASES))
def test_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, out = tmp_path / "in", tmp_path / "out"
    place.mkdir()
    out.mkdir()
    source = CASES[name](place)
    before = sorted(tmp_path.rglob("*"))
    for command, *level in COMMANDS:
        start = time.process_time()
        status = main([command, str(source), *level, "-o", str(out)])
        assert time.process_time() - start < 5
        found = capsys.readouterr()
        assert status == 1, (command, found)
        assert found.out == ""
        assert found.err.startswith("kvant: ")
        assert found.err.count("\n") == 1, found.err
        message = found.err.rstrip("\n")
        assert message.isprintable()
        assert source.name in message
        assert len(message.replace(str(tmp_path), "")) < 700
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("external-")])
def test_external_data_are_named(
    name: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "in"
    place.mkdir()
    if large:  # mapped, not read
        monkeypatch.setattr(model, "APART_FROM", 1)
        monkeypatch.setattr(apart, "_SMALL", 1)
    with pytest.raises(KvantError, match=r"conv\.weight"):
        open_model(CASES[name](place))


def test_messages_say_what_is_wrong(tmp_path: Path) -> None:
    expected = {
        "cycle": "cyclic",
        "operator-unknown": "Frobnicate",
        "external-parent": "outside the model's folder",
        "external-link": "outside the model's folder",
        "huge-external": "MB are free",
        "huge-file": "external data",
        "type-unknown": "type 99",
        "short-weight": "needs 1,728 bytes, has 10",
        "function-recursion": "calls itself",
        "truncated-50": "truncated",
    }
    for name, words in expected.items():
        place = tmp_path / name / "in"
        place.mkdir(parents=True)
        with pytest.raises(KvantError, match=words):
            open_model(CASES[name](place))


def test_flipped_bytes_never_escape_as_tracebacks(tmp_path: Path) -> None:
    whole = network().SerializeToString()
    path = tmp_path / "model.onnx"
    refused = 0
    for seed in range(150):
        dice = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(dice.choice((1, 2, 5))):
            # Names, shapes and types are at both ends; weights, where all is allowed, between.
            place = dice.choice((dice.randrange(900), len(whole) - 1 - dice.randrange(200)))
            damaged[place] = dice.randrange(256)
        path.write_bytes(damaged)
        with suppress(KvantError):  # anything else is a finding
            open_model(path)
            continue
        refused += 1
    assert refused > 50
