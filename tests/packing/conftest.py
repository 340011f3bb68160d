"""The judges of packings, each skipping by name where it is not installed."""

from __future__ import annotations

from types import ModuleType

import pytest

from oracles import ggml as ggml_oracle


@pytest.fixture(scope="session")
def ggml() -> ggml_oracle.Ggml:
    """ggml itself, from the xllamacpp wheel."""
    try:
        return ggml_oracle.load()
    except ImportError as error:
        pytest.skip(f"xllamacpp is not usable here: {error}")


@pytest.fixture(scope="session")
def gguf() -> ModuleType:
    """The reference readers and quantisers of the gguf package."""
    return pytest.importorskip("gguf")
