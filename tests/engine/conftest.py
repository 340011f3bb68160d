"""The built-in model, ready to generate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_standin import FakeEngine

from kvant.api.model import Model
from kvant.builtin import demo_path
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.tokenizer.build import Tokenizer, build


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return open_checkpoint(demo_path())


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    definition = checkpoint.tokenizer()
    assert definition is not None
    return build(definition)


@pytest.fixture
def engine(checkpoint: Checkpoint) -> Iterator[FakeEngine]:
    """In NumPy; at the end of the test every sequence must have been freed."""
    found = FakeEngine(checkpoint)
    yield found
    assert not found.live


@pytest.fixture
def model(checkpoint: Checkpoint, engine: FakeEngine, tokenizer: Tokenizer) -> Iterator[Model]:
    with Model(checkpoint, engine, tokenizer) as found:
        yield found
