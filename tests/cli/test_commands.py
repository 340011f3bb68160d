"""Every command as people type it: what stands on stdout, what on stderr, and the status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvant
from kvant.files.gguf import read_gguf
from kvant.packing import all_packings
from kvant.quant.presets import PRESETS

Run = Callable[..., Any]

RESULT_KEYS = {
    *("name", "path", "bytes", "bpw", "tokens", "perplexity", "perplexity_se"),
    *("kld", "kld_se", "same_top"),
}


def test_help_and_version(spawn: Run) -> None:
    for arguments in (["--help"], ["quantize", "--help"], ["eval", "--help"]):
        found = spawn(*arguments)
        assert (found.status, found.err) == (0, "")
        assert "usage: kvant" in found.out
    assert spawn("--version").out == f"kvant {kvant.__version__}\n"


@pytest.mark.parametrize(
    "command", ["demo", "formats", "inspect", "convert", "calibrate", "bench", "verify"]
)
def test_help_of_commands(run: Run, command: str) -> None:
    assert command in run("--help").out
    assert run(command, "--help").status == 0


def test_formats(run: Run) -> None:
    found = run("formats")
    assert (found.status, found.err) == (0, "")
    for name in [p.name for p in all_packings()] + [r.name for r in PRESETS]:
        assert any(line.split()[:1] == [name] for line in found.out.splitlines()), name
    document = json.loads(run("formats", "--json").out)
    assert {"name", "precision_class", "bits_per_weight", "block_layout", "good_for"} <= set(
        document["packings"][0]
    )
    assert {p["precision_class"] for p in document["packings"]} == {
        *("ultra-low", "low", "medium", "full")
    }
    bits = {p["name"]: p["bits_per_weight"] for p in document["packings"]}
    assert (bits["Q4_K"], bits["Q6_K"], bits["Q8_0"], bits["Q2_K"]) == (4.5, 6.5625, 8.5, 2.625)
    assert [r["name"] for r in document["recipes"]] == [r.name for r in PRESETS]


@pytest.mark.parametrize("source", ["demo", "folder", "gguf"])
def test_inspect(run: Run, model: Path, tmp_path: Path, source: str) -> None:
    place = {"demo": "demo", "folder": str(model), "gguf": str(tmp_path / "m.gguf")}[source]
    if source == "gguf":
        kvant.quantize(model, "Q8_0", tmp_path / "m.gguf")
    found = run("inspect", place)
    assert found.status == 0
    assert "It converts" in found.out
    assert "llama" in found.out
    for recipe in PRESETS:
        assert recipe.name in found.out
    document = json.loads(run("inspect", place, "--json").out)
    assert document["converts"] is True
    assert document["obstacle"] is None
    assert document["architecture"] == "llama"
    assert document["format"] == ("gguf" if source == "gguf" else "hf")
    assert document["tokenizer"]["model"] == "byte-level BPE"
    assert {r["name"] for r in document["recipes"]} == {r.name for r in PRESETS}
    sizes = [r["bytes"] for r in document["recipes"] if r["name"] in ("Q2_K", "Q4_K_M", "F16")]
    assert sizes == sorted(sizes)


def test_convert(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for dtype in ("bf16", "f16", "f32"):
        found = run("convert", model, "--dtype", dtype)
        assert found.status == 0
        name = f"Tiny-1.4M-{dtype.upper()}.gguf"
        assert found.out.splitlines()[0] == f"wrote {name}"
        assert read_gguf(tmp_path / name).tensors["output.weight"].type.name == dtype.upper()
    assert run("convert", model, "-o", tmp_path / "mine.gguf").status == 0
    assert read_gguf(tmp_path / "mine.gguf").tensors["output.weight"].type.name == "BF16"


def test_quantize(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    found = run("quantize", model, "q4_k_m", "-o", tmp_path / "out", "--threads", "2")
    path = tmp_path / "out" / "Tiny-1.4M-Q4_K_M.gguf"
    assert found.status == 0
    first, second = found.out.splitlines()
    assert first == f"wrote {path}"
    assert f"({path.stat().st_size:,} bytes)" in second
    assert "weights per second" in found.err
    document = json.loads(run("quantize", model, "Q4_K_M", "-o", tmp_path / "b.gguf", "--json").out)
    assert document["paths"] == [str(tmp_path / "b.gguf")]
    assert document["bytes"] == path.stat().st_size
    assert document["recipe"] == "Q4_K_M"
    assert 4.5 < document["bpw"] < 6.6
    assert document["parameters"] == sum(t.elements for t in read_gguf(path).tensors.values())
    assert {t["packing"] for t in document["tensors"]} == {"F32", "Q4_K", "Q6_K"}
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()


def test_quantize_with_overrides_and_splits(run: Run, model: Path, tmp_path: Path) -> None:
    options = ["--tensor", "attn_v=Q8_0", "--tensor", r"^output\.=q6_k", "--split-size", "0.3MB"]
    found = run("quantize", model, "Q4_0", "-o", tmp_path / "m.gguf", *options)
    assert found.status == 0
    paths = [Path(line.removeprefix("wrote ")) for line in found.out.splitlines()[:-1]]
    assert [p.name for p in paths] == sorted(p.name for p in tmp_path.iterdir())
    assert len(paths) > 2
    assert max(p.stat().st_size for p in paths) <= 300_000
    types = {n: t.type.name for p in paths for n, t in read_gguf(p).tensors.items()}
    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["output.weight"] == "Q6_K"
    assert types["blk.0.ffn_up.weight"] == "Q4_0"


def test_dry_run(run: Run, model: Path, tmp_path: Path) -> None:
    found = run("quantize", model, "Q4_K_M", "-o", tmp_path, "--dry-run")
    assert found.status == 0
    assert "blk.0.ffn_down.weight" in found.out
    assert f"would write {tmp_path}/Tiny-1.4M-Q4_K_M.gguf" in found.out
    assert list(tmp_path.iterdir()) == []
    document = json.loads(
        run("quantize", model, "Q4_K_M", "-o", tmp_path, "--dry-run", "--json").out
    )
    assert document["seconds"] is None
    assert list(tmp_path.iterdir()) == []


def test_verify(run: Run, model: Path, tmp_path: Path) -> None:
    path = kvant.quantize(model, "Q4_K_M", tmp_path / "m.gguf").paths[0]
    found = run("verify", path)
    assert (found.status, found.err) == (0, "")
    assert "sound" in found.out
    assert "all checksums good" in found.out
    against = run("verify", path, "--against", model)
    assert against.status == 0
    assert "blk.0.ffn_down.weight" in against.out
    document = json.loads(run("verify", path, "--against", model, "--json").out)
    assert document["ok"] is True
    assert document["checksums"] == "good"
    assert len(document["reconstruction"]) == document["tensors"] == 21
    assert {"name", "packing", "source_type", "rmse", "relative", "largest"} == set(
        document["reconstruction"][0]
    )

    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = run("verify", path)
    assert found.status == 1
    assert "output.weight" in found.out
    assert "damaged" in found.out
    document = json.loads(run("verify", path, "--json").out)
    assert document["ok"] is False
    assert document["damaged"] == ["output.weight"]


def test_eval(run: Run, tmp_path: Path) -> None:
    path = kvant.quantize("demo", "Q4_K_M", tmp_path / "m.gguf").paths[0]
    options = ["--context", "64", "--chunks", "3"]
    found = run("eval", path, "--against", "demo", *options, "--json")
    assert found.status == 0
    base, variant = json.loads(found.out)["results"]
    assert RESULT_KEYS <= set(base) == set(variant)
    assert (base["name"], base["kld"], base["kld_se"], base["same_top"]) == (
        "demo",
        None,
        None,
        None,
    )
    assert variant["name"] == "m.gguf"
    assert variant["path"] == str(path)
    assert 0 < variant["kld"] < 1
    assert variant["kld_se"] > 0
    assert 0.5 < variant["same_top"] <= 1
    assert variant["bytes"] == path.stat().st_size
    assert 4.5 < variant["bpw"] < 6
    assert base["bpw"] == 16
    assert base["tokens"] == variant["tokens"] == 3 * 31
    assert base["perplexity"] > 1 < variant["perplexity"]
    assert base["perplexity_se"] > 0
    table = run("eval", path, "--against", "demo", *options)
    assert table.status == 0
    assert f"{variant['bpw']:.2f}" in table.out
    alone = json.loads(run("eval", path, *options, "--json").out)["results"]
    assert len(alone) == 1
    assert alone[0]["kld"] is None
    assert alone[0]["perplexity"] == pytest.approx(variant["perplexity"])


def test_eval_of_a_text_of_ones_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("The sea was calm, and the boat lay still. " * 40)
    found = run("eval", "demo", "--text", tmp_path / "own.txt", "--context", "32", "--json")
    assert found.status == 0
    assert json.loads(found.out)["results"][0]["tokens"] > 100


def test_eval_with_limits(run: Run, tmp_path: Path) -> None:
    path = kvant.quantize("demo", "Q4_K_M", tmp_path / "m.gguf").paths[0]
    options = [path, "--against", "demo", "--context", "64", "--chunks", "3"]
    kept = run("eval", *options, "--max-kld", "1", "--max-ppl-ratio", "1.5", "--json")
    assert kept.status == 0
    gates = json.loads(kept.out)["gates"]
    assert [g["figure"] for g in gates] == ["KL divergence", "perplexity ratio"]
    assert all(g["held"] for g in gates)
    missed = run("eval", *options, "--max-kld", "1e-5", "--max-ppl-ratio", "1.5")
    assert missed.status == 3
    assert "KL divergence" in missed.out.splitlines()[0]  # the table stands on stdout all the same
    first, second = missed.err.splitlines()
    assert first.startswith("m.gguf: KL divergence 0.0")
    assert " ± 0.0" in first
    assert first.endswith("limit 1e-05: missed")
    assert "limit 1.5: holds" in second
    assert "gates" not in json.loads(run("eval", *options, "--json").out)


def test_eval_on_the_reference_interpreter(run: Run, model: Path) -> None:
    options = ["eval", model, "--context", "32", "--chunks", "2", "--json"]
    engine, judge = (
        json.loads(run(*options, *more).out)["results"][0] for more in ([], ["--reference"])
    )
    assert engine["perplexity"] == pytest.approx(judge["perplexity"], rel=1e-2)
    assert engine["perplexity"] != judge["perplexity"]  # it was really another one


@pytest.fixture
def short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo on the start of its text."""
    from kvant.api import demonstration
    from kvant.api.measurement import corpus_of

    monkeypatch.setattr(
        demonstration,
        "corpus_of",
        lambda text, tokenizer, base, *_: corpus_of(text, tokenizer, base, 128, 5),
    )


LEVELS = {
    "Q8_0": "medium",
    "Q6_K": "medium",
    "Q5_K_M": "medium",
    "Q4_K_M": "low",
    "Q3_K_M": "low",
    "Q2_K": "ultra-low",
}


@pytest.mark.usefixtures("short_text")
def test_demo(run: Run, tmp_path: Path) -> None:
    report, keep = tmp_path / "report", tmp_path / "keep"
    found = run("demo", "--report", report, "--keep", keep)
    assert found.status == 0
    rows = [line.split() for line in found.out.splitlines()]
    levels = {row[0]: row[1] for row in rows if row and row[0] in LEVELS}
    assert levels == LEVELS
    assert found.out.splitlines()[2].split()[:2] == ["demo", "(BF16)"]
    assert sorted(p.name for p in report.iterdir()) == ["quality.svg", "report.json", "report.md"]
    document = json.loads((report / "report.json").read_text())
    assert [r["name"] for r in document["results"]] == ["demo (BF16)", *LEVELS]
    for result in document["results"][1:]:
        assert set(result) >= RESULT_KEYS
        assert result["kld"] > 0
    sizes = [r["bytes"] for r in document["results"]]
    assert sizes == sorted(sizes, reverse=True)
    divergence = [r["kld"] for r in document["results"][1:]]
    assert divergence == sorted(divergence)
    assert (report / "quality.svg").read_text().startswith("<svg")
    assert "quality.svg" in (report / "report.md").read_text()
    for name in LEVELS:
        assert kvant.verify(next(keep.glob(f"*-{name}.gguf"))).ok

    again = run("demo", "--report", report)  # told before the work is done
    assert again.status == 1
    assert again.out == ""
    assert "report.md: exists already" in again.err
    assert run("demo", "--keep", keep).status == 1


@pytest.mark.usefixtures("short_text")
def test_demo_as_json_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = run("demo", "--json")
    assert found.status == 0
    assert [r["name"] for r in json.loads(found.out)["results"]] == ["demo (BF16)", *LEVELS]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_demo_as_typed(spawn: Run, tmp_path: Path) -> None:
    found = spawn("demo")
    assert found.status == 0
    assert all(level in found.out for level in LEVELS)
    assert "Traceback" not in found.err
    assert list(tmp_path.iterdir()) == []
