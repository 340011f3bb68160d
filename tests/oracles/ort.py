"""onnxruntime and onnxruntime-genai as judges of ONNX folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported

__all__ = ["divergence", "logits", "relative", "session"]


def session(folder: Path) -> Any:
    """The graph of a folder, loaded."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=providers)


def logits(
    session: Any, ids: npt.ArrayLike, pieces: Sequence[int] | None = None
) -> npt.NDArray[Any]:
    """What the graph gives for all tokens [batch, n], in pieces of these lengths with the cache."""
    tokens = np.asarray(ids, np.int64)
    inputs = {i.name: i for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    if "past_key_values.0.key" not in inputs:
        whole = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        return session.run(None, whole)[0]
    past = {
        n: np.zeros(
            (len(tokens), i.shape[1], 0, i.shape[3]),
            np.float16 if "float16" in i.type else np.float32,
        )
        for n, i in inputs.items()
        if n.startswith("past")
    }
    found, at = [], 0
    for length in pieces or [tokens.shape[1]]:
        mask = np.ones((len(tokens), at + length), np.int64)
        feed = {"input_ids": tokens[:, at : at + length], "attention_mask": mask, **past}
        out = dict(zip(names, session.run(None, feed), strict=True))
        found.append(out["logits"])
        past = {n: out[n.replace("past_key_values", "present")] for n in past}
        at += length
    return np.concatenate(found, 1)


def relative(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """Size of the difference over size of what is wanted."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def divergence(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Mean KL(wanted || found) of logits."""
    p, q = _log_softmax(wanted), _log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    y = x.astype(np.float64)
    y = y - y.max(-1, keepdims=True)
    return y - np.log(np.exp(y).sum(-1, keepdims=True))
