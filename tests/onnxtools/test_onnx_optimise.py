"""Profiles, large models, exporters, the command line, and the real-world files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kvant.api.onnx_models import optimize_onnx, quantize_onnx
from kvant.cli.main import main
from kvant.errors import FileFormatError, MissingExtraError, OutputError, UsageError
from kvant.onnxtools import apart, exporters, model, packages, prepare, save, session
from kvant.onnxtools.compare import Bounds
from kvant.onnxtools.exporters import from_sklearn, from_torch
from kvant.onnxtools.job import DataSet
from kvant.onnxtools.levels import LEVELS, OnnxOptions
from kvant.onnxtools.prepare import Preparation
from onnxtools.onnx_small import encoder, images, labelled, network, run_once

MNIST, FACES = "onnx/mnist.onnx", "onnx/version-RFB-320.onnx"


def _kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("profile", ["cpu", "cuda", "npu"])
@pytest.mark.parametrize("kind", ["network", "encoder"])
def test_profiles_give_the_same_values(kind: str, profile: str, tmp_path: Path) -> None:
    source, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(network() if kind == "network" else encoder(2), source)
    shapes = {"ids": [1, 9]} if kind == "encoder" and profile == "npu" else None
    report = optimize_onnx(source, out, profile=profile, shapes=shapes)  # type: ignore[arg-type]
    assert any("onnxslim" in step for step in report.steps)
    if kind == "network":
        feeds: dict[str, Any] = {"image": images(1)}
        assert "BatchNormalization" not in _kinds(out)
    else:
        feeds = {"ids": np.arange(9)[None]}
    before, after = (run_once(onnx.load(p), feeds)[0] for p in (source, out))
    assert np.abs(before - after).max() < 1e-4
    made = onnx.load(out)
    if profile == "npu":
        assert {node.domain for node in made.graph.node} <= {"", "ai.onnx"}
        dims = [d for v in made.graph.input for d in v.type.tensor_type.shape.dim]
        assert all(d.dim_value > 0 for d in dims)
        assert "every shape is fixed" in report.steps
    if (kind, profile) == ("encoder", "cpu"):
        assert any(node.domain == "com.microsoft" for node in made.graph.node)


def test_npu_is_all_integers(tmp_path: Path) -> None:
    net, data = labelled(tmp_path)
    report = optimize_onnx(net, tmp_path / "o.onnx", profile="npu", data=DataSet(data))
    graph = onnx.load(tmp_path / "o.onnx").graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for name in node.input[:2]:  # data and weights; shapes are no data
            if node.op_type != "Reshape" or name == node.input[0]:
                assert makers.get(name) == "DequantizeLinear", (node.name, name)
    assert report.comparison.quality is not None
    assert report.comparison.quality.output_error < 0.06
    onnx.save(encoder(), tmp_path / "e.onnx")
    with pytest.raises(UsageError, match="--shape ids"):
        optimize_onnx(tmp_path / "e.onnx", tmp_path / "x.onnx", profile="npu")


@pytest.mark.parametrize("profile", ["cpu", "cuda"])
def test_half_precision(profile: str, tmp_path: Path) -> None:
    net, data = labelled(tmp_path)
    report = optimize_onnx(
        net,
        tmp_path / "o.onnx",
        profile=profile,  # type: ignore[arg-type]
        fp16=True,
        data=DataSet(data),
    )
    assert report.shares["float16"] > 0.9
    assert report.comparison.bytes_after < 0.62 * report.comparison.bytes_before
    assert report.comparison.quality is not None
    assert report.comparison.quality.output_error < 2e-3


def test_npu_with_16_bit_activations(tmp_path: Path) -> None:
    net, data = labelled(tmp_path)
    out = tmp_path / "o.onnx"
    options = OnnxOptions(activations="uint16", calibration="mse")
    optimize_onnx(net, out, profile="npu", data=DataSet(data), options=options)
    made = onnx.load(out)
    assert {o.domain: o.version for o in made.opset_import}[""] == 21
    assert {node.domain for node in made.graph.node} <= {"", "ai.onnx"}


def test_a_step_that_changes_outputs_is_undone(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    done = Preparation(model.open_model(tmp_path / "m.onnx"), None)

    def wrong(proto: Any) -> Any:
        weight = proto.graph.initializer[0]
        values = onnx.numpy_helper.to_array(weight) * 1.01
        weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weight.name))
        return proto

    def broken(proto: Any) -> Any:
        del proto.graph.node[2]
        return proto

    def undefined(proto: Any) -> Any:
        weight = proto.graph.initializer[0]
        values = np.full(tuple(weight.dims), np.nan, np.float32)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return proto

    before = done.model.proto.SerializeToString()
    assert not done.step("scaled", wrong)
    assert not done.step("cut", broken)
    assert "undone, it changed an output" in done.did[0]
    assert "undone" in done.did[1]
    assert not done.step("undefined", undefined)
    assert done.model.proto.SerializeToString() == before
    assert done.step("nothing", lambda proto: proto)


def test_change_is_seen_beside_values_that_are_no_numbers() -> None:
    here = np.float32([1, np.nan, np.inf, 2])
    assert prepare.relative_change([here], [here]) == 0
    found = prepare.relative_change([here], [np.float32([1, np.nan, np.inf, 3])])
    assert found == pytest.approx(1 / np.sqrt(5))
    for other in ([np.nan] * 4, [np.nan, np.nan, np.inf, 2], [1, np.nan, -np.inf, 2], [1, 0, 0, 2]):
        assert prepare.relative_change([here], [np.float32(other)]) == np.inf
    texts = np.asarray(["a", "b"], object)
    assert prepare.relative_change([texts], [texts]) == 0
    assert prepare.relative_change([texts], [texts[::-1]]) == np.inf


@pytest.mark.parametrize("shape", [[2**40, 3], [1] * 70, []])
def test_odd_shapes_of_inputs(shape: list[int], tmp_path: Path) -> None:
    """What cannot be made up is not made up; a single number can be."""
    kind = onnx.TensorProto.FLOAT
    info = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"], "relu")]
    graph = onnx.helper.make_graph(nodes, "odd", info[:1], info[1:])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.save(made, tmp_path / "m.onnx")
    report = optimize_onnx(tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert any("no values could be made up" in step for step in report.steps) == bool(shape)


@pytest.fixture
def _tiny_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of some kilobytes are handled as those above 2 GB are."""
    for module in (apart, model):
        monkeypatch.setattr(module, "APART_FROM", 5000)
    monkeypatch.setattr(apart, "_SMALL", 1000)
    for module in (save, session, prepare):
        monkeypatch.setattr(module, "EXTERNAL_FROM", 20_000)


@pytest.mark.usefixtures("_tiny_limits")
@pytest.mark.parametrize("level", list(LEVELS))
def test_large_models(level: str, tmp_path: Path) -> None:
    net, data = labelled(tmp_path)
    source = tmp_path / "large.onnx"
    onnx.save(onnx.load(net), source, save_as_external_data=True, location="w.bin")
    opened = model.open_model(source)
    assert len(opened.apart) >= 2
    out = tmp_path / "out.onnx"
    report = quantize_onnx(source, level, out, data=DataSet(data))
    assert (
        report.comparison.bytes_before
        == source.stat().st_size + os.stat(tmp_path / "w.bin").st_size
    )
    assert report.comparison.quality is not None
    assert report.comparison.quality.output_error < (0.6 if level == "int2" else 0.25)
    assert run_once(model.open_model(out).whole(), {"image": images(2)})[0].shape == (2, 10)


@pytest.mark.usefixtures("_tiny_limits")
def test_large_models_optimised(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    report = optimize_onnx(tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert [path.name for path in report.paths] == ["o.onnx", "o.onnx.data"]
    assert any("not simplified" in step for step in report.steps)
    feeds = {"image": images(3)}
    whole = model.open_model(tmp_path / "o.onnx").whole()
    assert np.allclose(run_once(whole, feeds)[0], run_once(network(), feeds)[0], atol=1e-5)


def test_two_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    out = tmp_path / "out"
    out.mkdir()
    report = quantize_onnx(tmp_path / "m.onnx", "int4", out / "a.onnx", external=True)
    assert sorted(os.listdir(out)) == ["a.onnx", "a.onnx.data"]
    assert report.comparison.made_up
    onnx.checker.check_model(str(out / "a.onnx"))
    for name in ("a.onnx", "a.onnx.data"):
        with pytest.raises(OutputError, match="exists already"):
            quantize_onnx(tmp_path / "m.onnx", "int4", out / "a.onnx")
        (out / name).unlink()

    def full(*_: object) -> None:
        raise OutputError("disk full")

    monkeypatch.setattr(save.AtomicFile, "write_at", full)
    with pytest.raises(OutputError, match="disk full"):
        quantize_onnx(tmp_path / "m.onnx", "int4", out / "a.onnx", external=True)
    assert not os.listdir(out)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, data = labelled(tmp_path)
    out = str(tmp_path / "o.onnx")
    command = ["quantize", str(net), "int8-static", "--calibrate", str(data), "-o", out]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "accuracy" in shown.out
    assert "120 samples calibrate, 120 others compare" in shown.err
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--force", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["paths"] == [out]
    assert found["comparison"]["quality"]["accuracy_before"] == 1.0
    for wrong, message in (
        (["--bpw", "3"], "--bpw is for language models"),
        (["--tensor", "x=Q8_0"], "--tensor is for language models"),
    ):
        assert main([*command, "--force", *wrong]) == 1
        assert message in capsys.readouterr().err
    assert main(["quantize", "demo", "Q4_K_M", "--calibrate", "x.npz"]) == 1
    assert "--calibrate is for ONNX models" in capsys.readouterr().err
    assert main(["quantize", str(net)]) == 1
    assert "int8-static" in capsys.readouterr().err
    assert main(["optimize", str(net), "-o", out, "--force", "--shape", "image=2,3,8,8"]) == 0
    assert "is [2, 3, 8, 8] now" in capsys.readouterr().err
    assert main(["optimize", str(net), "-o", out, "--force", "--shape", "image=2,3,8,9"]) == 1
    assert "does not fit" in capsys.readouterr().err


def test_missing_package_and_telemetry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packages.onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    onnx.save(network(), tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    with pytest.raises(MissingExtraError, match=r"onnxslim is not installed.*kvant\[onnx\]"):
        quantize_onnx(tmp_path / "m.onnx", "int4", tmp_path / "o.onnx")
    assert sorted(os.listdir(tmp_path)) == ["m.onnx"]


def test_from_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    example = torch.randn(3, 16)
    path = tmp_path / "t.onnx"
    from_torch(module, [example], path, inputs=["x"], dynamic={"input": {0: "batch"}})
    got = run_once(onnx.load(path), {"x": example.numpy()})[0]
    assert np.allclose(got, module(example).detach().numpy(), atol=1e-5)
    # Few samples would leave out ranges that others reach.
    data = DataSet({"x": np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32)})
    report = quantize_onnx(path, "int8-static", tmp_path / "q.onnx", data=data)
    assert report.comparison.quality is not None
    assert report.comparison.quality.output_error < 0.05


def test_from_sklearn(tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx")
    network_module = pytest.importorskip("sklearn.neural_network")
    x = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    fitted = network_module.MLPClassifier((32,), max_iter=60, random_state=0).fit(x, y)
    path = tmp_path / "s.onnx"
    from_sklearn(fitted, path)
    report = quantize_onnx(
        path, "int8-static", tmp_path / "q.onnx", data=DataSet({"input": x, "labels": y})
    )
    quality = report.comparison.quality
    assert quality is not None
    assert quality.accuracy_before is not None
    assert quality.accuracy_before > 0.9
    assert abs(quality.loss) <= 3


def test_exports_are_checked_before_they_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skl2onnx")
    linear = pytest.importorskip("sklearn.linear_model")
    fitted = linear.LinearRegression().fit(np.eye(3), np.arange(3.0))

    def unsound(path: Path) -> None:
        raise FileFormatError(f"{path}: not sound")

    monkeypatch.setattr(exporters, "open_model", unsound)
    with pytest.raises(FileFormatError, match="not sound"):
        from_sklearn(fitted, tmp_path / "s.onnx")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(exporters, "need", None)  # nothing is exported
    (tmp_path / "s.onnx.data").touch()
    with pytest.raises(OutputError, match=r"s\.onnx\.data: exists already"):
        from_sklearn(fitted, tmp_path / "s.onnx")
    with pytest.raises(OutputError, match="folder does not exist"):
        from_sklearn(fitted, tmp_path / "none" / "s.onnx")


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_mnist(form: str, shared_data: Path, tmp_path: Path) -> None:
    """Calibrated on 200 images, at most 0.3 points are lost on the other 4,800."""
    report = quantize_onnx(
        shared_data / MNIST,
        "int8-static",
        tmp_path / "m.onnx",
        data=DataSet(shared_data / "onnx/mnist_t10k_half.npz", samples=200),
        options=OnnxOptions(format=form),  # type: ignore[arg-type]
    )
    quality = report.comparison.quality
    assert quality is not None
    assert quality.samples == 4800
    assert quality.accuracy_before == pytest.approx(0.989, abs=0.002)
    assert quality.loss <= 0.3


@pytest.fixture(scope="module")
def scenes() -> np.ndarray:
    """Smooth random fields of an image's statistics, float32 [12, 3, 240, 320] in -1 to 1."""
    random = np.random.default_rng(5)
    fields = np.zeros((12, 3, 240, 320))
    for scale in (4, 8, 16, 40):
        coarse = random.standard_normal((12, 3, 240 // scale, 320 // scale))
        fields += coarse.repeat(scale, 2).repeat(scale, 3) * scale**0.5
    return np.tanh(fields / 6).astype(np.float32)


@pytest.mark.parametrize("level", list(LEVELS))
def test_face_detector(level: str, shared_data: Path, scenes: np.ndarray, tmp_path: Path) -> None:
    """Weights listed as inputs, opset 9: every level runs and stays close."""
    data = DataSet({"input": scenes})
    report = quantize_onnx(shared_data / FACES, level, tmp_path / "f.onnx", data=data)
    assert "244 weights were listed as inputs; they are constants now" in report.steps
    quality = report.comparison.quality
    assert quality is not None
    assert quality.output_error < {"int2": 0.4, "int4": 0.15, "float16": 3e-3}.get(level, 0.05)
    assert report.comparison.bytes_after < 0.52 * report.comparison.bytes_before


def test_face_detector_optimised(shared_data: Path, scenes: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "f.onnx"
    for profile, fp16 in (("cpu", False), ("cuda", True), ("npu", False)):
        report = optimize_onnx(
            shared_data / FACES,
            out,
            profile=profile,  # type: ignore[arg-type]
            fp16=fp16,
            data=DataSet({"input": scenes}, samples=6),
            bounds=Bounds(max_error=0.05),
            force=True,
        )
        assert report.comparison.quality is not None
        assert report.comparison.quality.output_error < 0.05
        assert not any("undone" in step for step in report.steps), report.steps
