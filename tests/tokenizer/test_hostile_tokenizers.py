"""Hostile files: one sentence each, no traceback of another kind, little time and memory."""

from __future__ import annotations

import copy
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.errors import FileFormatError, KvantError, UnsupportedError, UsageError
from kvant.files.gguf import (
    GgufFile,
    Value,
    ValueType,
    array,
    boolean,
    float32,
    string,
    strings,
    uint32,
)
from kvant.tokenizer import build, from_folder, from_metadata, to_hf_json
from kvant.tokenizer.byte_alphabet import BYTE_CHARACTERS
from kvant.tokenizer.sentencepiece import read_sentencepiece

from .conftest import added_token, byte_level_json, sentencepiece_json, write_folder

RELAXED = [HealthCheck.function_scoped_fixture]
Make = Callable[[Mapping[str, Value]], GgufFile]


def _model(**changes: Any) -> dict[str, Any]:
    content = byte_level_json()
    content["model"].update(changes)
    return content


def _vocab(**changes: Any) -> dict[str, Any]:
    return _model(vocab={**byte_level_json()["model"]["vocab"], **changes})


def _added(*entries: object) -> dict[str, Any]:
    return byte_level_json(added_tokens=list(entries))


SPM = sentencepiece_json()
TOKENIZERS: dict[str, object] = {
    "a list": [],
    "a number": 5,
    "nothing in it": {},
    "no model": {"pre_tokenizer": byte_level_json()["pre_tokenizer"]},
    "a model that is a list": byte_level_json(model=[]),
    "no vocabulary": _model(vocab=None),
    "an empty vocabulary": _model(vocab={}),
    "a vocabulary as a list": _model(vocab=["a", "b"]),
    "an id that is a text": _vocab(x="7"),
    "an id that is true": _vocab(x=True),
    "an id that is a fraction": _vocab(x=7.0),
    "an id that is null": _vocab(x=None),
    "a negative id": _vocab(x=-1),
    "an id beyond the model": _vocab(x=300),
    "a huge id": _vocab(x=10**30),
    "an id twice": _vocab(x=7),
    "merges that are a text": _model(merges="h e"),
    "merges that are null": _model(merges=None),
    "a merge of one token": _model(merges=["h"]),
    "a merge of nothing": _model(merges=[""]),
    "a merge of a space": _model(merges=[" "]),
    "a merge with nothing on the right": _model(merges=["h "]),
    "a merge of three": _model(merges=[["h", "e", "l"]]),
    "a merge of numbers": _model(merges=[[1, 2]]),
    "merges of both kinds": _model(merges=["h e", ["l", "l"]]),
    "a merge that is null": _model(merges=[None]),
    "a merge of a token that is not there": _model(merges=["h zz"]),
    "a merge into a token that is not there": _model(merges=["z z"]),
    "a merge with a space inside": _model(merges=[["h ", "e"]]),
    "added tokens that are an object": byte_level_json(added_tokens={"a": 1}),
    "an added token that is a text": _added("x"),
    "an added token without text": _added({"id": 270}),
    "an added token with a number for text": _added({"id": 270, "content": 7}),
    "an added token without id": _added({"content": "x"}),
    "an added token with a negative id": _added(added_token(-1, "x")),
    "an added token with a text for id": _added({"id": "270", "content": "x"}),
    "an added token with a fraction for id": _added({"id": 270.0, "content": "x"}),
    "an added token that is another in the vocabulary": _added(added_token(5, "x")),
    "an added token with two ids": _added(added_token(270, "hello")),
    "added tokens with one text": _added(added_token(270, "x"), added_token(271, "x")),
    "an added token with an enormous text": _added(added_token(270, "x" * 70_000)),
    "a pre-tokenizer within itself": byte_level_json(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 60}]
            * 60,
        }
    ),
    "a normalizer that is a number": byte_level_json(normalizer={"type": 7}),
    "normalizers that are a text": byte_level_json(
        normalizer={"type": "Sequence", "normalizers": "NFC"}
    ),
    "a post-processor of no kind": byte_level_json(post_processor={"a": 1}),
    "no byte tokens": sentencepiece_json(
        model={**SPM["model"], "vocab": {"a": 0, "▁": 1}, "merges": []}
    ),
    "a token too long for its kind": sentencepiece_json(
        model={**SPM["model"], "vocab": {**SPM["model"]["vocab"], "x" * 300: 280}}
    ),
    "merges in an order of no scores": sentencepiece_json(
        model={**SPM["model"], "merges": [["▁a", "b"], ["a", "b"], ["▁", "ab"]]}
    ),
    "a merge of one piece": sentencepiece_json(model={**SPM["model"], "merges": ["ab"]}),
    "pieces that are missing": sentencepiece_json(model={**SPM["model"], "merges": [["▁", "zz"]]}),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer_json(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "hf", tokenizer=TOKENIZERS[name])
    with pytest.raises((FileFormatError, UnsupportedError)) as caught:
        from_folder(folder, 300)
    _one_sentence(caught.value, tmp_path)


def _one_sentence(error: KvantError, folder: Path) -> None:
    message = str(error)
    assert str(folder) in message
    assert message.isprintable()
    assert len(message) < 1200


JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2**70, "", "x", "▁", " ", "\x00", [], {}, [[]], [{}]),
    *([None], ["x"], [["a", "b", "c"]], {"a": None}, {"type": None}, {"type": []}, {"id": 1}),
    *({"type": "Sequence"}, {"type": "ByteLevel"}, {"type": "Split"}, {"type": "BPE"}),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(value, (dict, list)):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(p for k, v in list(inner)[:12] for p in _places(v, (*path, k)))]


@settings(max_examples=400, deadline=None, suppress_health_check=RELAXED)
@given(st.data(), st.sampled_from([byte_level_json, sentencepiece_json]))
def test_junk_anywhere_in_tokenizer_json(tmp_path: Path, data: Any, make: Any) -> None:
    content = make(
        tokenizer_config={
            "bos_token": "<|end|>",
            "added_tokens_decoder": {"1": added_token(1, "a")},
        }
    )
    config = content.pop("tokenizer_config")
    files = {"tokenizer": content, "tokenizer_config": config}
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in _places(files) if len(p) > 1]))
        at: Any = files
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = copy.deepcopy(data.draw(st.sampled_from(JUNK)))
    try:
        build(from_folder(write_folder(tmp_path / "hf", **files), 300))
    except KvantError as error:
        _one_sentence(error, tmp_path)


BESIDE: dict[str, dict[str, Any]] = {
    "a list for a config": {"tokenizer_config": []},
    "text for decoders": {"tokenizer_config": {"added_tokens_decoder": "x"}},
    "a decoder by name": {"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "y"}}}},
    "a decoder by a huge number": {
        "tokenizer_config": {"added_tokens_decoder": {"9" * 5000: {"content": "y"}}}
    },
    "a decoder by other digits": {
        "tokenizer_config": {"added_tokens_decoder": {"٣": {"content": "y"}}}
    },
    "a decoder without text": {"tokenizer_config": {"added_tokens_decoder": {"270": {}}}},
    "a template that is a number": {"tokenizer_config": {"chat_template": 7}},
    "a template list of texts": {"tokenizer_config": {"chat_template": ["x"]}},
    "a template without name": {"tokenizer_config": {"chat_template": [{"template": "x"}]}},
    "a template of a number": {
        "tokenizer_config": {"chat_template": [{"name": "a", "template": 1}]}
    },
    "too many templates": {
        "tokenizer_config": {"chat_template": [{"name": "a", "template": "b"}] * 65}
    },
    "a template too long": {"tokenizer_config": {"chat_template": "x" * 400_001}},
    "a template file too long": {"chat_template.jinja": b"x" * 1_600_001},
    "a template file that is not UTF-8": {"chat_template.jinja": b"\xff\xfe"},
    "a config that is not JSON": {"tokenizer_config.json": b"{"},
    "a config that is not UTF-8": {"tokenizer_config.json": b'{"a": "\xff"}'},
    "a config with a key twice": {"tokenizer_config.json": b'{"a": 1, "a": 2}'},
    "a config too deep": {"tokenizer_config.json": b'{"a":' * 200 + b"1" + b"}" * 200},
    "half a surrogate pair": {"tokenizer_config.json": b'{"chat_template": "\\ud800"}'},
}


@pytest.mark.parametrize("name", BESIDE)
def test_files_beside(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "hf", tokenizer=byte_level_json(), **BESIDE[name])
    with pytest.raises(FileFormatError) as caught:
        from_folder(folder, 300)
    _one_sentence(caught.value, tmp_path)


@pytest.mark.parametrize("size", [0, -1, 10**9])
def test_sizes_are_checked_before_anything_is_made(tmp_path: Path, size: int) -> None:
    with pytest.raises(UnsupportedError, match="vocab_size"):
        from_folder(tmp_path, size)


# -- tokenizer.model -------------------------------------------------------------------------


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _number(len(content)) + content


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _token(text: bytes, score: float = 0.0, kind: int = 1) -> bytes:
    return _field(1, _field(1, text) + b"\x15" + struct.pack("<f", score) + b"\x18" + _number(kind))


BPE = _field(2, b"\x18\x02")
GOOD = _token(b"<unk>", kind=2) + _token(b"a") + _token("▁".encode()) + BPE

MODELS: dict[str, bytes] = {
    "nothing": b"",
    "text": b"IQ== 0\nIg== 1\nIw== 2\n",
    "JSON": b'{"model": {}}',
    "zeros": bytes(100),
    "ones": b"\xff" * 100,
    "a number without end": b"\x80" * 50,
    "a number too long": b"\x08" + b"\xff" * 9 + b"\x7f",
    "a length beyond the file": b"\x0a\xff\xff\xff\xff\x0f" + GOOD,
    "a length beyond everything": b"\x0a" + b"\xff" * 9 + b"\x01" + GOOD,
    "a length beyond its token": _field(1, b"\x0a\x7fabc") + BPE,
    "a group": b"\x0b\x0c" + GOOD,
    "an unknown wire type": b"\x0f" + GOOD,
    "field zero": b"\x02\x00" + GOOD,
    "a score cut short": _field(1, b"\x15\x00\x00") + BPE,
    "a type that is none": _token(b"a", kind=7) + BPE,
    "a huge type": _token(b"a", kind=2**63) + BPE,
    "a token that is not UTF-8": _token(b"\xff") + BPE,
    "a token twice": GOOD + _token(b"a"),
    "a score that is no number": GOOD + _token(b"b", float("nan")),
    "an infinite score": GOOD + _token(b"b", float("inf")),
    "many fields in a token": _field(1, b"\x0a\x00" * 50) + BPE,
    "no tokens": BPE,
    "a unigram model": GOOD.replace(BPE, b""),
    "a model of words": GOOD.replace(BPE, _field(2, b"\x18\x03")),
    "a model of an unknown kind": GOOD.replace(BPE, _field(2, b"\x18\x63")),
    "spaces after words": GOOD + _field(2, b"\xc0\x01\x01"),
    "spaces as they are": GOOD + _field(3, b"\x28\x00"),
}


@pytest.mark.parametrize("name", MODELS)
def test_tokenizer_model(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "hf", **{"tokenizer.model": MODELS[name]})
    with pytest.raises((FileFormatError, UnsupportedError)) as caught:
        from_folder(folder, 300)
    _one_sentence(caught.value, tmp_path)


def test_the_good_model_is_good(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", **{"tokenizer.model": GOOD})
    assert from_folder(folder, 4).tokens == ["<unk>", "a", "▁", "[PAD3]"]


@settings(max_examples=300, deadline=None, suppress_health_check=RELAXED)
@given(st.binary(max_size=60), st.integers(0, len(GOOD)), st.integers(0, 60))
def test_damaged_models(tmp_path: Path, noise: bytes, at: int, cut: int) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(GOOD[:at] + noise + GOOD[at + cut :])
    try:
        read_sentencepiece(path)
    except (FileFormatError, UnsupportedError) as error:
        _one_sentence(error, tmp_path)


# -- GGUF metadata ---------------------------------------------------------------------------

TOKENS = [*BYTE_CHARACTERS, "he"]


def _metadata(**changes: Value | None) -> dict[str, Value]:
    base: dict[str, Value | None] = {
        "model": string("gpt2"),
        "pre": string("gpt-2"),
        "tokens": strings(TOKENS),
        "token_type": array(ValueType.INT32, [1] * 257),
        "merges": strings(["h e"]),
        **changes,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in base.items() if v is not None}


def _scores(*values: float, **changes: Value | None) -> dict[str, Value]:
    scores = array(ValueType.FLOAT32, [*values, *[0.0] * (257 - len(values))])
    return _metadata(model=string("llama"), merges=None, scores=scores, **changes)


METADATA: dict[str, dict[str, Value]] = {
    "nothing": {},
    "no tokens": _metadata(tokens=None),
    "no merges": _metadata(merges=None),
    "an empty vocabulary": _metadata(tokens=strings([]), token_type=None),
    "tokens that are numbers": _metadata(tokens=array(ValueType.INT32, [1, 2])),
    "tokens that are a text": _metadata(tokens=string("a")),
    "a model that is a number": _metadata(model=uint32(1)),
    "an unknown model": _metadata(model=string("t5\x1b[31m")),
    "an unknown pre-tokenizer": _metadata(pre=string("made-up\n")),
    "a pre-tokenizer that is a number": _metadata(pre=uint32(3)),
    "too few types": _metadata(token_type=array(ValueType.INT32, [1] * 256)),
    "too many types": _metadata(token_type=array(ValueType.INT32, [1] * 258)),
    "a type that is none": _metadata(token_type=array(ValueType.INT32, [9] * 257)),
    "a negative type": _metadata(token_type=array(ValueType.INT32, [-1] * 257)),
    "types beyond 32 bits": _metadata(token_type=array(ValueType.UINT64, [2**40 + 9] * 257)),
    "types that are fractions": _metadata(token_type=array(ValueType.FLOAT32, [1.0] * 257)),
    "types that are texts": _metadata(token_type=strings(["1"] * 257)),
    "a token twice": _metadata(tokens=strings([*TOKENS[:-1], "a"])),
    "a merge of one": _metadata(merges=strings(["he"])),
    "a merge of nothing": _metadata(merges=strings([""])),
    "a merge of a token that is not there": _metadata(merges=strings(["h zz"])),
    "a merge into a token that is not there": _metadata(merges=strings(["h h"])),
    "merges that are numbers": _metadata(merges=array(ValueType.INT32, [1])),
    "a bos beyond the end": _metadata(bos_token_id=uint32(257)),
    "an eos of four billion": _metadata(eos_token_id=uint32(2**32 - 1)),
    "a bos that is a text": _metadata(bos_token_id=string("1")),
    "a flag that is a number": _metadata(add_bos_token=uint32(1)),
    "a bos to add, but none": _metadata(add_bos_token=boolean(True)),
    "a template that is a number": {**_metadata(), "tokenizer.chat_template": float32(1)},
    "a named template that is a number": {**_metadata(), "tokenizer.chat_template.a": uint32(1)},
    "a score that is no number": _scores(float("nan")),
    "an infinite score": _scores(0.0, float("-inf")),
    "too few scores": {**_scores(), "tokenizer.ggml.scores": array(ValueType.FLOAT32, [0.0])},
    "scores that are texts": {**_scores(), "tokenizer.ggml.scores": strings(["0"] * 257)},
    "a token too long": _scores(tokens=strings([*TOKENS[:-1], "x" * 5000])),
    "a token far too long": _metadata(tokens=strings([*TOKENS[:-1], "x" * 70_000])),
}


@pytest.mark.parametrize("name", METADATA)
def test_gguf_metadata(gguf_of: Make, tmp_path: Path, name: str) -> None:
    file = gguf_of(METADATA[name])
    with pytest.raises((FileFormatError, UnsupportedError)) as caught:
        build(from_metadata(file))
    _one_sentence(caught.value, tmp_path)


def test_empty_tokens_are_renamed(gguf_of: Make) -> None:
    tokens = [*TOKENS, "", ""]
    file = gguf_of(_metadata(tokens=strings(tokens), token_type=None))
    tokenizer = build(from_metadata(file))
    assert tokenizer.encode("he") == [256]
    assert "[EMPTY_257]" in to_hf_json(tokenizer.definition)["model"]["vocab"]


def test_a_merge_given_twice_keeps_its_first_rank(gguf_of: Make) -> None:
    tokens = [*TOKENS, "el"]
    merges = ["h e", "e l", "h e"]
    file = gguf_of(_metadata(tokens=strings(tokens), token_type=None, merges=strings(merges)))
    assert build(from_metadata(file)).encode("hel") == [256, tokens.index("l")]


def test_what_is_not_text_or_a_token(gguf_of: Make) -> None:
    tokenizer = build(from_metadata(gguf_of(_metadata())))
    with pytest.raises(UsageError, match="half a surrogate pair"):
        tokenizer.encode("a\ud800")
    for token in (-1, 257):
        with pytest.raises(UsageError, match="ids 0 to 256"):
            tokenizer.decode([token])
    assert tokenizer.decode([255, 254]) == "\ufffd\ufffd"
    by_score = build(from_metadata(gguf_of(_scores(tokens=strings(["<0x61>", *TOKENS[1:]])))))
    with pytest.raises(UsageError, match="half a surrogate pair"):
        by_score.encode("a\ud800", add_special=False)


# -- time and memory -------------------------------------------------------------------------


def _long_text() -> bytes:
    vocab = '{"' + "a" * 32_000_000 + '😀": 0}'
    return ('{"pre_tokenizer": {"type": "ByteLevel"}, "model": {"vocab": ' + vocab + "}}").encode()


def _many(item: str, count: int) -> bytes:
    return ('{"model": [' + ",".join([item] * count) + "]}").encode()


HEAVY: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty lists": ("tokenizer.json", lambda: _many("[]", 999_000)),
    "empty objects": ("tokenizer.json", lambda: _many("{}", 999_000)),
    "numbers": ("tokenizer.json", lambda: _many("1.5", 1_990_000)),
    "too many values": ("tokenizer.json", lambda: _many("1", 5_000_000)),
    "brackets": ("tokenizer.json", lambda: b"[" * 20_000_000),
    "one long text": ("tokenizer.json", _long_text),
    "tokens without end": (
        "tokenizer.json",
        lambda: json.dumps(_model(vocab={str(i): i for i in range(650_000)})).encode(),
    ),
    "merges without end": (
        "tokenizer.json",
        lambda: json.dumps(_model(merges=["h e"] * 1_100_000)).encode(),
    ),
    "pieces without end": ("tokenizer.model", lambda: b"\x0a\x00" * 7_900_000),
    "fields without end": ("tokenizer.model", lambda: b"\x20\x01" * 7_900_000),
    "pieces of all lengths": (
        "tokenizer.model",
        lambda: BPE + b"".join(_token(b"x" * (i % 250) + b"%d" % i) for i in range(60_000)),
    ),
}

_CHILD = """
import resource, sys
from kvant.errors import KvantError
from kvant.tokenizer import from_folder
try:
    from_folder(sys.argv[1], 32000)
except KvantError as error:
    pass
# ru_maxrss would count what the parent had before it started this.
peak = [int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")]
use = resource.getrusage(resource.RUSAGE_SELF)
print(peak[0], use.ru_utime + use.ru_stime)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", HEAVY)
def test_heavy_files_take_little_time_and_memory(tmp_path: Path, name: str) -> None:
    file, make = HEAVY[name]
    (tmp_path / file).write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)], capture_output=True, text=True, check=True
    )
    peak, seconds = (float(v) for v in done.stdout.split())
    assert peak < 300_000
    # About one on an idle machine; the bound only has to tell that from minutes.
    assert seconds < 5


def test_scores_may_be_integers(gguf_of: Make) -> None:
    tokens = ["<unk>", "a", "b", "ab", *(f"<0x{b:02X}>" for b in range(256))]
    metadata = _metadata(
        model=string("llama"),
        merges=None,
        tokens=strings(tokens),
        token_type=None,
        scores=array(ValueType.INT32, np.zeros(260, np.int32)),
        add_bos_token=boolean(False),
        add_space_prefix=boolean(False),
    )
    assert build(from_metadata(gguf_of(metadata))).encode("abc") == [3, 4 + 99]
