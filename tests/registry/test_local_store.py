"""The store on disk: in place, listed whole or not at all, rebuilt, swept."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import kvant
from kvant.errors import FileFormatError, InputError, UsageError
from kvant.registry import (
    BadNameError,
    HostileError,
    ModelfileError,
    NotInStoreError,
    Step,
    Store,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in this file may open a connection, or ask for a host's address."""

    def refuse(*arguments: Any, **settings: Any) -> NoReturn:
        raise AssertionError(f"a connection: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def own_bytes(store: Store) -> int:
    """Bytes the store takes on disk that no file elsewhere shares."""
    return sum(
        status.st_size
        for path in store.root.rglob("*")
        if path.is_file() and not path.is_symlink() and (status := path.stat()).st_nlink == 1
    )


def test_looking_makes_nothing(store: Store) -> None:
    assert store.list() == []
    assert "x" not in store
    assert store.verify().problems == ()
    assert store.collect().blobs == 0
    with pytest.raises(NotInStoreError, match=r"no model 'x:latest' in the store. `kvant pull"):
        store.resolve("x")
    with pytest.raises(NotInStoreError):
        store.remove("x")
    assert not store.root.exists()


def test_a_file_is_used_in_place(store: Store, gguf: Path) -> None:
    entry = store.pull(str(gguf), name="tiny:1")
    assert (entry.name, entry.format, entry.family) == ("tiny:1", "gguf", "llama")
    assert (entry.quantization, entry.license) == ("BF16", "apache-2.0")
    assert own_bytes(store) < 100_000
    local = store.resolve("TINY:1")
    assert local.path.suffix == ".gguf"
    assert os.path.samefile(local.path, gguf)
    assert entry.size == local.size
    with kvant.load(local.path) as model:
        assert model.generate("Once", max_tokens=2).text is not None
    assert store.verify().problems == ()
    # The layout is OCI's.
    assert json.loads((store.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.root / "index.json").read_text())
    (listed,) = index["manifests"]
    assert listed["annotations"]["org.opencontainers.image.ref.name"] == "tiny:1"
    manifest = json.loads((store.root / "blobs/sha256" / listed["digest"][7:]).read_text())
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.kvant.model.v1"
    for blob in (manifest["config"], *manifest["layers"]):
        data = (store.root / "blobs/sha256" / blob["digest"][7:]).read_bytes()
        assert len(data) == blob["size"]
        assert hashlib.sha256(data).hexdigest() == blob["digest"][7:]


def test_a_folder_is_used_in_place(store: Store, folder: Path) -> None:
    entry = store.pull(str(folder))
    assert (entry.name, entry.format) == ("Tiny:latest", "safetensors")
    assert entry.license == "apache-2.0"
    assert own_bytes(store) < 100_000
    local = store.resolve("tiny")
    assert local.path.is_dir()
    names = {p.name for p in local.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    source = kvant.inspect(str(folder))
    found = kvant.inspect(local.path)
    assert (found.parameters, found.info.name) == (source.parameters, source.info.name)


def test_another_disk_is_referred_to(
    store: Store, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def fails(source: Any, *arguments: Any, **settings: Any) -> None:
        if not str(source).startswith("/proc/"):  # how new files get their names
            raise OSError(18, "Invalid cross-device link")
        link(source, *arguments, **settings)

    mine = tmp_path / "mine.gguf"
    mine.write_bytes(gguf.read_bytes())
    monkeypatch.setattr(os, "link", fails)
    monkeypatch.setattr("kvant.registry.links._clone", fails)
    entry = store.pull(str(mine), name="far")
    assert own_bytes(store) < 100_000
    assert [e.name for e in store.list()] == [entry.name]
    assert store.verify().problems == ()
    mine.unlink()
    assert store.list() == []  # no half model is listed
    assert store.incomplete() == ["far:latest"]
    with pytest.raises(InputError, match=r"mine\.gguf, which it was used from in place is gone"):
        store.resolve("far")
    assert len(store.verify().problems) == 1


def test_names_copies_and_removal(store: Store, gguf: Path, folder: Path) -> None:
    first = store.pull(str(gguf), name="a")
    store.pull(str(folder), name="b")
    store.copy("a", "org/c:2")
    assert [e.name for e in store.list()] == ["a:latest", "b:latest", "org/c:2"]
    assert store.entry("org/c:2").digest == first.digest
    with pytest.raises(NotInStoreError):
        store.copy("nothing", "d")
    with pytest.raises(BadNameError):
        store.copy("a", "../d")
    with pytest.raises(NotInStoreError):
        store.remove("b", "nothing")
    assert "b" in store  # all or none
    store.remove("a")
    assert store.resolve("org/c:2").path.exists()
    store.remove("B", "org/c:2")
    assert store.list() == []
    assert list((store.root / "blobs" / "sha256").iterdir()) == []
    assert list((store.root / "views").iterdir()) == []
    assert gguf.exists()
    assert (folder / "model.safetensors").exists()


def test_removal_waits_for_a_sweep(store: Store, gguf: Path) -> None:
    store.pull(str(gguf), name="a")
    removing = threading.Thread(target=store.remove, args=("a",))
    with store.layout.alone() as free:
        assert free
        removing.start()
        removing.join(0.3)
        assert "a" in store
    removing.join(10)
    assert store.list() == []


def test_a_model_that_goes_while_it_is_looked_up(
    store: Store, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pull(str(gguf), name="a")
    monkeypatch.setattr(Store, "_rows", lambda self: [])
    with pytest.raises(NotInStoreError, match="There is no model 'a:latest'"):
        store.entry("a")


def test_the_index_is_read_once(store: Store, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.pull(str(gguf), name="a")
    opened: list[str] = []
    real = os.open

    def watched(path: Any, *arguments: Any, **settings: Any) -> int:
        opened.append(str(path))
        return real(path, *arguments, **settings)

    monkeypatch.setattr(os, "open", watched)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("without a bound"))
    assert len(store.layout.models()[1]) == 1
    assert str(store.root / "index.json") not in opened
    monkeypatch.setattr("kvant.registry.layout._MOST_INDEX", 100)
    with pytest.raises(FileFormatError, match="at most 100 bytes"):
        store.layout.models()


def test_files_sent_under_one_name(store: Store, gguf: Path) -> None:
    data = gguf.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    store.add_blob(digest, [data])
    with pytest.raises(HostileError, match=r"2 files would be called 'a-b\.gguf'"):
        store.create("m", "SYSTEM x", files={"a b.gguf": digest, "a-b.gguf": digest})


def test_the_database_is_only_a_copy(store: Store, gguf: Path) -> None:
    store.pull(str(gguf), name="a")
    whole = store.list()
    database = store.root / "index.sqlite"
    database.unlink()
    assert store.list() == whole
    database.write_bytes(b"no database at all" * 100)
    assert store.list() == whole
    # Another program changes the layout: the database follows.
    index = store.root / "index.json"
    body = json.loads(index.read_text())
    body["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = "renamed:1"
    index.write_text(json.dumps(body))
    assert [e.name for e in store.list()] == ["renamed:1"]
    index.write_text("{")
    with pytest.raises(FileFormatError, match="Move it away and pull the models again"):
        store.list()


def test_damage_is_found(store: Store, gguf: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(gguf.read_bytes())
    store.pull(str(copy), name="a")
    with copy.open("r+b") as file:  # the same file by a hard link
        file.seek(-1, 2)
        file.write(b"\xff")
    (problem,) = store.verify().problems
    assert problem.startswith("a:latest: blob sha256:")
    assert "its content is not what its name says" in problem
    with copy.open("ab") as file:
        file.write(b"more")
    assert store.list() == []
    config = store.manifest("a").config
    path = store.layout.blob(config.digest)
    path.write_bytes(path.read_bytes().replace(b"gguf", b"ggxx"))
    with pytest.raises(FileFormatError, match="not what its name says"):
        store.show("a")


def test_made_by_a_modelfile(store: Store, gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to(gguf)
    text = (
        "FROM ./m.gguf\nSYSTEM Be brief.\nPARAMETER temperature 0.2\nPARAMETER stop A\n"
        'MESSAGE user hi\nMESSAGE assistant ho\nLICENSE """MIT License\n..."""\n'
        "TEMPLATE {% for m in messages %}{{ m.content }}{% endfor %}\n"
    )
    entry = store.create("mine", text, folder=tmp_path)
    assert entry.license == "mit"
    local = store.resolve("mine")
    assert local.system == "Be brief."
    assert local.parameters == {"temperature": 0.2, "stop": ["A"]}
    assert local.license == "MIT License\n..."
    assert [t["role"] for t in local.conversation([{"role": "user", "content": "x"}])] == [
        *("system", "user", "assistant", "user")
    ]
    spoken = local.conversation([{"role": "system", "content": "mine"}])
    assert [t["content"] for t in spoken] == ["mine", "hi", "ho"]
    # Shown as a Modelfile and made again, it is the same to the last byte.
    again = store.create("again", str(store.show("mine").modelfile))
    assert again.digest == entry.digest
    # What is said anew takes the place of what was there; parameters are joined.
    child = store.create("child", "FROM mine\nPARAMETER top_k 5\nSYSTEM Be long.")
    assert store.resolve("child").parameters == {"temperature": 0.2, "stop": ["A"], "top_k": 5}
    assert store.resolve("child").system == "Be long."
    assert child.license == "mit"
    assert own_bytes(store) < 100_000


def test_used_by_name(store: Store, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_HOME", str(store.root.parent))
    named = Store(store.root.parent / "models")
    named.create(
        "mine",
        f"FROM {gguf}\nPARAMETER temperature 0\nPARAMETER num_predict 3\nPARAMETER num_ctx 64\n"
        "TEMPLATE {% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}\nSYSTEM yes\n",
    )
    with kvant.load("mine") as model:
        assert model.context == 64
        assert model.default_sampling.temperature == 0
        assert model.generate("a").usage.completion_tokens == 3
        asked = model.chat([{"role": "user", "content": "b"}])
        # "syes" and "ub", by the template.
        assert asked.usage.prompt_tokens == len(model.tokenizer.encode("syesub", add_special=False))
    assert kvant.inspect("mine").parameters == kvant.inspect(gguf).parameters


def test_quantised_into_the_store(store: Store, folder: Path) -> None:
    steps: list[Step] = []
    entry = store.create("q", f"FROM {folder}\nSYSTEM hi", quantize="Q4_0", progress=steps.append)
    assert (entry.format, entry.quantization, entry.license) == ("gguf", "Q4_0", "apache-2.0")
    assert any(s.status == "quantizing model to Q4_0" and s.done == s.total > 0 for s in steps)
    assert steps[-1].status == "success"
    local = store.resolve("q")
    assert local.system == "hi"
    with kvant.load(local.path) as model:
        model.generate("a", max_tokens=1)
    # From a model that is there, too; and the same bytes both ways.
    store.pull(str(folder), name="base")
    assert store.create("r", "FROM base\nSYSTEM hi", quantize="q4_0").digest == entry.digest
    assert not list((store.root / "work").iterdir())
    with pytest.raises(UsageError):
        store.create("s", "FROM base", quantize="Q9_X")
    with pytest.raises(UsageError, match="cannot quantise"):
        Store(store.root).create("s", "FROM base", quantize="Q4_0")
    with pytest.raises(UsageError, match="no recipe's name"):
        store.create("s", "FROM base", quantize="../../recipe.json")
    assert "s" not in store


def test_from_blobs_that_were_sent(store: Store, gguf: Path, folder: Path) -> None:
    data = gguf.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert not store.has_blob(digest)
    with pytest.raises(HostileError, match="Nothing was kept"):
        store.add_blob(digest, [data[:-1], b"x"])
    assert not store.has_blob(digest)
    store.add_blob(digest, (data[i : i + 1000] for i in range(0, len(data), 1000)))
    entry = store.create("sent", "", files={"model.gguf": digest}, paths=False)
    assert entry.family == "llama"
    assert store.create("sent2", f"FROM @{digest}", paths=False).digest
    for name in ("../up.gguf", "/abs.gguf", "a/b/c.gguf", ".hidden.gguf"):
        with pytest.raises(HostileError):
            store.create("bad", "", files={name: digest}, paths=False)
    with pytest.raises(HostileError):
        store.create("bad", "", files={"m.gguf": "sha256:../../../etc/passwd"}, paths=False)
    files = {}
    for path in folder.iterdir():
        content = path.read_bytes()
        files[path.name] = f"sha256:{hashlib.sha256(content).hexdigest()}"
        store.add_blob(files[path.name], [content])
    made = store.create("whole", "", files=files, paths=False, quantize="Q8_0")
    assert (made.format, made.quantization) == ("gguf", "Q8_0")


def test_no_path_from_a_request(store: Store, gguf: Path, folder: Path) -> None:
    for base in (str(gguf), "./x.gguf", "/etc/passwd", "~/x.gguf"):
        with pytest.raises(UsageError):
            store.create("bad", f"FROM {base}", paths=False)
        with pytest.raises(UsageError):
            store.pull(base, paths=False)
    store.pull(str(gguf), name="a")
    with pytest.raises(UsageError, match="ADAPTER cannot name a file"):
        store.create("bad", f"FROM a\nADAPTER {folder}", paths=False)


def test_mistakes_in_creating(store: Store, tmp_path: Path, gguf: Path) -> None:
    with pytest.raises(ModelfileError, match="Modelfile:1"):
        store.create("x", "HELLO")
    with pytest.raises(NotInStoreError):
        store.create("x", "FROM nothing-there")
    with pytest.raises(InputError, match=r"no\.gguf: no such file or folder; FROM names it"):
        store.create("x", "FROM ./no.gguf", folder=tmp_path)
    with pytest.raises(InputError, match="expected a LoRA adapter's folder"):
        store.create("x", f"FROM {gguf}\nADAPTER ./none", folder=tmp_path)
    (tmp_path / "bad.gguf").write_bytes(b"GGUFxxxx")
    with pytest.raises(InputError, match="damaged"):
        store.create("x", "FROM ./bad.gguf", folder=tmp_path)
    with pytest.raises(BadNameError):
        store.create("../x", f"FROM {gguf}")
    assert store.list() == []


def test_an_adapter_is_merged(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvant.files.safetensors import write_safetensors

    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["down_proj"]})
    )
    module = "base_model.model.model.layers.0.mlp.down_proj"
    write_safetensors(
        lora / "adapter_model.safetensors",
        {
            f"{module}.lora_A.weight": np.ones((2, 512), np.float32),
            f"{module}.lora_B.weight": np.ones((256, 2), np.float32),
        },
    )
    store.pull(str(folder), name="base")
    store.create("tuned", "FROM base\nADAPTER ./lora", folder=tmp_path)
    local = store.resolve("tuned")
    assert local.adapter is not None
    assert {p.name for p in local.adapter.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors")
    }
    # Who looks at the files alone would measure another model.
    monkeypatch.setattr("kvant.api.models.Store", lambda: store)
    for measure in (kvant.evaluate, kvant.verify):
        with pytest.raises(UsageError, match="tuned: has an adapter, which would be left out"):
            measure("tuned")
    plain = store.create("plain", "FROM base", quantize="Q8_0")
    merged = store.create("merged", "FROM tuned", quantize="Q8_0")
    assert merged.digest != plain.digest
    assert store.resolve("merged").adapter is None


def test_many_threads_and_one_store(store: Store, gguf: Path, folder: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            mine = Store(store.root)
            for turn in range(4):
                mine.pull(str(gguf if number % 2 else folder), name=f"m{number}:{turn}")
                mine.list()
                mine.remove(f"m{number}:{turn}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.list() == []
    store.collect()
    assert store.verify().unused == 0
