"""No file, however made, gets past `open_checkpoint` with anything but one clear error."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attacks.make import CASES, MEANINGLESS
from checkpoint.small_models import LLAMA, LLAMA3_ROPE, write_folder, write_gguf
from kvant.checkpoint import open_checkpoint
from kvant.errors import InputError
from kvant.reference import ReferenceModel


@pytest.mark.parametrize("name", [*CASES, *MEANINGLESS])
def test_attack_files_are_refused(tmp_path: Path, name: str) -> None:
    source = (CASES | MEANINGLESS)[name](tmp_path)
    with pytest.raises(InputError) as caught:
        open_checkpoint(source)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("small")
    config = {**LLAMA, "rope_scaling": LLAMA3_ROPE, "attention_bias": True}
    checkpoint = open_checkpoint(write_folder(folder / "m", config))
    return write_gguf(folder / "m.gguf", checkpoint).read_bytes()


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), min_size=1, max_size=3))
def test_a_damaged_gguf_opens_or_is_refused(
    tmp_path: Path, small_gguf: bytes, flips: list[tuple[int, int]]
) -> None:
    damaged = bytearray(small_gguf)
    for place, bits in flips:
        damaged[place] ^= bits
    path = tmp_path / "m.gguf"
    path.write_bytes(damaged)
    try:
        checkpoint = open_checkpoint(path)
    except InputError:
        return
    assert set(checkpoint.weights) == set(checkpoint.graph.weights)
    assert checkpoint.parameters < 100_000


def test_the_largest_config_the_caps_allow_is_quickly_refused(tmp_path: Path) -> None:
    """Nothing is allocated by what a config claims, and no graph is traced for it."""
    config = {
        **LLAMA,
        "num_hidden_layers": 4096,
        "hidden_size": 2**20,
        "num_attention_heads": 2**14,
        "num_key_value_heads": 2**14,
        "head_dim": 2**13,
        "vocab_size": 2**24,
        "rope_scaling": LLAMA3_ROPE,
    }
    folder = write_folder(tmp_path / "m", LLAMA)
    (folder / "config.json").write_text(json.dumps(config))
    start = time.process_time()
    with pytest.raises(InputError, match="4,096 layers"):
        open_checkpoint(folder)
    assert time.process_time() - start < 0.5


def test_a_truncated_model_is_refused_when_read(tmp_path: Path) -> None:
    """The file shrinks after it was opened: an error, not a crash."""
    folder = write_folder(tmp_path / "m", LLAMA)
    model = ReferenceModel(open_checkpoint(folder))
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match="cut short"):
        model.forward([[1, 2]])
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be opened"):
        model.forward([[1, 2]])
