"""What README and guides show: every command line can be read, every example runs."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import pytest

import kvant
from kvant.builtin import demo_path
from kvant.cli import main as command_line

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


LINES = [
    line
    for page in PAGES
    for block in _blocks(page, "sh")
    for line in block.splitlines()
    if line.startswith("kvant ")
]
EXAMPLES = [block for page in PAGES for block in _blocks(page, "python")]


@pytest.mark.parametrize("line", LINES)
def test_command_lines(line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    assert callable(command_line._parser().parse_args(arguments).run)


def test_every_command_is_shown() -> None:
    shown = {line.split()[1] for line in LINES}
    assert {"run", "inspect", "convert", "quantize", "eval", "bench", "verify", "formats"} <= shown


@pytest.mark.parametrize("example", EXAMPLES)
def test_python_examples(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "model").symlink_to(demo_path())
    if "mlx_lm" in example:
        pytest.importorskip("mlx_lm")
        kvant.quantize("demo", "4bit", tmp_path / "model-4bit", to="mlx")
    monkeypatch.setattr(kvant, "evaluate", partial(kvant.evaluate, context=64, chunks=2))
    exec(compile(example, "example", "exec"), {})
    for path in tmp_path.glob("*.gguf"):
        assert kvant.verify(path).ok


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2
    assert len(LINES) > 10
