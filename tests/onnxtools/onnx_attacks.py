"""ONNX files made to do harm, or damaged: a case writes one into a folder, returns its path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxtools.onnx_small import FLOAT, model_of, network, value

Case = Callable[[Path], Path]


def _saved(model: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _bytes(content: bytes) -> Case:
    def make(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(content)
        return path

    return make


def _changed(change: Callable[[Any], object]) -> Case:
    def make(folder: Path) -> Path:
        model = network()
        change(model)
        return _saved(model, folder)

    return make


def _external(location: str, **entries: str) -> Case:
    """The first weight in a file, and a secret outside the folder that it must not reach."""

    def make(folder: Path) -> Path:
        (folder.parent / "secret.bin").write_bytes(b"\x00" * 100_000)
        (folder / "weights.bin").write_bytes(b"\x00" * 1728)
        (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
        (folder / "folder.bin").mkdir()
        os.mkfifo(folder / "pipe.bin")
        model = network()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        place = location.replace("ABSOLUTE", str(folder.parent))
        for key, text in {"location": place, **entries}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, text
        return _saved(model, folder)

    return make


def _external_shape(*dims: int) -> Case:
    """External data of no stated length, for another shape than they fill."""

    def make(folder: Path) -> Path:
        path = _external("weights.bin")(folder)
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer[0].dims[:] = dims
        path.write_bytes(model.SerializeToString())
        return path

    return make


def _huge_external(folder: Path) -> Path:
    """Ten terabytes that are not there: a sparse file."""
    with (folder / "huge.bin").open("wb") as file:
        file.truncate(10 * 10**12)
    model = network()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [10 * 10**12 // 4]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "huge.bin"
    return _saved(model, folder)


def _huge_file(folder: Path) -> Path:
    path = folder / "model.onnx"
    with path.open("wb") as file:
        file.truncate(5 * 10**9)
    return path


def _cycle(model: Any) -> None:
    model.graph.node[0].input[0] = "logits"


def _self_function(model: Any) -> None:
    body = [helper.make_node("Again", ["x"], ["y"], "again", domain="own")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", "Again", ["x"], ["y"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[2].op_type, model.graph.node[2].domain = "Again", "own"


def _nested(depth: int) -> Any:
    """If within If within If."""
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y0"], "r")], "g0", [], [value("y0", [1])]
    )
    for level in range(1, depth):
        node = helper.make_node(
            "If", ["c"], [f"y{level}"], f"if{level}", then_branch=inner, else_branch=inner
        )
        inner = helper.make_graph([node], f"g{level}", [], [value(f"y{level}", [1])])
    return inner


def _deep(folder: Path) -> Path:
    graph = _nested(14)  # two branches each: 2**14 nodes, below protobuf's limit of depth
    graph.input.extend([value("x", [1]), value("c", [], TensorProto.BOOL)])
    graph.node[0].input[0] = "nowhere"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return _saved(model, folder)


def _int_weight(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones((16, 3, 3, 3), np.int64), tensor.name))


def _claims(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [2**40, 2**20]


def _negative(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [-16, 3, 3, -3]


def _set(path: str, new: object) -> Case:
    def change(model: Any) -> None:
        *parts, last = path.split(".")
        target = model
        for part in parts:
            target = target[int(part)] if part.isdigit() else getattr(target, part)
        if last.isdigit():
            target[int(last)] = new
        else:
            setattr(target, last, new)

    return _changed(change)


def _unreachable(model: Any) -> None:
    model.graph.output[0].name = "never"


def _bad_name(folder: Path) -> Path:
    path = _saved(network(), folder)
    path.write_bytes(path.read_bytes().replace(b"conv.weight", b"conv\xff\xfeeight"))
    return path


def _no_inputs(folder: Path) -> Path:
    node = helper.make_node("Relu", ["w"], ["y"], "relu")
    weights = {"w": np.ones(4, np.float32)}
    return _saved(model_of([node], [], [value("y", [4])], weights), folder)


_WHOLE = network().SerializeToString()

CASES: dict[str, Case] = {
    "empty": _bytes(b""),
    "text": _bytes(b"This is not a model.\n" * 50),
    "zeros": _bytes(bytes(5000)),
    "pickle": _bytes(b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94."),
    "gguf": _bytes(b"GGUF\x03\x00\x00\x00" + bytes(100)),
    **{f"truncated-{n}": _bytes(_WHOLE[: len(_WHOLE) * n // 100]) for n in (1, 10, 50, 90, 99)},
    "huge-file": _huge_file,
    "huge-external": _huge_external,
    "cycle": _changed(_cycle),
    "self-loop": _set("graph.node.2.input.0", "c"),
    "undefined-input": _set("graph.node.3.input.0", "nowhere"),
    "made-twice": _set("graph.node.3.output.0", "c"),
    "output-unmade": _changed(_unreachable),
    "function-recursion": _changed(_self_function),
    "deep": _deep,
    "no-inputs": _no_inputs,
    "no-opset": _changed(lambda model: model.ClearField("opset_import")),
    "future-opset": _set("opset_import.0.version", 9999),
    "huge-opset": _set("opset_import.0.version", 2**62),
    "no-nodes": _changed(lambda model: model.graph.ClearField("node")),
    "operator-unknown": _set("graph.node.2.op_type", "Frobnicate"),
    "operator-of-nobody": _set("graph.node.2.domain", "com.example"),
    "integer-weight": _changed(_int_weight),
    "type-unknown": _set("graph.initializer.0.data_type", 99),
    "type-changed": _set("graph.initializer.0.data_type", TensorProto.DOUBLE),
    "input-type-unknown": _set("graph.input.0.type.tensor_type.elem_type", 77),
    "short-weight": _set("graph.initializer.0.raw_data", b"\x00" * 10),
    "segment": _changed(lambda model: model.graph.initializer[0].segment.SetInParent()),
    "many-dimensions": _changed(lambda model: model.graph.initializer[0].dims.extend([1] * 70)),
    "claims-exabytes": _changed(_claims),
    "negative-dimension": _changed(_negative),
    "name-not-text": _bad_name,
    "attribute-type": _set("graph.node.3.attribute.0.type", 3),
    "external-parent": _external("../secret.bin"),
    "external-deep": _external("a/../../secret.bin"),
    "external-absolute": _external("ABSOLUTE/secret.bin"),
    "external-link": _external("link.bin"),
    "external-folder": _external("folder.bin"),
    "external-pipe": _external("pipe.bin"),
    "external-nothing": _external(""),
    "external-nul": _external("weights\0.bin"),
    "external-missing": _external("gone.bin"),
    "external-beyond": _external("weights.bin", offset="4", length="1728"),
    "external-offset": _external("weights.bin", offset="-1", length="1728"),
    "external-number": _external("weights.bin", offset="zero"),
    "external-huge-length": _external("weights.bin", length=str(2**62)),
    "external-short": _external("weights.bin", length="100"),
    "external-spelled": _external("weights.bin", length="+432"),
    "external-superscript": _external("weights.bin", length="\u00b2"),
    "external-digits": _external("weights.bin", length="9" * 5000),
    "external-rest": _external("weights.bin", offset="4"),
    "external-larger": _external_shape(16, 3, 3, 4),
    "external-overflow": _external_shape(2**32, 2**32),
}
assert FLOAT == 1
