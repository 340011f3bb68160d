"""docs/levels.md has every level there is, as scripts/levels.py writes it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("levels", REPOSITORY / "scripts/levels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["levels"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_no_level_is_missing(script: ModuleType) -> None:
    sections = script._sections()
    assert list(sections) == list(script.TARGETS)
    for target, text in sections.items():
        rows = re.findall(r"^\| ([A-Za-z0-9_-]+) \| (ultra-low|low|medium) \|", text, re.MULTILINE)
        assert sorted(rows) == sorted(script.levels(target)), f"run scripts/levels.py, {target}"


def test_runtimes_agree_on_the_page(script: ModuleType) -> None:
    """Also of what was measured for the page, the bar: below 1e-3.

    Or below a hundredth of what the level itself costs: where that is half a nat, llama.cpp's
    rounding of activations is worth a little more than a thousandth.
    """
    sections = script._sections()
    for target in ("gguf", "onnx", "mlx"):
        rows = re.findall(
            r"^\| \S+ \| (?:ultra-low|low|medium) \|.*", sections[target], re.MULTILINE
        )
        assert len(rows) == len(script.levels(target))
        for row in rows:
            cells = [cell.strip() for cell in row.split("|")]
            own, lost = float(cells[-2]), float(cells[6].split()[0])
            assert own < max(1e-3, lost / 100), row
