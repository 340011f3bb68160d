"""MLX folders against MLX itself: the bits of its quantiser, and mlx-lm's models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvant
from checkpoint.small_models import CONFIGS, LLAMA, write_folder
from kvant.api.targets import write_target
from kvant.checkpoint import open_checkpoint
from kvant.errors import KvantError, UnsupportedError, UsageError
from kvant.export.mlx.levels import BASES, LEVELS
from kvant.export.mlx.names import ARCHITECTURES
from kvant.reference import ReferenceModel
from oracles.models import make_folder, weights_of

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

#: Rows of 128 and 256 weights, so that groups of every size divide them.
WIDE = {
    **{**LLAMA, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 320},
    **{"head_dim": 32, "num_hidden_layers": 1},
}


def arrays(folder: Path) -> dict[str, Any]:
    """All tensors of a folder, as MLX reads them."""
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= mx.load(str(file))
    return found


def same(a: Any, b: Any) -> bool:
    """Dtype, shape and every bit."""
    return bool(
        (a.dtype, a.shape) == (b.dtype, b.shape)
        and mx.array_equal(a.view(mx.uint8), b.view(mx.uint8))
    )


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_plain_levels_have_the_bits_of_mlx(tmp_path: Path, dtype: str) -> None:
    weights = weights_of(WIDE)
    weights["model.layers.0.mlp.up_proj.weight"][3] = 0
    weights["model.layers.0.mlp.up_proj.weight"][:, 5] = 0
    weights["model.layers.0.self_attn.q_proj.weight"][:9] *= 1e-7
    weights["model.layers.0.self_attn.k_proj.weight"][:, 7] *= 50
    source = make_folder(tmp_path / "source", WIDE, weights, dtype=dtype)
    floats = arrays(source)
    for name, base in BASES.items():
        out = tmp_path / name
        write_target(source, "mlx", name, out, threads=2)
        found = arrays(out)
        for tensor, values in floats.items():
            path = tensor.removesuffix(".weight")
            if values.ndim < 2:
                assert same(found.pop(tensor), values), (name, tensor)
                continue
            parts = mx.quantize(values, group_size=base.group, bits=base.bits, mode=base.mode)
            for part, ending in zip(parts, ("weight", "scales", "biases"), strict=False):
                assert same(found.pop(f"{path}.{ending}"), part), (name, path, ending)
        assert not found


@pytest.mark.parametrize("arguments", [{}, {"quant_predicate": "mixed_3_6"}, {"q_mode": "mxfp4"}])
def test_folders_are_mlx_lms(tmp_path: Path, arguments: dict[str, str]) -> None:
    """Tensors, index and config of mlx_lm.convert, on a model with a tokenizer and eight layers."""
    from mlx_lm import convert

    config = {**WIDE, "num_hidden_layers": 8, "tie_word_embeddings": True}
    source = make_folder(tmp_path / "source", config, dtype="BF16")
    level = arguments.get("q_mode") or arguments.get("quant_predicate", "4bit")
    sizes = {} if "q_mode" in arguments else {"q_group_size": 64, "q_bits": 4}
    convert(str(source), str(tmp_path / "theirs"), quantize=True, **sizes, **arguments)  # type: ignore[arg-type]
    write_target(source, "mlx", level.replace("_", "-"), tmp_path / "ours")
    theirs, ours = arrays(tmp_path / "theirs"), arrays(tmp_path / "ours")
    assert sorted(theirs) == sorted(ours)
    assert [n for n in theirs if not same(theirs[n], ours[n])] == []
    index = [
        json.loads((tmp_path / who / "model.safetensors.index.json").read_text())
        for who in ("theirs", "ours")
    ]
    assert index[0]["metadata"] == index[1]["metadata"]
    assert index[0]["weight_map"] == index[1]["weight_map"]
    said = [json.loads((tmp_path / w / "config.json").read_text()) for w in ("theirs", "ours")]
    if "quant_predicate" not in arguments:
        assert said[0]["quantization"] == said[1]["quantization"]
    for path in ours:  # what differs from the usual is said by path, in either
        module = path.removesuffix(".scales")
        if module != path:
            quantisation = [s["quantization"] for s in said]
            bits = [q.get(module, q)["bits"] for q in quantisation]
            assert bits[0] == bits[1], module


def small(name: str) -> dict[str, Any]:
    """An architecture's small config with rows that groups of 32 divide."""
    config = {**CONFIGS[name], "vocab_size": 64}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "n_embd": 64}
    return {**config, **{key: value for key, value in sizes.items() if key in config}}


TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], np.int32)


def mlx_logits(folder: Path) -> np.ndarray:
    """What mlx-lm's own model gives, in float32."""
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    logits = model(mx.array(TOKENS[None]))
    return np.array(logits.astype(mx.float32))[0]


def our_logits(folder: Path) -> np.ndarray:
    """The interpreter's, over what the folder's tensors decode to."""
    found: np.ndarray = ReferenceModel(open_checkpoint(folder)).forward(TOKENS[None])[0]
    return found


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_mlx_lm_computes_what_we_do(tmp_path: Path, name: str) -> None:
    source = write_folder(tmp_path / "source", small(name))
    for level in (None, "4bit-g32"):
        out = tmp_path / str(level)
        write_target(source, "mlx", level, out)
        theirs, ours = mlx_logits(out), our_logits(out)
        assert np.abs(theirs - ours).max() < 1e-3 * np.abs(ours).max()


@pytest.mark.parametrize("name", ["qwen3", "qwen3moe"])
def test_mlx_lm_computes_mixtures_for_a_budget(tmp_path: Path, name: str) -> None:
    source = write_folder(tmp_path / "source", small(name))
    ends = [
        write_target(source, "mlx", level, dry_run=True).bits_per_weight
        for level in ("3bit-g32", "5bit-g32")
    ]
    out = tmp_path / "out"
    found = kvant.quantize(source, None, out, to="mlx", bpw=sum(ends) / 2, effort="fast")
    assert len({t.packing for t in found.tensors}) > 3
    theirs, ours = mlx_logits(out), our_logits(out)
    assert np.abs(theirs - ours).max() < 1e-3 * np.abs(ours).max()


def test_other_architectures_are_refused_before_work(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["bert"])
    with pytest.raises(UnsupportedError, match="no bert models"):
        write_target(source, "mlx", "4bit", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_becomes_a_folder_that_chats(tmp_path: Path) -> None:
    from mlx_lm import generate, load

    (artefact,) = kvant.quantize("demo", "Q8_0", tmp_path, evidence=False).paths
    kvant.quantize(artefact, "6bit", tmp_path / "mlx", to="mlx")
    model, tokenizer = load(str(tmp_path / "mlx"))
    text = generate(model, tokenizer, "Once upon a time", max_tokens=12)
    assert len(text.split()) > 4
    messages = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert "<|im_start|>user\nHi<|im_end|>" in tokenizer.decode(ids)
    back = kvant.convert(tmp_path / "mlx", tmp_path / "back.gguf", dtype="f32")
    assert back.tensors[0].source_type == "MLX 6 bits"


def test_importance_and_effort_lose_less(tmp_path: Path) -> None:
    importance = kvant.calibrate("demo", tokens=4096).importance
    kvant.quantize("demo", "3bit", tmp_path / "plain", to="mlx")
    kvant.quantize("demo", "3bit", tmp_path / "search", to="mlx", importance=importance)
    kvant.quantize("demo", "3bit", tmp_path / "best", to="mlx", effort="balanced", tokens=4096)
    folders = [tmp_path / n for n in ("plain", "search", "best")]
    sizes = {(folder / "model.safetensors").stat().st_size for folder in folders}
    assert len(sizes) == 1
    losses = [r.kld or 0 for r in kvant.evaluate(folders, "demo", chunks=8)[1:]]
    assert losses[1] < 0.75 * losses[0]
    assert losses[2] < 0.7 * losses[1]


def test_tensors_have_levels_of_their_own(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", WIDE)
    artefact = kvant.quantize(
        source,
        "4bit",
        tmp_path / "out",
        to="mlx",
        tensors=["attn_v=8bit-g32", "ffn_down=float", "token_embd=mxfp8"],
    )
    levels = {t.name: t.packing for t in artefact.tensors}
    assert levels["blk.0.attn_v.weight"] == "8bit-g32"
    assert levels["blk.0.ffn_down.weight"] == "F32"
    assert levels["token_embd.weight"] == "mxfp8"
    assert levels["blk.0.attn_q.weight"] == "4bit"
    assert np.abs(mlx_logits(tmp_path / "out") - our_logits(tmp_path / "out")).max() < 1e-3
    for texts, words in ((["nothing=4bit"], "no tensor"), (["attn_v=5"], "expected REGEX=LEVEL")):
        with pytest.raises(UsageError, match=words):
            kvant.quantize(source, "4bit", tmp_path / "x", to="mlx", tensors=texts)


def test_rows_that_no_group_divides_stay_floats(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {**LLAMA, "intermediate_size": 128})
    artefact = kvant.quantize(source, "4bit", tmp_path / "out", to="mlx")
    levels = {t.name: t.packing for t in artefact.tensors}
    assert levels["blk.0.ffn_down.weight"] == "4bit"
    assert levels["blk.0.ffn_up.weight"] == "F32"
    assert any("Left as floats" in note for note in artefact.notes)
    with pytest.raises(UsageError, match="fits no matrix"):
        kvant.quantize(write_folder(tmp_path / "odd", LLAMA), "4bit", tmp_path / "none", to="mlx")


def test_mistakes(tmp_path: Path) -> None:
    for call, words in (
        (lambda: write_target("demo", "mlx", "7bit"), "no level '7bit'"),
        (lambda: write_target("demo", "metal", "4bit"), "no target 'metal'"),
        (lambda: write_target("demo", "hf", "4bit"), "floats only"),
        (lambda: write_target("demo", "mlx", "4bit", settings={"x": 1}), "no setting 'x'"),
        (lambda: write_target("demo", "mlx", None, dtype="f64"), "no dtype"),
        (lambda: write_target("demo", "mlx", "4bit", split_size=1000), "cannot be split"),
        (lambda: write_target("demo", "mlx", "4bit", texts=["a.txt"]), "--effort balanced"),
    ):
        with pytest.raises(KvantError, match=words):
            call()
    assert not list(tmp_path.iterdir())


def test_shards(tmp_path: Path) -> None:
    artefact = kvant.quantize("demo", "4bit", tmp_path / "o", to="mlx", split_size=1_000_000)
    files = sorted(p.name for p in (tmp_path / "o").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    kvant.quantize("demo", "4bit", tmp_path / "one", to="mlx", threads=3)
    one, many = arrays(tmp_path / "one"), arrays(tmp_path / "o")
    assert sorted(one) == sorted(many)
    assert all(same(one[n], many[n]) for n in one)
    assert artefact.bits_per_weight == pytest.approx(4.507, abs=1e-3)


def test_every_level_states_its_bits() -> None:
    assert len(LEVELS) == 25
    for level in LEVELS:
        if level.name in BASES:
            base = BASES[level.name]
            assert level.bits_per_weight == base.bits_per_weight
