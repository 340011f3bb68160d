"""Evidence in and beside the files kvant writes: what stands there, and when nothing appears."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kvant
from kvant.api import evidence as recording
from kvant.api.evidence import beside, evidence_of
from kvant.checkpoint import fingerprint, open_checkpoint
from kvant.errors import NotEnoughMemoryError, OutputError
from kvant.evidence import QUALITY, QUALITY_BYTES, read_evidence
from kvant.files.gguf import read_gguf, read_gguf_split
from oracles.models import LLAMA, QWEN3, make_folder


@pytest.mark.parametrize("config", [LLAMA, QWEN3], ids=["interleaved", "half"])
def test_a_lossless_copy_has_the_same_fingerprint(tmp_path: Path, config: object) -> None:
    folder = make_folder(tmp_path / "m", config, dtype="BF16")
    source = fingerprint(open_checkpoint(folder))
    for dtype in ("bf16", "f32"):
        (path,) = kvant.convert(folder, tmp_path / f"{dtype}.gguf", dtype=dtype).paths
        assert fingerprint(open_checkpoint(path)) == source
        assert read_gguf(path).get_str("kvant.source.fingerprint") == source
    (q8,) = kvant.quantize(folder, "Q8_0", tmp_path / "q8.gguf").paths
    assert read_gguf(q8).get_str("kvant.source.fingerprint") == source
    assert fingerprint(open_checkpoint(q8)) != source
    other = make_folder(tmp_path / "other", config, dtype="BF16", seed=1)
    assert fingerprint(open_checkpoint(other)) != source


def test_beside_a_fast_file(tmp_path: Path) -> None:
    made = kvant.quantize("demo", "Q4_K_M", tmp_path / "m.gguf", tensors=["attn_v=Q8_0"])
    assert [p.name for p in made.beside] == ["m.evidence.json", "m.md"]
    found, own = read_evidence(made.beside[0]), evidence_of(made.paths[0])
    assert found.files == own.files
    assert found.sizes == own.sizes
    assert found.sizes.nbytes == made.nbytes == made.paths[0].stat().st_size
    assert found.sizes.bpw == pytest.approx(made.bits_per_weight)
    assert found.quality == ()
    assert QUALITY not in read_gguf(made.paths[0]).metadata
    assert found.made is not None
    assert (found.made.recipe, found.made.effort) == ("Q4_K_M", "fast")
    assert found.made.overrides == ("attn_v=Q8_0",)
    assert found.made.source == fingerprint(open_checkpoint(recording.open_source("demo").path))
    card = made.beside[1].read_text()
    assert card.startswith("---\n# model card written by kvant\n")
    assert 'license: "apache-2.0"' in card
    assert "| embedding |" in card


def test_measured_before_it_appears(tmp_path: Path) -> None:
    one = kvant.quantize("demo", "Q4_K_M", tmp_path / "a.gguf", evidence=True, threads=1)
    two = kvant.quantize("demo", "Q4_K_M", tmp_path / "b.gguf", evidence=True, threads=2)
    assert one.paths[0].read_bytes() == two.paths[0].read_bytes()
    assert one.nbytes == one.paths[0].stat().st_size
    assert kvant.verify(one.paths[0]).ok
    stated = read_gguf(one.paths[0]).get_str(QUALITY)
    assert len(stated) == QUALITY_BYTES
    (inside,), (outside,) = evidence_of(one.paths[0]).quality, read_evidence(one.beside[0]).quality
    assert inside == outside.rounded()
    assert outside.kld == pytest.approx(inside.kld, rel=0.05)
    measured = kvant.evaluate(one.paths[0], "demo")[1]
    assert outside.kld == measured.kld
    assert outside.text.corpus_sha256 == measured.corpus
    plain = kvant.quantize("demo", "Q4_K_M", tmp_path / "c.gguf")
    tensors = {n: t.nbytes for n, t in read_gguf(plain.paths[0]).tensors.items()}
    assert tensors == {n: t.nbytes for n, t in read_gguf(one.paths[0]).tensors.items()}


def test_shards_have_one_record(tmp_path: Path) -> None:
    made = kvant.quantize("demo", "Q8_0", tmp_path / "m.gguf", split_size=2_000_000, evidence=True)
    assert len(made.paths) > 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        p.name for p in (*made.paths, *made.beside)
    )
    assert beside(made.paths[1]) == made.beside
    found = read_evidence(made.beside[0])
    assert [f.name for f in found.files] == [p.name for p in made.paths]
    assert found.files == evidence_of(made.paths[1]).files
    assert found.quality[0].kld is not None
    assert kvant.verify(made.paths[0]).ok
    assert QUALITY in read_gguf_split(made.paths[0]).metadata


def test_what_is_there_stays(tmp_path: Path) -> None:
    for name in ("m.evidence.json", "m.md"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(OutputError, match=f"{name}: exists already"):
            kvant.quantize("demo", "Q8_0", tmp_path / "m.gguf")
        assert [p.name for p in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
    (tmp_path / "m.md").write_text("mine")
    made = kvant.quantize("demo", "Q8_0", tmp_path / "m.gguf", evidence=False)
    assert made.beside == ()
    assert (tmp_path / "m.md").read_text() == "mine"
    kvant.quantize("demo", "Q8_0", tmp_path / "m.gguf", force=True)
    assert (tmp_path / "m.md").read_text().startswith("---")
    made.paths[0].unlink()  # what kvant wrote about a model that is gone is in nobody's way
    kvant.quantize("demo", "Q4_0", tmp_path / "m.gguf")
    assert json.loads((tmp_path / "m.evidence.json").read_text())["made"]["recipe"] == "Q4_0"


def test_what_cannot_be_measured_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise NotEnoughMemoryError("it does not fit")

    monkeypatch.setattr(recording, "_measure", full)
    made = kvant.quantize("demo", "Q8_0", tmp_path / "m.gguf", evidence=True)
    assert "Quality was not measured: it does not fit" in made.notes
    assert evidence_of(made.paths[0]).quality == ()
    assert kvant.verify(made.paths[0]).ok


def test_interrupted_while_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recording, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kvant.quantize("demo", "Q8_0", tmp_path / "m.gguf", evidence=True)
    assert list(tmp_path.iterdir()) == []
