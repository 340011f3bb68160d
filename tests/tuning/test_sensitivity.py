"""The table of costs: its parts add up, and it foretells what whole variants lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.engine import load_engine
from kvant.errors import UsageError
from kvant.quant.allocate import Front
from kvant.quant.candidate import Candidate
from kvant.tuning import sensitivity
from kvant.tuning.candidates import choose_packings, packing_candidates
from kvant.tuning.priors import prior
from kvant.tuning.probe import Probe, Replacement, chunks_of
from kvant.tuning.rounding import packed_rows
from kvant.tuning.sensitivity import Sensitivity, measure_costs
from oracles.models import BERT, LLAMA, make_folder

DEEP = {**LLAMA, "num_hidden_layers": 6, "intermediate_size": 256, "vocab_size": 300}
TOKENS = np.random.default_rng(0).integers(0, 290, 8192).astype(np.int32)


def ways(source: Checkpoint, *names: str) -> dict[str, tuple[Candidate, ...]]:
    return packing_candidates(source, choose_packings(names or ("fast",)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("costs") / "m"
    return open_checkpoint(make_folder(folder, DEEP, dtype="BF16"))


@pytest.fixture(scope="module")
def found(source: Checkpoint) -> Sensitivity:
    return measure_costs(source, ways(source), tokens=TOKENS, threads=2)


def test_every_matrix_has_a_row(source: Checkpoint, found: Sensitivity) -> None:
    matrices = {n for n, w in source.weights.items() if len(w.shape) == 2}
    assert {t.name for t in found.tensors} == matrices
    assert found.tokens == TOKENS.size
    for t in found.tensors:
        costs = t.costs
        assert list(t.nbytes.values()) == sorted(t.nbytes.values())
        assert costs["BF16"] == 0
        assert costs["Q2_K"] > costs["Q3_K"] > costs["Q4_K"] > costs["Q5_K"] > costs["Q6_K"] > 0
        assert t.measured["Q3_K"] == pytest.approx(costs["Q3_K"], rel=1e-9)
        assert t.weights == source.weights[t.name].stored.elements


def test_whole_variants_lose_what_the_table_says(source: Checkpoint, found: Sensitivity) -> None:
    """On other text, of mixtures at several sizes: costs of tensors add up."""
    front = Front([t.item() for t in found.tensors])
    mixtures = [front.within_bytes(int(front.least_bytes * x)) for x in (1.2, 1.5, 1.9)]
    names = [t.name for t in found.tensors]
    tokens = np.random.default_rng(9).integers(0, 290, 4096).astype(np.int32)
    probe = Probe(source, load_engine(source, threads=2, kv_tokens=1024), chunks_of(tokens, 16))
    chosen = [dict(zip(names, (c.packing for c in m.choices), strict=True)) for m in mixtures]
    measured = probe.measure(
        [Replacement(c) for c in chosen],
        lambda name, packing: packed_rows(source.weights[name], packing, None, threads=2),
    ).mean(1)
    for mixture, kld in zip(mixtures, measured, strict=True):
        assert kld == pytest.approx(mixture.cost, rel=0.25)


def test_the_same_for_any_number_of_threads(source: Checkpoint, found: Sensitivity) -> None:
    again = measure_costs(source, ways(source), tokens=TOKENS, threads=1)
    assert [t.to_json() for t in again.tensors] == [t.to_json() for t in found.tensors]


def test_fast_runs_nothing(source: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sensitivity, "load_engine")
    found = measure_costs(source, ways(source), effort="fast", threads=2)
    assert (found.tokens, found.passes) == (0, 0)
    rows = {t.name: t for t in found.tensors}
    assert rows["blk.0.attn_v.weight"].coefficient > rows["blk.3.attn_v.weight"].coefficient
    assert rows["output.weight"].costs["Q4_K"] > rows["blk.3.attn_v.weight"].costs["Q4_K"] > 0


def test_best_measures_at_two_packings(source: Checkpoint) -> None:
    found = measure_costs(
        source, ways(source, "Q2_K", "Q4_K", "Q6_K"), effort="best", tokens=TOKENS[:1024], threads=2
    )
    for t in found.tensors:
        assert set(t.measured) == {"Q2_K", "Q4_K"}
        low, high = sorted(t.measured[p] / t.errors[p] for p in t.measured)
        assert low <= t.coefficient <= high


def test_large_models_are_measured_in_groups(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbouring layers together, the outermost alone, and what is too much is still done."""
    whole = measure_costs(source, ways(source), tokens=TOKENS, threads=2)
    for operations in (whole.passes * 1e8, 1.0):
        monkeypatch.setitem(sensitivity._OPERATIONS, "balanced", operations)
        found = measure_costs(source, ways(source), tokens=TOKENS, threads=2)
        assert found.passes < whole.passes
        assert found.tokens <= whole.tokens
        rows = {t.name: t for t in found.tensors}
        assert rows["blk.1.ffn_up.weight"].coefficient > 0
        assert rows["blk.0.ffn_up.weight"].measured
        if operations == 1.0:
            inner = {rows[f"blk.{i}.ffn_up.weight"].coefficient for i in range(1, 5)}
            assert len(inner) == 1
            assert not rows["blk.1.ffn_up.weight"].measured


def test_short_contexts(tmp_path: Path) -> None:
    config = {**LLAMA, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 40}
    source = open_checkpoint(make_folder(tmp_path / "m", config, dtype="F16"))
    found = measure_costs(source, ways(source), tokens=TOKENS[:500], threads=1)
    assert found.tokens == 480
    down = next(t for t in found.tensors if t.role == "ffn_down")
    assert set(down.errors) == {"IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16"}
    assert len(down.measured) == 1


def test_encoders_have_nothing_to_be_measured_by(tmp_path: Path) -> None:
    source = open_checkpoint(make_folder(tmp_path / "m", BERT, dtype="F32", tokenizer=False))
    with pytest.raises(UsageError, match="--effort fast"):
        measure_costs(source, ways(source), tokens=TOKENS, threads=1)
    assert measure_costs(source, ways(source), effort="fast", threads=1).tensors


def test_priors() -> None:
    assert prior("token_embd", None, 4, tied=True) > prior("token_embd", None, 4, tied=False)
    assert prior("ffn_up", 0, 4, tied=True) > prior("ffn_up", 1, 4, tied=True)
    assert prior("something_new", 2, 4, tied=True) > 0
