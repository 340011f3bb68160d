"""Folders run as they are in onnxruntime-genai: greedily the same tokens, over several turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvant.builtin import demo_path
from kvant.checkpoint import open_checkpoint
from kvant.export.onnx.read import dequantised
from kvant.export.target import TargetOptions, find_target
from kvant.reference import ReferenceModel
from kvant.tokenizer import build
from oracles import ort  # sets what has to be set before onnxruntime is imported

genai = pytest.importorskip("onnxruntime_genai")
pytest.importorskip("onnx")
pytestmark = pytest.mark.parity

TEXT = "Once upon a time there was a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("genai") / "demo"
    source = open_checkpoint(demo_path())
    find_target("onnx").write(source, out, None, TargetOptions(threads=2))
    return out


def generator(model: Any, most: int = 120) -> Any:
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=most, do_sample=False)
    return genai.Generator(model, params)


def more(running: Any, count: int) -> list[int]:
    for _ in range(count):
        running.generate_next_token()
    return [int(i) for i in running.get_sequence(0)][-count:]


def likeliest(reference: ReferenceModel, prompt: Sequence[int], said: Sequence[int]) -> list[int]:
    """What the interpreter finds likeliest at each place of ``said``, which follows ``prompt``."""
    logits = reference.forward([[*prompt, *said]])[0]
    return [int(i) for i in logits[len(prompt) - 1 : -1].argmax(-1)]


def test_tokens_are_the_engines_over_turns_and_pieces(folder: Path) -> None:
    source = open_checkpoint(demo_path())
    reference = ReferenceModel(source)
    model = genai.Model(str(folder))
    tokenizer = genai.Tokenizer(model)
    ids = [int(i) for i in tokenizer.encode(TEXT)]
    definition = source.tokenizer()
    assert definition is not None
    assert ids == build(definition).encode(TEXT)
    running = generator(model)
    running.append_tokens(ids)
    first = more(running, 16)
    assert first == likeliest(reference, ids, first)
    # The last token generated is not in the cache yet; it goes in with the next turn.
    said = [*ids, *first]
    question = [int(i) for i in tokenizer.encode(" and then")]
    running.rewind_to(len(said) - 1)
    running.append_tokens([said[-1], *question])
    second = more(running, 8)
    assert second == likeliest(reference, [*said, *question], second)
    # A prompt in pieces.
    running = generator(model)
    for piece in (ids[:3], ids[3:4], ids[4:]):
        running.append_tokens(piece)
    assert more(running, 8) == first[:8]


def test_portable_graphs_run_too(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    source = open_checkpoint(demo_path())
    options = TargetOptions(threads=2, settings={"standard_ops": True})
    find_target("onnx").write(source, out, "int8-g32", options)
    model = genai.Model(str(out))
    ids = [int(i) for i in genai.Tokenizer(model).encode(TEXT)]
    running = generator(model)
    running.append_tokens(ids)
    found = more(running, 8)
    assert found == likeliest(ReferenceModel(dequantised(source, out)), ids, found)


def test_a_gguf_file_becomes_a_folder_that_runs(tmp_path: Path) -> None:
    from kvant import quantize

    quantize("demo", "Q8_0", tmp_path / "demo.gguf", threads=2)
    source = open_checkpoint(tmp_path / "demo.gguf")
    find_target("onnx").write(source, tmp_path / "out", "int8", TargetOptions(threads=2))
    model = genai.Model(str(tmp_path / "out"))
    tokenizer = genai.Tokenizer(model)
    ids = [int(i) for i in tokenizer.encode(TEXT)]
    running = generator(model)
    running.append_tokens(ids)
    wanted = ReferenceModel(dequantised(source, tmp_path / "out"))
    found = more(running, 8)
    assert found == likeliest(wanted, ids, found)
    assert ort.session(tmp_path / "out").get_outputs()[0].name == "logits"


def test_the_guides_examples_run(
    folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model-onnx").symlink_to(folder)
    page = (Path(__file__).resolve().parents[2] / "docs" / "onnx.md").read_text()
    names: dict[str, Any] = {}
    examples = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, "guide", "exec"), names)
    first, second = capsys.readouterr().out.split("Once upon a time")[1:]
    assert len(first) > 40
    assert first.strip() == second.strip()
