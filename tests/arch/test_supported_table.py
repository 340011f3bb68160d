"""docs/supported.md says what the tests prove, and every architecture is proven in every way."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from kvant.arch import architecture_names

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def supported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supported", REPOSITORY / "scripts/supported.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_tests_say(supported: ModuleType) -> None:
    assert supported.PAGE.read_text() == supported.text(), "run scripts/supported.py"


def test_no_architecture_is_without_proof(supported: ModuleType) -> None:
    proven = supported._proven()
    for column in ("transformers", "llama.cpp", "quantised", "engine", "presets"):
        missing = set(architecture_names()) - set(proven[column])
        assert not missing, f"{column}: no case for {sorted(missing)}"
