"""Fixtures every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real tokenizers, models and texts; the test skips where it is missing."""
    folder = Path(os.environ.get("KVANT_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"development data folder {folder} is not here (set KVANT_TEST_DATA)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the store of whoever runs it, nor their credentials."""
    home = tmp_path_factory.mktemp("home")
    names = {
        "KVANT_HOME": home / "kvant",
        "DOCKER_CONFIG": home / "docker",
        "OLLAMA_MODELS": home / "ollama",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, str(value))
        for name in ("KVANT_REGISTRY", "KVANT_REGISTRY_AUTH"):
            patch.delenv(name, raising=False)
        yield
