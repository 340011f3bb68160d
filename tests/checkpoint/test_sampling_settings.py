"""generation_config.json becomes ``general.sampling.*``, as llama.cpp's converter writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kvant
from kvant.checkpoint.sampling import sampling_of, sampling_to_gguf
from kvant.errors import FileFormatError
from kvant.files.gguf import float32, int32, read_gguf, string
from oracles.models import LLAMA, make_folder

QWEN3 = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "repetition_penalty": 1.05,
    "min_p": None,
    "transformers_version": "4.51.0",
}
EXPECTED = {
    "general.sampling.top_k": int32(20),
    "general.sampling.top_p": float32(0.95),
    "general.sampling.temp": float32(0.6),
    "general.sampling.penalty_repeat": float32(1.05),
}


def test_a_published_file() -> None:
    assert sampling_to_gguf(QWEN3) == (EXPECTED, ())


def test_every_key() -> None:
    config = {
        "sequence": "kpt",
        "top_k": 40.0,
        "top_p": 1,
        "min_p": 0.1,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "temperature": 0,
        "penalty_last_n": -1,
        "penalty_repeat": 1.1,
        "repetition_penalty": 9,
        "mirostat": 2,
        "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
    }
    found, notes = sampling_to_gguf(config)
    assert not notes
    assert {key.removeprefix("general.sampling."): value for key, value in found.items()} == {
        "sequence": string("kpt"),
        "top_k": int32(40),
        "top_p": float32(1),
        "min_p": float32(0.1),
        "xtc_probability": float32(0.5),
        "xtc_threshold": float32(0.2),
        "temp": float32(0),
        "penalty_last_n": int32(-1),
        "penalty_repeat": float32(1.1),
        "mirostat": int32(2),
        "mirostat_tau": float32(5),
        "mirostat_eta": float32(0.1),
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top_k", 2**31),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_k", "40"),
        ("top_p", "0.9"),
        ("temperature", 10**400),
        ("temperature", 1e39),
        ("temperature", [1]),
        ("sequence", 3),
        ("sequence", "a\nb"),
        ("sequence", "k" * 201),
    ],
)
def test_values_that_do_not_fit_are_left_out_and_named(key: str, value: object) -> None:
    found, (note,) = sampling_to_gguf({key: value})
    assert not found
    assert note.startswith(f"generation_config.json: {key!r} should be ")
    assert len(note) < 300


def test_files(tmp_path: Path) -> None:
    assert sampling_of(tmp_path) == ({}, ())
    path = tmp_path / "generation_config.json"
    for text in ("[1]", "{", '{"top_k": NaN}'):
        path.write_text(text)
        with pytest.raises(FileFormatError, match=r"generation_config\.json"):
            sampling_of(tmp_path)


def test_it_reaches_the_file_and_the_next_one(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "Model", LLAMA)
    own = {k: v for k, v in QWEN3.items() if not k.endswith("_token_id")}
    (folder / "generation_config.json").write_text(json.dumps({**own, "min_p": "none"}))
    made = kvant.quantize(folder, "Q8_0", tmp_path / "a.gguf")
    assert any("'min_p' should be a number" in note for note in made.notes)
    again = kvant.quantize(made.paths[0], "Q4_0", tmp_path / "b.gguf")
    for path in (*made.paths, *again.paths):
        metadata = read_gguf(path).metadata
        assert {k: v for k, v in metadata.items() if "sampling" in k} == EXPECTED
