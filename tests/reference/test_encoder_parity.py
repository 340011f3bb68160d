"""An encoder's states against transformers, float32, on small random models saved by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.checkpoint import open_checkpoint
from kvant.reference import ReferenceModel

pytestmark = pytest.mark.parity

BASE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 300,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {}),
    "one kind of segment": ("BertModel", {"type_vocab_size": 1}),
    "other eps": ("BertModel", {"layer_norm_eps": 1e-3}),
    "with a head": ("BertForMaskedLM", {}),
    "with both heads": ("BertForPreTraining", {}),
}
TOKENS = np.random.default_rng(0).integers(0, BASE["vocab_size"], (2, 300))


@pytest.mark.parametrize("case", CASES)
def test_states(tmp_path: Path, case: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, changes = CASES[case]
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**BASE, **changes})
    model = getattr(transformers, family)(config).eval().float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.08 + ("LayerNorm.weight" in name))
        bare = model if family == "BertModel" else model.bert
        expected = bare(torch.from_numpy(TOKENS)).last_hidden_state.numpy()
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    got = ReferenceModel(checkpoint).forward(TOKENS)
    # Measured: 4e-7.
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert all(name.startswith(("pooler.", "bert.pooler.", "cls.")) for name in checkpoint.unused)
