"""Models in the form of Ollama's registry."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_registry import MODEL, FakeRegistry, digest, kept, layer

from kvant.errors import UsageError
from kvant.registry import (
    AbsentError,
    Store,
    UnreachableError,
)


def _ollama(registry: FakeRegistry, gguf: Path, template: str = "{{ .Prompt }}") -> None:
    parts = {
        "model": gguf.read_bytes(),
        "template": template.encode(),
        "system": b"Be kind.",
        "params": b'{"stop":["<|end|>","<|user|>"],"temperature":0.5,"num_keep":4,"odd":1}',
        "license": b"MIT License\nCopyright",
        "messages": b'[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]',
        "projector": b"something",
    }
    for data in parts.values():
        registry.blobs[digest(data)] = data
    registry.add(
        parts["model"],
        "1b",
        media="application/vnd.docker.distribution.manifest.v2+json",
        said={
            "model_format": "gguf",
            "model_family": "llama",
            "model_type": "1.2B",
            "file_type": "Q8_0",
        },
        layers=[layer(v, f"application/vnd.ollama.image.{k}") for k, v in parts.items()],
    )


def test_models_of_ollamas_registry(
    registry: FakeRegistry,
    store: Store,
    gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    _ollama(registry, gguf)
    monkeypatch.setenv("KVANT_REGISTRY", f"http://{registry.host}")
    entry = store.pull("tiny:1b")
    assert registry.asked("GET /v2/tiny/manifests/1b")
    assert (entry.name, entry.family, entry.parameters) == ("tiny:1b", "llama", 1_200_000_000)
    assert (entry.quantization, entry.license) == ("Q8_0", "mit")
    local = store.resolve("tiny:1b")
    assert local.path.suffix == ".gguf"
    assert local.system == "Be kind."
    assert local.parameters == {"stop": ["<|end|>", "<|user|>"], "temperature": 0.5, "num_keep": 4}
    assert [m.content for m in local.messages] == ["hi", "ho"]
    assert any("'odd'" in note for note in local.notes)
    assert any("projector" in note for note in local.notes)
    from kvant.tokenizer.chat import render

    assert local.template is not None
    assert render(local.template, [{"role": "user", "content": "hello"}]) == "hello"
    # Made anew it has kvant's form.
    made = store.create("own", "FROM tiny:1b")
    assert store.resolve("own").parameters == local.parameters
    assert store.manifest("own").media_type == "application/vnd.oci.image.manifest.v1+json"
    assert made.license == "mit"
    with pytest.raises(AbsentError, match="has no model 'none:latest'"):
        store.pull("none")
    # Offline it is found where Ollama put it.
    theirs = tmp_path / "ollama"
    place = theirs / "manifests" / registry.host / "tiny" / "1b"
    place.parent.mkdir(parents=True)
    place.write_bytes(registry.manifests["1b"][1])
    (theirs / "blobs").mkdir()
    for name, data in registry.blobs.items():
        (theirs / "blobs" / name.replace(":", "-")).write_bytes(data)
    monkeypatch.setenv("OLLAMA_MODELS", str(theirs))
    registry.seen.clear()
    other = Store(tmp_path / "offline")
    assert other.pull("tiny:1b", offline=True).digest == entry.digest
    assert registry.seen == []
    with pytest.raises(UnreachableError, match="nothing may be fetched"):
        other.pull("tiny:2b", offline=True)


def test_a_template_that_cannot_be_translated(
    registry: FakeRegistry, store: Store, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ollama(registry, gguf, "{{ if .Special }}x{{ end }}{{ .Prompt }}")
    monkeypatch.setenv("KVANT_REGISTRY", f"http://{registry.host}")
    store.pull("tiny:1b")
    local = store.resolve("tiny:1b")
    assert local.template is None
    assert any("The model's template is in Go's" in note for note in local.notes)


def test_adapters_of_ollama_are_refused(registry: FakeRegistry, store: Store) -> None:
    extra = layer(b"x", "application/vnd.ollama.image.adapter")
    registry.add(MODEL, layers=[layer(MODEL), extra])
    with pytest.raises(UsageError, match="an adapter in a GGUF file"):
        store.pull(f"oci://{registry.host}/x")
    assert kept(store) == []
