"""recommend, devices and doctor as people type them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvant

Run = Callable[..., Any]


def test_devices(run: Run) -> None:
    found = run("devices")
    assert (found.status, found.err) == (0, "")
    assert "raspberry-pi-5-8gb" in found.out
    document = json.loads(run("devices", "--json").out)
    assert all(d["source"] for d in document["devices"])
    one = run("devices", "m4-max-64gb")
    assert one.status == 0
    assert "546 GB/s by specification" in one.out
    assert json.loads(run("devices", "m4-max-64gb", "--json").out)["ram"] == 64 * 10**9
    wrong = run("devices", "nokia-3310")
    assert (wrong.status, wrong.out) == (1, "")
    assert "kvant devices" in wrong.err


def test_doctor(run: Run) -> None:
    found = run("doctor")
    assert found.status == 0
    for word in ("processor", "kernels", "memory", "runtimes", "engine"):
        assert any(line.startswith(word) for line in found.out.splitlines())
    document = json.loads(run("doctor", "--measure", "--json").out)
    assert document["bandwidth"] > 1e8
    assert document["isa"] in document["isas"]
    assert json.loads(run("doctor", "--json").out)["bandwidth"] is None


def test_recommend(run: Run) -> None:
    found = run("recommend", "demo", "--device", "iphone-16")
    assert found.status == 0
    for word in ("level     Q4_K_M", "an estimate", "because", "otherwise", "KL divergence"):
        assert word in found.out
    document = json.loads(run("recommend", "demo", "--device", "iphone-16", "--json").out)
    memory = document["pick"]["memory"]
    parts = ("weights", "kv", "compute", "process")
    assert memory["total"] == sum(memory[part] for part in parts)
    assert document["quality"]["source"]
    assert document["runner_up"]["recipe"] == "Q5_K_S"
    inspected = json.loads(run("inspect", "demo", "--json").out)["recipes"]
    sizes = {r["name"]: r["bytes"] for r in inspected}
    assert document["pick"]["bytes"] == sizes["Q4_K_M"]


@pytest.mark.parametrize("use", ["chat", "code", "productivity", "research"])
def test_recommend_by_memory(run: Run, use: str) -> None:
    found = run("recommend", "demo", "--ram", "1GB", "--use", use, "--context", "256")
    assert found.status == 0
    assert "not known" in found.out


def test_recommend_for_other_formats(run: Run) -> None:
    mac = json.loads(run("recommend", "demo", "--device", "m4-16gb", "--json").out)
    assert (mac["format"], mac["engine"]) == ("mlx", "MLX")
    npu = json.loads(run("recommend", "demo", "--device", "copilot-plus-16gb", "--json").out)
    assert npu["format"] == "onnx"
    assert json.loads(run("recommend", "demo", "--device", "h100", "--json").out)["format"] == (
        "vllm"
    )


def test_recommend_for_this_machine(run: Run) -> None:
    found = run("recommend", "demo", "--device", "here", "--min-speed", "1")
    assert found.status == 0
    assert "this machine" in found.out


def test_nothing_fits(run: Run) -> None:
    found = run("recommend", "demo", "--ram", "20MB")
    assert (found.status, found.out) == (1, "")
    assert "Nothing fits in 20.0 MB: the smallest" in found.err
    slow = run("recommend", "demo", "--device", "raspberry-pi-4-1gb", "--min-speed", "1e9")
    assert slow.status == 1
    assert "sure to write" in slow.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either --device NAME or --ram SIZE"),
        (["--device", "h100", "--ram", "1GB"], "either --device NAME or --ram SIZE"),
        (["--ram", "1GB", "--min-speed", "5"], "needs --device"),
        (["--device", "h100", "--min-speed", "nan"], "above 0"),
        (["--ram", "1GB", "--context", "99999"], "from 1 to 1024"),
    ],
)
def test_requests_that_make_no_sense(run: Run, arguments: list[str], words: str) -> None:
    found = run("recommend", "demo", *arguments)
    assert (found.status, found.out) == (1, "")
    assert words in found.err
    assert found.err.count("\n") == 1


def test_measured_files_beside_the_source(run: Run, tmp_path: Path) -> None:
    source = kvant.convert("demo", tmp_path / "full.gguf").paths[0]
    kvant.quantize(source, "Q3_K_M", tmp_path / "small.gguf", evidence=True)
    (tmp_path / "odd.evidence.json").write_text('{"kvant_evidence": 1, "files": 7}')
    found = run("recommend", source, "--device", "iphone-16", "--json")
    assert found.status == 0
    document = json.loads(found.out)
    assert document["pick"]["recipe"] == "Q3_K_M"
    assert document["quality"]["measured_here"] is True
    assert "small.evidence.json" in document["quality"]["source"]
    assert document["pick"]["bytes"] == (tmp_path / "small.gguf").stat().st_size


def test_a_quantised_source(run: Run, tmp_path: Path) -> None:
    path = kvant.quantize("demo", "Q3_K_M", tmp_path / "m.gguf").paths[0]
    found = run("recommend", path, "--ram", "1GB")
    assert found.status == 0
    assert "quantised already" in found.err
