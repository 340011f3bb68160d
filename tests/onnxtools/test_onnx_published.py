"""What models that people publish hold: branches, functions, LSTM, free sizes written as -1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kvant.api.onnx_models import optimize_onnx, quantize_onnx
from kvant.errors import UnsupportedError
from kvant.onnxtools import half, inner
from kvant.onnxtools.job import DataSet
from kvant.onnxtools.levels import OnnxOptions
from kvant.onnxtools.model import open_model
from kvant.onnxtools.rows import quantise_rows
from kvant.onnxtools.session import Session
from onnxtools.onnx_small import model_of, network, run_once, value

MAKE = helper.make_node
LEVELS = ("int8-weights", "int8-dynamic", "int4", "float16")
ERRORS = {"int4": 0.2, "float16": 2e-3}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])
    return values.astype(np.float32)


def by_hand(before: Any, after: Any, feeds: dict[str, np.ndarray]) -> float:
    pairs = zip(run_once(before, feeds), run_once(after, feeds), strict=True)
    return max(float(np.sqrt(((a - b) ** 2).sum() / (a**2).sum())) for a, b in pairs)


def kinds(model: Any) -> list[str]:
    return [node.op_type for node in inner.all_nodes(model.graph)]


def branches(same_names: bool) -> Any:
    """A linear and an LSTM in each branch of an If on an input; one branch stores initializers."""
    graphs = []
    for index in range(2):
        mark = "" if same_names else str(index)
        weights = {
            f"w{mark}": normal(32, 64, seed=index),
            f"kernel{mark}": normal(1, 64, 64, seed=index + 2),
            f"recurrent{mark}": normal(1, 64, 16, seed=index + 4),
        }
        nodes = [
            MAKE("MatMul", ["x", f"w{mark}"], [f"h{mark}"], "linear"),
            MAKE("Unsqueeze", [f"h{mark}", "first"], [f"s{mark}"]),
            MAKE(
                "LSTM",
                [f"s{mark}", f"kernel{mark}", f"recurrent{mark}"],
                ["", f"y{mark}"],
                hidden_size=16,
            ),
        ]
        if index:
            stored = [numpy_helper.from_array(v, k) for k, v in weights.items()]
        else:
            stored = []
            nodes = [
                MAKE("Constant", [], [k], value=numpy_helper.from_array(v))
                for k, v in weights.items()
            ] + nodes
        output = helper.make_tensor_value_info(f"y{mark}", TensorProto.FLOAT, None)
        graphs.append(helper.make_graph(nodes, f"branch{index}", [], [output], stored))
    choose = MAKE("If", ["which"], ["y"], then_branch=graphs[0], else_branch=graphs[1])
    inputs = [value("x", ["n", 32]), value("which", [], TensorProto.BOOL)]
    weights = {"first": np.asarray([0], np.int64)}
    return model_of([choose], inputs, [value("y", [1, "n", 16])], weights)


@pytest.mark.parametrize("same_names", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_weights_in_branches(level: str, same_names: bool, tmp_path: Path) -> None:
    model = branches(same_names)
    onnx.save(model, tmp_path / "m.onnx")
    report = quantize_onnx(tmp_path / "m.onnx", level, tmp_path / "o.onnx")
    made = onnx.load(tmp_path / "o.onnx")
    assert any("moved to the outermost graph" in step for step in report.steps)
    for which in (True, False):
        feeds = {"x": normal(7, 32, seed=9), "which": np.asarray(which)}
        error = by_hand(model, made, feeds)
        assert 0 < error < ERRORS.get(level, 0.03), which
    assert report.comparison.bytes_after < 0.56 * report.comparison.bytes_before
    if level == "int8-dynamic":
        assert kinds(made).count("MatMulIntegerToFloat") + kinds(made).count("MatMulInteger") == 2


def test_static_reaches_branches_by_weights(tmp_path: Path) -> None:
    onnx.save(branches(True), tmp_path / "m.onnx")
    data = DataSet({"x": normal(40, 1, 32), "which": np.arange(40) % 2 == 0})
    report = quantize_onnx(tmp_path / "m.onnx", "int8-static", tmp_path / "o.onnx", data=data)
    assert any("4 nodes (in inner graphs" in step for step in report.steps)
    assert report.comparison.quality is not None
    assert 0 < report.comparison.quality.output_error < 0.03
    assert report.comparison.bytes_after < 0.5 * report.comparison.bytes_before


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_weights(kind: str, tmp_path: Path) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * 24
    weights = {"w": normal(2, gates, 40), "r": normal(2, gates, 24, seed=1)}
    node = MAKE(kind, ["x", "w", "r"], ["y"], hidden_size=24, direction="bidirectional")
    inputs, outputs = [value("x", ["time", 1, 40])], [value("y", ["time", 2, 1, 24])]
    model = model_of([node], inputs, outputs, weights)
    onnx.save(model, tmp_path / "m.onnx")
    feeds = {"x": normal(6, 1, 40, seed=3)}
    for level, block in (("int8-weights", 32), ("int4", 16)):
        options = OnnxOptions(block=block)
        made = tmp_path / f"{level}.onnx"
        quantize_onnx(tmp_path / "m.onnx", level, made, options=options)
        rounded = {}
        for name, values in weights.items():
            rows = np.ascontiguousarray(np.moveaxis(values, 1, 0).reshape(gates, -1))
            bits = 8 if level == "int8-weights" or kind == "RNN" else 4
            decoded = quantise_rows(rows, bits, block, symmetric=False).decoded(rows.shape[1])
            rounded[name] = np.moveaxis(decoded.reshape(gates, 2, -1), 0, 1)
        expected = run_once(model_of([node], inputs, outputs, rounded), feeds)[0]
        assert np.allclose(run_once(onnx.load(made), feeds)[0], expected, atol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("level", ["int8-weights", "int4", "int2"])
def test_kernels_are_decoded_at_loading(level: str, symmetric: bool, tmp_path: Path) -> None:
    """The values are what was rounded, and no operator that decodes is left when it runs."""
    weight = normal(48, 37, 3, 3)  # 333 columns: blocks of 32 do not fit
    node = MAKE("Conv", ["x", "w"], ["y"], "conv", kernel_shape=[3, 3])
    inputs, outputs = [value("x", [1, 37, 5, 5])], [value("y", [1, 48, 3, 3])]
    onnx.save(model_of([node], inputs, outputs, {"w": weight}, opset=11), tmp_path / "m.onnx")
    options = OnnxOptions(symmetric=symmetric)
    report = quantize_onnx(tmp_path / "m.onnx", level, tmp_path / "o.onnx", options=options)
    assert not any("opset" in step for step in report.steps)  # as old as it was
    bits = {"int8-weights": 8, "int4": 4, "int2": 2}[level]
    assert report.comparison.bytes_after < (bits + 3) / 32 * report.comparison.bytes_before + 3000
    made = onnx.load(tmp_path / "o.onnx")
    rows = quantise_rows(weight.reshape(48, -1), bits, 32, symmetric=symmetric).decoded(333)
    feeds = {"x": normal(1, 37, 5, 5, seed=2)}
    rounded = model_of([node], inputs, outputs, {"w": rows.reshape(weight.shape)}, opset=11)
    assert np.allclose(run_once(made, feeds)[0], run_once(rounded, feeds)[0], atol=1e-5)
    Session(made, "test", optimised=tmp_path / "run.onnx", level="basic")
    assert kinds(onnx.load(tmp_path / "run.onnx")) == ["Conv"]


def test_dynamic_leaves_activations_of_convolutions(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    report = quantize_onnx(tmp_path / "m.onnx", "int8-dynamic", tmp_path / "o.onnx")
    found = kinds(onnx.load(tmp_path / "o.onnx"))
    assert "ConvInteger" not in found
    assert "Conv" in found
    assert report.shares["float32"] < 0.2


def test_static_leaves_sums_and_products_in_float(tmp_path: Path) -> None:
    """Of values beside one that is 1,000 times as large, 8 bits leave nothing."""
    weights = {"w": normal(32, 32), "large": np.float32([1e3] + [1] * 31), "small": normal(32, 8)}
    weights["back"] = (1 / weights["large"]).astype(np.float32)
    nodes = [
        MAKE("MatMul", ["x", "w"], ["a"], "first"),
        MAKE("Mul", ["a", "large"], ["b"], "apart"),
        MAKE("Add", ["b", "b"], ["c"], "double"),
        MAKE("Mul", ["c", "back"], ["d"], "together"),
        MAKE("MatMul", ["d", "small"], ["y"], "last"),
    ]
    model = model_of(nodes, [value("x", ["n", 32])], [value("y", ["n", 8])], weights)
    onnx.save(model, tmp_path / "m.onnx")
    data = DataSet({"x": normal(200, 32)})
    report = quantize_onnx(tmp_path / "m.onnx", "int8-static", tmp_path / "o.onnx", data=data)
    assert report.comparison.quality is not None
    assert report.comparison.quality.output_error < 0.1


def test_minus_one_is_a_free_dimension(tmp_path: Path) -> None:
    model = network()
    for port in (model.graph.input[0], model.graph.output[0]):
        port.type.tensor_type.shape.dim[0].dim_value = -1
    hidden = model.graph.value_info.add()
    hidden.CopyFrom(value("a", [-1, 16, 8, 8]))
    onnx.save(model, tmp_path / "m.onnx")
    opened = open_model(tmp_path / "m.onnx")
    assert opened.inputs[0].shape == (None, 3, 8, 8)
    assert quantize_onnx(tmp_path / "m.onnx", "int4", tmp_path / "o.onnx").comparison.made_up
    assert optimize_onnx(tmp_path / "m.onnx", tmp_path / "p.onnx").comparison.made_up


def functions(depth: int = 1) -> Any:
    """A linear as a function of the model, called twice; ``depth``: by functions of functions."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    weight = numpy_helper.from_array(normal(32, 32))
    nodes = [MAKE("Constant", [], ["w"], value=weight), MAKE("MatMul", ["x", "w"], ["y"], "linear")]
    made = [helper.make_function("own", "F0", ["x"], ["y"], nodes, opsets)]
    for level in range(1, depth):
        calls = [
            MAKE(f"F{level - 1}", ["x"], ["h"], domain="own"),
            MAKE(f"F{level - 1}", ["h"], ["y"], domain="own"),
        ]
        made.append(helper.make_function("own", f"F{level}", ["x"], ["y"], calls, opsets))
    calls = [
        MAKE(f"F{depth - 1}", ["x"], ["h"], domain="own"),
        MAKE(f"F{depth - 1}", ["h"], ["y"], domain="own"),
    ]
    model = model_of(calls, [value("x", ["n", 32])], [value("y", ["n", 32])])
    model.opset_import.add(domain="own", version=1)
    model.functions.extend(made)
    return model


@pytest.mark.parametrize("level", LEVELS)
def test_functions_are_put_where_they_are_called(level: str, tmp_path: Path) -> None:
    model = functions(2)
    onnx.save(model, tmp_path / "m.onnx")
    report = quantize_onnx(tmp_path / "m.onnx", level, tmp_path / "o.onnx")
    assert any("2 functions of the model put where" in step for step in report.steps)
    made = onnx.load(tmp_path / "o.onnx")
    assert not made.functions
    assert 0 < by_hand(model, made, {"x": normal(5, 32, seed=8)}) < ERRORS.get(level, 0.03)


def test_functions_that_grow_without_end(tmp_path: Path) -> None:
    onnx.save(functions(40), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match=r"m\.onnx: its functions take .* GB"):
        open_model(tmp_path / "m.onnx")


def test_made_up_sizes(tmp_path: Path) -> None:
    """Sizes that a model happens to need are found, and what was measured on them is marked."""
    weights = {
        "k": normal(8, 3, 16, 16),
        "grid": np.asarray([1, 8, 196], np.int64),
        "w": normal(196, 32),
        "one": np.asarray(1, np.int64),
    }
    nodes = [
        MAKE("Conv", ["image", "k"], ["a"], strides=[16, 16]),
        MAKE("Reshape", ["a", "grid"], ["b"]),  # 224 x 224 and nothing else
        MAKE("MatMul", ["b", "w"], ["c"], "linear"),
        MAKE("Add", ["c", "state"], ["d"]),  # [1, 1, 32]
        MAKE("Equal", ["rate", "one"], ["e"]),
        MAKE("Cast", ["e"], ["f"], to=TensorProto.FLOAT),
        MAKE("Add", ["d", "f"], ["y"]),
    ]
    inputs = [
        value("image", ["n", 3, "h", "w"]),
        value("state", ["n", "layers", 32]),
        value("rate", [], TensorProto.INT64),
    ]
    onnx.save(model_of(nodes, inputs, [value("y", ["n", 8, 32])], weights), tmp_path / "m.onnx")
    report = quantize_onnx(tmp_path / "m.onnx", "int4", tmp_path / "o.onnx")
    found = report.comparison
    assert found.made_up
    assert found.quality is not None
    assert 0 < found.quality.output_error < 0.3
    assert found.milliseconds_after is not None
    assert any("[1, 3, 224, 224]" in note and "[1, 1, 32]" in note for note in report.notes)
    assert found.to_json()["made_up"] is True


def test_what_takes_no_made_up_values_says_why(tmp_path: Path) -> None:
    weights = {"shape": np.asarray([-1, 12345], np.int64), "w": normal(32, 32)}
    nodes = [
        MAKE("Reshape", ["sound", "shape"], ["y"], "odd"),
        MAKE("MatMul", ["x", "w"], ["z"], "linear"),
    ]
    inputs = [value("sound", ["n", "length"]), value("x", ["n", 32])]
    outputs = [value("y", ["m", 12345]), value("z", ["n", 32])]
    onnx.save(model_of(nodes, inputs, outputs, weights), tmp_path / "m.onnx")
    report = quantize_onnx(tmp_path / "m.onnx", "int8-weights", tmp_path / "o.onnx")
    said = report.steps[0]
    assert "no values could be made up" in said
    assert "12345" in said  # ONNX Runtime's own word
    assert "--calibrate samples.npz with arrays 'sound' (float32 [n, length]), 'x'" in said
    assert report.comparison.quality is None
    assert report.comparison.milliseconds_after is None


def test_sorting_sees_what_branches_need() -> None:
    made = branches(True)
    graph = made.graph
    linear = next(node for node in inner.all_nodes(graph) if node.op_type == "MatMul")
    linear.input[0] = "late"
    graph.node.append(MAKE("Relu", ["x"], ["late"]))
    inner.sort_nodes(graph)
    assert [node.op_type for node in graph.node] == ["Relu", "If"]
    graph.node[0].input[0] = "y"
    with pytest.raises(ValueError, match="need each other"):
        inner.sort_nodes(graph)


def test_moves_alone_are_not_rounded(tmp_path: Path) -> None:
    """With one linear in integers, values that only pass by keep all their bits."""
    nodes = [
        MAKE("Clip", ["z"], ["c"], "clip"),
        MAKE("Transpose", ["c"], ["t"], "turn", perm=[1, 0]),
        MAKE("MatMul", ["x", "w"], ["y"], "linear"),
    ]
    inputs = [value("x", ["n", 32]), value("z", ["n", 32])]
    outputs = [value("t", [32, "n"]), value("y", ["n", 32])]
    onnx.save(model_of(nodes, inputs, outputs, {"w": normal(32, 32)}), tmp_path / "m.onnx")
    data = DataSet({"x": normal(60, 1, 32), "z": normal(60, 1, 32, seed=1)})
    report = quantize_onnx(tmp_path / "m.onnx", "int8-static", tmp_path / "o.onnx", data=data)
    assert report.comparison.quality is not None
    assert report.comparison.quality.errors["t"] == 0
    assert report.comparison.quality.errors["y"] > 0


def test_nothing_to_quantise_is_said(tmp_path: Path) -> None:
    model = model_of([MAKE("Relu", ["x"], ["y"])], [value("x", ["n"])], [value("y", ["n"])])
    onnx.save(model, tmp_path / "m.onnx")
    for level in ("int8-dynamic", "int8-weights", "int4", "int8-static"):
        with pytest.raises(UnsupportedError, match="changes none of its nodes"):
            quantize_onnx(
                tmp_path / "m.onnx", level, tmp_path / "o.onnx", data=DataSet({"x": normal(8, 1)})
            )


def test_half_of_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ONNX Runtime dies of a float16 model, or its converter fails, weights are halved."""
    onnx.save(network(), tmp_path / "m.onnx")
    monkeypatch.setattr("kvant.onnxtools.job.ends_the_process", lambda proto: True)
    report = quantize_onnx(tmp_path / "m.onnx", "float16", tmp_path / "o.onnx")
    assert any("weights alone are in float16" in step for step in report.steps)
    assert report.comparison.quality is not None
    assert 0 < report.comparison.quality.output_error < 1e-3
    assert report.comparison.bytes_after < 0.6 * report.comparison.bytes_before


def test_a_model_that_ends_the_process_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        MAKE("Conv", ["x", "k"], ["a"], "conv"),
        MAKE("Transpose", ["a"], ["b"], "turn", perm=[0, 2, 1]),
        MAKE("MatMul", ["b", "w"], ["y"], "linear"),
    ]
    weights = {"k": normal(16, 8, 3), "w": normal(16, 16)}
    model = model_of(nodes, [value("x", [1, 8, 9])], [value("y", [1, 7, 16])], weights)
    assert not half.ends_the_process(model)
    monkeypatch.setattr(half, "_LOAD", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert half.ends_the_process(model)
