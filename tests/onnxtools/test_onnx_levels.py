"""Levels of any ONNX model: what they cost on data, and that files and reports are right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kvant.api.onnx_models import quantize_onnx
from kvant.errors import OutputError, UnsupportedError, UsageError
from kvant.onnxtools.compare import Bounds
from kvant.onnxtools.job import DataSet
from kvant.onnxtools.levels import OnnxOptions
from kvant.onnxtools.rows import quantise_rows
from onnxtools.onnx_small import (
    encoder,
    images,
    labelled,
    model_of,
    network,
    run_once,
    value,
)

STATIC = OnnxOptions()
VARIANTS = {
    "qdq": ("int8-static", STATIC),
    "qoperator": ("int8-static", replace(STATIC, format="qoperator")),
    "per-tensor": ("int8-static", replace(STATIC, per_channel=False)),
    "percentile": ("int8-static", replace(STATIC, calibration="percentile")),
    "entropy": ("int8-static", replace(STATIC, calibration="entropy")),
    "mse": ("int8-static", replace(STATIC, calibration="mse")),
    "uint16": ("int8-static", replace(STATIC, activations="uint16")),
    "int8": ("int8-static", replace(STATIC, activations="int8")),
    "reduced": ("int8-static", replace(STATIC, reduce_range=True)),
    "dynamic": ("int8-dynamic", STATIC),
    "weights8": ("int8-weights", STATIC),
    "weights8-qdq": ("int8-weights", replace(STATIC, format="qdq")),
    "int4": ("int4", STATIC),
    "int4-qdq": ("int4", replace(STATIC, format="qdq")),
    "int4-symmetric": ("int4", replace(STATIC, symmetric=True, block=16)),
    "int2": ("int2", replace(STATIC, block=16)),
    "float16": ("float16", STATIC),
}
# Output error relative to the outputs' size: several times what was measured.
ERRORS = {"int4": 0.25, "int2": 0.6, "float16": 2e-3, "int8-weights": 0.015}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return labelled(tmp_path_factory.mktemp("net"))


@pytest.mark.parametrize("name", list(VARIANTS))
def test_level(name: str, net: tuple[Path, Path], tmp_path: Path) -> None:
    level, options = VARIANTS[name]
    out = tmp_path / "out.onnx"
    report = quantize_onnx(net[0], level, out, data=DataSet(net[1]), options=options)
    assert report.paths == (out,)
    made = onnx.load(out)
    onnx.checker.check_model(made)
    quality = report.comparison.quality
    assert quality is not None
    assert quality.accuracy_before == 1.0
    assert quality.output_error <= ERRORS.get(level, 0.06)
    assert quality.loss <= {"int4": 35, "int2": 60}.get(level, 6)
    # The figure is what the file gives, by hand.
    pixels = np.load(net[1])["image"]
    before, after = (run_once(m, {"image": pixels})[0] for m in (onnx.load(net[0]), made))
    by_hand = np.sqrt(((before - after) ** 2).mean() / (before**2).mean())
    assert quality.output_error == pytest.approx(by_hand, rel=0.35)
    assert by_hand > 0
    stored = report.shares
    assert sum(stored.values()) == pytest.approx(1)
    assert stored.get("float32", 0) < (0.75 if level == "int2" else 0.5)
    assert made.metadata_props[0].key == "kvant"
    assert json.loads(made.metadata_props[0].value)["level"] == level


def test_same_bytes_again(net: tuple[Path, Path], tmp_path: Path) -> None:
    for level in ("int8-static", "int4", "int8-dynamic", "float16"):
        files = [tmp_path / f"{level}-{i}.onnx" for i in range(2)]
        for file, threads in zip(files, (1, 2), strict=True):
            quantize_onnx(net[0], level, file, data=DataSet(net[1]), threads=threads)
        assert files[0].read_bytes() == files[1].read_bytes(), level


@pytest.mark.parametrize("level", ["int8-static", "int8-dynamic", "int8-weights", "int4"])
def test_encoder(level: str, tmp_path: Path) -> None:
    onnx.save(encoder(2), tmp_path / "encoder.onnx")
    ids = np.random.default_rng(0).integers(0, 64, (40, 9))
    report = quantize_onnx(
        tmp_path / "encoder.onnx", level, tmp_path / "out.onnx", data=DataSet({"ids": ids})
    )
    assert report.comparison.quality is not None
    assert report.comparison.quality.output_error < 0.2
    if level == "int4":
        kinds = {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
        assert {"MatMulNBits", "GatherBlockQuantized"} <= kinds


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "block"), [(8, 16), (4, 16), (4, 32), (2, 32)])
def test_rows_against_the_textbook(bits: int, block: int, symmetric: bool) -> None:
    weights = np.random.default_rng(bits).standard_normal((5, 50)).astype(np.float32)
    weights[2] = 0
    weights[3] = np.abs(weights[3])
    found = quantise_rows(weights, bits, block, symmetric=symmetric)
    top = 2**bits - 1
    got = found.decoded(50)
    plain = np.zeros_like(weights)
    for r in range(5):
        for b in range(0, 50, block):
            part = weights[r, b : b + block].astype(np.float64)
            low, high = min(part.min(), 0), max(part.max(), 0)
            if symmetric:
                scale = max(-low / 2 ** (bits - 1), high / (2 ** (bits - 1) - 1))
                zero = 2 ** (bits - 1)
            else:
                scale = (high - low) / top
                zero = round(-low / scale) if scale else 0
            if scale:
                code = np.clip(np.rint(part / scale) + zero, 0, top)
                plain[r, b : b + block] = (code - zero) * scale
    assert (got[2] == 0).all()
    ours, theirs = ((got - weights) ** 2).sum(), ((plain - weights) ** 2).sum()
    assert ours <= theirs * 1.0001
    if bits == 8:
        assert np.abs(got - plain).max() < 1e-5


def test_fused_weights_are_what_was_rounded(tmp_path: Path) -> None:
    """ONNX Runtime decodes MatMulNBits and GatherBlockQuantized as our layout says."""
    weight = np.random.default_rng(0).standard_normal((48, 40)).astype(np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    from onnxtools.onnx_small import model_of, value

    for bits in (8, 4, 2):
        for symmetric in (False, True):
            model = model_of(
                [node], [value("x", ["n", 48])], [value("y", ["n", 40])], {"w": weight}
            )
            onnx.save(model, tmp_path / "m.onnx")
            level = {8: "int8-weights", 4: "int4", 2: "int2"}[bits]
            options = OnnxOptions(block=16, symmetric=symmetric)
            out = tmp_path / "out.onnx"
            quantize_onnx(tmp_path / "m.onnx", level, out, options=options, force=True)
            got = run_once(onnx.load(out), {"x": np.eye(48, dtype=np.float32)})[0]
            rows = np.ascontiguousarray(weight.T)
            expected = quantise_rows(rows, bits, 16, symmetric=symmetric).decoded(48).T
            assert np.abs(got - expected).max() < 1e-5


def test_bound_keeps_few_nodes_in_float(net: tuple[Path, Path], tmp_path: Path) -> None:
    plain = quantize_onnx(net[0], "int2", tmp_path / "a.onnx", data=DataSet(net[1]))
    assert plain.comparison.quality is not None
    limit = plain.comparison.quality.output_error * 0.7
    held = quantize_onnx(
        net[0], "int2", tmp_path / "b.onnx", data=DataSet(net[1]), bounds=Bounds(max_error=limit)
    )
    assert held.comparison.quality is not None
    assert held.comparison.quality.output_error <= limit
    assert 1 <= len(held.kept) <= 2
    assert held.kept[0].error == max(k.error or 0 for k in held.kept)
    graph = onnx.load(tmp_path / "b.onnx").graph
    kinds = {node.name: node.op_type for node in graph.node}
    for kept in held.kept:
        assert kinds[kept.node] in ("Conv", "Gemm", "MatMul")  # as it was
    assert any("kept in float" in step for step in held.steps)


def test_bounds_on_accuracy(net: tuple[Path, Path], tmp_path: Path) -> None:
    held = quantize_onnx(
        net[0],
        "int4",
        tmp_path / "a.onnx",
        data=DataSet(net[1]),
        bounds=Bounds(max_loss=12.0, min_accuracy=88.0),
    )
    assert held.comparison.quality is not None
    assert (held.comparison.quality.accuracy_after or 0) >= 0.88
    assert held.kept
    with pytest.raises(UnsupportedError, match="nothing would be quantised"):
        quantize_onnx(
            net[0],
            "int4",
            tmp_path / "b.onnx",
            data=DataSet(net[1]),
            bounds=Bounds(max_error=1e-9),
        )
    with pytest.raises(UsageError, match="needs labels"):
        quantize_onnx(
            net[0],
            "int4",
            tmp_path / "b.onnx",
            data=DataSet({"image": images(20)}),
            bounds=Bounds(max_loss=1.0),
        )
    with pytest.raises(UsageError, match="needs data"):
        quantize_onnx(net[0], "int4", tmp_path / "b.onnx", bounds=Bounds(max_error=0.1))
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize(
    ("level", "options", "words"),
    [
        ("int8-static", {"block": 64}, "--block is for int8-weights, int4, int2, not int8-static"),
        ("int8-dynamic", {"symmetric": True}, "--symmetric is for"),
        ("float16", {"calibration": "mse"}, "--calibration is for int8-static, not float16"),
        ("int4", {"reduce_range": True}, "--reduce-range is for int8-static, int8-dynamic"),
        ("int4", {"percentile": 99.0}, "--percentile is for int8-static"),
        ("int8-static", {"percentile": 99.0}, "--percentile is for --calibration percentile"),
        ("int4", {"per_channel": False}, "--no-per-channel is for"),
        ("int2", {"format": "qoperator"}, "--format qoperator is for int8-static, not int2"),
        ("int8-dynamic", {"format": "qdq"}, "--format is for"),
        ("int4", {"activations": "int8"}, "--activations is for int8-static, not int4"),
        ("int8-weights", {"format": "qdq", "block": 64}, "a whole output"),
    ],
)
def test_options_without_effect(
    level: str, options: dict[str, Any], words: str, net: tuple[Path, Path], tmp_path: Path
) -> None:
    data = DataSet(net[1])
    with pytest.raises(UsageError, match=words):
        quantize_onnx(net[0], level, tmp_path / "a", data=data, options=OnnxOptions(**options))


def test_bounds_on_accuracy_without_classes(tmp_path: Path) -> None:
    """One score a sample is no class: the bound cannot be held, so it is not said to be."""
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        onnx.helper.make_node("ReduceSum", ["h"], ["score"], "sum", keepdims=1),
    ]
    made = model_of(nodes, [value("x", ["n", 32])], [value("score", [1, 1])], {"w": weight})
    onnx.save(made, tmp_path / "m.onnx")
    data = {"x": np.ones((8, 32), np.float32), "labels": np.zeros(8, np.int64)}
    for bounds in (Bounds(max_loss=1.0), Bounds(min_accuracy=90.0)):
        with pytest.raises(UsageError, match="needs classes"):
            quantize_onnx(
                tmp_path / "m.onnx", "int4", tmp_path / "a.onnx", data=DataSet(data), bounds=bounds
            )


def test_overflow_is_looked_for_in_test_data(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        onnx.helper.make_node("Mul", ["h", "tiny"], ["y"], "last"),
    ]
    weights = {"w": np.full((8, 8), 3e4, np.float32), "tiny": np.float32([1e-4])}
    made = model_of(nodes, [value("x", ["n", 8])], [value("y", ["n", 8])], weights)
    onnx.save(made, tmp_path / "m.onnx")
    data = DataSet(test={"x": np.ones((4, 8), np.float32)})
    report = quantize_onnx(tmp_path / "m.onnx", "float16", tmp_path / "a.onnx", data=data)
    assert {kept.why for kept in report.kept} == {"overflows float16"}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [1e-30, 1e20, 3.4e38])
def test_blocks_of_very_large_and_small_weights(size: float, bits: int, symmetric: bool) -> None:
    weights = np.random.default_rng(0).uniform(-1, 1, (3, 64)).astype(np.float32)
    weights[0, 0], weights[0, 1] = 1, -1

    def error(by: float) -> float:
        blocks = quantise_rows(weights * np.float32(by), bits, 32, symmetric=symmetric)
        wrong = blocks.decoded(64) / by - weights.astype(np.float64)
        return float(np.sqrt(np.square(wrong).mean()))

    assert error(size) == pytest.approx(error(1), rel=0.15)


def test_bound_on_test_data_alone(net: tuple[Path, Path], tmp_path: Path) -> None:
    held = quantize_onnx(
        net[0],
        "int2",
        tmp_path / "a.onnx",
        data=DataSet(test=net[1]),
        bounds=Bounds(max_error=0.3),
    )
    assert held.comparison.quality is not None
    assert held.comparison.quality.output_error <= 0.3
    assert held.kept


def test_keep_float(net: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "a.onnx"
    report = quantize_onnx(net[0], "int4", out, keep_float=["last", "Conv"])
    assert {kept.node for kept in report.kept if kept.why == "asked for"} >= {"last"}
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert "Conv" in kinds
    assert "DequantizeLinear" not in kinds
    with pytest.raises(UsageError, match="nobody"):
        quantize_onnx(net[0], "int4", out, keep_float=["nobody"], force=True)


def test_strict_writes_nothing_worse(net: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--strict"):
        quantize_onnx(
            net[0],
            "int2",
            tmp_path / "a.onnx",
            data=DataSet(net[1]),
            options=OnnxOptions(block=256),
            strict=True,
        )
    assert not list(tmp_path.iterdir())


def test_overflow_stays_in_float(tmp_path: Path) -> None:
    model = network()
    scale = next(t for t in model.graph.initializer if t.name == "hidden.weight")
    large = onnx.numpy_helper.to_array(scale) * np.float32(3e5)
    scale.CopyFrom(onnx.numpy_helper.from_array(large, scale.name))
    onnx.save(model, tmp_path / "net.onnx")
    data = DataSet({"image": images(20)})
    report = quantize_onnx(tmp_path / "net.onnx", "float16", tmp_path / "a.onnx", data=data)
    assert "overflows float16" in {kept.why for kept in report.kept}
    assert report.comparison.quality is not None
    assert report.comparison.quality.output_error < 0.01


def test_nothing_to_quantise(tmp_path: Path) -> None:
    from onnxtools.onnx_small import model_of, value

    node = onnx.helper.make_node("Relu", ["x"], ["y"], "r")
    onnx.save(model_of([node], [value("x", [1, 4])], [value("y", [1, 4])]), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="changes none of its nodes"):
        quantize_onnx(tmp_path / "m.onnx", "int4", tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="calibration data"):
        quantize_onnx(tmp_path / "m.onnx", "int8-static", tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="unknown level"):
        quantize_onnx(tmp_path / "m.onnx", "int5", tmp_path / "a.onnx")
