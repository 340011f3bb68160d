"""Recipes as files: the same again, and everything that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import FileFormatError, InputError
from kvant.quant.presets import PRESETS
from kvant.quant.recipe import Recipe, Rule
from kvant.quant.recipe_file import FORMAT, read_recipe, recipe_from_json, recipe_text

OWN = Recipe(
    "own-3.50bpw",
    "Q4_K",
    "me",
    15,
    "low",
    output="Q6_K",
    rules=(Rule("Q5_K", ("attn_v", "ffn_down"), "first 1/8", 2),),
    tensors={"blk.0.attn_q.weight": "Q8_0", "output.weight": "Q6_K"},
)


@pytest.mark.parametrize("recipe", [*PRESETS, OWN], ids=lambda r: r.name)
def test_there_and_back(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "r.json"
    path.write_text(recipe_text(recipe))
    found = read_recipe(path)
    assert found.to_json() == recipe.to_json()
    assert (found.file_type, found.precision_class) == (recipe.file_type, recipe.precision_class)
    assert recipe_text(found) == recipe_text(recipe)


def changed(**fields: Any) -> dict[str, Any]:
    data = {"format": FORMAT, **json.loads(json.dumps(OWN.to_json()))}
    return {k: v for k, v in (data | fields).items() if v is not ...}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "expected a recipe as a JSON object"),
        ("Q4_K_M", "expected a recipe as a JSON object"),
        (changed(base=...), "needs the field 'base'"),
        (changed(base="Q9_K"), "base: expected a packing, got 'Q9_K'; kvant knows "),
        (changed(base="q4_k"), "base: expected a packing"),
        (changed(base=4), "base: expected a packing, got 4"),
        (changed(base=None), "base: expected a packing, got None"),
        (changed(bits=4), "has no field 'bits'"),
        (changed(format="kvant recipe 2"), "expected the format 'kvant recipe 1'"),
        (changed(name="../../etc/passwd"), "name: expected at most 64 letters"),
        (changed(name="a/b"), "as file names carry it"),
        (changed(name=""), "name: expected"),
        (changed(name="x" * 65), "name: expected at most 64"),
        (changed(name="\x1b[2J"), "name: expected"),
        (changed(file_type=-1), "file_type: expected a whole number below 65536"),
        (changed(file_type=2**40), "file_type: expected"),
        (changed(file_type=True), "file_type: expected"),
        (changed(file_type=1.5), "file_type: expected"),
        (changed(precision_class="high"), "expected one of ultra-low, low, medium, full"),
        (changed(precision_class=["low"]), "expected one of"),
        (changed(tensors=[]), "tensors: expected an object"),
        (changed(tensors={"blk.0.attn_q.weight": "Q9"}), "tensors: 'blk.0.attn_q.weight': expec"),
        (changed(tensors={"blk.0.attn_q.weight": {}}), "tensors: 'blk.0.attn_q.weight': expec"),
        (changed(tensors={"x" * 1000: "Q4_K"}), "expected a text of at most 200"),
        (changed(rules={}), "rules: expected a list"),
        (changed(rules=[4]), r"rules\[0\]: expected a rule"),
        (changed(rules=[{"packing": "Q4_K"}]), r"rules\[0\]: a rule needs the field 'roles'"),
        (changed(rules=[{"packing": "Q4_K", "roles": []}]), "expected a list of roles"),
        (changed(rules=[{"packing": "Q4_K", "roles": ["a"], "layers": "last"}]), "one of all"),
        (changed(rules=[{"packing": "Q4_K", "roles": ["a"], "layer": 0}]), "no field 'layer'"),
        (changed(rules=[{"packing": "Q4_K", "roles": ["a"]}] * 1001), "at most 1000"),
        (changed(output="None"), "output: expected a packing"),
    ],
)
def test_what_is_no_recipe(data: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        recipe_from_json(data, "r.json")
    message = str(error.value)
    assert message.startswith("r.json: ")
    assert message.isprintable()
    assert len(message) < 600


def test_files_that_hold_none(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for content in (b"", b"{", b'{"name": NaN}', b"[" * 100_000, b"GGUF\x03\0\0\0", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError):
            read_recipe(path)
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(FileFormatError, match="expected at most 16000000 bytes"):
        read_recipe(path)
    with pytest.raises(InputError, match="no such file"):
        read_recipe(tmp_path / "missing.json")
    with pytest.raises(InputError):
        read_recipe(tmp_path)


def test_messages_keep_their_length(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(changed(tensors={f"t{i}": "x" * 10_000 for i in range(100)})))
    with pytest.raises(InputError) as error:
        read_recipe(path)
    assert len(str(error.value)) < 600
