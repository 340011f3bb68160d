"""Limits of the machine, the work of a model against them, and energy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvant import _core
from kvant.api.conversion import quantize
from kvant.checkpoint import open_checkpoint
from kvant.evaluation.energy import EnergyMeter
from kvant.evaluation.limits import BUFFER_BYTES, Limits, MachineLimits, Work
from oracles.models import LLAMA, QWEN3MOE, make_folder

SECONDS = 0.02


def test_every_limit_is_measured() -> None:
    machine = MachineLimits(1, ["int8", "bf16", "float"], SECONDS)
    found = machine.measure()
    assert set(found.peaks) == {"int8", "bf16", "float"}
    assert found.bandwidth > 1e8
    # One product of bytes costs an eighth of one of floats at best, and never more than it.
    assert 0.5 < found.peaks["int8"] / found.peaks["float"] < 9
    assert 0.5 < found.peaks["bf16"] / found.peaks["float"] < 4.5


def test_arithmetic_is_no_faster_than_a_processor_can_be() -> None:
    """What would show if the compiler had seen through the loops: one core, 512-bit units."""
    fastest_clock, flops_a_cycle = 7e9, 64
    assert _core.arithmetic_peak("float", 1, SECONDS) < fastest_clock * flops_a_cycle
    assert _core.arithmetic_peak("int8", 1, SECONDS) < fastest_clock * 4 * flops_a_cycle
    assert _core.arithmetic_peak("bf16", 1, SECONDS) < fastest_clock * 2 * flops_a_cycle


@pytest.mark.parametrize("threads", [0, -1, 513])
def test_the_core_refuses_other_numbers_of_threads(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        _core.arithmetic_peak("float", threads, SECONDS)
    with pytest.raises(ValueError, match="threads"):
        _core.read_bandwidth(np.zeros(1 << 20, np.uint8), threads, SECONDS)


def test_the_core_refuses_what_it_cannot_measure() -> None:
    room = np.zeros(BUFFER_BYTES >> 6, np.uint8)
    start = -room.ctypes.data % 64
    with pytest.raises(ValueError, match="cache line"):
        _core.read_bandwidth(room[start + 1 :], 1, SECONDS)
    with pytest.raises(ValueError, match="megabyte"):
        _core.read_bandwidth(room[start : start + (3 << 20)], 4, SECONDS)
    with pytest.raises(ValueError, match="kinds"):
        _core.arithmetic_peak("fp4", 1, SECONDS)
    with pytest.raises(ValueError, match="seconds"):
        _core.arithmetic_peak("float", 1, 0.0)


def test_the_mean_of_two_measurements() -> None:
    before, after = Limits(10.0, {"int8": 1.0}), Limits(30.0, {"int8": 2.0})
    assert Limits.between(before, after) == Limits(20.0, {"int8": 1.5})


def test_the_work_of_a_model(tmp_path: Path) -> None:
    """Counted by hand: 2 layers, 256 wide, FFN 512, 4 heads of 64 with 2 for keys and values."""
    folder = make_folder(tmp_path / "m", LLAMA, dtype="BF16")
    work = Work.of(open_checkpoint(folder), kv_bytes=7.0)
    layers = 2 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 512)
    assert work.layers == {"bf16": layers}
    assert work.output == {"bf16": 384 * 256}
    assert work.weight_bytes == 2 * (layers + 384 * 256 + 5 * 256)
    assert work.kinds == {"bf16"}


def test_a_shared_output_matrix_is_read_once(tmp_path: Path) -> None:
    tied = {**LLAMA, "tie_word_embeddings": True}
    path = quantize(make_folder(tmp_path / "m", tied), "Q8_0", tmp_path / "m.gguf").paths[0]
    work = Work.of(open_checkpoint(path), kv_bytes=0.0)
    layers = 2 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 512)
    assert work.layers == {"int8": layers}
    assert work.output == {"int8": 384 * 256}
    assert work.weight_bytes == (layers + 384 * 256) * 34 // 32 + 4 * 5 * 256


def test_of_experts_only_those_a_token_uses(tmp_path: Path) -> None:
    work = Work.of(open_checkpoint(make_folder(tmp_path / "m", QWEN3MOE, dtype="BF16")), 0.0)
    attention, expert = 256 * 256 * 2 + 256 * 128 * 2, 3 * 256 * 256
    assert work.layers == {"bf16": 2 * (attention + 2 * expert), "float": 2 * 6 * 256}
    assert work.expert_bytes == 2 * 2 * 6 * expert
    limits = Limits(1e6, {"bf16": 1e12, "float": 1e12})
    read = [batch / work.generation(limits, batch, 0).rate * 1e6 for batch in (1, 2, 1000)]
    rest = 2 * (2 * attention + 384 * 256 + 5 * 256 + 4 * 64) + 2 * 2 * 6 * 256
    for bytes_read, share in zip(read, (1 / 3, 5 / 9, 1), strict=True):
        assert bytes_read == pytest.approx(rest + share * work.expert_bytes)


def test_limits_of_prompts_and_generation() -> None:
    work = Work({"int8": 900, "float": 50}, {"int8": 100}, weight_bytes=2000, kv_bytes=3.0)
    limits = Limits(1e6, {"int8": 4e6, "float": 1e6})
    prompt = work.prompt(limits)
    assert prompt.bound == "int8"
    assert prompt.rate == pytest.approx(1 / (2 * 900 / 4e6 + 2 * 50 / 1e6))
    one = work.generation(limits, 1, 100)
    assert one.bound == "memory"
    assert one.rate == pytest.approx(1e6 / 2300)
    many = work.generation(limits, 8, 0)
    assert many.bound == "int8"
    assert many.rate == pytest.approx(1 / (2 * 1000 / 4e6 + 2 * 50 / 1e6))


def _counter(root: Path, name: str, energy: object, wrap: object = 999_999) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{wrap}\n")
    return folder


def test_energy_of_packages_without_their_parts(tmp_path: Path) -> None:
    _counter(tmp_path, "intel-rapl:0", 900_000)
    _counter(tmp_path, "intel-rapl:0:0", 5)
    _counter(tmp_path, "intel-rapl:1", 100)
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    _counter(tmp_path, "intel-rapl:0", 400_000)  # came round: 100,000 to the end, 400,000 on
    _counter(tmp_path, "intel-rapl:0:0", 77)
    _counter(tmp_path, "intel-rapl:1", 500_100)
    assert meter.joules(before, meter.read()) == pytest.approx(1.0)


def test_energy_is_unknown_where_nothing_tells_it(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).read() is None
    assert EnergyMeter(tmp_path / "nowhere").read() is None
    _counter(tmp_path, "intel-rapl:0", "not a number")
    meter = EnergyMeter(tmp_path)
    assert meter.read() is None
    assert meter.joules(None, None) is None
    folder = _counter(tmp_path, "intel-rapl:0", 5)
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    assert before is not None
    (folder / "energy_uj").unlink()
    assert meter.joules(before, meter.read()) is None
