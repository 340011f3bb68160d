"""llama.cpp's own tools: llama-imatrix's files are read, kvant's are used by llama-quantize.

``KVANT_LLAMA_BIN`` names the folder with the tools; without it these tests are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.calibration import belonging, read_importance, write_importance
from kvant.checkpoint import open_checkpoint
from oracles.models import LLAMA, QWEN3MOE, make_folder

pytestmark = pytest.mark.parity


def tool(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("KVANT_LLAMA_BIN", ""))
    if found is None:
        pytest.skip(f"{name} is not here (set KVANT_LLAMA_BIN)")
    return found


def call(*words: object) -> str:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module", params=[LLAMA, QWEN3MOE], ids=["llama", "qwen3moe"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    made = make_folder(folder / "Tiny", request.param, dtype="F32")
    return kvant.convert(made, folder / "tiny.gguf", dtype="f32").paths[0]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("".join(f"Line {i}: some words, and {i * i} of them.\n" for i in range(300)))
    return path


@pytest.fixture(scope="module", params=["gguf", "dat"])
def theirs(
    request: pytest.FixtureRequest, base: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("imatrix") / f"i.{request.param}"
    call(
        *(tool("llama-imatrix"), "-m", base, "-f", text, "-o", path, "-c", "256", "-t", "2"),
        *("--process-output", "--no-ppl", "--output-format", request.param),
    )
    return path


def test_the_same_figures_as_llama_imatrix(base: Path, text: Path, theirs: Path) -> None:
    ours = kvant.calibrate(base, texts=[text]).importance
    found = read_importance(theirs)
    theirs_alone = set(found.sums) - set(ours.sums)
    assert all("ffn_gate_inp" in name for name in theirs_alone)  # routers, which stay in F32
    assert set(ours.sums) <= set(found.sums)
    assert found.chunks == ours.chunks
    found = belonging(found, open_checkpoint(base))  # the older format has experts in one row
    for name in ours.sums:
        want = found.moments[name]
        # 8-bit activations apart, where the engine rounds them.
        error = np.linalg.norm(ours.moments[name] - want) / np.linalg.norm(want)
        assert error < 5e-3, name
    assert found.datasets == (str(text),)


def test_a_file_of_llama_imatrix_is_used(base: Path, theirs: Path, tmp_path: Path) -> None:
    plain = kvant.quantize(base, "Q2_K", tmp_path / "plain.gguf").paths[0]
    weighed = kvant.quantize(base, "Q2_K", tmp_path / "weighed.gguf", importance=theirs).paths[0]
    a, b = open_checkpoint(plain), open_checkpoint(weighed)
    for name in read_importance(theirs).sums:
        if "ffn_gate_inp" in name:  # a router stays in F32
            continue
        assert (a.weights[name].read_f32() != b.weights[name].read_f32()).any(), name


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_a_file_of_kvant_is_used_by_llama_quantize(
    base: Path, text: Path, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"kvant.{suffix}"
    importance = kvant.calibrate(base, path, texts=[text]).importance
    quantizer = tool("llama-quantize")
    call(quantizer, base, tmp_path / "plain.gguf", "Q2_K")
    said = call(quantizer, "--imatrix", path, base, tmp_path / "weighed.gguf", "Q2_K")
    loaded = f"loaded {len(importance.sums)} importance matrix entries"
    assert re.search(rf"{loaded} from \S+ computed on {importance.chunks} chunks", said), said
    assert said.count("did not find weights for") == 1, said  # token_embd
    a, b = (open_checkpoint(tmp_path / f"{n}.gguf") for n in ("plain", "weighed"))
    for name in importance.sums:
        assert (a.weights[name].read_f32() != b.weights[name].read_f32()).any(), name


def test_both_tools_make_the_same_of_either_format(base: Path, text: Path, tmp_path: Path) -> None:
    """What llama-quantize makes of kvant's file does not depend on its format."""
    importance = kvant.calibrate(base, texts=[text]).importance
    files = []
    for suffix in ("gguf", "dat"):
        write_importance(tmp_path / f"i.{suffix}", importance)
        out = tmp_path / f"{suffix}.out.gguf"
        call(tool("llama-quantize"), "--imatrix", tmp_path / f"i.{suffix}", base, out, "Q4_K_M")
        files.append(open_checkpoint(out))
    for name, weight in files[0].weights.items():
        a, b = weight.read_f32(), files[1].weights[name].read_f32()
        assert np.linalg.norm(a - b) < 1e-2 * np.linalg.norm(b), name  # ties fall either way
