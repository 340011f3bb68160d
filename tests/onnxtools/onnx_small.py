"""Small ONNX models and data that tests make for themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def model_of(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> Any:
    graph = helper.make_graph(
        nodes,
        "small",
        inputs,
        outputs,
        [numpy_helper.from_array(v, k) for k, v in (weights or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def value(name: str, shape: list[int | str], kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def network(batch: int | str = "batch", seed: int = 0) -> Any:
    """Convolution, batch norm, pooling and two linears: every kind of weight, ten classes."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    ones, zeros = np.ones(16, np.float32), np.zeros(16, np.float32)
    weights = {
        "conv.weight": normal(16, 3, 3, 3),
        "scale": ones + 0.1,
        "shift": zeros + 0.05,
        "mean": zeros,
        "var": ones,
        "hidden.weight": normal(32, 256),
        "hidden.bias": normal(32, 1).reshape(32),
        "last.weight": normal(10, 32).T.copy(),
    }
    make = helper.make_node
    nodes = [
        make("Conv", ["image", "conv.weight"], ["a"], "conv", pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], "norm"),
        make("Relu", ["b"], ["c"], "relu"),
        make("MaxPool", ["c"], ["d"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        make("Flatten", ["d"], ["e"], "flat"),
        make("Gemm", ["e", "hidden.weight", "hidden.bias"], ["f"], "hidden", transB=1),
        make("Relu", ["f"], ["g"], "relu2"),
        make("MatMul", ["g", "last.weight"], ["logits"], "last"),
    ]
    return model_of(
        nodes, [value("image", [batch, 3, 8, 8])], [value("logits", [batch, 10])], weights
    )


def encoder(layers: int = 1, width: int = 32, words: int = 64) -> Any:
    """Token ids to a vector each: embedding, attention of one head, layer norms."""
    random = np.random.default_rng(1)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    weights: dict[str, np.ndarray] = {
        "table": normal(words, width) * 8,
        "root": np.asarray(np.sqrt(width), np.float32),
    }
    make = helper.make_node
    nodes = [make("Gather", ["table", "ids"], ["h0"], "embed")]
    for i in range(layers):
        for name in "qkvo":
            weights[f"{name}{i}"] = normal(width, width)
        weights[f"gain{i}"] = np.ones(width, np.float32)
        weights[f"bias{i}"] = np.zeros(width, np.float32)
        nodes += [
            make("MatMul", [f"h{i}", f"{n}{i}"], [f"{n}_out{i}"], f"{n}_proj{i}") for n in "qkv"
        ]
        nodes += [
            make("Transpose", [f"k_out{i}"], [f"kt{i}"], f"turn{i}", perm=[0, 2, 1]),
            make("MatMul", [f"q_out{i}", f"kt{i}"], [f"score{i}"], f"score{i}"),
            make("Div", [f"score{i}", "root"], [f"scaled{i}"], f"scale{i}"),
            make("Softmax", [f"scaled{i}"], [f"share{i}"], f"softmax{i}", axis=-1),
            make("MatMul", [f"share{i}", f"v_out{i}"], [f"mix{i}"], f"mix{i}"),
            make("MatMul", [f"mix{i}", f"o{i}"], [f"o_out{i}"], f"o_proj{i}"),
            make("Add", [f"h{i}", f"o_out{i}"], [f"sum{i}"], f"add{i}"),
            make(
                "LayerNormalization",
                [f"sum{i}", f"gain{i}", f"bias{i}"],
                [f"h{i + 1}"],
                f"norm{i}",
            ),
        ]
    ids = value("ids", ["batch", "length"], TensorProto.INT64)
    return model_of(nodes, [ids], [value(f"h{layers}", ["batch", "length", width])], weights)


def images(count: int, seed: int = 3) -> np.ndarray:
    """float32 [count, 3, 8, 8]: a few shapes, scaled and shifted, so that classes exist."""
    random = np.random.default_rng(seed)
    shapes = np.random.default_rng(9).standard_normal((10, 3, 8, 8))
    which = random.integers(0, 10, count)
    return (shapes[which] + 0.3 * random.standard_normal((count, 3, 8, 8))).astype(np.float32)


def run_once(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    from kvant.onnxtools.session import Session

    return Session(model, "test").run(feeds)


def labelled(folder: Path, count: int = 240) -> tuple[Path, Path]:
    """A saved network, and data with the classes it gives (so float accuracy is 1)."""
    model = network()
    path, data = folder / "net.onnx", folder / "data.npz"
    onnx.save(model, path)
    pixels = images(count)
    classes = run_once(model, {"image": pixels})[0].argmax(1)
    np.savez(data, image=pixels, labels=classes)
    return path, data
