"""Blocks of integers in ONNX: layout, what runtimes make of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.errors import DataError, MissingExtraError, OutputError, UnsupportedError, UsageError
from kvant.export.onnx.levels import LEVELS, assigned, grid
from kvant.export.onnx.read import dequantised
from kvant.export.target import TargetOptions, TargetResult, find_target
from kvant.files.raw import unpacked
from kvant.packing.bits import packed_bits
from kvant.reference import ReferenceModel
from oracles import models, ort

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.parity

IDS = np.random.default_rng(0).integers(0, 380, (1, 50))
TIED = {**models.LLAMA, "tie_word_embeddings": True, "attention_bias": True}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(models.make_folder(tmp_path_factory.mktemp("onnx") / "Tiny", TIED))


def write(
    source: Checkpoint, out: Path, level: str | None, dtype: Any = None, **options: Any
) -> TargetResult:
    said = TargetOptions(threads=2, dtype=dtype, **options)
    return find_target("onnx").write(source, out, level, said)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bits_are_packed_low_ones_first(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (5, 48)).astype(np.uint8)
    packed = packed_bits(codes, bits)
    slow = [
        [
            sum(int(row[i + j]) << (j * bits) for j in range(8 // bits))
            for i in range(0, 48, 8 // bits)
        ]
        for row in codes
    ]
    assert packed.tolist() == slow
    assert (unpacked(packed, bits, 48) == codes).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("standard", [False, True], ids=["fused", "standard"])
@pytest.mark.parametrize(
    "level", ["int8", "int8-g16", "int4", "int4-g64-sym", "int2", "int2-g16-sym"]
)
def test_runtime_and_reference_agree(
    source: Checkpoint, level: str, standard: bool, dtype: str, tmp_path: Path
) -> None:
    settings = {"standard_ops": standard}
    write(source, tmp_path / "out", level, dtype, settings=settings)
    wanted = ReferenceModel(dequantised(source, tmp_path / "out")).forward(IDS)
    found = ort.logits(ort.session(tmp_path / "out"), IDS)
    assert ort.divergence(wanted, found) < 1e-3
    if standard:
        return
    settings = {"float_activations": True}
    write(source, tmp_path / "exact", level, dtype, settings=settings)
    found = ort.logits(ort.session(tmp_path / "exact"), IDS)
    assert ort.relative(found, wanted) < (1e-5 if dtype == "float32" else 1e-3)


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    config = {**models.LLAMA, "intermediate_size": 172, "vocab_size": 383}
    folder = models.make_folder(tmp_path / "odd", config, tokenizer=False)
    odd = open_checkpoint(folder)
    for number, standard in enumerate((False, True)):
        out = tmp_path / f"out{number}"
        write(odd, out, "int4-g32", settings={"standard_ops": standard})
        wanted = ReferenceModel(dequantised(odd, out)).forward(IDS)
        assert ort.divergence(wanted, ort.logits(ort.session(out), IDS)) < 1e-3


@pytest.mark.parametrize("level", ["int8", "int4-g64-sym", "int2"])
def test_widths_that_are_no_whole_blocks(level: str, tmp_path: Path) -> None:
    """Rows of the embedding, too, end within a block."""
    sizes = {"hidden_size": 72, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 24}
    for tied in (False, True):
        config = {**models.LLAMA, **sizes, "tie_word_embeddings": tied}
        odd = open_checkpoint(models.make_folder(tmp_path / f"{tied}", config, tokenizer=False))
        out = tmp_path / f"out{tied}"
        done = write(odd, out, level, settings={"float_activations": True})
        wanted = ReferenceModel(dequantised(odd, out)).forward(IDS)
        assert ort.relative(ort.logits(ort.session(out), IDS), wanted) < 1e-5
        assert any("rows of 72 weights have groups of 16, the last" in n for n in done.notes)


def test_heads_that_the_fused_attention_does_not_take(tmp_path: Path) -> None:
    config = {**models.LLAMA, "head_dim": 20}
    odd = open_checkpoint(models.make_folder(tmp_path / "odd", config, tokenizer=False))
    with pytest.raises(UnsupportedError, match=r"heads of 20 elements.*--standard-ops"):
        write(odd, tmp_path / "out", "int8")
    write(odd, tmp_path / "out", "int8", settings={"standard_ops": True})
    wanted = ReferenceModel(dequantised(odd, tmp_path / "out")).forward(IDS)
    found = ort.logits(ort.session(tmp_path / "out"), IDS)
    assert ort.divergence(wanted, found) < 1e-3


def test_smaller_groups_are_named(tmp_path: Path) -> None:
    config = {**models.LLAMA, "intermediate_size": 320}
    folder = models.make_folder(tmp_path / "m", config, tokenizer=False)
    done = write(open_checkpoint(folder), tmp_path / "out", "int4-g256")
    wanted = "Matrices with rows of 320 weights have groups of 64 instead of 256"
    assert any(wanted in note for note in done.notes)


def test_layout_is_that_of_onnxruntimes_quantiser(tmp_path: Path) -> None:
    """Codes that its quantiser packs are found where kvant's reader looks, and mean the same."""
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 96)).astype(np.float32)  # [outputs, inputs]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 96])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(np.ascontiguousarray(w.T), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=False)
    quantizer.process()
    (found,) = (n for n in quantizer.model.model.graph.node if n.op_type == "MatMulNBits")
    parts = {t.name: numpy_helper.to_array(t) for t in quantizer.model.model.graph.initializer}
    codes, scales, zeros = (parts[name] for name in found.input[1:4])
    g = grid("int4-g32")
    rows = unpacked(codes.reshape(64, -1), 4, 96).reshape(-1, 32)
    z = unpacked(np.ascontiguousarray(zeros.reshape(64, -1)), 4, 3).reshape(-1)
    values = g.decode(rows, g.scales(scales.reshape(-1), z.astype(np.float32))).reshape(64, 96)
    assert np.abs(values - w).max() < 0.3  # half a step
    import onnxruntime

    run = onnxruntime.InferenceSession(quantizer.model.model.SerializeToString())
    x = rng.standard_normal((4, 96)).astype(np.float32)
    assert ort.relative(run.run(None, {"x": x})[0], x @ values.T) < 1e-5


def test_a_tied_matrix_lies_once(source: Checkpoint, tmp_path: Path) -> None:
    result = write(source, tmp_path / "out", "int4-g32-sym")
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}
    assert places["token_embd.weight.rows"] == places["token_embd.weight.codes"]
    kinds = {n.op_type for n in model.graph.node}
    assert {"GroupQueryAttention", "MatMulNBits", "GatherBlockQuantized"} <= kinds
    assert "SkipSimplifiedLayerNormalization" in kinds
    matrices = [t for t in result.tensors if len(t.shape) == 2]
    assert {t.level for t in matrices} == {"int4-g32-sym"}
    assert all(8 * t.nbytes == 4.5 * np.prod(t.shape) for t in matrices)


@pytest.mark.parametrize("level", [None, "int4"])
def test_standard_graphs_pass_the_checker(
    source: Checkpoint, level: str | None, tmp_path: Path
) -> None:
    write(source, tmp_path / "out", level, settings={"standard_ops": True})
    path = str(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {n.domain for n in model.graph.node} == {""}
    assert [o.domain for o in model.opset_import] == [""]


def test_all_weights_are_outside_and_threads_change_nothing(
    source: Checkpoint, tmp_path: Path
) -> None:
    for threads in (1, 3):
        options = TargetOptions(threads=threads)
        find_target("onnx").write(source, tmp_path / str(threads), "int4", options)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()
    model = onnx.load(str(tmp_path / "1" / "model.onnx"), load_external_data=False)
    inside = [t for t in model.graph.initializer if not t.external_data]
    assert sum(len(t.raw_data) for t in inside) < 1000
    ends = []
    for tensor in model.graph.initializer:
        where = {e.key: e.value for e in tensor.external_data}
        if where:
            assert where["location"] == "model.onnx.data"
            assert int(where["offset"]) % 64 == 0
            ends.append(int(where["offset"]) + int(where["length"]))
    assert max(ends) == (tmp_path / "1" / "model.onnx.data").stat().st_size


def test_importance_lowers_the_weighed_error(source: Checkpoint, tmp_path: Path) -> None:
    from kvant.calibration.importance import Importance

    name, rng = "blk.0.ffn_down.weight", np.random.default_rng(0)
    sums = rng.lognormal(0, 2, source.weights[name].shape[1]).astype(np.float32)
    importance = Importance({name: sums}, {name: np.ones(1, np.int64)})
    write(source, tmp_path / "plain", "int4")
    write(source, tmp_path / "weighed", "int4", importance=importance)
    x = source.weights[name].read_f32()
    errors = {}
    for out in ("plain", "weighed"):
        y = dequantised(source, tmp_path / out).weights[name].read_f32()
        errors[out] = float((np.square(x - y) @ sums).sum())
    assert errors["weighed"] < 0.95 * errors["plain"]


def test_levels_have_their_bits() -> None:
    by_name = {level.name: level for level in LEVELS}
    assert len(by_name) == len(LEVELS) == 33
    assert by_name["int4-g32-sym"].bits_per_weight == 4.5
    assert by_name["int4-g32"].bits_per_weight == 4.625
    assert by_name["int8-g128-sym"].bits_per_weight == 8.125
    assert [level.bits_per_weight for level in LEVELS] == sorted(
        level.bits_per_weight for level in LEVELS
    )


def test_overrides_go_first(source: Checkpoint) -> None:
    rules = (r"blk\.0\.=int8", "token_embd=float")
    grids, _ = assigned(source.graph, "int4", rules)
    assert grids["blk.0.attn_q.weight"].bits == 8
    assert grids["blk.1.attn_q.weight"].bits == 4
    assert "token_embd.weight" not in grids
    with pytest.raises(UsageError, match="no tensor has a name like that"):
        assigned(source.graph, "int4", ("nothing=int8",))
    with pytest.raises(UsageError, match="expected REGEX=LEVEL"):
        assigned(source.graph, "int4", ("blk=int5",))


def test_what_cannot_be_is_said_before_anything_is_there(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UnsupportedError, match="no kernels on processors; use --dtype"):
        write(source, out, "int4", "bfloat16")
    with pytest.raises(UsageError, match="no setting 'nonsense'"):
        write(source, out, "int4", settings={"nonsense": True})
    with pytest.raises(UsageError, match="no level 'int5'"):
        write(source, out, "int5")
    with pytest.raises(UsageError, match="one data file"):
        write(source, out, "int4", split_size=10**9)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kvant\[onnx\]'"):
        write(source, out, "int4")
    assert not list(tmp_path.iterdir())


def test_bad_weights_leave_nothing(tmp_path: Path) -> None:
    weights = models.weights_of(models.LLAMA)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name] * np.float32(1)
    weights[name][7, 5] = np.nan
    bad = open_checkpoint(models.make_folder(tmp_path / "bad", models.LLAMA, weights))
    with pytest.raises(DataError, match=r"blk\.1\.ffn_up\.weight.*nan at row 7, column 5"):
        write(bad, tmp_path / "out", "int4")
    weights[name][7, 5] = 1e6
    large = open_checkpoint(models.make_folder(tmp_path / "large", models.LLAMA, weights))
    with pytest.raises(DataError, match="float16 cannot hold"):
        write(large, tmp_path / "out", None, "float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "large"]


def test_existing_folders_are_kept(source: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(source, out, "int4")
    before = (out / "model.onnx").stat().st_ino
    with pytest.raises(OutputError, match="exists already"):
        write(source, out, "int8")
    assert (out / "model.onnx").stat().st_ino == before
    write(source, out, "int8", force=True)
    assert json.loads((out / "genai_config.json").read_text())["model"]["type"] == "llama"
    result = write(source, tmp_path / "never", "int8", dry_run=True)
    assert result.seconds is None
    assert not (tmp_path / "never").exists()
    assert result.nbytes == sum(p.stat().st_size for p in out.iterdir())


def test_damage_is_found_before_the_folder_appears(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvant.export.onnx import weights

    monkeypatch.setattr(
        weights, "packed_bits", lambda codes, bits: packed_bits(codes[..., ::-1], bits)
    )
    with pytest.raises(OutputError, match="does not read back as it should"):
        write(source, tmp_path / "out", "int4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "standard"), [("false", False), ("true", True), ("True", True)])
def test_settings_as_text(source: Checkpoint, text: str, standard: bool, tmp_path: Path) -> None:
    write(source, tmp_path / "out", "int8", settings={"standard_ops": text})
    kinds = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert ("MatMulNBits" in kinds) != standard
    with pytest.raises(UsageError, match="standard-ops of target onnx is true or false, got 'no'"):
        write(source, tmp_path / "no", "int8", settings={"standard_ops": "no"})
