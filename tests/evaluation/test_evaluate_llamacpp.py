"""The whole evaluation against llama.cpp: its own tool's figures, and its logits on the same files.

The figures were printed by ``llama-perplexity`` (source of llama-cpp-python 0.3.36, gcc 12, one
thread, float32 cache, no flash attention) on F32 GGUF files of the two models made here. It keeps
the base's log-probabilities in 16 bits and cuts them off at -16, so its divergence is good to
about 1e-4 of itself, and its perplexity *of the base* is only right without ``--kl-divergence``.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack

import numpy as np
import pytest

import kvant
from kvant.api.measurement import corpus_of, read_text
from kvant.api.source import tokenizer_of
from kvant.checkpoint import open_checkpoint
from kvant.evaluation import Corpus, Subject, evaluate
from kvant.files.safetensors import read_safetensors, write_safetensors
from kvant.runtimes import open_runner
from kvant.tokenizer.build import build
from oracles import llama

CONTEXT = 256
STORIES = 40
#: Weights of the variant are multiples of this.
STEP = 1 / 24

LLAMA_CPP = {
    "chunks": 60,
    "perplexity": 5.5663,
    "variant perplexity": 7.173863,
    "kld": 0.275779,
    "kld max": 8.733855,
    "kld median": 0.144289,
    "same top": 0.73911,
}


def coarse_copy(source, folder):
    """The model with all matrices rounded to multiples of ``STEP``."""
    shutil.copytree(source, folder)
    tensors = {}
    for name, stored in read_safetensors(source / "model.safetensors").tensors.items():
        values = stored.read().view(np.float32).reshape(stored.shape)
        tensors[name] = values if values.ndim == 1 else np.round(values / STEP) * np.float32(STEP)
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def text(shared_data) -> str:
    stories = json.loads((shared_data / "text" / "tinystories_dev.json").read_text())
    return "\n\n".join(stories[:STORIES])


@pytest.mark.parametrize(("kind", "slack"), [("reference", 1), ("native", 5)])
def test_figures_are_those_of_llama_perplexity(shared_data, text, tmp_path, kind, slack):
    source = shared_data / "models" / "stories260K-hf"
    base = open_checkpoint(source)
    variant = open_checkpoint(coarse_copy(source, tmp_path / "coarse"))
    tokenizer = build(base.tokenizer())
    corpus = Corpus.from_tokens(
        tokenizer.encode(text, add_special=False), bos=tokenizer.bos_id, context=CONTEXT
    )
    first, second = evaluate(
        Subject("base", open_runner(base, kind)),
        [Subject("coarse", open_runner(variant, kind))],
        corpus,
    )
    assert first.chunks == LLAMA_CPP["chunks"]
    assert first.perplexity == pytest.approx(LLAMA_CPP["perplexity"], rel=slack * 2e-5)
    assert second.perplexity == pytest.approx(LLAMA_CPP["variant perplexity"], rel=slack * 2e-5)
    assert second.kld == pytest.approx(LLAMA_CPP["kld"], rel=slack * 5e-4)
    assert second.kld_max == pytest.approx(LLAMA_CPP["kld max"], rel=slack * 5e-4)
    assert second.kld_median == pytest.approx(LLAMA_CPP["kld median"], rel=slack * 2e-3)
    assert second.same_top == pytest.approx(LLAMA_CPP["same top"], abs=slack * 5e-4)


class LlamaRunner:
    """A model run by llama.cpp."""

    def __init__(self, model):
        self.vocab_size = model.vocab_size
        self._model = model

    def logits(self, tokens, *, first_row):
        for sequence, ids in enumerate(tokens):
            yield sequence, first_row, self._model.logits(ids.tolist(), threads=1)[first_row:]


FILES = {"F32": 0.0, "F16": 0.0, "Q8_0": 0.12, "Q6_K": 0.08, "Q4_K_M": 0.02, "Q2_K": 0.02}
"""Largest difference of the divergences, as a share. Both run quantised weights against activations
in 8 bits, whose rounding is most of what Q8_0 costs and nothing beside Q2_K's weights."""


@pytest.mark.parity
def test_perplexity_and_divergence_from_llama_cpps_own_logits(tmp_path):
    """The engine runs a file as llama.cpp does: both lose the same by it."""
    try:
        library = llama.load()
    except ImportError as error:
        pytest.skip(f"needs llama.cpp (extra `parity`): {error}")
    paths = {name: tmp_path / f"{name}.gguf" for name in FILES}
    for name, path in paths.items():
        kvant.quantize("demo", name, path)
    models = {name: open_checkpoint(path) for name, path in paths.items()}
    base = models["F32"]
    corpus = corpus_of(read_text(None), tokenizer_of(base), base, 256, 12)
    ours = [Subject(name, open_runner(model)) for name, model in models.items()]
    with ExitStack() as opened:
        theirs = [
            Subject(name, LlamaRunner(opened.enter_context(library.open(path))))
            for name, path in paths.items()
        ]
        pairs = zip(
            evaluate(ours[0], ours[1:], corpus),
            evaluate(theirs[0], theirs[1:], corpus),
            strict=True,
        )
        for mine, peer in pairs:
            rounding = 3e-3 if mine.name.startswith("Q") else 2e-4
            assert mine.perplexity == pytest.approx(peer.perplexity, rel=rounding), mine.name
            if mine.name == "F16":  # no loss; what is left is rounding, each runtime's own
                assert mine.kld < 1e-6 > peer.kld
            elif mine.kld is not None:
                assert mine.kld == pytest.approx(peer.kld, rel=FILES[mine.name]), mine.name
                assert mine.same_top == pytest.approx(peer.same_top, abs=0.015), mine.name
