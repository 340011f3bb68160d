"""Names, model cards, and the metadata made of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.small_models import LLAMA, write_folder, write_gguf
from kvant.checkpoint import ModelInfo, Origin, open_checkpoint
from kvant.checkpoint.card import parse_front_matter, read_card
from kvant.checkpoint.info import info_from_folder
from kvant.checkpoint.model_name import file_stem, parse_model_id, size_label, title
from kvant.files.gguf import strings, uint32

#: Real model ids; expected by the GGUF naming convention: organisation, base name, size,
#: fine-tune, version.
NAMES = {
    ("Mistral/Mixtral-8x7B-Instruct-v0.1", 0): ("Mistral", "Mixtral", "8x7B", "Instruct", "v0.1"),
    ("Mixtral-8x7B", 0): (None, "Mixtral", "8x7B", None, None),
    ("Mixtral-v0.1", 0): (None, "Mixtral", None, None, "v0.1"),
    ("Mixtral", 0): (None, None, None, None, None),
    ("NousResearch/Meta-Llama-3-8B", 0): ("NousResearch", "Meta-Llama-3", "8B", None, None),
    ("Qwen2-57B-A14B-Instruct", 0): (None, "Qwen2", "57B-A14B", "Instruct", None),
    ("microsoft/Phi-3-mini-4k-instruct", 4 * 10**9): (
        "microsoft",
        "Phi-3",
        "mini",
        "4k-instruct",
        None,
    ),
    ("delphi-suite/stories-llama2-50k", 50_000): (
        "delphi-suite",
        "stories-llama2",
        "50K",
        None,
        None,
    ),
    ("SparseLLM/relu-100B", 1340 * 10**6): ("SparseLLM", "relu", None, "100b", None),
    ("bigscience/bloom-7b1-petals", 0): ("bigscience", "bloom", "7.1B", "petals", None),
    ("smallcloudai/Refact-1_6B-fim", 0): ("smallcloudai", "Refact", "1.6B", "fim", None),
    ("UCLA-AGI/Gemma-2-9B-It-SPPO-Iter3", 0): ("UCLA-AGI", "Gemma-2", "9B", "It-SPPO", "Iter3"),
    ("mistralai/Mistral-Nemo-Instruct-2407", 0): (
        "mistralai",
        "Mistral-Nemo",
        None,
        "Instruct",
        "2407",
    ),
    ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400): (
        "meta-llama",
        "Llama-3.2",
        "1B",
        "Instruct",
        None,
    ),
    ("Qwen/Qwen3-0.6B", 0): ("Qwen", "Qwen3", "0.6B", None, None),
    ("My model, the good one", 0): (None, None, None, None, None),
    ("./Mixtral-8x7B", 0): (None, "Mixtral", "8x7B", None, None),
    ("", 0): (None, None, None, None, None),
    ("---", 0): (None, None, None, None, None),
}


WORDS = (
    *("Llama", "3", "3.1", "v2", "v0.1", "8B", "70b", "8x7B", "A14B", "7b1", "1_6B", "128k"),
    *("mini", "large", "xl", "chat", "Instruct", "lora", "vision", "DPO", "Q4_0", "f16", "IT"),
    *("hf", "iter3", "2024", "x", "7", "B"),
)


@pytest.mark.parametrize("case", NAMES)
def test_names(case: tuple[str, int]) -> None:
    p = parse_model_id(*case)
    assert (p.organization, p.basename, p.size_label, p.finetune, p.version) == NAMES[case]


@pytest.mark.parity
@settings(max_examples=500, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(WORDS),
        min_size=1,
        max_size=7,
    ),
    parameters=st.sampled_from([0, 10**5, 10**9, 7 * 10**9]),
)
def test_names_as_gguf_py(parts: list[str], parameters: int) -> None:
    gguf = pytest.importorskip("gguf")
    model_id = "owner/" + "-".join(parts)
    expected = gguf.Metadata.get_model_id_components(model_id, parameters)
    p = parse_model_id(model_id, parameters)
    assert (p.full, p.organization, p.basename, p.finetune, p.version, p.size_label) == expected


@pytest.mark.parity
@given(parameters=st.integers(1, 10**13))
def test_size_labels_as_gguf_py(parameters: int) -> None:
    gguf = pytest.importorskip("gguf")
    assert size_label(parameters) == gguf.size_label(parameters, 0, 0, 0)


@given(st.text(max_size=30), st.integers(0, 10**12))
def test_any_name_can_be_taken_apart(text: str, parameters: int) -> None:
    parts = parse_model_id(text, parameters)
    stem = file_stem(parts, "Q4_K_M")
    assert stem
    assert os.path.basename(stem) == stem
    assert not stem.startswith((".", "-"))
    assert stem.isascii()


def test_titles_and_labels() -> None:
    assert title("my-llama-v2-7b") == "My Llama v2 7b"
    assert title("Meta-Llama-3-8B") == "Meta Llama 3 8B"
    assert [size_label(n) for n in (500, 260_032, 6_032_128, 1_235_814_400, 70 * 10**9)] == [
        "0.50K",
        "260K",
        "6.0M",
        "1.2B",
        "70B",
    ]


CARD = """---
# comment
license: llama3.2   # the licence
license_link: "https://example.org/L#1"
language:
- en
- no
tags: [text-generation, 'small', "x"]
pipeline_tag: text-generation
base_model:
  - meta-llama/Llama-3.2-1B
  - https://huggingface.co/Qwen/Qwen3-0.6B
  - https://example.org/other
datasets: HuggingFaceFW/fineweb
model-index:
- name: x
  results:
  - task:
      type: text
extra:
  license: mit
widget:
- text: "license: gpl"
model_creator: null
---
license: not this
"""


def test_front_matter() -> None:
    card = parse_front_matter(CARD)
    assert card == {
        "license": "llama3.2",
        "license_link": "https://example.org/L#1",
        "language": ["en", "no"],
        "tags": ["text-generation", "small", "x"],
        "pipeline_tag": "text-generation",
        "base_model": [
            "meta-llama/Llama-3.2-1B",
            "https://huggingface.co/Qwen/Qwen3-0.6B",
            "https://example.org/other",
        ],
        "datasets": "HuggingFaceFW/fineweb",
    }


@pytest.mark.parametrize(
    "text", ["", "# Title\nlicense: mit\n", "---\nlicense: mit\n", "--- \n", "\n---\na: b\n---\n"]
)
def test_no_front_matter(text: str) -> None:
    assert parse_front_matter(text) == {}


@given(st.text(alphabet="-: \n[]'\"#|>ab\t{}", max_size=80))
def test_any_front_matter_is_read_as_text(text: str) -> None:
    for value in parse_front_matter(f"---\n{text}\n---\n").values():
        assert isinstance(value, str) or all(isinstance(item, str) for item in value)


def test_a_card_that_cannot_be_read_is_no_error(tmp_path: Path) -> None:
    assert read_card(tmp_path) == {}
    (tmp_path / "README.md").mkdir()
    assert read_card(tmp_path) == {}


def test_a_huge_card_is_read_in_part(tmp_path: Path) -> None:
    with (tmp_path / "README.md").open("wb") as file:
        file.write(b"---\nlicense: mit\n---\n\xff\xfe")
        file.truncate(1 << 40)
    assert read_card(tmp_path) == {"license": "mit"}


def test_info_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    config = {"_name_or_path": "owner/My-Llama-1B-Chat-v2"}
    info = info_from_folder(tmp_path, config, 1_100_000_000)
    assert info == ModelInfo(
        name="My Llama 1B Chat v2",
        organization="Owner",
        basename="My-Llama",
        size_label="1B",
        finetune="Chat",
        version="v2",
        license="llama3.2",
        license_link="https://example.org/L#1",
        tags=("text-generation", "small", "x", "text-generation"),
        languages=("en", "no"),
        base_models=(
            Origin(
                "Llama 3.2 1B",
                "Meta Llama",
                None,
                "https://huggingface.co/meta-llama/Llama-3.2-1B",
            ),
            Origin("Qwen3 0.6B", "Qwen", None, "https://huggingface.co/Qwen/Qwen3-0.6B"),
            Origin(repo_url="https://example.org/other"),
        ),
        datasets=(
            Origin(
                "Fineweb",
                "HuggingFaceFW",
                None,
                "https://huggingface.co/datasets/HuggingFaceFW/fineweb",
            ),
        ),
    )
    assert info.file_stem("Q4_K_M") == "My-Llama-1B-Chat-v2-Q4_K_M"


@pytest.mark.parametrize(
    ("folder", "config", "stem"),
    [
        ("tiny-llama-5M", {}, "tiny-llama-5M-Q8_0"),
        ("out", {"_name_or_path": "/home/me/checkpoint"}, "Out-5.0M-Q8_0"),
        ("out", {"_name_or_path": "a/../../b"}, "Out-5.0M-Q8_0"),
        ("out", {"_name_or_path": 7}, "Out-5.0M-Q8_0"),
        (
            "models--org--Tiny-5M-v1/snapshots/0123abcd",
            {"_name_or_path": "b/X-1B"},
            "Tiny-5M-v1-Q8_0",
        ),
    ],
)
def test_where_names_come_from(
    tmp_path: Path, folder: str, config: dict[str, object], stem: str
) -> None:
    path = tmp_path / folder
    path.mkdir(parents=True)
    assert info_from_folder(path, config, 5_000_000).file_stem("Q8_0") == stem


def test_info_survives_gguf(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "my-llama-28K", LLAMA)
    (folder / "README.md").write_text(CARD)
    source = open_checkpoint(folder)
    again = open_checkpoint(write_gguf(tmp_path / "x.gguf", source, source.info.to_gguf()))
    assert again.info == source.info
    plain = open_checkpoint(write_gguf(tmp_path / "Some-Model.gguf", source))
    assert plain.info == ModelInfo(name="Some Model", size_label=source.info.size_label)


def test_odd_descriptions_in_gguf_do_not_matter(tmp_path: Path) -> None:
    source = open_checkpoint(write_folder(tmp_path / "m", LLAMA))
    odd = {
        "general.name": uint32(3),
        "general.tags": uint32(3),
        "general.languages": strings(["en", "\x1b[31m", ""]),
        "general.base_model.count": uint32(2**32 - 1),
        "general.dataset.count": strings([]),
    }
    info = open_checkpoint(write_gguf(tmp_path / "n.gguf", source, odd)).info
    assert info.name == "N"
    assert info.tags == ()
    assert info.languages == ("en", "[31m")
    assert len(info.base_models) == 256
