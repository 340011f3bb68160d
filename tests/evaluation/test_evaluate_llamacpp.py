"""The whole evaluation of a real model against figures of llama.cpp's own perplexity tool.

The figures were printed by ``llama-perplexity`` (source of llama-cpp-python 0.3.36, gcc 12, one
thread, float32 cache, no flash attention) on F32 GGUF files of the two models made here. It keeps
the base's log-probabilities in 16 bits and cuts them off at -16, so its divergence is good to
about 1e-4 of itself, and its perplexity *of the base* is only right without ``--kl-divergence``.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from kvant.checkpoint import open_checkpoint
from kvant.evaluation import Corpus, Subject, evaluate
from kvant.files.safetensors import read_safetensors, write_safetensors
from kvant.reference import ReferenceModel
from kvant.tokenizer.build import build

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


def test_figures_are_those_of_llama_perplexity(shared_data, text, tmp_path):
    source = shared_data / "models" / "stories260K-hf"
    base = open_checkpoint(source)
    variant = open_checkpoint(coarse_copy(source, tmp_path / "coarse"))
    tokenizer = build(base.tokenizer())
    corpus = Corpus.from_tokens(
        tokenizer.encode(text, add_special=False), bos=tokenizer.bos_id, context=CONTEXT
    )
    first, second = evaluate(
        Subject("base", ReferenceModel(base)), [Subject("coarse", ReferenceModel(variant))], corpus
    )
    assert first.chunks == LLAMA_CPP["chunks"]
    assert first.perplexity == pytest.approx(LLAMA_CPP["perplexity"], rel=2e-5)
    assert second.perplexity == pytest.approx(LLAMA_CPP["variant perplexity"], rel=2e-5)
    assert second.kld == pytest.approx(LLAMA_CPP["kld"], rel=5e-4)
    assert second.kld_max == pytest.approx(LLAMA_CPP["kld max"], rel=5e-4)
    assert second.kld_median == pytest.approx(LLAMA_CPP["kld median"], rel=2e-3)
    assert second.same_top == pytest.approx(LLAMA_CPP["same top"], abs=5e-4)
