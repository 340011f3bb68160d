"""Every attack file is refused: one clear error, for its own reason, fast and in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attacks.make import CASES, MEANINGLESS
from kvant.errors import InputError, UnsupportedError
from kvant.files.config_json import read_json
from kvant.files.gguf import read_gguf_split
from kvant.files.safetensors import read_folder

#: What the message must say, and which attacks must be met with it.
REASONS: dict[str, str] = {
    "an empty one": "gguf-empty safetensors-empty config-empty folder-index-empty",
    "starts with 'GGUF'": "gguf-one-byte gguf-magic-wrong gguf-zeros",
    "big-endian": "gguf-magic-swapped gguf-big-endian",
    "version 2 or 3": "gguf-version-0 gguf-version-1 gguf-version-4 gguf-version-huge gguf-ggjt",
    "pickle": """
        gguf-is-pickle-zip gguf-is-pickle safetensors-is-pickle-zip safetensors-is-pickle
        folder-only-bin folder-only-bin-shards folder-only-pth folder-only-pt
        folder-shard-pickle config-pickle
    """,
    "got a safetensors file": "gguf-is-safetensors gguf-split-other-format",
    "got a GGUF file": "safetensors-is-gguf",
    "Git LFS": "gguf-is-lfs-pointer safetensors-is-lfs-pointer config-lfs-pointer",
    "web page": "gguf-is-web-page safetensors-is-web-page config-web-page",
    "the file ends inside": """
        gguf-magic-only gguf-truncated-header gguf-metadata-count-one-more
        gguf-key-length-past-end gguf-strings-then-truncated
    """,
    "ends at byte": """
        gguf-truncated-data gguf-no-data gguf-tensor-elements-wrap gguf-tensor-bytes-wrap
        gguf-tensor-bytes-wrap-quantised gguf-tensor-negative gguf-most-text
        gguf-tensor-past-end gguf-tensor-offset-wraps gguf-tensor-ends-past-end
        gguf-split-damaged
    """,
    "the header claims": """
        gguf-tensor-count-max gguf-tensor-count-negative gguf-tensor-count-sparse
        gguf-metadata-count-max gguf-metadata-count-sparse safetensors-length-0
        safetensors-length-1 safetensors-length-max safetensors-length-signed
        safetensors-length-past-end safetensors-7-bytes safetensors-truncated-header
    """,
    "empty": "gguf-tensor-count-one-more gguf-key-empty gguf-tensor-name-empty",
    "the length of": """
        gguf-key-length-max gguf-key-long gguf-string-length-max gguf-string-length-signed
        gguf-string-long gguf-strings-item-past-end gguf-tensor-name-long
    """,
    "not UTF-8": """
        gguf-key-not-utf8 gguf-string-not-utf8 gguf-string-surrogate gguf-string-overlong
        gguf-strings-item-not-utf8 gguf-tensor-name-not-utf8
    """,
    "twice": """
        gguf-key-twice gguf-tensor-name-twice safetensors-name-twice safetensors-field-twice
        folder-index-twice config-key-twice config-key-twice-deep
    """,
    "value type": "gguf-value-type-13 gguf-value-type-max gguf-array-type-13",
    "bool of byte": "gguf-bool-2 gguf-bool-array-7",
    "items of at least": """
        gguf-array-count-max gguf-array-count-wraps gguf-strings-count-max
        gguf-strings-count-wraps
    """,
    "array of arrays": "gguf-array-of-arrays gguf-array-nested-deep",
    "goes on past": "gguf-array-sparse gguf-array-header-cap",
    "texts in the header over": "gguf-strings-sparse gguf-strings-many-empty",
    "general.alignment should": """
        gguf-alignment-0 gguf-alignment-3 gguf-alignment-4 gguf-alignment-33 gguf-alignment-2g
        gguf-alignment-text gguf-alignment-array gguf-alignment-u64
    """,
    "dimensions, expected": """
        gguf-tensor-no-dimensions gguf-tensor-5-dimensions gguf-tensor-rank-max
    """,
    "expected no zero": "gguf-tensor-zero gguf-tensor-zero-row",
    "ggml type": """
        gguf-tensor-type-99 gguf-tensor-type-removed gguf-tensor-type-repacked
        gguf-tensor-type-max
    """,
    "rows of": "gguf-tensor-row-not-blocks gguf-tensor-row-half-block",
    "multiple of the alignment": "gguf-tensor-misaligned gguf-tensor-offset-max",
    "overlap": """
        gguf-most-entries gguf-tensor-same-place gguf-tensor-overlap gguf-tensor-inside-another
        safetensors-overlap safetensors-same-place
    """,
    "is missing": "gguf-split-missing gguf-split-many folder-shard-missing folder-tensor-absent",
    "expected a name like": "gguf-split-name gguf-split-name-count gguf-split-count-huge",
    "should be an integer, got string": "gguf-split-count-text",
    "split.no": "gguf-split-number gguf-split-no-number",
    "is in m-00001-of-00002.gguf too": "gguf-split-tensor-twice",
    "tensors in all shards": "gguf-split-total",
    "of different models": "gguf-split-other-model",
    "the header takes": "safetensors-length-sparse safetensors-length-cap",
    "not JSON at": """
        safetensors-header-zeros safetensors-header-spaces safetensors-header-not-json
        safetensors-header-utf16 safetensors-header-two folder-index-not-json folder-index-deep
        config-spaces config-not-json config-truncated config-two config-comment
        config-trailing-comma config-bom config-nul
    """,
    "expected UTF-8": "safetensors-header-not-utf8 config-not-utf8 config-utf16",
    "starts with '{'": "safetensors-header-list",
    "nested deeper": """
        safetensors-header-deep safetensors-header-deep-closed config-deep config-deep-closed
        config-deep-objects
    """,
    "values, got up to": """
        safetensors-header-many-values safetensors-header-many-objects config-many-values
    """,
    "bytes in memory": """
        safetensors-header-wide-text safetensors-header-wide-escape config-wide-escape
    """,
    "bytes of JSON": "config-many-keys config-large config-sparse folder-index-sparse",
    "It is truncated": """
        safetensors-most-tensors safetensors-truncated-data safetensors-offsets-past-end
        folder-shard-truncated
    """,
    "follow the last tensor": "safetensors-trailing safetensors-trailing-no-tensor",
    "has no name": "safetensors-name-empty",
    "half a surrogate": """
        safetensors-name-surrogate config-surrogate config-surrogate-key folder-index-surrogate
    """,
    "a dtype, a shape and data_offsets": """
        safetensors-most-names safetensors-info-list safetensors-info-null safetensors-no-dtype
        safetensors-no-shape safetensors-no-offsets safetensors-extra-field
    """,
    "a dtype such as": "safetensors-dtype-number safetensors-dtype-lower safetensors-dtype-long",
    "a shape of at most": """
        safetensors-shape-text safetensors-shape-number safetensors-shape-negative
        safetensors-shape-float safetensors-shape-bool safetensors-shape-nested
        safetensors-shape-object safetensors-shape-65 safetensors-shape-2-64
    """,
    "data_offsets say": """
        safetensors-name-terminal safetensors-name-long safetensors-shape-wraps
        safetensors-shape-bytes-wrap safetensors-shape-astronomic safetensors-size-mismatch
        safetensors-half-byte
    """,
    "thousands of digits": "safetensors-shape-digits config-digits",
    "data_offsets [begin, end]": """
        safetensors-offsets-one safetensors-offsets-three safetensors-offsets-text
        safetensors-offsets-float safetensors-offsets-reversed safetensors-offsets-negative
        safetensors-offsets-max
    """,
    "which is not JSON": "safetensors-offsets-nan config-nan config-infinity",
    "does not fit 64 bits": "safetensors-offsets-infinity config-overflow",
    "leaves a hole": "safetensors-offsets-far safetensors-hole safetensors-hole-first",
    "__metadata__": """
        safetensors-metadata-list safetensors-metadata-number safetensors-metadata-nested
    """,
    "expected model.safetensors": "folder-no-weights folder-shards-without-index",
    "'weight_map'": """
        folder-index-list folder-index-no-map folder-index-map-list folder-index-map-empty
    """,
    "in this folder": """
        folder-index-map-number folder-index-map-null folder-index-parent folder-index-absolute
        folder-index-subfolder folder-index-backslash folder-index-drive folder-index-nul
        folder-index-terminal folder-index-hidden folder-index-bin folder-index-name-long
    """,
    "is here, model.safetensors.index.json": "folder-tensor-elsewhere folder-tensor-in-two",
    "the same file as": "folder-shard-twice-link folder-shard-twice-hardlink",
    "a pipe": "folder-weights-pipe config-pipe",
    "got a folder": "folder-weights-folder config-folder",
    "leads nowhere": "folder-weights-broken-link folder-weights-link-circle",
    "no such file": "config-missing",
}
REASON = {name: reason for reason, names in REASONS.items() for name in names.split()}

UNSUPPORTED = [
    "gguf-magic-swapped",
    "gguf-big-endian",
    "gguf-version-0",
    "gguf-version-1",
    "gguf-version-4",
    "gguf-version-huge",
    "gguf-ggjt",
    "gguf-is-safetensors",
    "gguf-array-of-arrays",
    "gguf-array-nested-deep",
    "gguf-split-other-format",
    "safetensors-is-gguf",
    "folder-no-weights",
    "folder-shards-without-index",
]


def read(name: str, source: Path) -> None:
    """What the reader of files does with a case."""
    if name.startswith("gguf-"):
        read_gguf_split(source)
    elif name.startswith("config-"):
        read_json(source / "config.json")
    else:
        read_folder(source)


def test_every_case_has_its_reason() -> None:
    assert set(REASON) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, tmp_path: Path) -> None:
    source = CASES[name](tmp_path)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        read(name, source)
    # Processor time. The product's bound is a second; slow and shared machines get two.
    assert time.process_time() - start < 2
    message = str(caught.value)
    assert REASON[name] in message
    assert str(tmp_path) in message
    assert message.isprintable(), "control characters or line breaks reached the message"
    assert len(message.replace(str(tmp_path), "")) < 600
    assert message.endswith(".")
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
    wants_unsupported = REASON[name] in ("pickle", "ggml type") or name in UNSUPPORTED
    assert isinstance(caught.value, UnsupportedError) == wants_unsupported


def test_the_same_name_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("gguf-truncated-data", "safetensors-overlap", "config-digits"):
        contents = []
        for run in ("1", "2"):
            (tmp_path / name / run).mkdir(parents=True)
            source = CASES[name](tmp_path / name / run)
            files = [source] if source.is_file() else sorted(source.iterdir())
            contents.append([p.read_bytes() for p in files])
        assert contents[0] == contents[1]


def test_meaningless_configs_can_be_read(tmp_path: Path) -> None:
    for name, case in MEANINGLESS.items():
        (tmp_path / name).mkdir()
        read_json(case(tmp_path / name) / "config.json")


_CHILD = """
import sys
from pathlib import Path
from test_attacks import read
from kvant.errors import InputError
for name, source in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        read(name, Path(source))
    except InputError:
        continue
    raise SystemExit(name + " was accepted")
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def peak_kilobytes(names_and_sources: list[str]) -> int:
    """Read each case in one fresh process; its peak resident memory."""
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(tests), str(tests / "files"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *names_and_sources],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_whole_corpus_in_little_memory(tmp_path: Path) -> None:
    arguments: list[str] = []
    for name, case in CASES.items():
        (tmp_path / name).mkdir()
        arguments += [name, str(case(tmp_path / name))]
    assert peak_kilobytes(arguments) < 300_000
