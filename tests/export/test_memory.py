"""Peak memory of quantising does not grow with the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.arch import find_hf
from kvant.checkpoint.names import hf_name
from kvant.files.gguf import read_gguf
from kvant.files.safetensors_write import header_bytes
from oracles.models import LLAMA, QWEN2

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)

_CHILD = """
import sys
from kvant.cli.main import main
status = main(sys.argv[1:])
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
sys.exit(status)
"""


def _sparse_model(folder: Path, layers: int, **config: object) -> int:
    """A BF16 model with wide rows, nearly all of it a hole of zeros; its bytes."""
    values = {**LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 16_384}
    values |= {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": layers}
    values |= {"tie_word_embeddings": True, **config}
    arch = find_hf(values, "config.json")
    graph = arch.trace(arch.from_hf(values, "config.json")[0])
    specs = [(hf_name(ref), "BF16", ref.shape) for ref in graph.weights.values()]
    header, places = header_bytes(specs)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    size = max(end for _, end in places.values())
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        for begin, end in places.values():  # some real rows at the start of each weight
            file.seek(begin)
            some = rng.standard_normal(min((end - begin) // 2, 8192), np.float32)
            file.write(some.view(np.uint16)[1::2].tobytes())
        file.truncate(size)
    return size


def _peak(folder: Path, recipe: str, out: Path, threads: int, *more: str) -> int:
    """Kilobytes of resident memory at most, in a process of its own."""
    path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
    command = ["quantize", str(folder), recipe, "-o", str(out), "--threads", str(threads), *more]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *command],
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_bounded_and_independent_of_the_model(tmp_path: Path) -> None:
    peaks = {}
    for layers in (2, 7):
        folder = tmp_path / str(layers)
        size = _sparse_model(folder, layers)
        assert size > {2: 300e6, 7: 900e6}[layers]
        out = tmp_path / f"{layers}.gguf"
        peaks[layers] = _peak(folder, "Q4_K_M", out, 2)
        assert read_gguf(out).size > size / 4
        out.unlink()
    assert max(peaks.values()) < 150_000
    assert peaks[7] - peaks[2] < 20_000


def test_wide_rows_and_many_threads(tmp_path: Path) -> None:
    """Output wider than the source, interleaved heads, biases, more threads than processors."""
    _sparse_model(tmp_path / "wide", 1, hidden_size=4096, vocab_size=4096)
    assert _peak(tmp_path / "wide", "F32", tmp_path / "wide.gguf", 8) < 250_000
    _sparse_model(tmp_path / "qwen", 1, **{k: QWEN2[k] for k in ("model_type", "architectures")})
    assert _peak(tmp_path / "qwen", "Q8_0", tmp_path / "qwen.gguf", 8) < 250_000


def test_onnx_folders_too(tmp_path: Path) -> None:
    """Blocks of integers, by rows and by columns, are written and verified in the same bounds."""
    pytest.importorskip("onnx")
    peaks = {}
    for layers, standard in ((1, ()), (3, ()), (1, ("--standard-ops",))):
        folder = tmp_path / f"{layers}{len(standard)}"
        size = _sparse_model(folder, layers)
        out = tmp_path / f"{folder.name}-onnx"
        peaks[folder.name] = _peak(folder, "int4", out, 2, "--to", "onnx", *standard)
        assert (out / "model.onnx.data").stat().st_size > size / 4
        shutil.rmtree(out)
    assert max(peaks.values()) < 200_000
    assert peaks["30"] - peaks["10"] < 30_000
