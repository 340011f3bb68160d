"""NaN, infinity and weights too large: the tensor is named, nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.errors import DataError
from kvant.packing import dequantize
from kvant.quant.presets import PRESETS
from oracles.models import LLAMA, QWEN2, make_folder, weights_of

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def _with(folder: Path, name: str, place: tuple[int, ...], value: float, dtype: str) -> Path:
    config = QWEN2 if name.endswith("bias") else LLAMA
    weights = weights_of(config)
    weights[name][place] = value
    with np.errstate(over="ignore"):
        return make_folder(folder, config, weights, dtype=dtype)


@pytest.mark.parametrize("recipe", [r.name for r in PRESETS])
def test_every_recipe_refuses_nan(tmp_path: Path, recipe: str) -> None:
    folder = _with(tmp_path / "in", Q_PROJ, (65, 255), np.nan, "F32")
    out = tmp_path / "out"
    out.mkdir()
    # Rows of heads are reordered on the way; the message counts as the source does.
    with pytest.raises(DataError, match=r"blk\.1\.attn_q\.weight holds nan at \[65, 255\]"):
        kvant.quantize(folder, recipe, out, threads=3)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(
    ("name", "place", "told"),
    [
        ("model.embed_tokens.weight", (383, 0), r"token_embd\.weight .*\[383, 0\]"),
        ("model.layers.0.mlp.down_proj.weight", (0, 511), r"blk\.0\.ffn_down.* at \[0, 511\]"),
        ("model.layers.0.input_layernorm.weight", (7,), r"blk\.0\.attn_norm\.weight .*7"),
        ("model.norm.weight", (255,), r"output_norm\.weight .*255"),
        ("model.layers.1.self_attn.k_proj.bias", (9,), r"blk\.1\.attn_k\.bias .*9"),
    ],
)
def test_where_it_is(
    tmp_path: Path, name: str, place: tuple[int, ...], told: str, dtype: str, value: float
) -> None:
    folder = _with(tmp_path / "in", name, place, 1.0 if dtype == "BF16" else value, dtype)
    if dtype == "BF16":
        stored = open_checkpoint(folder).weights[_gguf_name(name)].stored
        with stored.path.open("r+b") as file:
            index = np.ravel_multi_index(place, stored.shape)
            file.seek(stored.offset + 2 * int(index))
            file.write(np.float32(value).tobytes()[2:])  # the upper half: no rounding needed
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=told) as caught:
        kvant.quantize(folder, "Q4_K_M", out)
    assert str(value) in str(caught.value)
    assert "Nothing was written" in str(caught.value)
    assert list(out.iterdir()) == []


def _gguf_name(name: str) -> str:
    from kvant.arch import find_hf
    from kvant.checkpoint.names import hf_name

    config = QWEN2 if name.endswith("bias") else LLAMA
    arch = find_hf(config, "")
    refs = arch.trace(arch.from_hf(config, "")[0]).weights.values()
    return next(ref.name for ref in refs if hf_name(ref) == name)


@pytest.mark.parametrize("recipe", ["F16", "Q8_0", "Q4_K_M", "Q2_K"])
@pytest.mark.parametrize("value", [65536.0, -1e6, 3e38])
def test_too_large_for_half_precision(tmp_path: Path, recipe: str, value: float) -> None:
    folder = _with(tmp_path / "in", Q_PROJ, (70, 3), value, "BF16")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(
        DataError, match=r"blk\.1\.attn_q.* weight -?[\d.e+]+ at \[70, 3\]"
    ) as caught:
        kvant.quantize(folder, recipe, out)
    assert "at most 65504" in str(caught.value)
    assert list(out.iterdir()) == []
    # The remedy that the message names is one.
    remedy = str(caught.value).split("--tensor '")[1].removesuffix("'.")
    (path,) = kvant.quantize(folder, recipe, out, tensors=[remedy]).paths
    tensor = open_checkpoint(path).weights["blk.1.attn_q.weight"]
    assert tensor.stored.type.name == "BF16"
    assert float(tensor.read_f32()[70, 3]) == pytest.approx(value, rel=0.01)


def test_too_large_for_bfloat16(tmp_path: Path) -> None:
    folder = _with(tmp_path / "in", Q_PROJ, (70, 3), 3.4e38, "F32")
    with pytest.raises(DataError, match=r"BF16 cannot hold .*--dtype f32"):
        kvant.convert(folder, tmp_path / "out.gguf")
    (path,) = kvant.convert(folder, tmp_path / "out.gguf", dtype="f32").paths
    values = open_checkpoint(path).weights["blk.1.attn_q.weight"].read_f32()
    assert values[70, 3] == np.float32(3.4e38)


def test_the_largest_half_is_fine(tmp_path: Path) -> None:
    folder = _with(tmp_path / "in", Q_PROJ, (70, 3), 65504.0, "F32")
    for recipe in ("F16", "Q8_0", "Q4_K_M", "Q6_K"):
        (path,) = kvant.quantize(folder, recipe, tmp_path / f"{recipe}.gguf").paths
        stored = open_checkpoint(path).weights["blk.1.attn_q.weight"].stored
        assert np.isfinite(dequantize(stored.type.name, stored.read())).all()


def test_a_source_that_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from kvant.errors import FileFormatError
    from kvant.export.gguf import stream, write

    folder = make_folder(tmp_path / "in", LLAMA)
    weights = folder / "model.safetensors"
    original = stream.stream

    def shrinking(*args: object, **kwargs: object) -> list[int]:
        os.truncate(weights, weights.stat().st_size // 2)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(write, "stream", shrinking)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(FileFormatError, match="ends inside tensor"):
        kvant.quantize(folder, "Q4_K_M", out)
    assert list(out.iterdir()) == []
