"""Names: what they mean, and what can be none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.registry import BadNameError, parse_name, parse_reference

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


def test_paths_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    assert parse_reference("llama").kind == "path"
    assert parse_reference("llama", paths=False).kind == "name"
    assert parse_reference("./no.gguf").kind == "path"
    found = parse_reference("/models/My model (v2).Q4_K_M.gguf")
    assert str(found.name) == "My-model-v2-.Q4_K_M:latest"
