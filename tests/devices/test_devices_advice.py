"""Predictions against the engine, and the rules of advice on predictions made by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import kvant
from kvant.api.advice import predictions
from kvant.api.source import open_source
from kvant.devices import (
    USES,
    Memory,
    NothingFitsError,
    Prediction,
    SpeedRange,
    Variant,
    Wish,
    advise,
    device_named,
    devices,
    predict,
    quality_of_recipe,
)
from kvant.devices import machine as machines
from kvant.devices.knowledge import Cited, knowledge
from kvant.engine import load_engine
from kvant.errors import UsageError
from kvant.quant.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
BPW = {"Q2_K": 2.9, "Q3_K_M": 3.9, "Q4_K_M": 4.9, "Q5_K_M": 5.7, "Q6_K": 6.6, "Q8_0": 8.5}
SMALL = int(1e9)


def made(recipe: str, speed: float | None = 20.0) -> Prediction:
    size = int(BPW[recipe] * 1e8)
    variant = Variant(recipe, size, BPW[recipe], {"Q4_K": SMALL}, size, size)
    generation = None if speed is None else SpeedRange(speed / BPW[recipe], speed)
    return Prediction(variant, Memory(size, 10_000_000, 5_000_000, 50_000_000), generation, None)


ALL = [made(recipe) for recipe in BPW]


# ---- predictions --------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [128, 512])
@pytest.mark.parametrize("recipe", ["BF16", "Q4_K_M", "Q2_K"])
def test_parts_of_memory_are_the_engines(tmp_path: Path, recipe: str, context: int) -> None:
    source = "demo"
    if recipe != "BF16":
        source = str(kvant.quantize("demo", recipe, tmp_path / "m.gguf").paths[0])
    checkpoint = open_source(source)
    engine = load_engine(checkpoint, threads=2, kv_tokens=context)
    by_recipe = {p.variant.recipe: p for p in predictions(open_source("demo"), context, None)}
    found = predict(by_recipe[recipe].variant, checkpoint, context=context, threads=2).memory
    real = engine.memory
    assert found.weights == pytest.approx(real.weights_bytes, rel=0.01)
    assert found.kv == real.kv_bytes
    assert found.compute == pytest.approx(real.scratch_bytes, rel=0.25)


@pytest.mark.parametrize("context", ["128", "512"])
def test_memory_is_predicted_within_a_tenth(context: str) -> None:
    models = ["demo"]
    second = ROOT / "bench" / "models" / "qwen3-11m"
    if (second / "model.safetensors").exists():
        models.append(str(second))
    script = [sys.executable, str(ROOT / "bench" / "memory_prediction.py")]
    done = subprocess.run(
        [*script, *models, "--contexts", context],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("predicted") == len(models)


def test_speed_follows_bytes_and_bandwidth() -> None:
    checkpoint = open_source("demo")
    device = device_named("raspberry-pi-5-8gb")
    by_recipe = {p.variant.recipe: p for p in predictions(checkpoint, 512, device)}
    q4, q8 = by_recipe["Q4_K_M"].generation, by_recipe["Q8_0"].generation
    assert q4 is not None
    assert q8 is not None
    assert q4.low > q8.low
    ratio = device.achieved[1] / device.achieved[0]
    assert q4.high / q4.low == pytest.approx(ratio)
    assert q8.high < device.bandwidth / by_recipe["Q8_0"].variant.read_bytes
    twice = predict(
        by_recipe["Q8_0"].variant,
        checkpoint,
        context=512,
        threads=4,
        device=replace(device, bandwidth=2 * device.bandwidth),
    )
    assert twice.generation is not None
    assert twice.generation.low == pytest.approx(2 * q8.low)
    assert by_recipe["Q8_0"].prompt is not None
    gpu = predictions(checkpoint, 512, device_named("jetson-orin-nano"))[0]
    assert gpu.prompt is None  # no graphics processor was measured


def test_keys_and_values_grow_with_context_and_shrink_with_their_type() -> None:
    checkpoint = open_source("demo")
    variant = predictions(checkpoint, 128, None)[0].variant

    def kv(context: int, kind: str = "f16") -> int:
        found = predict(variant, checkpoint, context=context, threads=1, kv_type=kind)
        return found.memory.kv

    assert kv(1024) == 4 * kv(256)
    assert 0.5 < kv(1024, "q8_0") / kv(1024) < 0.6


# ---- profiles -----------------------------------------------------------------------------------


def test_profiles_are_complete() -> None:
    found = devices()
    assert len({d.name for d in found}) == len(found) > 60
    kinds = {d.kind for d in found}
    assert {"phone", "tablet", "single-board", "embedded", "laptop", "workstation"} <= kinds
    assert {"mac", "browser", "server"} <= kinds
    for d in found:
        assert len(d.source) > 20, d.name
        assert 0 < d.achieved[0] < d.achieved[1] <= 1, d.name
        assert 0 < d.usable < d.ram, d.name
        assert 1e9 < d.bandwidth < 1e13, d.name
        assert d.format in knowledge()["formats"], d.name
        assert (d.peak == 0) == (d.compute == "gpu"), d.name
    for n in range(1, 5):
        assert any(d.name.startswith(f"m{n}-") for d in found)
    for pi, sizes in (("raspberry-pi-4", (1, 2, 4, 8)), ("raspberry-pi-5", (2, 4, 8, 16))):
        for size in sizes:
            assert device_named(f"{pi}-{size}gb").ram == size * 10**9


def test_names_of_devices() -> None:
    assert device_named("Raspberry Pi 5 8GB") is device_named("raspberry-pi-5-8gb")
    with pytest.raises(UsageError, match="several sizes of memory: raspberry-pi-5-2gb"):
        device_named("raspberry-pi-5")
    with pytest.raises(UsageError, match="Did you mean iphone-16"):
        device_named("iphone-17")


# ---- rules --------------------------------------------------------------------------------------


def test_knowledge_names_what_exists() -> None:
    k = knowledge()
    recipes = {r.name for r in PRESETS}
    assert set(k["ladder"]) <= recipes
    assert set(k["uses"]) == set(USES)
    assert {u["goal"] for u in k["uses"].values()} <= set(k["ladder"])
    assert set(k["ultra_low"]) == {
        r.name for r in PRESETS if r.precision_class == "ultra-low" and r.name in k["ladder"]
    }
    for row in k["quality"]:
        assert row["recipe"].removesuffix(" with importance") in recipes
        assert row["source"]
    klds = [q.kld for r in k["ladder"] if (q := quality_of_recipe(r)) is not None]
    assert klds == sorted(klds)


@pytest.mark.parametrize(
    ("use", "recipe"),
    [("chat", "Q4_K_M"), ("code", "Q5_K_M"), ("productivity", "Q5_K_M"), ("research", "Q8_0")],
)
def test_goals(use: str, recipe: str) -> None:
    found = advise(Wish(use, 2 * SMALL, 4096, kind="phone"), ALL)
    assert found.pick.variant.recipe == recipe
    assert found.quality is not None
    assert found.runner_up is not None
    assert found.warnings == ()


def test_plenty_of_memory_is_used() -> None:
    assert advise(Wish("chat", 8 * SMALL, 4096, "laptop"), ALL).pick.variant.recipe == "Q8_0"
    assert advise(Wish("chat", 8 * SMALL, 4096, "phone"), ALL).pick.variant.recipe == "Q4_K_M"


def test_less_memory_goes_down_the_ladder() -> None:
    assert advise(Wish("chat", 500_000_000, 4096), ALL).pick.variant.recipe == "Q3_K_M"
    tight = advise(Wish("chat", 400_000_000, 4096), ALL)
    assert tight.pick.variant.recipe == "Q2_K"
    assert any("extreme limits" in w for w in tight.warnings)
    assert advise(Wish("research", 400_000_000, 4096), ALL).warnings == ()
    assert tight.runner_up is None


def test_nothing_fits() -> None:
    with pytest.raises(NothingFitsError, match=r"smallest, Q2_K, needs 355\.0 MB.*smaller model"):
        advise(Wish("chat", 100_000_000, 4096), ALL)
    with pytest.raises(NothingFitsError, match="With --context 512 it fits"):
        advise(Wish("chat", 350_000_000, 4096, room=512), ALL)


def test_speed_is_promised_by_the_lower_end() -> None:
    slow = advise(Wish("research", 2 * SMALL, 4096, min_speed=3.5), ALL)
    assert slow.pick.variant.recipe == "Q5_K_M"  # 20 / 5.7 = 3.5
    with pytest.raises(NothingFitsError, match=r"fastest, Q2_K, .* at least 6\.9"):
        advise(Wish("chat", 2 * SMALL, 4096, min_speed=100), ALL)


def test_measured_files_go_before_the_rules() -> None:
    mine = {"Q3_K_M": Cited(0.01, "mine", "m.evidence.json", measured_here=True)}
    found = advise(Wish("chat", 2 * SMALL, 4096), ALL, mine)
    assert found.pick.variant.recipe == "Q3_K_M"
    assert found.quality == mine["Q3_K_M"]
    unfit = {"Q8_0": Cited(0.001, "mine", "m.evidence.json", measured_here=True)}
    assert advise(Wish("chat", 700_000_000, 4096), ALL, unfit).pick.variant.recipe == "Q4_K_M"


def test_the_level_has_the_formats_name() -> None:
    wish = Wish("chat", 2 * SMALL, 4096, kind="tablet", engine="MLX", format="mlx")
    assert advise(wish, ALL).level == "4-bit, groups of 64"


# ---- this machine -------------------------------------------------------------------------------


def test_this_machine() -> None:
    found = machines.machine()
    assert found.memory_total > found.memory_available > 0
    assert found.isa in found.isas
    assert found.engine()[0] in ("kvant", "MLX", "vLLM")


def test_engines_and_warnings() -> None:
    here = replace(machines.machine(), gpus=(), runtimes={}, system="Linux")
    assert here.engine()[0] == "kvant"
    card = machines.Gpu("NVIDIA L4", "NVIDIA", 24 << 30)
    assert replace(here, gpus=(card,)).engine()[0] == "kvant"
    assert any("vllm" in w for w in machines.warnings_for(replace(here, gpus=(card,))))
    assert replace(here, gpus=(card,), runtimes={"vllm": "1"}).engine()[0] == "vLLM"
    mac = replace(here, system="Darwin 24", architecture="arm64")
    assert any("mlx-lm" in w for w in machines.warnings_for(mac))
    assert replace(mac, runtimes={"mlx": "1"}).engine()[0] == "MLX"
    poor = replace(here, memory_available=1, disk_free=1, isa="scalar")
    assert len(machines.warnings_for(poor)) == 3


def test_graphics_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "drm" / "card0" / "device"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x1002\n")
    (device / "product_name").write_text("Radeon\n")
    (device / "mem_info_vram_total").write_text("17163091968\n")
    assert machines._amd(tmp_path / "drm") == [machines.Gpu("Radeon", "AMD", 17163091968)]
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034'\necho 'NVIDIA odd, [N/A]'\necho garbage\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert machines._nvidia() == [
        machines.Gpu("NVIDIA L4", "NVIDIA", 23034 << 20),
        machines.Gpu("NVIDIA odd", "NVIDIA", None),
    ]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machines._nvidia() == []
