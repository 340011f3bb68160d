"""Any ONNX model: what each level costs in accuracy, size and time, and calibration's memory.

python bench/onnx_models.py --data ../shared/data/onnx --check

MNIST's CNN is calibrated on 200 of its images and scored on the other 4,800. Memory is the peak of
whole processes that calibrate the face detector on 50 and on 4,000 samples of one file.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from common import WORK, Bar, Report, add_options, child, kvant_command, machine, table

LOSS = 0.3
"""Most points of accuracy that static int8 may lose."""
GROWTH = 1.2
"""Largest ratio of peaks with 4,000 samples and with 50."""
FACES, MNIST = "version-RFB-320.onnx", "mnist.onnx"
LEVELS = (
    ("int8-static",),
    ("int8-static", "--format", "qoperator"),
    ("int8-static", "--calibration", "percentile"),
    ("int8-static", "--calibration", "entropy"),
    ("int8-static", "--calibration", "mse"),
    ("int8-dynamic",),
    ("int8-weights",),
    ("int4",),
    ("int2",),
    ("float16",),
)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Levels of ONNX models, and their memory.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the models")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="where outputs go")
    add_options(parser, peer=False, rounds=None)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    report = Report("Any ONNX model", machine())
    report.head()
    scenes = arguments.work / "scenes.npz"
    _scenes(scenes, 4000)
    _levels(report, arguments, MNIST, arguments.data / "mnist_t10k_half.npz", 200)
    few = arguments.work / "scenes-40.npz"
    _scenes(few, 40)
    _levels(report, arguments, FACES, few, 20)
    _memory(report, arguments, few, scenes)
    return report.finish(arguments)


def _quantise(arguments: argparse.Namespace, name: str, *options: object) -> tuple[Any, float]:
    out = arguments.work / "out.onnx"
    source = arguments.data / name
    command = [*kvant_command(), "quantize", source, *map(str, options), "-o", out]
    run = child([*command, "--force", "--json"])
    found = json.loads(run.output[run.output.index("\n{\n") :])  # notes come before it
    for path in found["paths"]:
        Path(path).unlink()
    return found, run.peak_bytes / 1e6


def _levels(
    report: Report, arguments: argparse.Namespace, name: str, data: Path, samples: int
) -> None:
    rows = []
    for level, *more in LEVELS:
        use = ("--calibrate", data, "--samples", samples)
        found, peak = _quantise(arguments, name, level, *more, *use)
        compared = found["comparison"]
        quality = compared["quality"]
        size = compared["bytes_after"] / compared["bytes_before"]
        row = [" ".join([level, *more]), f"{size:.2f}", f"{quality['output_error']:.4f}"]
        if quality["accuracy_before"] is not None:
            loss = 100 * (quality["accuracy_before"] - quality["accuracy_after"])
            row.append(f"{loss:+.2f}")
            if level == "int8-static":
                label = f"{name} {' '.join([level, *more])}: points lost"
                report.bars.append(Bar(label, loss, LOSS))
        rows.append([*row, f"{compared['slowdown']:.2f}", f"{peak:.0f}"])
        report.results.append({"model": name, "level": rows[-1][0], **compared, "peak_mb": peak})
    points = ["points lost"] if len(rows[0]) == 6 else []
    print(f"{name}, against the original")
    print(table(["level", "size", "output error", *points, "time", "peak MB"], rows))
    print(flush=True)


def _memory(report: Report, arguments: argparse.Namespace, few: Path, many: Path) -> None:
    rows = []
    for method in ("minmax", "mse"):
        peaks = []
        for samples in (50, 4000):
            use = ("--calibrate", many, "--samples", samples, "--test", few)
            found, peak = _quantise(arguments, FACES, "int8-static", "--calibration", method, *use)
            peaks.append(peak)
            rows.append([method, f"{samples:,}", f"{peak:.0f}", f"{found['seconds']:.0f}"])
            report.results.append({"method": method, "samples": samples, "peak_mb": peak})
        label = f"{method}: peak with 4,000 samples over that with 50"
        report.bars.append(Bar(label, peaks[1] / peaks[0], GROWTH, unit="x"))
    print("Static int8 of the face detector, by samples that calibrate")
    print(table(["calibration", "samples", "peak MB", "s"], rows))
    print(flush=True)


def _scenes(path: Path, count: int) -> None:
    """Smooth random fields of -1 to 1 in 240 x 320, float32: twelve of them, over and over."""
    if path.exists():
        return
    random = np.random.default_rng(5)
    fields = np.zeros((12, 3, 240, 320))
    for scale in (4, 8, 16, 40):
        coarse = random.standard_normal((12, 3, 240 // scale, 320 // scale))
        fields += coarse.repeat(scale, 2).repeat(scale, 3) * scale**0.5
    scenes = np.tanh(fields / 6).astype(np.float32)
    with (
        zipfile.ZipFile(path, "w") as archive,
        archive.open("input.npy", "w", force_zip64=True) as file,
    ):
        shape = {"descr": "<f4", "fortran_order": False, "shape": (count, 3, 240, 320)}
        np.lib.format.write_array_header_1_0(file, shape)
        for index in range(count):
            file.write((scenes[index % 12] * (0.5 + index / (2 * count))).tobytes())


if __name__ == "__main__":
    sys.exit(main())
