"""The engine as evaluation sees it: tiles, groups of sequences, what is held and given back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvant
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.engine import Engine, load_engine
from kvant.errors import UsageError
from kvant.evaluation import Corpus, Subject
from kvant.evaluation import evaluate as measure
from kvant.reference import ReferenceModel
from kvant.runtimes import NativeRunner, native, open_runner
from oracles.models import LLAMA, QWEN3, make_folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_folder(tmp_path_factory.mktemp("runner") / "Tiny", LLAMA))


def tokens_of(batch: int, length: int, vocab: int = 384) -> np.ndarray:
    return np.random.default_rng(3).integers(0, vocab, (batch, length)).astype(np.int32)


def matrix(runner: NativeRunner, tokens: np.ndarray, first_row: int) -> np.ndarray:
    """All logits, after a check that tiles come as the protocol says."""
    out = np.full((*tokens.shape, runner.vocab_size), np.nan, np.float32)
    expected = (0, first_row)
    for sequence, row, tile in runner.logits(tokens, first_row=first_row):
        assert (sequence, row) == expected
        assert tile.dtype == np.float32
        out[sequence, row : row + len(tile)] = tile
        end = row + len(tile) == tokens.shape[1]
        expected = (sequence + 1, first_row) if end else (sequence, row + len(tile))
    assert expected == (len(tokens), first_row)
    assert np.isfinite(out[:, first_row:]).all()
    return out[:, first_row:]


@pytest.mark.parametrize("first_row", [0, 7, 30])
@pytest.mark.parametrize("tile_rows", [1, 10, 1000])
def test_tiles_are_the_engines_logits(
    checkpoint: Checkpoint, first_row: int, tile_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(3, 31)
    engine = load_engine(checkpoint, threads=1, kv_tokens=512)
    expected = [engine.step([(engine.sequence(), row)], logits="all") for row in tokens]
    monkeypatch.setattr(native, "_TILE_ELEMENTS", tile_rows * 384)
    found = matrix(NativeRunner(checkpoint, threads=2), tokens, first_row)
    assert np.array_equal(found, np.stack(expected)[:, first_row:])


def test_more_sequences_than_the_cache_holds(checkpoint: Checkpoint) -> None:
    """Of 3 tokens each takes a block; the groups change nothing."""
    tokens = tokens_of(150, 3)
    together = matrix(NativeRunner(checkpoint, threads=2), tokens, 1)
    alone = NativeRunner(checkpoint, threads=1)
    for i in (0, 63, 64, 149):
        assert np.array_equal(matrix(alone, tokens[i : i + 1], 1)[0], together[i])


def test_a_text_longer_than_the_usual_step(tmp_path: Path) -> None:
    config = {**QWEN3, "max_position_embeddings": 4096, "num_hidden_layers": 1}
    long = open_checkpoint(make_folder(tmp_path / "Long", config))
    runner = NativeRunner(long, threads=2)
    assert matrix(runner, tokens_of(2, 40), 39).shape == (2, 1, 384)
    tokens = tokens_of(1, native.STEP_TOKENS + 100)  # loaded anew, with a larger cache
    found = matrix(runner, tokens, tokens.shape[1] - 2)
    (judge,) = ReferenceModel(long).logits(tokens, first_row=tokens.shape[1] - 2)
    scale = np.abs(judge.logits).max()
    assert np.abs(found[0] - judge.logits).max() < 0.02 * scale


def test_the_cache_is_given_back(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[Engine] = []

    def load(*arguments: Any, **options: Any) -> Engine:
        engines.append(load_engine(*arguments, **options))
        return engines[-1]

    monkeypatch.setattr(native, "load_engine", load)
    runner = NativeRunner(checkpoint, threads=1)
    matrix(runner, tokens_of(3, 40), 0)
    next(runner.logits(tokens_of(3, 40)))  # and left there
    with pytest.raises(UsageError, match="Token ids should be from 0 to 383"):
        next(runner.logits(np.full((1, 8), 384, np.int32)))
    (engine,) = engines  # loaded once
    assert engine.kv.free_tokens == engine.kv.capacity_tokens >= native.STEP_TOKENS


def test_models_without_a_base_are_in_memory_one_at_a_time(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[weakref.ref[Engine]] = []

    def load(*arguments: Any, **options: Any) -> Engine:
        assert all(held() is None for held in engines)
        engine = load_engine(*arguments, **options)
        engines.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(native, "load_engine", load)
    results = kvant.evaluate([checkpoint.path] * 3, context=32, chunks=2)
    assert len(engines) == 3
    assert results[0] == results[2]


def test_kinds_of_runners(checkpoint: Checkpoint) -> None:
    assert isinstance(open_runner(checkpoint), NativeRunner)
    assert isinstance(open_runner(checkpoint, "reference"), ReferenceModel)
    with pytest.raises(UsageError, match="choose 'native' or 'reference'"):
        open_runner(checkpoint, "torch")  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", [None, "F16", "Q8_0", "Q4_K_M", "Q2_K"])
def test_figures_are_near_those_of_the_reference(recipe: str | None, tmp_path: Path) -> None:
    """What is left between them is the engine's rounding of activations: to 8 bits beside
    quantised weights, to 16 beside others."""
    source: str | Path = "demo"
    if recipe is not None:
        source = kvant.quantize("demo", recipe, tmp_path / "m.gguf").paths[0]
    (engine,) = kvant.evaluate(source, context=128, chunks=3)
    (judge,) = kvant.evaluate(source, context=128, chunks=3, runner="reference")
    assert engine.perplexity == pytest.approx(judge.perplexity, rel=3e-3)
    assert engine.corpus == judge.corpus


def test_threads_change_no_figure() -> None:
    one, two = (kvant.evaluate("demo", context=64, chunks=3, threads=n)[0] for n in (1, 2))
    assert one == two
    assert np.array_equal(one.chunk_nll, two.chunk_nll)


_CHILD = """
import sys
import numpy as np
from kvant.checkpoint import open_checkpoint
from kvant.evaluation import Corpus, Subject, evaluate
from kvant.runtimes import open_runner

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

model = open_checkpoint(sys.argv[1])
ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 4096)
corpus = Corpus.from_tokens(ids, context=512)
before = peak()
base, other = (Subject(n, open_runner(model, threads=2)) for n in ("base", "other"))
results = evaluate(base, [other], corpus, threads=2)
assert results[1].kld == 0
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_bounded_whatever_the_vocabulary(tmp_path: Path) -> None:
    """Two models' logits of a step of 2048 tokens would take 2.1 GB."""
    config = {**LLAMA, "vocab_size": 131_072, "hidden_size": 256, "max_position_embeddings": 512}
    config |= {"num_hidden_layers": 1, "tie_word_embeddings": True}
    folder = make_folder(tmp_path / "Wide", config, dtype="BF16", tokenizer=False)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 131_072
    path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    weights = 2 * 131_072 * 256 * 2  # of both, in BF16
    tiles = 2 * 32_000_000
    assert int(done.stdout) * 1024 < weights + tiles + 60_000_000


def test_the_engine_runs_side_by_side_with_the_judge(checkpoint: Checkpoint) -> None:
    """Runners of different kinds have tiles of different heights; evaluation fits them together."""
    corpus = Corpus.from_tokens(tokens_of(1, 300)[0], context=64)
    subjects = [Subject(k, open_runner(checkpoint, k)) for k in ("reference", "native")]  # type: ignore[arg-type]
    _, engine = measure(subjects[0], subjects[1:], corpus)
    assert engine.kld is not None
    assert 0 < engine.kld < 1e-2
