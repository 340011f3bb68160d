"""Random mutations of small valid files: only a ``KvantError`` or success may come of them.

``python -m attacks.fuzz COUNT [SEED]`` (in tests/) prints what went otherwise; the test suite
runs a few thousand.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from attacks.build import CONFIG, safetensors, small_gguf, small_safetensors
from kvant.errors import KvantError
from kvant.files.config_json import read_json
from kvant.files.gguf import check_layout, read_gguf_split
from kvant.files.safetensors import read_folder

INDEX = {"metadata": {"total_size": 43}, "weight_map": dict.fromkeys("abcde", "m.safetensors")}

_NUMBERS = [0, 1, 2, 7, 31, 32, 33, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**32]
_NUMBERS += [2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]
_JSON = '{}[],:"\\ \x00\x1f\x7f'
_TOKENS = [*_JSON, "null", "true", "NaN", "-1", "1e999", "0.5", '"F32"', '"\\ud800"', "[" * 70]
_TOKENS += [str(n) for n in _NUMBERS]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four random changes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(9):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.randrange(256)
            case 2:
                out[at:at] = rng.randbytes(rng.randint(1, 9))
            case 3:
                del out[at : at + rng.randint(1, 16)]
            case 4:
                del out[at:]
            case 5:
                width = rng.choice((4, 8))
                number = rng.choice(_NUMBERS) % 256**width
                out[at : at + width] = number.to_bytes(width, "little")
            case 6:
                length = rng.randint(1, 64)
                start = rng.randrange(len(out) + 1)
                out[at:at] = out[start : start + length]
            case 7:
                out[at : at + rng.randint(0, 6)] = rng.choice(_TOKENS).encode()
            case 8 if len(out) >= 8:
                # Where lengths and counts usually are.
                place = rng.randrange(0, min(len(out) - 7, 64))
                out[place : place + 8] = rng.choice(_NUMBERS).to_bytes(8, "little")
    return bytes(out)


def _mutate_json_header(data: bytes, rng: random.Random) -> bytes:
    """A mutated safetensors header under its right length, so that the JSON is reached."""
    length = int.from_bytes(data[:8], "little")
    return safetensors(mutate(data[8 : 8 + length], rng), data[8 + length :])


def _gguf(folder: Path, data: bytes) -> None:
    path = folder / "m.gguf"
    path.write_bytes(data)
    file = read_gguf_split(path)
    check_layout(file)
    for tensor in file.tensors.values():
        tensor.read()


def _safetensors(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    for tensor in read_folder(folder).tensors.values():
        tensor.read()


def _index(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "m.safetensors").write_bytes(small_safetensors())
    (folder / "model.safetensors.index.json").write_bytes(data)
    read_folder(folder)


def _config(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    read_json(folder / "config.json")


Mutate = Callable[[bytes, random.Random], bytes]

#: Name, a valid file, how to change it, what reads it.
TARGETS: dict[str, tuple[bytes, Mutate, Callable[[Path, bytes], None]]] = {
    "gguf": (small_gguf(), mutate, _gguf),
    "safetensors": (small_safetensors(), mutate, _safetensors),
    "safetensors-header": (small_safetensors(), _mutate_json_header, _safetensors),
    "index": (json.dumps(INDEX).encode(), mutate, _index),
    "config": (json.dumps(CONFIG).encode(), mutate, _config),
}


def fuzz(count: int, seed: int, folder: Path) -> tuple[int, list[str]]:
    """Try ``count`` mutations in turns over the targets: how many were read, and the findings."""
    rng = random.Random(seed)
    accepted = 0
    findings: list[str] = []
    for i in range(count):
        name = list(TARGETS)[i % len(TARGETS)]
        valid, change, read = TARGETS[name]
        data = change(valid, rng)
        start = time.process_time()
        try:
            read(folder, data)
            accepted += 1
        except KvantError as error:
            if not str(error).isprintable():
                findings.append(f"{name}: unprintable message {str(error)!r} for {data!r}")
        except Exception as error:
            findings.append(f"{name}: {type(error).__name__}: {error} for {data!r}")
        if time.process_time() - start > 1:
            findings.append(f"{name}: took over a second for {data!r}")
    return accepted, findings


if __name__ == "__main__":
    total, start_seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as temporary:
        read_count, found = fuzz(total, start_seed, Path(temporary))
    print(*found, sep="\n")
    print(f"{total} inputs, {read_count} read, {len(found)} findings")
    raise SystemExit(bool(found))
