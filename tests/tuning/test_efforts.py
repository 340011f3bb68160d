"""Efforts that run the model: what they gain, what they write down, what they refuse."""

import numpy as np
import pytest

from kvant import evaluate, quantize
from kvant.api.artefact import Artefact
from kvant.api.calibration import calibration_chunks
from kvant.calibration.layers import LayerWalk
from kvant.checkpoint import open_checkpoint
from kvant.cli.main import main
from kvant.engine import load_engine
from kvant.errors import OutputError, UsageError
from kvant.quant.methods import METHODS, Problem
from kvant.tuning import layerwise

TOKENS = 2048


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("efforts")
    made = {}
    for effort in ("fast", "balanced", "best"):
        more = {} if effort == "fast" else {"tokens": TOKENS}
        path = folder / f"{effort}.gguf"
        made[effort] = path
        found = quantize("demo", "Q3_K_M", path, effort=effort, threads=2, **more)
        assert isinstance(found, Artefact)
        assert found.nbytes == path.stat().st_size
    return made


def test_same_packings_less_divergence(files):
    types = {
        e: {n: w.stored.type.name for n, w in open_checkpoint(p).weights.items()}
        for e, p in files.items()
    }
    assert types["fast"] == types["balanced"] == types["best"]
    results = evaluate(list(files.values()), "demo", chunks=8)[1:]
    fast, balanced, best = (r.kld for r in results)
    assert balanced < 0.75 * fast
    assert best < 0.75 * fast


def test_rows_of_rotated_heads_are_where_they_belong(files):
    """The order of rows in the file is the architecture's: decoded, weights lie near the source."""
    source = open_checkpoint(_demo())
    made = open_checkpoint(files["balanced"])
    for name in ("blk.0.attn_q.weight", "blk.3.attn_k.weight"):
        a, b = source.weights[name].read_f32(), made.weights[name].read_f32()
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95


def test_a_table_that_is_the_output_matrix_too_follows_what_the_head_is_fed(files):
    source = open_checkpoint(_demo())
    chunks = calibration_chunks(source, [], tokens=TOKENS)
    walk = LayerWalk(load_engine(source, threads=2, kv_tokens=512), list(chunks.ids))
    while not walk.at_head:
        walk.advance()
    x = np.concatenate(list(walk.head_inputs()))
    wanted = source.weights["token_embd.weight"].read_f32()

    def loss(path):
        found = open_checkpoint(path).weights["token_embd.weight"].read_f32()
        return np.square(x @ (found - wanted).T).mean()

    assert loss(files["balanced"]) < 0.7 * loss(files["fast"])


def test_rows_of_a_tall_matrix_are_quantised_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    problem = Problem("Q4_K", rng.standard_normal((1100, 256)).astype(np.float32), np.eye(256))
    whole = METHODS["search"](problem)
    seen = []

    def method(part):
        seen.append(len(part.weights))
        return METHODS["search"](part)

    monkeypatch.setattr(layerwise, "_PART", 256)
    found = layerwise._in_parts(method, problem)
    assert seen == [1024, 76]
    assert np.array_equal(found.packed(), whole.packed())
    assert np.array_equal(found.values, whole.values)


def test_the_file_says_how_it_was_made(files):
    metadata = open_checkpoint(files["balanced"]).gguf.metadata
    said = {k: v.value for k, v in metadata.items() if k.startswith("kvant.")}
    assert said["kvant.effort"] == "balanced"
    assert said["kvant.method"].startswith("refine")
    assert said["kvant.calibration.tokens"] == TOKENS
    assert len(said["kvant.calibration.sha256"]) == 64
    assert said["kvant.numpy.version"] == np.__version__
    fast = open_checkpoint(files["fast"]).gguf.metadata
    assert fast["kvant.effort"].value == "fast"
    assert "kvant.calibration.tokens" not in fast


def test_bytes_do_not_depend_on_threads(files, tmp_path):
    again = tmp_path / "again.gguf"
    quantize("demo", "Q3_K_M", again, effort="balanced", threads=1, tokens=TOKENS)
    assert again.read_bytes() == files["balanced"].read_bytes()
    beside = {"again.gguf", "again.evidence.json", "again.md"}
    assert {p.name for p in tmp_path.iterdir()} == beside  # no scratch file


def test_verified_as_any_file(files, capsys):
    assert main(["verify", str(files["balanced"])]) == 0


def test_a_short_text_says_how_much_is_needed(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Once upon a time. " * 20)
    with pytest.raises(UsageError, match="2,048 tokens"):
        quantize("demo", "Q4_K_M", tmp_path / "x.gguf", effort="balanced", texts=[text])
    assert [p.name for p in tmp_path.iterdir()] == ["short.txt"]


def test_a_text_needs_an_effort_that_reads_it(tmp_path):
    with pytest.raises(UsageError, match="--effort balanced or best"):
        quantize("demo", "Q4_K_M", tmp_path / "x.gguf", tokens=4096)
    with pytest.raises(UsageError, match="no effort 'heroic'"):
        quantize("demo", "Q4_K_M", tmp_path / "x.gguf", effort="heroic")


def test_an_existing_file_is_refused_before_the_work(files):
    with pytest.raises(OutputError, match="exists"):
        quantize("demo", "Q3_K_M", files["fast"], effort="best", tokens=TOKENS)


def _demo():
    from kvant.api.source import resolve

    return resolve("demo")
