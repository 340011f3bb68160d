"""Kernels built for a 64-bit ARM processor, run under an emulator: the same bytes as here."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kvant import packing

NATIVE = Path(__file__).parents[2] / "native"
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
ROWS, COLUMNS = 21, 512
FLAGS = {
    "scalar": [],
    # What CMakeLists.txt says to other compilers, in this one's words.
    "neon": ["-DKVANT_NEON"],
    "dotprod": ["-DKVANT_NEON", "-mcpu=generic+v8_2a+dotprod"],
    "i8mm": ["-DKVANT_NEON", "-mcpu=generic+v8_2a+dotprod+i8mm"],
}


def numbers(seed: int, count: int) -> npt.NDArray[np.float32]:
    """As native/tests/kernels.cc makes them."""
    state, out = seed, np.empty(count, np.float32)
    for i in range(count):
        total = 0
        for _ in range(4):
            state = (state * 1664525 + 1013904223) % 2**32
            total += (state >> 16) - 32768
        out[i] = total / 65536
    return out


def expected() -> dict[int, list[str]]:
    """By type: checksums of packed and decoded rows, without and with importance."""
    weights = numbers(42, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    importance = numbers(43, COLUMNS) ** 2 + np.float32(0.0625)
    found = {}
    for each in packing.all_packings():
        name, storage = each.name, each.storage
        if storage.block == 1:
            continue
        sums = []
        for weight in (None, importance):
            rows = packing.convert_rows("F32", name, weights.view(np.uint8), COLUMNS, weight)
            decoded = packing.dequantize(name, rows)
            sums += [f"{zlib.crc32(a.tobytes()):08x}" for a in (rows, decoded)]
        found[storage.id] = sums
    return found


def build(folder: Path, compiler: list[str]) -> Path:
    """The program of native/tests for the compiler's target."""
    common = [*compiler, "-std=c++20", "-O2", "-ffp-contract=off", f"-I{NATIVE}", "-c"]
    common += ["-fno-sanitize=all", "-Wno-psabi"]
    jobs = []
    for isa, flags in FLAGS.items():
        for source in sorted((NATIVE / "kernels").glob("*.cc")):
            out = folder / f"{isa}-{source.stem}.o"
            jobs.append([*common, f"-DKVANT_ISA={isa}", *flags, str(source), "-o", str(out)])
    for name in ("runtime/cpu.cc", "runtime/rows.cc", "runtime/sampler.cc", "tests/kernels.cc"):
        out = folder / f"{Path(name).stem}.o"
        jobs.append([*common, str(NATIVE / name), "-o", str(out)])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(lambda j: subprocess.run(j, capture_output=True, text=True), jobs):
            assert done.returncode == 0, done.stderr
    program = folder / "kernels"
    objects = [str(o) for o in folder.glob("*.o")]
    link = [*compiler, "-static", *objects, "-o", str(program)]
    done = subprocess.run(link, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.slow
@pytest.mark.parity
def test_arm_kernels_give_the_same_bytes(tmp_path: Path) -> None:
    """NEON, its dot products and its 8-bit matrices: packed bytes to the bit, products closely."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang, a compiler for other processors, is not installed (extra `parity`)")
    if EMULATOR is None or platform.system() != "Linux":
        pytest.skip("qemu-aarch64-static is not here (Debian's qemu-user-static)")
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]
    program = build(tmp_path, zig)
    done = subprocess.run([EMULATOR, "-cpu", "max", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {line[0] for line in lines} == set(FLAGS)
    wanted = expected()
    for isa, kind, *sums in lines:
        assert sums == wanted[int(kind)], f"{isa}: type {kind}"
    assert len(lines) == len(FLAGS) * len(wanted)
    # A processor without the newer instructions uses the older ones.
    old = subprocess.run(
        [EMULATOR, "-cpu", "cortex-a53", str(program)], capture_output=True, text=True
    )
    assert old.returncode == 0, old.stdout + old.stderr
    assert {line.split()[0] for line in old.stdout.splitlines()} == {"scalar", "neon"}
