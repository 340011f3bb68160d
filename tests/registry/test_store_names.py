"""Names: what they mean, and what can be none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.api.models import store as open_store
from kvant.builtin import demo_path
from kvant.errors import InputError
from kvant.registry import BadNameError, Store, kvant_home, parse_name, parse_reference
from kvant.registry.auth import find_credentials
from kvant.registry.pull import ollama_folder
from kvant.server.library import Library

FORMS = {
    "llama3.2": ("name", "llama3.2:latest"),
    "llama3.2:1b": ("name", "llama3.2:1b"),
    "library/llama3.2:1b": ("name", "llama3.2:1b"),
    "org/name:tag": ("name", "org/name:tag"),
    "hf://org/repo": ("hub", "hf.co/org/repo:latest"),
    "hf://org/repo:Q4_K_M": ("hub", "hf.co/org/repo:Q4_K_M"),
    "huggingface.co/org/repo:Q4_K_M": ("hub", "hf.co/org/repo:Q4_K_M"),
    "hf://org/repo@refs/pr/1:Q8_0": ("hub", "hf.co/org/repo:refs-pr-1-Q8_0"),
    "hf://org/repo:model.Q8_0.gguf": ("hub", "hf.co/org/repo:model.Q8_0.gguf"),
    "oci://localhost:5000/team/model:v1": ("oci", "localhost:5000/team/model:v1"),
    "localhost/model": ("oci", "localhost/model:latest"),
    "registry.example.com/a/b/c/d:1": ("oci", "registry.example.com/a/b/c/d:1"),
    "oci+http://10.0.0.1/x": ("oci", "10.0.0.1/x:latest"),
    "[::1]:5000/x": ("oci", "[::1]:5000/x:latest"),
}


@pytest.mark.parametrize("text", FORMS)
def test_forms(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse_reference(text)
    assert (found.kind, str(found.name)) == FORMS[text]
    assert parse_name(str(found.name)) == found.name
    assert parse_reference(str(found.name)).kind == found.kind


HOSTILE = (
    *(
        "",
        " ",
        "..",
        ".",
        "../x",
        "a/../b",
        "a//b",
        "/a",
        "a/",
        "a:",
        "a:b:c",
        ":b",
        "a/b/c",
        "a b",
    ),
    *("/etc/passwd", "~root", "a\\..\\b", "a\0b", "a\nb", "a/.b", ".a", "-a", "a/..:b", "é"),
    *("hf://a", "hf://a/b/c", "hf://../b", "hf://a/b:../c", "hf://a/b@../x", "hf://a/b@"),
    *("oci://host", "oci://host/../b", "oci://user@host/b", "oci://host/a:..", "oci:///x"),
    *("oci://ho st/x", "oci://host/Upper", "oci://host:99999999/x", "file:///etc/passwd"),
    *("http://host/x", "x" * 400, "oci://host/a?b", "oci://host/a#b", "%2e%2e/x", "host:5/a/..%2f"),
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile(text: str) -> None:
    with pytest.raises(BadNameError, match="is no name of a model"):
        parse_name(text)


@given(st.text(st.characters(codec="utf-8"), max_size=30) | st.from_regex(r"\A[\w./:@-]{1,30}\Z"))
def test_what_is_a_name_spells_no_path_out(text: str) -> None:
    try:
        name = parse_name(text)
    except BadNameError:
        return
    parts = str(name).replace(":", "/").split("/")
    assert all(part and part.strip(".") and not part.startswith(".") for part in parts)
    assert str(name).isascii()
    assert str(name).isprintable()
    assert parse_name(str(name)) == name


def test_case_makes_no_difference() -> None:
    assert parse_name("Qwen2.5:0.5B").key == parse_name("qwen2.5:0.5b").key


@pytest.mark.parametrize("text", FORMS)
def test_a_reference_is_written_as_it_is_read(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse_reference(text)
    assert parse_reference(str(found)) == found


def test_homes_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_reference("~nobody-here/x.gguf").path == Path("~nobody-here/x.gguf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVANT_HOME", "~nobody-here/kvant")
    monkeypatch.setenv("DOCKER_CONFIG", "~nobody-here/docker")
    monkeypatch.setenv("OLLAMA_MODELS", "~nobody-here/ollama")
    assert kvant_home() == Path("~nobody-here/kvant")
    assert find_credentials("example.com") is None
    assert ollama_folder() == Path("~nobody-here/ollama")
    store = Store(tmp_path / "store")
    with pytest.raises(InputError, match="no such file"):
        store.pull("~nobody-here/x.gguf")
    with pytest.raises(InputError, match="no such file"):
        store.create("m", "FROM ~nobody-here/x")
    with pytest.raises(InputError, match=r"no such file|expected a LoRA adapter's folder"):
        open_store(store.root).create("m", f"FROM {demo_path()}\nADAPTER ~nobody-here/x")
    with pytest.raises(InputError, match="no such file or folder"):
        Library(("m=~nobody-here/x",))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_reference("~/x").path == tmp_path / "x"


def test_paths_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    assert parse_reference("llama").kind == "path"
    assert parse_reference("llama", paths=False).kind == "name"
    assert parse_reference("./no.gguf").kind == "path"
    found = parse_reference("/models/My model (v2).Q4_K_M.gguf")
    assert str(found.name) == "My-model-v2-.Q4_K_M:latest"
