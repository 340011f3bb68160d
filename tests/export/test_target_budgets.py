"""Budgets for targets beside GGUF: kept to the byte, by their own levels, and told plainly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvant
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.errors import InputError, OutputError, UsageError
from kvant.export.target import TargetOptions, find_target
from kvant.packing.groups import Groups
from kvant.quant.candidate import FLOAT
from kvant.tuning.rounding import packed_rows, relative_errors
from oracles.models import LLAMA, QWEN3MOE, make_folder

SMALL = {**LLAMA, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3}
TARGETS = ("onnx", "mlx", "vllm")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("budgets") / "m", SMALL, dtype="BF16")


def levels_of(artefact: kvant.Artefact) -> dict[str, str]:
    return {t.name: t.packing for t in artefact.tensors}


def size_of(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.iterdir())


def made(source: Path, to: str, out: Path, **budget: Any) -> kvant.Fitted:
    return kvant.quantize_within(source, out, to=to, effort="fast", threads=2, **budget)


@pytest.mark.parametrize("to", TARGETS)
def test_no_byte_over(model: Path, tmp_path: Path, to: str) -> None:
    """The smallest that is stated can be had, a byte less cannot; more is used up."""
    with pytest.raises(UsageError, match="the smallest possible has") as error:
        made(model, to, tmp_path / "a", fit=1)
    least = int(re.findall(r"has ([0-9,]+) \(", str(error.value))[0].replace(",", ""))
    assert not (tmp_path / "a").exists()
    with pytest.raises(UsageError, match="smallest possible"):
        made(model, to, tmp_path / "a", fit=least - 1)
    largest = kvant.convert(model, tmp_path / "floats", to=to).nbytes
    for budget in (least, least + 20_000, (least + largest) // 2):
        found = made(model, to, tmp_path / "a", fit=budget, force=True)
        assert found.artefact.nbytes == size_of(tmp_path / "a") <= budget
        assert found.artefact.nbytes > 0.95 * budget
    assert made(model, to, tmp_path / "b", fit=10**9).expected_kld == 0


@pytest.mark.parametrize("to", TARGETS)
def test_bits_per_weight(model: Path, tmp_path: Path, to: str) -> None:
    with pytest.raises(UsageError, match="the fewest possible are") as error:
        made(model, to, tmp_path / "a", bpw=1)
    least = float(re.findall(r"are ([0-9.]+)\.", str(error.value))[0])
    assert made(model, to, tmp_path / "least", bpw=least).artefact.bits_per_weight <= least
    costs = []
    for bits in (least + 0.4, least + 1.5):
        found = made(model, to, tmp_path / f"{bits:.1f}", bpw=bits)
        assert bits - 0.2 < found.artefact.bits_per_weight <= bits
        assert found.artefact.recipe == f"kvant-{found.artefact.bits_per_weight:.2f}bpw"
        costs.append(found.expected_kld)
        known = {level.name for level in find_target(to).levels() if level.fast}
        matrices = {n: v for n, v in levels_of(found.artefact).items() if n in found_levels(found)}
        assert matrices == found_levels(found)
        assert set(matrices.values()) - {"float32", "BF16"} <= known
    assert costs[0] > costs[1]


def found_levels(found: kvant.Fitted) -> dict[str, str]:
    tensors = found.recipe.to_json()["tensors"]
    assert isinstance(tensors, dict)
    return {name: level for name, level in tensors.items() if level != FLOAT}


@pytest.mark.parametrize("to", TARGETS)
def test_a_recipe_makes_the_same_again(model: Path, tmp_path: Path, to: str) -> None:
    recipe = tmp_path / "r.json"
    made(model, to, tmp_path / "a", bpw=7, save_recipe=recipe)
    kvant.quantize(model, str(recipe), tmp_path / "b", to=to)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    other = next(t for t in TARGETS if t != to)
    with pytest.raises(InputError, match=f"recipe for the target '{to}'"):
        kvant.quantize(model, str(recipe), tmp_path / "c", to=other)
    content = json.loads(recipe.read_text())
    content["tensors"]["blk.9.attn_q.weight"] = next(iter(content["tensors"].values()))
    recipe.write_text(json.dumps(content))
    with pytest.raises(InputError, match="belongs to another model"):
        kvant.quantize(model, str(recipe), tmp_path / "c", to=to)
    recipe.write_text("{}")
    with pytest.raises(InputError, match="expected a recipe of the format"):
        kvant.quantize(model, str(recipe), tmp_path / "c", to=to)


@pytest.mark.parametrize("to", TARGETS)
def test_sizes_of_candidates_are_those_of_folders(model: Path, tmp_path: Path, to: str) -> None:
    """What the search adds up is what each tensor takes, whole folder by whole folder."""
    checkpoint = open_checkpoint(model)
    target = find_target(to)
    names = [level.name for level in target.levels() if "mixed" not in level.name]
    if to == "vllm":
        names = [name for name in names if name.endswith("a16") or "a16-" in name]
    for level in names[::3]:
        choices = target.choices(checkpoint, [level], TargetOptions())
        plan = kvant.quantize(model, level, tmp_path / "x", to=to, dry_run=True)
        sizes = {t.name: t.nbytes for t in plan.tensors}
        for name, own in choices.candidates.items():
            fitting = [c for c in own if c.name != FLOAT]
            if to == "onnx" and name == "token_embd.weight" and level.startswith("int2"):
                assert not fitting
                continue
            assert sizes[name] == (fitting[0] if fitting else own[-1]).nbytes


def test_overrides_are_kept_and_not_searched(model: Path, tmp_path: Path) -> None:
    found = made(model, "mlx", tmp_path / "a", bpw=5, tensors=["attn_v=8bit", "ffn_down=float"])
    levels = levels_of(found.artefact)
    assert {v for n, v in levels.items() if "attn_v" in n} == {"8bit"}
    assert {v for n, v in levels.items() if "ffn_down" in n} == {"BF16"}
    assert not any("attn_v" in t.name for t in found.sensitivity.tensors)
    said = json.loads((tmp_path / "a" / "config.json").read_text())["quantization"]
    assert said["model.layers.1.self_attn.v_proj"]["bits"] == 8
    with pytest.raises(UsageError, match="no tensor has a name like that"):
        made(model, "mlx", tmp_path / "b", bpw=5, tensors=["nothing=8bit"])
    with pytest.raises(UsageError, match="There is nothing to choose"):
        made(model, "mlx", tmp_path / "b", bpw=5, tensors=[".=8bit"])


def test_a_folder_that_is_there_is_kept(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("")
    with pytest.raises(OutputError, match="exists already"):
        kvant.quantize(model, output=tmp_path / "a", to="mlx", bpw=5)
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["mine"]
    with pytest.raises(UsageError, match="takes the place of a recipe"):
        kvant.quantize(model, "4bit", to="mlx", bpw=5)


def test_only_levels_that_are_allowed(model: Path, tmp_path: Path) -> None:
    found = made(model, "onnx", tmp_path / "a", bpw=5, packings=("int4-g64", "INT8"))
    assert set(found_levels(found).values()) <= {"int4-g64", "int8-g64-sym", "int8-g128-sym"}
    with pytest.raises(UsageError, match="no level 'Q4_K'"):
        made(model, "onnx", tmp_path / "b", bpw=5, packings=("Q4_K",))
    with pytest.raises(UsageError, match="holds floats only"):
        made(model, "hf", tmp_path / "b", bpw=5, packings=("int4",))


def test_vllm_gets_alike_what_it_fuses(tmp_path: Path) -> None:
    """By the rules vLLM finds a layer's scheme with: its name, its class, then its members."""
    model = make_folder(tmp_path / "m", {**SMALL, "num_hidden_layers": 6}, dtype="BF16")
    ends = [
        kvant.quantize(model, level, tmp_path / "x", to="vllm", dry_run=True).bits_per_weight
        for level in ("w4a16-g32", "w8a16")
    ]
    found = made(model, "vllm", tmp_path / "a", bpw=sum(ends) / 2)
    levels = levels_of(found.artefact)
    config = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert len(config["config_groups"]) > 1
    bits = {level.name: level.bits for level in find_target("vllm").levels()}
    for layer in range(6):
        for fused, members in (
            ("self_attn.qkv_proj", ("attn_q", "attn_k", "attn_v")),
            ("mlp.gate_up_proj", ("ffn_gate", "ffn_up")),
            ("self_attn.o_proj", ("attn_output",)),
        ):
            kinds = {levels[f"blk.{layer}.{m}.weight"] for m in members}
            assert len(kinds) == 1
            level = kinds.pop()
            if level in bits:
                wanted = scheme_of(config, f"model.layers.{layer}.{fused}")
                assert wanted["weights"]["num_bits"] == bits[level]
    with pytest.raises(UsageError, match="as one qkv_proj"):
        kvant.quantize(model, "w4a16", tmp_path / "b", to="vllm", tensors=["attn_v=w8a16"])


def scheme_of(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The config group of a linear that vLLM knows under ``name``."""
    targets = [(t, g) for g in config["config_groups"].values() for t in g["targets"]]
    by_name = [g for t, g in targets if t.startswith("re:") and re.match(t[3:], name)]
    by_class = [g for t, g in targets if t == "Linear"]
    found: dict[str, Any] = (by_name + by_class)[0]
    return found


def test_experts_of_all_layers_share_a_scheme(tmp_path: Path) -> None:
    config = {**QWEN3MOE, "hidden_size": 128, "moe_intermediate_size": 64}
    model = make_folder(tmp_path / "m", config, dtype="BF16")
    checkpoint = open_checkpoint(model)
    target = find_target("vllm")
    choices = target.choices(checkpoint, ["w4a16-g32", "w8a16"], TargetOptions())
    stacks = {n for n, w in checkpoint.weights.items() if len(w.shape) == 3}
    assert stacks
    assert stacks in [set(names) for names in choices.together]
    found = made(model, "vllm", tmp_path / "a", bpw=8)
    levels = {t.name.split("[")[0]: t.packing for t in found.artefact.tensors}
    experts = {levels[n] for n in stacks}
    assert len(experts) == 1
    config = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    usual = scheme_of(config, "experts")["weights"]
    assert usual["num_bits"] == (4 if experts.pop().startswith("w4") else 8)
    mixed = made(model, "mlx", tmp_path / "b", bpw=4.6)
    levels = levels_of(mixed.artefact)
    assert {v for n, v in levels.items() if "ffn_gate_inp" in n} == {"8bit"}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("It was a bright cold day in April, and the clocks were striking. " * 60)
    return path


def test_divergence_is_kept(model: Path, text: Path, tmp_path: Path) -> None:
    found = made(model, "mlx", tmp_path / "a", max_kld=0.002, validation=text)
    assert found.measured is not None
    assert found.measured.kld is not None
    assert found.measured.kld <= 0.002
    kept = kvant.evaluate(tmp_path / "a", model, text=text)[1]
    assert kept.kld == found.measured.kld


def test_levels_are_measured(text: Path, tmp_path: Path) -> None:
    """On a text; and the model is then written by what its linears are fed."""
    config = {**SMALL, "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
    model = make_folder(tmp_path / "m", config, dtype="BF16")
    kvant.quantize(
        *(model, None, tmp_path / "a"),
        to="mlx",
        bpw=4,
        texts=[text],
        save_recipe=tmp_path / "r.json",
    )
    found = kvant.quantize_within(model, tmp_path / "b", to="mlx", bpw=4, texts=[text])
    for t in found.sensitivity.tensors:
        assert t.costs["8bit-g32"] < t.costs["4bit"] < t.costs["2bit"]
        assert t.costs[FLOAT] == 0
        assert len(t.measured) == 1
    kvant.quantize(
        *(model, str(tmp_path / "r.json"), tmp_path / "c"),
        to="mlx",
        effort="balanced",
        texts=[text],
    )
    weights = "model.safetensors"
    for other in ("b", "c"):
        assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / other / weights).read_bytes()


@pytest.fixture(scope="module")
def source(model: Path) -> Checkpoint:
    return open_checkpoint(model)


@pytest.mark.parametrize("plain", [False, True])
def test_rounding_to_groups(source: Checkpoint, plain: bool) -> None:
    """Errors and rows, also where the last group is not full, against the grid's own words."""
    weight = source.weights["blk.0.ffn_down.weight"]
    grids = [
        Groups("whole", 4, 64, "integer", "F16"),
        Groups("padded", 3, 128, "middle", "F16"),
        Groups("mlx", 2, 32, "bias", "BF16"),
    ]
    importance = np.random.default_rng(1).uniform(0.1, 2, weight.shape[1]).astype(np.float32)
    found = relative_errors(weight, grids, importance, threads=2, plain=plain)
    w = weight.read_f32()
    for grid in grids:
        missing = -w.shape[1] % grid.block
        groups = np.pad(w, ((0, 0), (0, missing))).reshape(-1, grid.block)
        weights = np.tile(np.pad(importance, (0, missing)), len(w)).reshape(groups.shape)
        scales = grid.plain(groups) if plain else grid.search(groups, weights)
        codes = grid.encode(groups, scales)
        scales["d"] = grid.rounded(scales["d"])
        if grid.zero == "bias":
            scales["z"] = grid.rounded(scales["z"])
        want = grid.decode(codes, scales).reshape(len(w), -1)[:, : w.shape[1]]
        error = float((((w - want) ** 2) @ importance).sum() / ((w**2) @ importance).sum())
        assert found[grid.name] == pytest.approx(error, rel=1e-4)
        rows = packed_rows(weight, grid, importance, threads=2, plain=plain).view(np.float16)
        np.testing.assert_allclose(rows, want, rtol=1e-3, atol=1e-6)
    assert found["mlx"] > found["whole"]


def test_a_search_alone_writes_nothing(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    made(model, "mlx", tmp_path / "out", bpw=7, save_recipe=recipe, dry_run=True)
    assert not recipe.exists()
    assert not (tmp_path / "out").exists()


def test_what_only_gguf_has_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--pre-tokenizer is for GGUF files"):
        made(model, "mlx", tmp_path / "out", bpw=7, pre_tokenizer="gpt-2")
    with pytest.raises(UsageError, match=r"expected a name that ends in \.json"):
        made(model, "mlx", tmp_path / "out", bpw=7, save_recipe=tmp_path / "recipe")
