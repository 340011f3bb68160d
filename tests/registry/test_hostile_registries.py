"""What a registry may send is bounded: manifests, digests, redirects."""

from __future__ import annotations

import gzip
import json
import os
from typing import Any

import pytest
from fake_registry import MODEL, FakeRegistry, digest, kept, layer

from kvant.registry import (
    HostileError,
    RegistryError,
    Store,
)


def _gives(registry: FakeRegistry, raw: bytes, media: str) -> None:
    registry.manifests["latest"] = (media, raw)


MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "path out": ({"layers": [layer(MODEL, title="../../up.gguf")]}, "expected a plain name"),
    "absolute": ({"layers": [layer(MODEL, title="/etc/cron.d/x")]}, "expected a plain name"),
    "hidden": ({"layers": [layer(MODEL, title=".bashrc")]}, "expected a plain name"),
    "deep": ({"layers": [layer(MODEL, title="a/b/c.gguf")]}, "expected a plain name"),
    "nul": ({"layers": [layer(MODEL, title="a\0b")]}, "expected a plain name"),
    "no name": (
        {"layers": [layer(MODEL, "application/vnd.kvant.model.file.v1")]},
        "expected a plain name",
    ),
    "twice": (
        {"layers": [layer(MODEL, title="a.gguf"), layer(MODEL, title="A.gguf")]},
        "two files are called",
    ),
    "in a file": (
        {"layers": [layer(MODEL, title="a"), layer(MODEL, title="a/b")]},
        "lies in what is a file too",
    ),
    "digest": ({"layers": [layer(MODEL, digest="sha256:../../x")]}, "expected sha256: and 64"),
    "md5": ({"layers": [layer(MODEL, digest="md5:" + "0" * 32)]}, "expected sha256: and 64"),
    "capital": ({"layers": [layer(MODEL, digest="sha256:" + "A" * 64)]}, "expected sha256: and"),
    "negative": ({"layers": [layer(MODEL, size=-1)]}, "says its size is -1"),
    "huge": ({"layers": [layer(MODEL, size=1 << 60)]}, "says its size is"),
    "float": ({"layers": [layer(MODEL, size=1.5)]}, "says its size is 1.5"),
    "true": ({"layers": [layer(MODEL, size=True)]}, "says its size is True"),
    "many": ({"layers": [layer(MODEL)] * 5000}, "1 to 2000 layers, got 5000"),
    "none": ({"layers": []}, "1 to 2000 layers, got 0"),
    "no list": ({"layers": "x"}, "1 to 2000 layers"),
    "no dict": ({"layers": ["x"]}, "expected a descriptor"),
    "image": (
        {"layers": [layer(MODEL, "application/vnd.oci.image.layer.v1.tar+gzip")]},
        "expected a model, got layers of",
    ),
    "template bomb": (
        {
            "layers": [
                layer(MODEL),
                layer(MODEL, "application/vnd.ollama.image.template", size=1 << 30),
            ]
        },
        "a template of 1073741824 bytes",
    ),
    "many licences": (
        {
            "layers": [
                layer(MODEL),
                *[layer(MODEL, "application/vnd.ollama.image.license", size=4 << 20)] * 9,
            ]
        },
        "37748736 bytes of templates, licences",
    ),
    "config bomb": (
        {"config": layer(MODEL, "application/json", size=1 << 30), "layers": [layer(MODEL)]},
        "a config of 1073741824 bytes",
    ),
    "schema": ({"schemaVersion": 1, "layers": [layer(MODEL)]}, "schema version 2"),
    "type": ({"mediaType": "text/html", "layers": [layer(MODEL)]}, "schema version 2"),
    "media": ({"layers": [layer(MODEL, media=7)]}, "expected a text"),
    "notes": ({"layers": [{**layer(MODEL), "annotations": [1]}]}, "annotations that are no texts"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_hostile_manifests(registry: FakeRegistry, store: Store, case: str) -> None:
    change, message = MANIFESTS[case]
    registry.add(MODEL, **change)
    with pytest.raises(HostileError, match=message):
        store.pull(f"oci://{registry.host}/x")
    assert kept(store) == []
    assert store.list() == []
    assert registry.asked("GET /v2/x/blobs") == 0


def test_files_that_would_have_one_name(registry: FakeRegistry, store: Store) -> None:
    other = MODEL[::-1]
    registry.blobs[digest(other)] = other
    layers = [layer(MODEL, title="a/x.gguf"), layer(other, title="b/x.gguf")]
    registry.add(MODEL, layers=layers)
    with pytest.raises(HostileError, match=r"2 files would be called 'model/x\.gguf'"):
        store.pull(f"oci://{registry.host}/x")
    assert store.list() == []


RAW: dict[str, tuple[bytes, str, str]] = {
    "html": (b"<html>", "text/html", "expected a manifest, got 'text/html'"),
    "no json": (b"{", "application/vnd.oci.image.manifest.v1+json", "not JSON"),
    "list": (b"[]", "application/vnd.oci.image.manifest.v1+json", "expected a JSON object"),
    "long": (b" " * (5 << 20), "application/vnd.oci.image.manifest.v1+json", "sent more than"),
    "deep": (
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "application/vnd.oci.image.manifest.v1+json",
        "nested deeper",
    ),
    "index": (
        b'{"schemaVersion":2,"manifests":[]}',
        "application/vnd.oci.image.index.v1+json",
        "lists no manifest",
    ),
}


@pytest.mark.parametrize("case", RAW)
def test_what_is_no_manifest(registry: FakeRegistry, store: Store, case: str) -> None:
    raw, media, message = RAW[case]
    _gives(registry, raw, media)
    with pytest.raises(HostileError, match=message):
        store.pull(f"oci://{registry.host}/x")
    assert kept(store) == []


def test_wrong_digests(registry: FakeRegistry, store: Store) -> None:
    wanted = registry.add(MODEL)
    registry.blobs[digest(MODEL)] = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    with pytest.raises(HostileError, match="came with other content: its SHA-256 is"):
        store.pull(f"oci://{registry.host}/x")
    registry.blobs[digest(MODEL)] = MODEL + b"more"
    with pytest.raises(HostileError, match="should have 300000 bytes, and more came"):
        store.pull(f"oci://{registry.host}/x")
    assert digest(MODEL)[7:] not in os.listdir(store.root / "blobs" / "sha256")
    assert store.list() == []
    registry.blobs[digest(MODEL)] = MODEL
    registry.rules.append(
        (
            "manifests/",
            lambda h: h.answer(
                200,
                registry.manifests["latest"][1],
                Content_Type=registry.manifests["latest"][0],
                Docker_Content_Digest="sha256:" + "0" * 64,
            ),
        )
    )
    with pytest.raises(HostileError, match="the manifest should have the digest"):
        store.pull(f"oci://{registry.host}/x")
    registry.rules.clear()
    index = {
        "schemaVersion": 2,
        "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": wanted, "size": 1}
        ],
    }
    media = "application/vnd.oci.image.index.v1+json"
    _gives(registry, json.dumps(index).encode(), media)
    assert store.pull(f"oci://{registry.host}/x").digest == wanted
    registry.manifests[wanted] = (registry.manifests[wanted][0], b"{}")
    with pytest.raises(HostileError, match="the manifest should have the digest"):
        store.pull(f"oci://{registry.host}/x")


def test_nothing_is_unpacked(registry: FakeRegistry, store: Store) -> None:
    registry.add(MODEL)
    bomb = gzip.compress(bytes(50_000_000))
    registry.rules.append(("blobs/", lambda h: h.answer(200, bomb, Content_Encoding="gzip")))
    with pytest.raises(RegistryError):
        store.pull(f"oci://{registry.host}/x")
    assert store.list() == []
    assert all(
        (store.root / "partial" / n).stat().st_size < 1000
        for n in os.listdir(store.root / "partial")
    )


REDIRECTS = {
    "in circles": ("http://{host}/v2/x/manifests/latest", "redirects in circles"),
    "file": ("file:///etc/passwd", "no address of a registry"),
    "user": ("http://user:password@127.0.0.1/", "with a user's name in it"),
    "control": ("http://127.0.0.1/\x7f", "no address of a registry"),
}


@pytest.mark.parametrize("case", REDIRECTS)
def test_redirects(registry: FakeRegistry, store: Store, case: str) -> None:
    target, message = REDIRECTS[case]
    place = target.format(host=registry.host)
    registry.rules.append(("manifests/", lambda h: h.answer(302, Location=place)))
    with pytest.raises(HostileError, match=message):
        store.pull(f"oci://{registry.host}/x")
    assert len(registry.seen) <= 6
