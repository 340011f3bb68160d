"""The built-in model, ready to generate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_standin import Recorded

from kvant.api.model import Model
from kvant.builtin import demo_path
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.engine import Engine, load_engine
from kvant.tokenizer.build import Tokenizer, build


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return open_checkpoint(demo_path())


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    definition = checkpoint.tokenizer()
    assert definition is not None
    return build(definition)


@pytest.fixture(scope="session")
def _engine(checkpoint: Checkpoint) -> Engine:
    return load_engine(checkpoint, threads=2)


@pytest.fixture
def engine(_engine: Engine) -> Iterator[Recorded]:
    """With a record of its steps; at the end of the test every sequence must have been freed."""
    found = Recorded(_engine)
    yield found
    assert found.idle


@pytest.fixture
def model(checkpoint: Checkpoint, engine: Recorded, tokenizer: Tokenizer) -> Iterator[Model]:
    with Model(checkpoint, engine, tokenizer) as found:  # type: ignore[arg-type]
        yield found
