"""pull, list, show, cp, rm, create, store, and names wherever a model is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvant.builtin import demo_path

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KVANT_REGISTRY", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)


def test_a_model_by_name(run: Run, tmp_path: Path) -> None:
    found = run("list")
    assert (found.status, found.out) == (0, "")
    assert "`kvant pull NAME` gets one" in found.err
    found = run("pull", "demo")
    assert (found.status, found.out) == (0, "demo:latest\n")
    assert "apache-2.0" in found.err
    (tmp_path / "Modelfile").write_text(
        'FROM demo\nPARAMETER temperature 0\nSYSTEM """Be\nbrief."""\nMESSAGE user hi\n'
    )
    found = run("create", "org/small:q4", "-q", "Q4_0")
    assert (found.status, found.out) == (0, "org/small:q4\n")
    assert "Q4_0" in found.err
    rows = run("list").out.splitlines()
    assert rows[0].split()[:3] == ["name", "size", "kind"]
    assert rows[2].startswith("demo:latest")
    assert rows[3].split()[0] == "org/small:q4"
    assert "apache-2.0" in rows[3]
    assert "demo" not in run("ls", "small").out
    found = run("ls", "large")
    assert (found.status, found.out) == (0, "")
    assert "No model here has 'large' in its name" in found.err
    listed = json.loads(run("list", "--json").out)
    assert [entry["name"] for entry in listed] == ["demo:latest", "org/small:q4"]
    shown = run("show", "org/small:q4").out
    assert "parameter     temperature 0.0" in shown
    assert "Be\\nbrief." in shown
    assert run("show", "ORG/small:q4", "--system").out == "Be\nbrief.\n"
    assert run("show", "org/small:q4", "--parameters").out.split() == ["temperature", "0.0"]
    shown = json.loads(run("show", "org/small:q4", "--json").out)
    assert (shown["quantization"], shown["weights"]) == ("Q4_0", 5_770_496)
    (tmp_path / "shown").write_text(run("show", "org/small:q4", "--modelfile").out)
    assert run("create", "again", "-f", "shown").status == 0
    listed = json.loads(run("list", "--json").out)
    assert listed[0]["digest"] == listed[2]["digest"]
    # Wherever a model is named.
    assert "Q4_0" in run("inspect", "org/small:q4").out
    assert run("run", "org/small:q4", "Once", "-n", "3").status == 0
    assert run("quantize", "org/small:q4", "Q8_0", "-o", "x.gguf", "--dry-run").status == 0
    assert run("eval", "again", "--against", "demo", "--chunks", "2").status == 0
    assert run("cp", "again", "third").out == "third:latest\n"
    found = run("rm", "again", "org/small:q4", "again")
    assert found.out == "removed again\nremoved org/small:q4\n"
    assert "all is well" in run("store", "verify").out
    assert run("rm", "third").status == 0
    assert "given back" in run("store", "collect").out
    assert run("store", "path").out == f"{tmp_path / 'home' / 'models'}\n"


def test_what_is_not_there_is_said(run: Run) -> None:
    run("pull", "demo", "--name", "plain")
    for part, words in (
        ("--template", "no template but the one in its files"),
        ("--system", "no system message"),
        ("--parameters", "no parameters"),
    ):
        found = run("show", "plain", part)
        assert (found.status, found.out) == (0, "")
        assert words in found.err


def test_a_model_with_the_name_of_the_built_in_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text("FROM demo\nSYSTEM Be kind.\n")
    for command in (("create", "demo"), ("pull", "demo"), ("cp", "demo:latest", "DEMO")):
        found = run(*command)
        assert found.status == 0
        assert "`demo` alone is the built-in model" in found.err
    assert "alone" not in run("create", "other").err


def test_folders_that_are_quantised(run: Run, tmp_path: Path) -> None:
    assert run("quantize", "demo", "4bit", "--to", "mlx", "-o", "four").status == 0
    stored = json.loads(run("inspect", "four", "--json").out)["storage"]["MLX 4 bits"]
    size = (tmp_path / "four" / "model.safetensors").stat().st_size
    assert 0.9 * size < stored["bytes"] < size
    assert run("pull", "./four").status == 0
    listed = json.loads(run("list", "--json").out)[0]
    assert (listed["quantization"], listed["parameters"]) == ("MLX 4 bits", 5_770_496)
    # Quantised again, which is told as `kvant quantize` tells it.
    (tmp_path / "Modelfile").write_text("FROM ./four\n")
    found = run("create", "again", "-q", "Q4_0")
    assert found.status == 0
    assert "note: The source is quantised already (MLX 4 bits)" in found.err


def test_mistakes(run: Run, tmp_path: Path) -> None:
    for command in ("show", "rm", "push"):
        found = run(command, "nothing", *(["oci://127.0.0.1:9/x"] if command == "push" else []))
        assert found.status == 1
        assert "There is no model 'nothing:latest' in the store" in found.err
    found = run("run", "nothing", "hi")
    assert found.status == 1
    assert "is no path and not in the store, so it was to be pulled" in found.err
    assert "127.0.0.1:9: nobody answers at that port" in found.err
    found = run("run", "nothing", "hi", "--offline")
    assert "with --offline nothing is pulled" in found.err
    found = run("show", str(demo_path()))
    assert "is a path, not a model of the store. `kvant inspect" in found.err
    found = run("create", "x")
    assert "Modelfile: cannot be read: No such file" in found.err
    (tmp_path / "Modelfile").write_text("FROM nothing\n")
    found = run("create", "x")
    assert "There is no model 'nothing:latest' in the store" in found.err
    found = run("create", "x", "--pull")
    assert "nobody answers at that port" in found.err
    (tmp_path / "Modelfile").write_text("FROM demo\nTOP 5\n")
    assert "Modelfile:2: expected FROM" in run("create", "x").err
    (tmp_path / "Modelfile").write_bytes(b"FROM \xff\n")
    assert "expected text in UTF-8, got byte 0xff" in run("create", "x").err
    assert "is no name of a model" in run("pull", "../x/y/z:1").err or run("pull", "../x").status
    assert "is no name of a model" in run("cp", "a", "b c").err
    assert "expected letters, digits" in run("cp", "a", "../b").err
    assert run("list").out == ""
