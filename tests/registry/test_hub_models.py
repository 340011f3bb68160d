"""Hugging Face: which files are a model, and pulling them from a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_registry import FakeRegistry, Handler

import kvant
from kvant.registry import AbsentError, Store
from kvant.registry.hub import choose

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = [
    ".gitattributes",
    "README.md",
    "LICENSE",
    "imatrix.gguf",
    "m-BF16/m-BF16-00001-of-00002.gguf",
    "m-BF16/m-BF16-00002-of-00002.gguf",
    "m.Q4_K_M.gguf",
    "m-Q8_0.gguf",
    "m-UD-Q2_K_XL.gguf",
    "m-IQ4_XS.gguf",
    "mmproj-m-f16.gguf",
    "config.json",
    "tokenizer.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "onnx/model.onnx",
]
FOLDER = [
    *("README.md", "LICENSE", "config.json", "tokenizer.json"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    "model.safetensors.index.json",
]


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (FILES, "Q4_K_M", ["m.Q4_K_M.gguf"]),
        (FILES, "q8_0", ["m-Q8_0.gguf"]),
        (FILES, "iq4_xs", ["m-IQ4_XS.gguf"]),
        (FILES, "UD-Q2_K_XL", ["m-UD-Q2_K_XL.gguf"]),
        (FILES, "Q2_K_XL", ["m-UD-Q2_K_XL.gguf"]),
        (FILES, "bf16", FILES[4:6]),
        (FILES, "m-Q8_0.gguf", ["m-Q8_0.gguf"]),
        (FILES, "", ["m.Q4_K_M.gguf"]),
        (FILES, "safetensors", FOLDER),
        (FOLDER, "", FOLDER),
        (["odd.gguf", "README.md"], "", ["odd.gguf"]),
    ],
)
def test_the_files_of_a_model(names: list[str], wanted: str, found: list[str]) -> None:
    assert sorted(choose(names, wanted, "hf://a/b")) == sorted(found)


@pytest.mark.parametrize(
    ("names", "wanted", "said"),
    [
        (FILES, "Q3_K_M", r"nothing of the kind 'Q3_K_M'.*BF16, IQ4_XS, Q4_K_M, Q8_0"),
        (["a-Q2_K.gguf", "a-Q3_K_S.gguf"], "", "several files.*Q2_K, Q3_K_S"),
        (["pytorch_model.bin"], "", "neither GGUF files nor safetensors"),
    ],
)
def test_no_such_file(names: list[str], wanted: str, said: str) -> None:
    with pytest.raises(AbsentError, match=said):
        choose(names, wanted, "hf://a/b")


class Hub:
    """What a hub answers to huggingface_hub, for one repository."""

    def __init__(self, server: FakeRegistry, files: dict[str, bytes]) -> None:
        self.server, self.files = server, files
        self.token: str | None = None
        self.published: dict[str, bytes] = {}  # whose digest is said, where it is another's
        server.rules += [
            ("/api/models/", self._info),
            ("/org/tiny/resolve/", self._file),
            (" /", lambda h: h.answer(404, b"{}", X_Error_Code="RepoNotFound")),
        ]

    def _refused(self, handler: Handler) -> bool:
        if self.token is None or handler.headers.get("Authorization") == f"Bearer {self.token}":
            return False
        message = "Access to model org/tiny is restricted."
        handler.answer(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message=message)
        return True

    def _info(self, handler: Handler) -> Any:
        if self._refused(handler):
            return True
        if not handler.path.startswith("/api/models/org/tiny"):
            return False
        siblings = [{"rfilename": name} for name in self.files]
        body = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "tags": []}
        if "/tree/" in handler.path:
            body = [  # type: ignore[assignment]
                {"type": "file", "path": n, "size": len(d), "oid": "0" * 40}
                for n, d in self.files.items()
            ]
        handler.answer(200, json.dumps(body).encode(), Content_Type="application/json")
        return True

    def _file(self, handler: Handler) -> Any:
        if self._refused(handler):
            return True
        name = handler.path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in self.files:
            handler.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return True
        data = self.files[name]
        handler.answer(
            200,
            data,
            ETag=f'"{hashlib.sha256(self.published.get(name, data)).hexdigest()}"',
            X_Repo_Commit=COMMIT,
        )
        return True


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(registry: FakeRegistry, tmp_path: Path) -> Command:
    """``command("pull", ...)`` runs kvant in a process that knows only this hub."""

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
        env = {
            **os.environ,
            "PYTHONPATH": path,
            "KVANT_HOME": str(tmp_path / "kvant"),
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": f"http://{registry.host}",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **more,
        }
        env.pop("HF_TOKEN", None) if "HF_TOKEN" not in more else None
        return subprocess.run(
            [sys.executable, "-m", "kvant", *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_a_file_of_a_hub(
    registry: FakeRegistry, command: Command, gguf: Path, tmp_path: Path
) -> None:
    hub = Hub(
        registry,
        {
            "README.md": b"---\nlicense: apache-2.0\n---\n",
            "LICENSE": b"Apache License\nVersion 2.0\n",
            "tiny-Q4_K_M.gguf": gguf.read_bytes(),
            "tiny-Q8_0.gguf": b"another",
        },
    )
    done = command("pull", "hf://org/tiny:Q4_K_M")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hf.co/org/tiny:Q4_K_M\n"
    store = Store(tmp_path / "kvant" / "models")
    local = store.resolve("hf://org/tiny:q4_k_m")
    # The file lies in Hugging Face's cache, once.
    (cached,) = (tmp_path / "hf" / "hub").glob("models--org--tiny/snapshots/*/*.gguf")
    assert os.path.samefile(local.path, cached)
    assert "Apache License" in local.license
    assert store.entry("hf.co/org/tiny:Q4_K_M").license == "apache-2.0"
    assert not registry.asked("Q8_0")
    # What is cached is used without a network; what is not, is said.
    registry.seen.clear()
    store.remove("hf.co/org/tiny:Q4_K_M")
    done = command("pull", "hf://org/tiny:Q4_K_M", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    done = command("pull", "hf://org/tiny:Q4_K_M", "--name", "mine", "--offline")
    assert done.returncode == 0, done.stderr
    assert [e.name for e in store.list()] == ["hf.co/org/tiny:Q4_K_M", "mine:latest"]
    done = command("pull", "hf://org/other", "--offline")
    assert done.returncode == 1
    assert "not in Hugging Face's cache, and nothing may be fetched" in done.stderr
    assert registry.seen == []
    # A gated one wants a token, and gets it.
    hub.token = "hf_good"
    done = command("pull", "hf://org/tiny:Q8_0")
    assert done.returncode == 1
    assert "given only to those who accept its licence" in done.stderr
    assert "Traceback" not in done.stderr
    hub.files["tiny-Q8_0.gguf"] = gguf.read_bytes()
    done = command("pull", "hf://org/tiny:Q8_0", HF_TOKEN="hf_good")
    assert done.returncode == 0, done.stderr


def test_a_folder_of_a_hub(
    registry: FakeRegistry, command: Command, folder: Path, tmp_path: Path
) -> None:
    Hub(registry, {path.name: path.read_bytes() for path in folder.iterdir()})
    done = command("pull", "hf://org/tiny")
    assert done.returncode == 0, done.stderr
    local = Store(tmp_path / "kvant" / "models").resolve("hf.co/org/tiny")
    assert local.path.is_dir()
    assert (local.details.format, local.details.license) == ("safetensors", "apache-2.0")
    done = command("inspect", "hf.co/org/tiny")
    assert done.returncode == 0, done.stderr
    done = command("pull", "hf://org/nothing")
    assert done.returncode == 1
    assert "no such repository, or it is private" in done.stderr


def test_an_encoder_of_a_hub(
    registry: FakeRegistry, command: Command, folder: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    pooling = b'{"pooling_mode_mean_tokens": true}'
    Hub(registry, {"1_Pooling/config.json": pooling, **files})  # sorted, as hubs list them
    done = command("pull", "hf://org/tiny")
    assert done.returncode == 0, done.stderr
    path = Store(tmp_path / "kvant" / "models").resolve("hf.co/org/tiny").path
    assert (path / "1_Pooling" / "config.json").read_bytes() == pooling
    assert (path / "config.json").read_bytes() == files["config.json"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_hub_that_sends_another_file(
    registry: FakeRegistry, command: Command, folder: Path, gguf: Path, tmp_path: Path, kind: str
) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    name = "model.safetensors"
    if kind == "file":
        files, name = {"tiny-Q8_0.gguf": gguf.read_bytes()}, "tiny-Q8_0.gguf"
    hub = Hub(registry, files)
    hub.published[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    said = hashlib.sha256(hub.published[name]).hexdigest()
    done = command("pull", "hf://org/tiny")
    assert done.returncode == 1
    assert f"{name!r} should have the SHA-256 {said}, as the hub says" in done.stderr
    assert "Traceback" not in done.stderr
    assert Store(tmp_path / "kvant" / "models").list() == []
