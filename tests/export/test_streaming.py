"""The bytes of a file: whatever the threads or shards, of the size foretold, splits included."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.errors import UsageError
from kvant.export.gguf import stream
from kvant.files.gguf import check_layout, read_gguf, read_gguf_split
from kvant.packing import dequantize
from kvant.quant.presets import PRESETS
from kvant.reference import ReferenceModel
from oracles.models import LLAMA, QWEN2, QWEN3, make_folder

RECIPES = [recipe.name for recipe in PRESETS]
ODD = {**QWEN2, "hidden_size": 96, "intermediate_size": 200, "num_attention_heads": 3}
ODD |= {"num_key_value_heads": 1, "vocab_size": 301}


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work cut so small that many threads take part and meet out of order."""
    monkeypatch.setattr(stream, "RUN_BYTES", 4096)


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q8_0", "F32"])
def test_the_same_bytes_for_any_number_of_threads(
    source: Path, tmp_path: Path, recipe: str
) -> None:
    contents = set()
    for threads in (1, 2, 3, 8):
        out = tmp_path / f"{threads}.gguf"
        kvant.quantize(source, recipe, out, threads=threads)
        contents.add(out.read_bytes())
    assert len(contents) == 1


def test_the_same_bytes_for_any_size_of_runs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = set()
    for size in (1, 10_000, stream.RUN_BYTES):
        monkeypatch.setattr(stream, "RUN_BYTES", size)
        kvant.quantize(source, "Q5_K_M", tmp_path / f"{size}.gguf", threads=2)
        contents.add((tmp_path / f"{size}.gguf").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("config", [LLAMA, QWEN3], ids=["llama", "qwen3"])
def test_the_same_bytes_for_a_sharded_source(tmp_path: Path, config: dict[str, Any]) -> None:
    contents = set()
    for shards in (1, 2, 5):
        folder = make_folder(tmp_path / str(shards) / "Model", config, dtype="F16", shards=shards)
        kvant.quantize(folder, "Q4_K_M", tmp_path / f"{shards}.gguf")
        contents.add((tmp_path / f"{shards}.gguf").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("config", [LLAMA, ODD], ids=["whole-blocks", "fallbacks"])
def test_sizes_are_foretold(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = make_folder(tmp_path / "Model", config, dtype="BF16")
    foretold = {r.recipe: r for r in kvant.inspect(folder).recipes}
    assert list(foretold) == RECIPES
    for recipe in RECIPES:
        planned = kvant.quantize(folder, recipe, tmp_path, dry_run=True)
        written = kvant.quantize(folder, recipe, tmp_path)
        assert planned.paths == written.paths
        size = written.paths[0].stat().st_size
        assert size == written.nbytes == planned.nbytes == foretold[recipe].nbytes
        assert planned.tensors == written.tensors
        fell_back = sum(t.packing != t.wanted for t in written.tensors)
        assert fell_back == foretold[recipe].fell_back
        bits = 8 * sum(t.nbytes for t in written.tensors) / written.parameters
        assert written.bits_per_weight == pytest.approx(bits)
        assert foretold[recipe].bits_per_weight == pytest.approx(bits)


def test_every_fall_back_is_told(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "Model", ODD)
    artefact = kvant.quantize(folder, "Q4_K_M", tmp_path, dry_run=True)
    moved = [t for t in artefact.tensors if t.packing != t.wanted]
    assert {(t.wanted, t.packing, t.shape[-1]) for t in moved} == {
        ("Q4_K", "Q5_0", 96),
        ("Q6_K", "Q8_0", 96),
        ("Q4_K", "F16", 200),
        ("Q6_K", "F16", 200),
    }
    notes = " ".join(artefact.notes)
    told = re.findall(
        r"(\d+) tensors? with rows of (\d+) weights got (\w+) instead of (\w+)", notes
    )
    assert sum(int(count) for count, *_ in told) == len(moved)


@pytest.mark.parametrize("recipe", ["Q4_K_M", "F16"])
def test_layout_is_what_llamacpp_writes(source: Path, tmp_path: Path, recipe: str) -> None:
    (path,) = kvant.quantize(source, recipe, tmp_path).paths
    assert check_layout(read_gguf(path)) == []


SPLIT = 300_000


@pytest.mark.parametrize("recipe", ["Q4_K_M", "BF16"])
def test_splits(source: Path, tmp_path: Path, recipe: str) -> None:
    whole = kvant.quantize(source, recipe, tmp_path / "whole.gguf")
    planned = kvant.quantize(source, recipe, tmp_path / "part.gguf", split_size=SPLIT, dry_run=True)
    split = kvant.quantize(source, recipe, tmp_path / "part.gguf", split_size=SPLIT)
    count = len(split.paths)
    assert count > 3
    assert [p.name for p in split.paths] == [
        f"part-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)
    ]
    assert planned.paths == split.paths
    sizes = [p.stat().st_size for p in split.paths]
    assert sum(sizes) == split.nbytes == planned.nbytes
    assert max(sizes) <= SPLIT
    assert split.tensors == whole.tensors

    one = read_gguf(whole.paths[0])
    for path in (split.paths[0], split.paths[-1]):  # any shard names the model
        merged = read_gguf_split(path)
        assert check_layout(merged) == []
        assert list(merged.tensors) == list(one.tensors)
        for name, tensor in one.tensors.items():
            np.testing.assert_array_equal(merged.tensors[name].read(), tensor.read())
    own = {"split.no", "split.count", "split.tensors.count", "kvant.tensor.xxh64"}
    merged_keys = {k: v for k, v in merged.metadata.items() if k not in own}
    assert merged_keys.keys() == one.metadata.keys() - own
    assert kvant.verify(split.paths[0]).ok
    assert kvant.verify(split.paths[0]).checksums == "good"


def test_no_file_passes_the_split_size(source: Path, tmp_path: Path) -> None:
    """Headers count too, of which the first holds the tokenizer."""
    largest = max(t.nbytes for t in kvant.quantize(source, "Q4_0", tmp_path, dry_run=True).tensors)
    for size in range(largest + 12_000, 20 * largest, largest // 3):
        made = kvant.quantize(source, "Q4_0", tmp_path / "m.gguf", split_size=size, force=True)
        sizes = [p.stat().st_size for p in made.paths]
        assert max(sizes) <= size
        assert sum(sizes) == made.nbytes
        assert len(sizes) <= made.nbytes // (size - largest) + 2


def test_splits_do_not_depend_on_threads(source: Path, tmp_path: Path) -> None:
    contents = []
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        folder.mkdir()
        made = kvant.quantize(source, "Q6_K", folder, split_size=SPLIT, threads=threads)
        contents.append([p.read_bytes() for p in made.paths])
    assert contents[0] == contents[1]


def test_a_split_file_is_a_source(source: Path, tmp_path: Path) -> None:
    parts = kvant.convert(source, tmp_path / "part.gguf", split_size=SPLIT * 2).paths
    kvant.convert(source, tmp_path / "whole.gguf")
    from_parts = kvant.quantize(parts[1], "Q4_K_M", tmp_path / "a.gguf").paths[0]
    from_whole = kvant.quantize(tmp_path / "whole.gguf", "Q4_K_M", tmp_path / "b.gguf").paths[0]
    from_folder = kvant.quantize(source, "Q4_K_M", tmp_path / "c.gguf").paths[0]
    assert from_parts.read_bytes() == from_whole.read_bytes()
    assert from_whole.read_bytes() == from_folder.read_bytes()


def test_a_split_size_below_a_tensor(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--split-size 1000 bytes is less than .*token_embd"):
        kvant.quantize(source, "Q4_K_M", tmp_path, split_size=1000)
    assert list(tmp_path.iterdir()) == []


def test_a_split_size_above_the_model(source: Path, tmp_path: Path) -> None:
    (one,) = kvant.quantize(source, "Q4_K_M", tmp_path / "a.gguf").paths
    (same,) = kvant.quantize(source, "Q4_K_M", tmp_path / "b.gguf", split_size=10**9).paths
    assert one.read_bytes() == same.read_bytes()


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_written_is_the_packing_of_each_row(
    source: Path, tmp_path: Path, recipe: str
) -> None:
    """The stream against quantising each whole weight in memory."""
    from kvant.quant.pack import pack_rows

    (path,) = kvant.quantize(source, recipe, tmp_path / "model.gguf").paths
    made, original = open_checkpoint(path), open_checkpoint(source)
    for name, weight in original.weights.items():
        tensor = made.weights[name].stored
        values = weight.read_f32(order=original.architecture.gguf_rows)
        rows = values.reshape(-1, values.shape[-1])
        packed = pack_rows("F32", tensor.type.name, rows.view(np.uint8), rows.shape[1])
        np.testing.assert_array_equal(tensor.read(), packed)
        decoded = dequantize(tensor.type.name, tensor.read()).reshape(values.shape)
        error = np.abs(decoded - values).max() / np.abs(values).max()
        assert error < (0.6 if tensor.type.name == "Q2_K" else 0.35)


def test_the_rope_factors_survive_a_second_writing(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    folder = make_folder(tmp_path / "m", {**LLAMA, "rope_scaling": rope})
    (first,) = kvant.convert(folder, tmp_path / "1.gguf", dtype="f32").paths
    (second,) = kvant.convert(first, tmp_path / "2.gguf", dtype="f32").paths
    assert second.read_bytes() == first.read_bytes()
    factors = read_gguf(second).tensors["rope_freqs.weight"]
    assert factors.shape == (32,)
    tokens = np.arange(40)[None]
    np.testing.assert_allclose(
        ReferenceModel(open_checkpoint(second)).forward(tokens),
        ReferenceModel(open_checkpoint(folder)).forward(tokens),
        atol=1e-4,
    )
