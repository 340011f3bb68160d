"""llama.cpp as a judge, and small models made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oracles import llama as llama_oracle
from oracles.models import LLAMA, make_folder


@pytest.fixture(scope="session")
def llama() -> llama_oracle.Llama:
    """llama.cpp itself, from the xllamacpp wheel."""
    try:
        return llama_oracle.load()
    except ImportError as error:
        pytest.skip(f"xllamacpp is not usable here: {error}")


@pytest.fixture(scope="session")
def gguf() -> Any:
    """The gguf package: the format's own reader and writer."""
    return pytest.importorskip("gguf")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: two layers of llama in BF16, all rows multiples of 256."""
    return make_folder(tmp_path_factory.mktemp("source") / "Tiny", LLAMA, dtype="BF16")
