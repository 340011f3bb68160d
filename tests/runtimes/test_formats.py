"""What lies at a path, and what runs it where nobody says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kvant
from kvant.checkpoint.kind import model_format
from kvant.errors import InputError, MissingExtraError, UnsupportedError, UsageError
from kvant.runtimes import Artefact, choice, choose, open_artefact, own_runner, runner_label
from oracles.models import LLAMA, make_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model in every format."""
    pytest.importorskip("onnx")
    work = tmp_path_factory.mktemp("formats")
    source = make_folder(work / "hf", LLAMA)
    found = {"hf": source, "gguf": work / "model.gguf"}
    kvant.quantize(source, "Q8_0", found["gguf"])
    for to, level in (("onnx", "int4"), ("mlx", "4bit"), ("vllm", "w4a16-g32")):
        found[to] = work / to
        kvant.quantize(source, level, found[to], to=to)
    found["mlx floats"] = work / "mlx-floats"
    kvant.convert(source, found["mlx floats"], to="mlx")
    return found


def artefact(folders: dict[str, Path], name: str) -> Artefact:
    return open_artefact(folders[name])


def test_formats_are_told_by_content(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, path in folders.items():
        moved = tmp_path / f"renamed-{name[:3]}{path.suffix}"
        path.rename(moved)
        try:
            assert model_format(moved) == name.split()[0]
        finally:
            moved.rename(path)
    assert model_format(folders["onnx"] / "model.onnx") == "onnx"


def test_a_folder_with_both_is_the_original(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = make_folder(tmp_path / "both", LLAMA)
    (copy / "model.onnx").write_bytes((folders["onnx"] / "model.onnx").read_bytes())
    assert model_format(copy) == "hf"


def test_what_runs_what(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in choice._INSTALLED:
        monkeypatch.setitem(choice._INSTALLED, name, lambda: True)
    monkeypatch.setattr(choice.mlx, "has_gpu", lambda: True)
    usual = {name: choose(artefact(folders, name)) for name in folders}
    assert usual == {
        "hf": "native",
        "gguf": "native",
        "onnx": "onnxruntime",
        "mlx": "mlx",
        "mlx floats": "mlx",
        "vllm": "native",
    }
    monkeypatch.setattr(choice.mlx, "has_gpu", lambda: False)
    monkeypatch.setitem(choice._INSTALLED, "onnxruntime", lambda: False)
    assert choose(artefact(folders, "mlx")) == choose(artefact(folders, "onnx")) == "native"
    assert choose(artefact(folders, "mlx"), {"mlx": "reference"}) == "reference"
    assert choose(artefact(folders, "mlx"), {"gguf": "llama.cpp"}) == "native"


def test_labels_say_what_was_not_run(folders: dict[str, Path]) -> None:
    for name in ("onnx", "mlx", "vllm"):
        assert runner_label(artefact(folders, name), "native") == "native, dequantised"
    for name in ("hf", "gguf", "mlx floats"):
        assert runner_label(artefact(folders, name), "native") == "native"


def test_bits_are_those_of_the_file(folders: dict[str, Path]) -> None:
    for name, least, most in (("onnx", 4.6, 4.9), ("mlx", 5.0, 5.1), ("gguf", 8.5, 8.7)):
        bpw = artefact(folders, name).bpw()
        assert bpw is not None
        assert least < bpw < most, name


def test_a_runner_that_does_not_run_it(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"onnxruntime runs an ONNX folder\. Choose native"):
        choose(artefact(folders, "gguf"), "onnxruntime")
    with pytest.raises(UsageError, match=r"no runner 'vllm'; choose one of native"):
        choose(artefact(folders, "gguf"), "vllm")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="was made for vLLM"):
        own_runner(artefact(folders, "vllm"))
    with pytest.raises(InputError, match="no such file or folder"):
        open_artefact(folders["hf"] / "nowhere")


def test_what_is_not_installed(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from kvant.runtimes import llama_cpp, mlx, onnxruntime

    llama_cpp._library.cache_clear()
    for module in (llama_cpp, mlx, onnxruntime):
        monkeypatch.setattr(module, "installed", lambda: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'kvant\[mlx\]'"):
        kvant.evaluate(folders["mlx"], runner="mlx", chunks=2, context=64)
    with pytest.raises(MissingExtraError, match=r"pip install 'kvant\[onnx\]'"):
        kvant.evaluate(folders["onnx"], runner="onnxruntime", chunks=2, context=64)
    with pytest.raises(MissingExtraError, match=r"pip install 'kvant\[llama-cpp\]'"):
        kvant.evaluate(folders["gguf"], runner="llama.cpp", chunks=2, context=64)


def test_graphs_of_other_tools_are_run_but_not_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    import onnx

    other = tmp_path / "other"
    other.mkdir()
    for path in folders["onnx"].iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    model = onnx.load_model(str(other / "model.onnx"), load_external_data=False)
    del model.metadata_props[:]
    (other / "model.onnx").write_bytes(model.SerializeToString())
    found = open_artefact(other)
    assert found.checkpoint is None
    assert found.bpw() is None
    assert found.vocab_size == LLAMA["vocab_size"]
    assert choose(found) == "onnxruntime"
    with pytest.raises(UnsupportedError, match="another tool wrote this graph"):
        choose(found, "native")
    with pytest.raises(UnsupportedError, match="another tool wrote this graph"):
        kvant.convert(other, tmp_path / "x.gguf")
    if choice._INSTALLED["onnxruntime"]():
        base, variant = kvant.evaluate(other, folders["onnx"], context=64, chunks=2)
        assert variant.kld == pytest.approx(0, abs=1e-12)
        assert base.bytes is not None
        assert variant.bytes is not None
        assert 0 < base.bytes - variant.bytes < 5000  # the metadata


def test_an_onnx_folder_becomes_the_gguf_its_source_would(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    floats = tmp_path / "floats"
    kvant.convert(folders["hf"], floats, to="onnx", dtype="f32")
    for source, out in ((floats, "by-onnx"), (folders["hf"], "direct")):
        kvant.quantize(source, "Q4_K_M", tmp_path / f"{out}.gguf")
    first, second = (
        kvant.evaluate(tmp_path / f"{name}.gguf", context=64, chunks=2)[0]
        for name in ("by-onnx", "direct")
    )
    assert first.perplexity == second.perplexity


def damaged(folder: Path, out: Path, change: object) -> Path:
    import onnx

    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    model = onnx.load_model(str(out / "model.onnx"), load_external_data=False)
    change(model)  # type: ignore[operator]
    (out / "model.onnx").write_bytes(model.SerializeToString())
    return out


def test_hostile_graphs(folders: dict[str, Path], tmp_path: Path) -> None:
    def entry(model: object, key: str) -> object:
        tensor = next(t for t in model.graph.initializer if t.external_data)  # type: ignore[attr-defined]
        return next(e for e in tensor.external_data if e.key == key)

    def outside(model: object) -> None:
        entry(model, "location").value = "../../etc/passwd"  # type: ignore[attr-defined]

    def beyond(model: object) -> None:
        entry(model, "offset").value = str(1 << 40)  # type: ignore[attr-defined]

    def negative(model: object) -> None:
        entry(model, "offset").value = "-4096"  # type: ignore[attr-defined]

    def no_number(model: object) -> None:
        entry(model, "length").value = "many"  # type: ignore[attr-defined]

    for change, words in (
        (outside, "expected model.onnx.data beside the graph"),
        (beyond, "should lie within"),
        (negative, "should lie within"),
        (no_number, "should lie within"),
    ):
        folder = damaged(folders["onnx"], tmp_path / change.__name__, change)
        with pytest.raises(InputError, match=words):
            kvant.load(folder)
    cut = tmp_path / "outside" / "model.onnx"
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(InputError, match="is no ONNX model"):
        kvant.load(cut.parent)
    (cut.parent / "model.onnx").unlink()
    (cut.parent / "a.onnx").write_bytes(b"")
    (cut.parent / "b.onnx").write_bytes(b"")
    values = json.loads((cut.parent / "genai_config.json").read_text())
    values["model"]["decoder"]["filename"] = "../b.onnx"
    (cut.parent / "genai_config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="should be a name in this folder"):
        kvant.evaluate(cut.parent)
