"""Fixtures every test may use."""

from __future__ import annotations

import os
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
