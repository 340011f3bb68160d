"""Folders that somebody quantised, decoded exactly; packed here by the schemes' own formulas."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from small_models import LLAMA, MIXTRAL, random_weights, write_folder

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.engine import load_engine
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.raw import unpacked
from kvant.packing.small_floats import E4M3, E8M0

Tensors = dict[str, tuple[str, npt.NDArray[Any]]]
F32 = npt.NDArray[np.float32]
CONFIG = {**LLAMA, "hidden_size": 64, "intermediate_size": 128}
RNG = np.random.default_rng(3)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def words(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint32]:
    """A stream of integers along the last axis, lowest bits first."""
    flat = codes.reshape(-1, codes.shape[-1]).astype(np.uint8)
    bit = (flat[..., None] >> np.arange(bits)) & 1
    packed = np.packbits(bit.reshape(len(flat), -1).astype(np.uint8), axis=-1, bitorder="little")
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    return np.ascontiguousarray(packed).view("<u4").reshape(*codes.shape[:-1], -1)


def signed(array: npt.NDArray[np.uint32]) -> tuple[str, npt.NDArray[Any]]:
    return "I32", np.ascontiguousarray(array).view("<i4")


def half(shape: tuple[int, ...]) -> npt.NDArray[np.float16]:
    return (RNG.random(shape) * 0.02 + 0.01).astype(np.float16)


def gptq(bits: int, fmt: str = "gptq", ordered: bool = False) -> Callable[[str, Any], Any]:
    def make(path: str, shape: tuple[int, int]) -> tuple[Tensors, F32]:
        outputs, inputs = shape
        q = RNG.integers(0, 1 << bits, (inputs, outputs))
        zero = RNG.integers(0, 1 << bits, (inputs // 32, outputs))
        scale = half(zero.shape)
        group = np.arange(inputs) // 32
        if ordered:
            group = RNG.permutation(group)
        stored = (zero - (fmt == "gptq")) & ((1 << bits) - 1)
        w = (q - zero[group]) * scale.astype(np.float32)[group]
        parts: Tensors = {
            f"{path}.qweight": signed(words(q.T, bits).T),
            f"{path}.qzeros": signed(words(stored, bits)),
            f"{path}.scales": ("F16", scale),
            f"{path}.g_idx": ("I32", group.astype("<i4")),
        }
        return parts, w.T.astype(np.float32)

    return make


def awq(path: str, shape: tuple[int, int]) -> tuple[Tensors, F32]:
    outputs, inputs = shape
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    q = RNG.integers(0, 16, (inputs, outputs))
    zero = RNG.integers(0, 16, (inputs // 32, outputs))
    scale = half(zero.shape)
    w = (q - np.repeat(zero, 32, 0)) * np.repeat(scale.astype(np.float32), 32, 0)

    def mixed(codes: npt.NDArray[Any]) -> tuple[str, npt.NDArray[Any]]:
        return signed(words(codes.reshape(len(codes), -1, 8)[..., order].reshape(codes.shape), 4))

    parts: Tensors = {
        f"{path}.qweight": mixed(q),
        f"{path}.qzeros": mixed(zero),
        f"{path}.scales": ("F16", scale),
    }
    return parts, w.T.astype(np.float32)


def fp8(path: str, shape: tuple[int, int]) -> tuple[Tensors, F32]:
    codes = RNG.integers(0, 126, shape).astype(np.uint8) | RNG.choice([0, 128], shape).astype(
        np.uint8
    )
    blocks = (-(-shape[0] // 48), -(-shape[1] // 48))
    scale = RNG.random(blocks).astype(np.float32) * 1e-4
    big = np.repeat(np.repeat(scale, 48, 0), 48, 1)[: shape[0], : shape[1]]
    parts: Tensors = {
        f"{path}.weight": ("F8_E4M3", codes),
        f"{path}.weight_scale_inv": ("F32", scale),
    }
    return parts, E4M3[codes] * big


def per_channel(path: str, shape: tuple[int, int]) -> tuple[Tensors, F32]:
    codes = RNG.integers(0, 126, shape).astype(np.uint8)
    scale = half((shape[0], 1)).astype(np.float32) * 1e-3
    parts: Tensors = {
        f"{path}.weight": ("F8_E4M3", codes),
        f"{path}.weight_scale": ("F32", scale),
        f"{path}.input_scale": ("F32", np.ones(1, np.float32)),
    }
    return parts, E4M3[codes] * scale


def nf4(nested: bool) -> Callable[[str, Any], Any]:
    def make(path: str, shape: tuple[int, int]) -> tuple[Tensors, F32]:
        table = np.sort(RNG.standard_normal(16)).astype(np.float32)
        codes = RNG.integers(0, 16, math.prod(shape))
        blocks = len(codes) // 64
        state: dict[str, Any] = {"blocksize": 64, "shape": list(shape), "dtype": "bfloat16"}
        parts: Tensors = {}
        if nested:
            small = RNG.integers(0, 256, blocks).astype(np.uint8)
            names, values = (
                np.sort(RNG.standard_normal(256)).astype(np.float32),
                RNG.random(-(-blocks // 256)).astype(np.float32),
            )
            state |= {"nested_blocksize": 256, "nested_offset": 0.25}
            scale = names[small] * values[np.arange(blocks) // 256] + np.float32(0.25)
            parts |= {
                f"{path}.weight.absmax": ("U8", small),
                f"{path}.weight.nested_absmax": ("F32", values),
                f"{path}.weight.nested_quant_map": ("F32", names),
            }
        else:
            scale = RNG.random(blocks).astype(np.float32)
            parts[f"{path}.weight.absmax"] = ("F32", scale)
        packed = (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None]
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        parts |= {
            f"{path}.weight": ("U8", packed),
            f"{path}.weight.quant_map": ("F32", table),
            f"{path}.weight.quant_state.bitsandbytes__nf4": ("U8", text),
        }
        w = table[codes] * scale[np.arange(len(codes)) // 64]
        return parts, w.reshape(shape).astype(np.float32)

    return make


def mlx(bits: int, group: int, mode: str = "affine") -> Callable[[str, Any], Any]:
    def make(path: str, shape: tuple[int, int]) -> tuple[Tensors, F32]:
        q = RNG.integers(0, 1 << bits, shape)
        if mode == "mxfp8":
            q &= 0xBE
        parts: Tensors = {f"{path}.weight": ("U32", words(q, bits))}
        groups = (shape[0], shape[1] // group)
        if mode == "affine":
            scale, bias = half(groups), half(groups) - np.float16(0.1)
            parts |= {f"{path}.scales": ("F16", scale), f"{path}.biases": ("F16", bias)}
            w = q * np.repeat(scale.astype(np.float32), group, 1)
            return parts, (w.astype(np.float32) + np.repeat(bias.astype(np.float32), group, 1))
        codes = RNG.integers(100, 120, groups).astype(np.uint8)
        parts[f"{path}.scales"] = ("U8", codes)
        scale = (E4M3 if mode == "nvfp4" else E8M0)[codes]
        values = E4M3[q] if mode == "mxfp8" else E2M1[q]
        return parts, values * np.repeat(scale, group, 1)

    return make


def packed_integers(symmetric: bool) -> Callable[[str, Any], Any]:
    def make(path: str, shape: tuple[int, int]) -> tuple[Tensors, F32]:
        q = RNG.integers(-8, 8, shape)
        scale = half((shape[0], shape[1] // 32))
        zero = np.zeros(scale.shape, int) if symmetric else RNG.integers(-8, 8, scale.shape)
        parts: Tensors = {
            f"{path}.weight_packed": signed(words(q + 8, 4)),
            f"{path}.weight_scale": ("F16", scale),
            f"{path}.weight_shape": ("I64", np.array(shape, "<i8")),
        }
        if not symmetric:
            parts[f"{path}.weight_zero_point"] = signed(words((zero + 8).T, 4).T)
        w = (q - np.repeat(zero, 32, 1)) * np.repeat(scale.astype(np.float32), 32, 1)
        return parts, w.astype(np.float32)

    return make


def int8(path: str, shape: tuple[int, int]) -> tuple[Tensors, F32]:
    q, scale = RNG.integers(-127, 128, shape).astype(np.int8), half((shape[0], 1))
    parts: Tensors = {f"{path}.weight": ("I8", q), f"{path}.weight_scale": ("F16", scale)}
    return parts, q * scale.astype(np.float32)


def weights_of(bits: int, **more: Any) -> dict[str, Any]:
    group = {"weights": {"num_bits": bits}}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, **more}


SCHEMES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        f"gptq-{bits}": (gptq(bits), {"quant_method": "gptq", "bits": bits, "group_size": 32})
        for bits in (2, 3, 4, 8)
    },
    "gptq-v2": (
        gptq(4, "gptq_v2", ordered=True),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [48, 48]}),
    "fbgemm": (per_channel, {"quant_method": "fbgemm_fp8"}),
    "nf4": (nf4(False), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "nf4-double": (nf4(True), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "w4a16": (packed_integers(True), weights_of(4, format="pack-quantized")),
    "w4a16-asym": (packed_integers(False), weights_of(4, format="pack-quantized")),
    "w8a8": (int8, weights_of(8, format="int-quantized")),
    "w8-fp8": (per_channel, weights_of(8, format="float-quantized")),
    **{
        f"mlx-{bits}-{group}": (mlx(bits, group), {"bits": bits, "group_size": group})
        for bits, group in ((2, 32), (3, 64), (4, 32), (5, 32), (6, 64), (8, 32))
    },
    "mlx-mxfp4": (mlx(4, 32, "mxfp4"), {"bits": 4, "group_size": 32, "mode": "mxfp4"}),
    "mlx-nvfp4": (mlx(4, 16, "nvfp4"), {"bits": 4, "group_size": 16, "mode": "nvfp4"}),
    "mlx-mxfp8": (mlx(8, 32, "mxfp8"), {"bits": 8, "group_size": 32, "mode": "mxfp8"}),
}


def write(folder: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    """A folder with tensors of any dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    header, at, blobs = {}, 0, []
    for name, (dtype, array) in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        shape = list(array.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
        blobs.append(data)
    text = json.dumps(header).encode()
    head = struct.pack("<Q", len(text)) + text
    (folder / "model.safetensors").write_bytes(head + b"".join(blobs))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def quantised(folder: Path, scheme: str, config: dict[str, Any]) -> tuple[Path, dict[str, F32]]:
    """A folder of a scheme, and the weights it stands for."""
    make, settings = SCHEMES[scheme]
    key = "quantization" if scheme.startswith("mlx") else "quantization_config"
    tensors: Tensors = {}
    plain: dict[str, F32] = {}
    for name, values in random_weights(config).items():
        if name.endswith("_proj.weight") or ".experts." in name:
            parts, plain[name] = make(name.removesuffix(".weight"), values.shape)
            tensors |= parts
        else:
            tensors[name], plain[name] = ("F32", values), values
    return write(folder, tensors, {**config, key: settings}), plain


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_decoded_exactly(tmp_path: Path, scheme: str) -> None:
    folder, plain = quantised(tmp_path / "m", scheme, CONFIG)
    checkpoint = open_checkpoint(folder)
    assert any("are decoded" in note for note in checkpoint.notes)
    same = open_checkpoint(write_folder(tmp_path / "plain", CONFIG, plain))
    for name, weight in checkpoint.weights.items():
        expected = same.weights[name].read_f32()
        found = weight.read_f32()
        np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-12)
        with weight.open() as fd:  # any run of rows is the same as the whole
            for start, stop in ((0, weight.row_step), (weight.stored.rows - weight.row_step, None)):
                stop = weight.stored.rows if stop is None else stop
                rows = weight.read_rows_f32(fd, start, stop)
                flat = found.reshape(-1, rows.shape[-1])
                assert np.array_equal(rows, flat[start:stop])


@pytest.mark.parametrize("scheme", ["gptq-4", "awq", "mlx-4-32", "nf4-double"])
def test_they_are_quantised_and_run_like_any_other(tmp_path: Path, scheme: str) -> None:
    folder, plain = quantised(tmp_path / "m", scheme, CONFIG)
    made = kvant.quantize(folder, "Q8_0", tmp_path / "a.gguf")
    assert any("quantised already" in note for note in made.notes)
    other = kvant.quantize(write_folder(tmp_path / "p", CONFIG, plain), "Q8_0", tmp_path / "b.gguf")
    one, two = (open_checkpoint(a.paths[0]) for a in (made, other))
    for name, weight in one.weights.items():
        assert np.array_equal(weight.stored.read(), two.weights[name].stored.read()), name
    logits = []
    for source in (folder, tmp_path / "p"):
        engine = load_engine(open_checkpoint(source), threads=1, kv_tokens=32)
        logits.append(engine.step([(engine.sequence(), [1, 2, 3])]))
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-5, atol=1e-5)


def test_experts(tmp_path: Path) -> None:
    config = {**MIXTRAL, "hidden_size": 64, "intermediate_size": 128}
    folder, plain = quantised(tmp_path / "m", "gptq-4", config)
    same = open_checkpoint(write_folder(tmp_path / "p", config, plain))
    for name, weight in open_checkpoint(folder).weights.items():
        found, expected = weight.read_f32(), same.weights[name].read_f32()
        np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-12)


def _change(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(settings)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("scheme", "settings", "says"),
    [
        ("gptq-4", {"bits": 5}, "'bits' should be 2 or 3 or 4 or 8"),
        ("gptq-4", {"bits": 8}, "should be"),
        ("gptq-4", {"group_size": 0}, "'group_size'"),
        ("gptq-4", {"group_size": 64}, "should be"),
        ("gptq-4", {"checkpoint_format": "marlin"}, "'checkpoint_format'"),
        ("gptq-4", {"quant_method": "hqq"}, "quantised by 'hqq'"),
        ("awq", {"version": "gemv"}, "'version'"),
        ("fp8", {"weight_block_size": [0, 1]}, "'weight_block_size'"),
        ("nf4", {"load_in_4bit": False}, "'load_in_4bit'"),
        ("w4a16", {"format": "marlin-24"}, "'format'"),
        ("w4a16", {"config_groups": {}}, "'num_bits'"),
    ],
)
def test_what_cannot_be_decoded_is_refused(
    tmp_path: Path, scheme: str, settings: dict[str, Any], says: str
) -> None:
    folder, _ = quantised(tmp_path / "m", scheme, CONFIG)
    _change(folder, **settings)
    with pytest.raises((UnsupportedError, FileFormatError), match=says):
        open_checkpoint(folder)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    make, settings = SCHEMES["gptq-4"]
    tensors: Tensors = {}
    for name, values in random_weights(CONFIG).items():
        if name.endswith("_proj.weight"):
            tensors |= make(name.removesuffix(".weight"), values.shape)[0]
        else:
            tensors[name] = ("F32", values)
    del tensors["model.layers.1.mlp.up_proj.scales"]
    folder = write(tmp_path / "m", tensors, {**CONFIG, "quantization_config": settings})
    with pytest.raises(FileFormatError, match="up_proj: expected a tensor 'scales'"):
        open_checkpoint(folder)
    plain = write_folder(tmp_path / "p", CONFIG, random_weights(CONFIG))
    (plain / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": settings}))
    with pytest.raises(FileFormatError, match="no tensor is"):
        open_checkpoint(plain)


def test_bit_streams() -> None:
    for bits in range(1, 9):
        codes = RNG.integers(0, 1 << bits, (3, 96))
        assert np.array_equal(unpacked(words(codes, bits), bits, 96), codes)


def test_values_of_small_floats() -> None:
    e4m3 = E4M3
    assert (e4m3[0x01], e4m3[0x38], e4m3[0x7E], e4m3[0xBC]) == (2.0**-9, 1.0, 448.0, -1.5)
    assert np.isnan(e4m3[[0x7F, 0xFF]]).all()
    assert (E8M0[127], E8M0[0]) == (1.0, 2.0**-127)
