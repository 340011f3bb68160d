"""Calibration data: what is accepted, what is refused and how, and that memory does not grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kvant.errors import DataError, InputError, KvantError, UsageError
from kvant.onnxtools.model import Port, open_model
from kvant.onnxtools.ranges import measure_ranges
from kvant.onnxtools.samples import Samples, open_samples
from kvant.onnxtools.sources import Normalise
from kvant.onnxtools.thresholds import Histogram, entropy, mse, percentile
from onnxtools.onnx_small import images, network, run_once

F32 = np.dtype(np.float32)
IMAGE = Port("image", F32, ("batch", 3, 8, 8))


def _all(samples: Samples, name: str = "image") -> np.ndarray:
    return np.concatenate([batch.feeds[name] for batch in samples.batches()])


@pytest.mark.parametrize("kind", ["npz", "compressed", "npy", "parts", "folder", "arrays"])
def test_sources_give_the_same(kind: str, tmp_path: Path) -> None:
    pixels = images(12)
    if kind in ("npz", "compressed"):
        (np.savez if kind == "npz" else np.savez_compressed)(tmp_path / "d.npz", image=pixels)
        source: Any = tmp_path / "d.npz"
    elif kind == "npy":
        np.save(tmp_path / "anything.npy", pixels)
        source = tmp_path / "anything.npy"
    elif kind == "parts":
        for i in range(3):
            np.savez(tmp_path / f"part{i}.npz", image=pixels[4 * i : 4 * i + 4])
        source = tmp_path
    elif kind == "folder":
        np.save(tmp_path / "image.npy", pixels)
        np.save(tmp_path / "labels.npy", np.arange(12))
        source = tmp_path
    else:
        source = {"image": pixels}
    samples = open_samples(source, [IMAGE])
    assert (samples.count, samples.batch) == (12, 1)
    assert samples.labelled == (kind == "folder")
    assert (_all(samples) == pixels).all()
    assert (_all(samples) == pixels).all()  # and again


def test_image_folder(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    for i, one in enumerate(pixels):
        pillow.fromarray(one).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,class\n0.png,3\n1.png,1\n2.png,0\n3.png,9\n")
    samples = open_samples(tmp_path, [IMAGE], normalise=Normalise((10.0, 20.0, 30.0), (2.0,)))
    expected = (pixels.transpose(0, 3, 1, 2) - np.float32([10, 20, 30])[:, None, None]) / 2
    assert np.allclose(_all(samples), expected)
    assert [int(b.labels[0]) for b in samples.batches() if b.labels is not None] == [3, 1, 0, 9]
    last = Port("image", np.dtype(np.uint8), (1, 8, 8, 3))
    assert (_all(open_samples(tmp_path, [last])) == pixels).all()
    with pytest.raises(UsageError, match="--std"):
        open_samples(tmp_path, [IMAGE])
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(DataError, match=r"0\.png"):
        _all(open_samples(tmp_path, [IMAGE], normalise=Normalise((), (255.0,))))


def test_fixed_batches_and_labels() -> None:
    port = Port("x", F32, (4, 2))
    values = np.arange(22, dtype=np.float32).reshape(11, 2)
    samples = open_samples({"x": values, "y": np.arange(11)}, [port])
    batches = list(samples.batches())
    assert (samples.runs, len(batches)) == (2, 2)
    assert batches[1].labels is not None
    assert batches[1].labels.tolist() == [4, 5, 6, 7]
    assert any("left out" in note for note in samples.notes)


def test_parts_are_even_and_disjoint() -> None:
    samples = open_samples(
        {"x": np.arange(100, dtype=np.float32)[:, None]}, [Port("x", F32, ("n", 1))]
    )
    inside, outside = samples.part(7)
    chosen = [float(b.feeds["x"][0, 0]) for b in inside.batches()]
    others = [float(b.feeds["x"][0, 0]) for b in outside.batches()]
    assert (len(chosen), len(others)) == (7, 93) == (inside.count, outside.count)
    assert sorted(chosen + others) == list(range(100))
    assert max(np.diff(chosen)) <= 15


@pytest.mark.parametrize("kind", ["memory", "npz", "compressed", "folder"])
def test_parts_of_files(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((12, 5)).astype(np.float32)
    source: object = {"x": values}
    if kind in ("npz", "compressed"):
        (np.savez if kind == "npz" else np.savez_compressed)(tmp_path / "x.npz", x=values)
        source = tmp_path / "x.npz"
    elif kind == "folder":
        for begin in (0, 5):
            np.savez(tmp_path / f"{begin}.npz", x=values[begin : begin + 5 if begin == 0 else 12])
        source = tmp_path
    samples = open_samples(source, [Port("x", F32, (2, 5))])  # type: ignore[arg-type]
    parts = samples.part(2)
    found = [np.concatenate([b.feeds["x"] for b in part.batches()]) for part in parts]
    assert np.array_equal(found[0], values[[4, 5, 10, 11]])
    assert np.array_equal(found[1], values[[0, 1, 2, 3, 6, 7, 8, 9]])


def test_only_samples_of_a_part_are_decoded(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for i in range(6):
        pillow.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    samples = open_samples(tmp_path, [Port("image", np.dtype(np.uint8), (1, 8, 8, 3))])
    inside, outside = samples.part(2)
    (tmp_path / "3.png").write_bytes(b"nothing")
    assert [int(b.feeds["image"][0, 0, 0, 0]) for b in inside.batches()] == [2, 5]
    with pytest.raises(DataError, match=r"3\.png"):
        list(outside.batches())


@pytest.mark.parametrize("text", ["\u00b2", "9" * 40, "-1", "1.5"])
def test_classes_are_numbers(text: str, tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(f"file,class\na.png,{text}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2: expected a class"):
        open_samples(tmp_path, [Port("image", np.dtype(np.uint8), (1, 8, 8, 3))])


REFUSED: dict[str, tuple[dict[str, np.ndarray], list[Port], str]] = {
    "missing": (
        {"pixels": images(3), "other": images(3)},
        [IMAGE],
        r"nothing for input 'image': expected float32 \[batch, 3, 8, 8\], found 'pixels'",
    ),
    "shape": (
        {"image": np.zeros((5, 3, 9, 8), np.float32)},
        [IMAGE],
        r"input 'image' expects float32 \[batch, 3, 8, 8\], got rows of float32 \[3, 9, 8\]",
    ),
    "kind": (
        {"ids": np.zeros((5, 7), np.float32)},
        [Port("ids", np.dtype(np.int64), ("b", "n"))],
        r"input 'ids' expects int64 \[b, n\], got rows of float32 \[7\]",
    ),
    "counts": (
        {"a": np.zeros((5, 2), np.float32), "b": np.zeros((4, 2), np.float32)},
        [Port("a", F32, ("n", 2)), Port("b", F32, ("n", 2))],
        "array 'b' has 4 samples; expected 5 as 'a' has",
    ),
    "too-few": (
        {"x": np.zeros((3, 2), np.float32)},
        [Port("x", F32, (4, 2))],
        "3 samples; input 'x' takes 4 at once",
    ),
    "scalar": ({"x": np.zeros((), np.float32)}, [Port("x", F32, ("n",))], "counts samples"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_mismatch_says_which_expected_and_got(name: str) -> None:
    data, inputs, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        open_samples(data, inputs)


def test_bad_values_are_named() -> None:
    pixels = images(5)
    pixels[3, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="'image': sample 3 holds NaN"):
        _all(open_samples({"image": pixels}, [IMAGE]))
    port = Port("ids", np.dtype(np.int32), ("n", 1))
    with pytest.raises(DataError, match="does not fit into int32"):
        _all(open_samples({"ids": np.asarray([[1], [2**40]])}, [port]), "ids")


def test_damaged_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", image=images(5))
    np.save(tmp_path / "whole.npy", images(5))
    objects = np.asarray([{"a": 1}, None], object)
    np.savez(tmp_path / "objects.npz", image=objects)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.ones((4, 5), np.float32)))
    for name in ("whole.npz", "whole.npy"):
        content = (tmp_path / name).read_bytes()
        for part in (0, 10, 60, 300, len(content) - 40):
            (tmp_path / f"cut{part}{name}").write_bytes(content[:part])
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.txt").write_text("no arrays")
    (tmp_path / "empty").mkdir()
    names = [p for p in tmp_path.iterdir() if "whole" not in p.name or p.name.startswith("cut")]
    names.append(tmp_path / "gone.npz")
    assert len(names) == 16
    for path in names:
        with pytest.raises(KvantError) as caught:
            _all(open_samples(path, [IMAGE]))
        assert path.name in str(caught.value)


def test_ranges_are_those_of_all_values(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "net.onnx")
    model = open_model(tmp_path / "net.onnx")
    pixels = images(30)
    samples = open_samples({"image": pixels}, model.inputs)
    found = measure_ranges(model, samples.batches, samples.runs)
    logits = run_once(model.proto, {"image": pixels})[0]
    assert found["logits"].low == pytest.approx(logits.min(), rel=1e-5)
    assert found["logits"].high == pytest.approx(logits.max(), rel=1e-5)
    assert found["image"].high == pytest.approx(pixels.max())
    assert found["g"].low == 0.0  # behind a ReLU
    narrow = measure_ranges(model, samples.batches, samples.runs, "percentile", percentile=90.0)
    low, high = np.quantile(pixels, [0.05, 0.95])
    assert narrow["image"].low == pytest.approx(low, abs=0.01)
    assert narrow["image"].high == pytest.approx(high, abs=0.01)


def _histogram(values: np.ndarray) -> Histogram:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    return Histogram(np.histogram(values, 2048, (low, high))[0], low, high)


def _squared(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    return float(
        ((values - (low + np.rint((values.clip(low, high) - low) / step) * step)) ** 2).sum()
    )


def test_mse_is_the_best_clip() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.standard_normal(50_000), 12 * random.standard_normal(20)])
    low, high = mse(_histogram(values))
    ours = _squared(values, low, high)
    assert ours < 0.95 * _squared(values, values.min(), values.max())
    grid = np.arange(1, 41) / 40
    best = min(_squared(values, values.min() * a, values.max() * b) for a in grid for b in grid)
    assert ours < 1.03 * best


def test_entropy_against_the_textbook() -> None:
    """The divergence of each range as a plain loop computes it; the choice is the least."""
    random = np.random.default_rng(1)
    values = np.concatenate([np.abs(random.standard_normal(40_000)), [9.0, 11.0]])
    histogram = _histogram(values)
    low, high = entropy(histogram)
    counts = histogram.counts.copy()
    counts[0] = counts[1]  # the bin of zero
    divergences = {}
    for last in range(256, 2049, 16):
        inside = counts[:last].astype(float)
        p = inside.copy()
        p[-1] += counts[last:].sum()
        q = np.zeros(last)
        for code in range(256):
            bins = [b for b in range(last) if b * 256 // last == code]
            filled = [b for b in bins if p[b] > 0]
            for b in filled:
                q[b] = inside[bins].sum() / len(filled)
        p, q = p / p.sum(), q / q.sum()
        divergences[histogram.edge(last)] = sum(
            p[b] * np.log(p[b] / max(q[b], 1e-9)) for b in range(last) if p[b] > 0
        )
    best = min(divergences, key=lambda edge: divergences[edge])
    nearest = min(divergences, key=lambda edge: abs(edge - high))
    assert low == 0.0
    assert high < 8
    assert divergences[nearest] <= 1.1 * divergences[best] + 1e-5


def test_many_codes_clip_nothing() -> None:
    """Clipping costs more than it gains where 65,536 codes are finer than anything."""
    random = np.random.default_rng(0)
    values = np.concatenate([random.standard_normal(50_000), 12 * random.standard_normal(20)])
    histogram = _histogram(values)
    for method in (mse, entropy):
        assert method(histogram, codes=65536) == (histogram.low, histogram.high)
        assert method(histogram)[1] < 0.9 * histogram.high


def test_percentile_of_everything_is_everything() -> None:
    values = np.random.default_rng(2).standard_normal(1000)
    low, high = percentile(_histogram(values), 100.0)
    assert (low, high) == (pytest.approx(values.min()), pytest.approx(values.max()))


_CHILD = """
import sys
from pathlib import Path
from kvant.onnxtools.model import open_model
from kvant.onnxtools.samples import open_samples
from kvant.onnxtools.ranges import measure_ranges
model = open_model(sys.argv[1])
samples = open_samples(sys.argv[2], model.inputs)
found = measure_ranges(model, samples.batches, samples.runs, "mse", threads=1)
status = Path("/proc/self/status").read_text()
peak = status.split("VmHWM:")[1].split()[0]
print(samples.count, len(found), peak)
"""


def test_memory_does_not_grow_with_samples(tmp_path: Path) -> None:
    """4,000 samples: 49 MB in the file, over 300 MB of activations; peak RSS within 20 % of 50."""
    onnx.save(network(), tmp_path / "net.onnx")
    peaks = []
    for count in (50, 4000):
        data = tmp_path / f"{count}.npz"
        np.savez(data, image=np.tile(images(50), (count // 50, 1, 1, 1)))
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(tmp_path / "net.onnx"), str(data)],
            capture_output=True,
            text=True,
            check=True,
        )
        seen, tensors, peak = map(int, done.stdout.split())
        assert seen == count
        assert tensors >= 6
        peaks.append(peak)
    assert peaks[1] < 1.2 * peaks[0]
