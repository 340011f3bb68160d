"""Mistakes people make: one message that helps, a status, no traceback, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvant
from oracles.models import LLAMA, make_folder

Run = Callable[..., Any]


def _mistake(run: Run, folder: Path, *arguments: object, status: int = 1) -> str:
    """Run a command that must fail; returns its message, one line after ``kvant: ``."""
    before = sorted(folder.rglob("*"))
    found = run(*arguments)
    assert found.status == status, found
    assert found.out == ""
    assert "Traceback" not in found.err
    assert sorted(folder.rglob("*")) == before
    if status == 2:
        assert found.err.startswith("usage: kvant")
        return str(found.err.splitlines()[-1])
    assert found.err.startswith("kvant: ")
    assert found.err.count("\n") == 1
    return str(found.err.removeprefix("kvant: ").rstrip("\n"))


COMMANDS = {
    "inspect": ("inspect", "SRC"),
    "convert": ("convert", "SRC"),
    "calibrate": ("calibrate", "SRC"),
    "quantize": ("quantize", "SRC", "Q4_K_M"),
    "eval": ("eval", "SRC"),
    "bench": ("bench", "SRC"),
    "run": ("run", "SRC", "Once"),
    "verify": ("verify", "SRC"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [a.replace("SRC", "no/such/model") for a in COMMANDS[command]]
    assert "no/such/model: no such file" in _mistake(run, tmp_path, *arguments)


@pytest.mark.parametrize("command", ["inspect", "convert", "quantize", "eval", "bench", "run"])
def test_folders_that_are_no_models(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    only_bin = tmp_path / "bin"
    only_bin.mkdir()
    shutil.copy(model / "config.json", only_bin)
    (only_bin / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model-Q4_K_M.gguf").touch()
    for folder, words in (
        (empty, "got no config.json"),
        (only_bin, "pickle checkpoint"),
        (only_bin, "save_pretrained"),
        (gguf, "name one, such as 'model-Q4_K_M.gguf'"),
    ):
        arguments = [a.replace("SRC", str(folder)) for a in COMMANDS[command]]
        assert words in _mistake(run, tmp_path, *arguments)


def test_a_name_that_is_empty(run: Run, tmp_path: Path) -> None:
    for command in COMMANDS.values():
        arguments = [a.replace("SRC", "") for a in command]
        assert "got an empty text" in _mistake(run, tmp_path, *arguments)


def test_names_do_not_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    message = _mistake(run, tmp_path, "inspect", "a\x1b[31mb\nc")
    assert message.startswith(r"a\x1b[31mb\nc: no such file")


def test_a_pickle_named_itself(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "never loads one" in _mistake(run, tmp_path, "quantize", path, "Q4_K_M")


def test_an_unknown_architecture(run: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", LLAMA)
    config = {**LLAMA, "model_type": "mamba", "architectures": ["MambaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    message = _mistake(run, tmp_path, "quantize", folder, "Q4_K_M", "-o", tmp_path)
    assert "'mamba'" in message
    assert "qwen2, qwen3" in message
    found = run("inspect", folder)
    assert found.status == 1
    assert "mamba" in found.out
    assert "It does not convert" in found.out
    document = json.loads(run("inspect", folder, "--json").out)
    assert document["converts"] is False
    assert "'mamba'" in document["obstacle"]


def test_a_missing_shard(run: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", LLAMA, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    for command in ("inspect", "quantize"):
        arguments = [a.replace("SRC", str(folder)) for a in COMMANDS[command]]
        assert "model-00002-of-00003.safetensors" in _mistake(run, tmp_path, *arguments)


def test_a_missing_part_of_a_split(run: Run, model: Path, tmp_path: Path) -> None:
    parts = kvant.quantize(model, "Q8_0", tmp_path / "m.gguf", split_size=500_000).paths
    parts[1].unlink()
    for command in ("inspect", "quantize", "verify"):
        arguments = [a.replace("SRC", str(parts[0])) for a in COMMANDS[command]]
        message = _mistake(run, tmp_path, *arguments)
        assert f"{parts[1].name}: this shard of {len(parts)} is missing" in message


def test_a_tokenizer_nobody_knows(run: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", LLAMA)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[a-z]{2}"}, "behavior": "Isolated"},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ],
    }
    path.write_text(json.dumps(content))
    message = _mistake(run, tmp_path, "quantize", folder, "Q4_K_M", "-o", tmp_path)
    assert "--pre-tokenizer" in message
    found = run("inspect", folder)
    assert found.status == 1
    assert "--pre-tokenizer" in found.out
    told = run("quantize", folder, "Q4_K_M", "-o", tmp_path, "--pre-tokenizer", "gpt-2")
    assert told.status == 0
    message = _mistake(run, tmp_path, "inspect", folder, "--pre-tokenizer", "gpt-3")
    assert "gpt-3" in message
    assert "gpt-2" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Q4_KM"], "Did you mean Q4_K_M?"),
        (["nonsense"], "kvant knows Q1_0, IQ1_S"),
        (["w4a16"], "a level of other targets: add --to vllm"),
        (["Q4_K_M", "--to", "mlx"], "Q4_K_M is a recipe for GGUF files: leave --to mlx out"),
        (["Q4_K_M", "--save-recipe", "r.txt"], "expected a name that ends in .json"),
        (["Q4_K_M", "-o", "no/m.gguf", "--save-recipe", "r.json"], "Create it first"),
        (["--bpw", "5", "--effort", "fast", "-o", "model.bin"], "ends in .gguf"),
        (["Q4_K_M", "--tensor", "(=Q6_K"], "not a regular expression"),
        (["Q4_K_M", "--tensor", "ffn_down"], "REGEX=PACKING"),
        (["Q4_K_M", "--tensor", "ffn_down=Q9_K"], "no packing called 'Q9_K'"),
        (["Q4_K_M", "--tensor", "ffn_dwon=Q6_K"], "matches no weight matrix"),
        (["Q4_K_M", "--split-size", "1k"], "a tensor cannot be split"),
        (["Q4_K_M", "-o", "no/such/folder/m.gguf"], "Create it first"),
        (["Q4_K_M", "-o", "model.bin"], "ends in .gguf"),
    ],
)
def test_requests_that_make_no_sense(
    run: Run,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in _mistake(run, tmp_path, "quantize", model, *arguments)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("quantize demo Q4_K_M --dtype f16", "--dtype is for other targets; add --to TARGET"),
        ("quantize demo Q4_K_M --no-verify", "--no-verify is for other targets"),
        ("quantize demo Q4_K_M --standard-ops", "--set standard-ops is for other targets"),
        ("quantize demo Q4_K_M --max-memory 1G", "--max-memory is for --effort balanced or best"),
        ("quantize demo Q4_K_M --text a.txt", "A text is for --effort balanced or best"),
        ("quantize demo Q4_K_M --validation a.txt", "--validation goes with a budget"),
        ("quantize demo bf16 --effort best --tokens 512", "is for quantised models, and BF16 is"),
        ("quantize demo bf16 --importance a.importance", "--importance is for quantised models"),
        ("quantize demo 4bit --to mlx --save-recipe r.json", "--save-recipe is for GGUF files"),
        ("quantize demo 4bit --to mlx --pre-tokenizer gpt-2", "leave it out with --to mlx"),
        ("quantize demo int4 --to onnx --evidence", "--evidence is for GGUF files"),
        ("quantize demo int4 --to onnx --max-memory 1G", "--max-memory is for --effort balanced"),
        ("quantize demo --to mlx --bpw 4 --pre-tokenizer gpt-2", "leave it out with --to mlx"),
        ("quantize demo --bpw 4 --dtype f16", "--dtype is for other targets"),
        ("quantize demo --bpw 4 --no-verify", "--no-verify is for other targets"),
        ("quantize demo --bpw 4 --set a=1", "--set a is for other targets"),
        ("quantize demo --bpw 4 --tokens 512", "--tokens goes with RECIPE"),
        ("quantize demo --bpw 4 --max-memory 1G", "--max-memory goes with RECIPE"),
        ("quantize demo --bpw 4 --validation a.txt", "--validation is what --max-kld is measured"),
        ("quantize demo --bpw 4 --effort fast --text a.txt", "A text is for --effort balanced"),
        ("convert demo --no-verify", "--no-verify is for other targets"),
        ("convert demo --set a=1", "--set a is for other targets"),
        ("convert demo --to hf --pre-tokenizer gpt-2", "--pre-tokenizer is for GGUF files"),
        ("eval demo --runner gguf=native", "none of the models is of that format, but hf"),
        ("bench demo --runner mlx=native", "--runner mlx=native changes nothing"),
        ("eval demo --reference --runner native", "leave out one of --reference and --runner nat"),
    ],
)
def test_options_without_effect(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in _mistake(run, tmp_path, *line.split())


@pytest.mark.parametrize("what", [("Q4_K_M",), ("--bpw", "5", "--effort", "fast")])
def test_a_dry_run_saves_no_recipe(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run("quantize", "demo", *what, "--save-recipe", "r.json", "--dry-run")
    assert found.status == 0
    assert "would write the recipe r.json" in found.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["quantise", "demo"], "invalid choice: 'quantise'"),
        (["quantize", "demo"], "exactly one of RECIPE, --fit, --bpw and --max-kld, got none"),
        (["quantize", "demo", "Q4_K_M", "--fit", "1G"], "got the recipe Q4_K_M and --fit"),
        (["quantize", "demo", "--fit", "1G", "--bpw", "4"], "got --fit and --bpw"),
        (["quantize", "demo", "--fit", "small"], "expected a size such as 2G or 650MB"),
        (["quantize", "demo", "--bpw", "few"], "invalid float value"),
        (["quantize", "demo", "--bpw", "4", "--effort", "none"], "invalid choice: 'none'"),
        (["quantize", "demo", "Q4_K_M", "--threads", "0"], "expected a whole number from 1"),
        (["quantize", "demo", "Q4_K_M", "--threads", "two"], "got 'two'"),
        (["quantize", "demo", "Q4_K_M", "--split-size", "2X"], "expected a size such as 2G"),
        (["quantize", "demo", "Q4_K_M", "--split-size", "0"], "above zero"),
        (["quantize", "demo", "Q4_K_M", "--split-size", "-1G"], "--split-size"),
        (["quantize", "demo", "Q4_K_M", "--split", "2G"], "unrecognized arguments"),
        (["convert", "demo", "--dtype", "q8_0"], "invalid choice: 'q8_0'"),
        (["convert", "demo", "--tensor", "a=F32"], "unrecognized arguments"),
        (["eval"], "required: MODEL"),
        (["eval", "demo", "--chunks", "0"], "expected a whole number from 1"),
        (["eval", "demo", "--max-kld", "small"], "invalid float value"),
        (["inspect"], "required: SRC"),
        (["inspect", "demo", "--yaml"], "unrecognized arguments"),
        (["verify"], "required: FILE"),
        (["formats", "Q4_K"], "unrecognized arguments"),
    ],
)
def test_command_lines_that_cannot_be_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in _mistake(run, tmp_path, *arguments, status=2)


def test_output_that_is_there_already(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    assert run("quantize", model, "Q8_0", "-o", out).status == 0
    before = out.read_bytes()
    assert "--force" in _mistake(run, tmp_path, "quantize", model, "Q4_0", "-o", out)
    assert "source itself" in _mistake(run, tmp_path, "quantize", out, "Q4_0", "-o", out, "--force")
    assert out.read_bytes() == before
    assert run("quantize", model, "Q4_0", "-o", out, "--force").status == 0


@pytest.mark.parametrize(
    ("what", "out"),
    [
        (("Q4_K_M", "--effort", "balanced"), "."),
        (("Q4_K_M", "--effort", "balanced"), "Demo-5.8M-Q4_K_M.gguf"),
        (("4bit", "--to", "mlx", "--effort", "balanced"), "folder"),
        (("--bpw", "5"), "Demo-5.8M-Q4_K_M.gguf"),
    ],
)
def test_outputs_are_checked_before_the_work(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: tuple[str, ...],
    out: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("conversion", "targets", "within"):
        name = "collected" if place == "within" else "collect_importance"
        monkeypatch.setattr(f"kvant.api.{place}.{name}", None)  # what takes minutes
    (tmp_path / "Demo-5.8M-Q4_K_M.gguf").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").touch()
    assert "exists already" in _mistake(run, tmp_path, "quantize", "demo", *what, "-o", out)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"too short", "The text is too short"),
        (b"", "The text is too short"),
        (b"caf\xe9 " * 5000, "expected UTF-8 text, got byte 0xe9 at 3"),
    ],
)
def test_texts_that_do_not_do(run: Run, tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "own.txt").write_bytes(text)
    assert words in _mistake(run, tmp_path, "eval", "demo", "--text", tmp_path / "own.txt")


def test_texts_that_are_not_there(run: Run, tmp_path: Path) -> None:
    assert "cannot be read" in _mistake(run, tmp_path, "eval", "demo", "--text", tmp_path / "no")
    assert "cannot be read" in _mistake(run, tmp_path, "eval", "demo", "--text", tmp_path)


def test_evaluations_that_make_no_sense(run: Run, model: Path, tmp_path: Path) -> None:
    message = _mistake(run, tmp_path, "eval", model, "--against", "demo")
    assert "tokenizer" in message or "vocabular" in message
    assert "at least 2 chunks" in _mistake(run, tmp_path, "eval", "demo", "--chunks", "1")
    assert "more than the model takes" in _mistake(
        run, tmp_path, "eval", "demo", "--context", "9999"
    )
    for limit in ("--max-kld", "--max-ppl-ratio"):
        message = _mistake(run, tmp_path, "eval", model, limit, "1")
        assert "name it with --against" in message
        message = _mistake(run, tmp_path, "eval", model, "--against", model, limit, "nan")
        assert "got nan" in message
    bare = make_folder(tmp_path / "bare", LLAMA, tokenizer=False)
    assert "has no tokenizer" in _mistake(run, tmp_path, "eval", bare)


def test_verifying_other_things(run: Run, model: Path, tmp_path: Path) -> None:
    path = kvant.quantize("demo", "Q8_0", tmp_path / "m.gguf").paths[0]
    assert "not of one model" in _mistake(run, tmp_path, "verify", path, "--against", model)
    assert "got a folder" in _mistake(run, tmp_path, "verify", model)


def test_a_name_too_long_to_exist(run: Run, tmp_path: Path) -> None:
    for command in COMMANDS.values():
        arguments = [a.replace("SRC", "n" * 300) for a in command]
        assert "too long" in _mistake(run, tmp_path, *arguments).lower()


def test_a_model_without_a_tokenizer_is_told(run: Run, tmp_path: Path) -> None:
    bare = make_folder(tmp_path / "bare", LLAMA, tokenizer=False)
    found = run("quantize", bare, "Q4_K_M", "-o", tmp_path)
    assert found.status == 0
    assert "note: The source has no tokenizer" in found.err
    assert "note" not in found.out
