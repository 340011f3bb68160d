"""Where calibration and test data come from: a file or folder of arrays, a folder of images."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import DataError, FileFormatError, InputError, UsageError
from kvant.files.source import printable, quote
from kvant.onnxtools.columns import (
    Column,
    Joined,
    Memory,
    NpyFile,
    Wanted,
    every,
    npz_columns,
)
from kvant.onnxtools.model import Port
from kvant.onnxtools.packages import need

__all__ = ["IMAGE_SUFFIXES", "Normalise", "columns_of"]

Array = npt.NDArray[Any]
_CLASS = re.compile(r"[0-9]{1,9}")  # str.isdigit() takes superscripts, which int() does not
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")


@dataclass(frozen=True, slots=True)
class Normalise:
    """What is done to a pixel: (value - mean) / std, one number for all channels or each."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.mean or self.std)

    def apply(self, pixels: Array, channel_axis: int) -> Array:
        """Float32 pixels, normalised along their channels."""
        shape = [1] * pixels.ndim
        channels = pixels.shape[channel_axis]
        result = pixels.astype(np.float32)
        for values, what in ((self.mean, "--mean"), (self.std, "--std")):
            if values and len(values) not in (1, channels):
                raise UsageError(
                    f"{what} has {len(values)} numbers; expected one, or one for each of "
                    f"{channels} channels."
                )
            if not values:
                continue
            shape[channel_axis] = len(values)
            numbers = np.asarray(values, np.float32).reshape(shape)
            result = result - numbers if what == "--mean" else result / numbers
        return result


def columns_of(
    data: str | Path | Mapping[str, Array], inputs: Sequence[Port], normalise: Normalise
) -> tuple[list[Column], str]:
    """The arrays of ``data``, and what to call it in messages.

    Args:
        data: a .npz or .npy file; a folder of .npz files (joined in the order of their names), of
            .npy files named as inputs, or of images; or arrays by name.
        inputs: of the model; images are made to its only one.
        normalise: for images.

    Raises:
        InputError: nothing usable is there.
    """
    if isinstance(data, Mapping):
        return [Memory(name, np.asarray(values)) for name, values in data.items()], "the data"
    path = Path(data)
    where = str(path)
    if path.is_dir():
        return _folder(path, inputs, normalise), where
    if normalise:
        raise UsageError(
            f"{path}: --mean and --std are for a folder of images; store arrays as the model wants "
            "them."
        )
    if path.suffix.lower() == ".npz":
        return npz_columns(path), where
    if path.suffix.lower() == ".npy":
        name = inputs[0].name if len(inputs) == 1 else path.stem
        return [NpyFile(path, name)], where
    if not path.exists():
        raise InputError(f"{path}: no such file. Check the path.")
    raise InputError(
        f"{path}: expected a .npz or .npy file, or a folder of them or of images. Save arrays by "
        "input name with numpy.savez."
    )


def _folder(path: Path, inputs: Sequence[Port], normalise: Normalise) -> list[Column]:
    files = sorted(p for p in path.iterdir() if p.is_file())
    packs = [p for p in files if p.suffix.lower() == ".npz"]
    arrays = [p for p in files if p.suffix.lower() == ".npy"]
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    if packs:
        by_name: dict[str, list[tuple[Column, Path]]] = {}
        for pack in packs:
            for column in npz_columns(pack):
                by_name.setdefault(column.name, []).append((column, pack))
        for name, parts in by_name.items():
            if len(parts) != len(packs):
                raise InputError(
                    f"{path}: array {quote(name)} is in {len(parts)} of {len(packs)} files; "
                    "expected it in each."
                )
        return [Joined([c for c, _ in v], [p for _, p in v]) for v in by_name.values()]
    if images and not arrays:
        return _images(path, images, inputs, normalise)
    if arrays:
        return [NpyFile(p, p.stem) for p in arrays]
    raise InputError(f"{path}: holds no .npz, .npy or image files.")


def _images(
    folder: Path, files: list[Path], inputs: Sequence[Port], normalise: Normalise
) -> list[Column]:
    if len(inputs) != 1:
        names = ", ".join(quote(p.name) for p in inputs[:6])
        raise InputError(
            f"{folder}: images serve a model of one input, this has {len(inputs)}: {names}. Save "
            "arrays by input name with numpy.savez."
        )
    labels_file = folder / "labels.csv"
    if not labels_file.exists():
        return [Images(files, inputs[0], normalise)]
    labels = _labels(labels_file)
    known = [f for f in files if f.name in labels]
    if not known:
        raise InputError(f"{labels_file}: names none of the images; expected lines `file,class`.")
    values = np.asarray([labels[f.name] for f in known], np.int64)
    return [Images(known, inputs[0], normalise), Memory("labels", values)]


def _labels(path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    with path.open(newline="", encoding="utf-8") as file:
        try:
            for number, row in enumerate(csv.reader(file), 1):
                if len(row) != 2:
                    raise InputError(f"{path}: line {number}: expected `file,class`.")
                if _CLASS.fullmatch(row[1].strip()):
                    found[row[0].strip()] = int(row[1])
                elif number > 1:  # the first may be a heading
                    raise InputError(
                        f"{path}: line {number}: expected a class from 0, got {quote(row[1])}."
                    )
        except (UnicodeDecodeError, csv.Error) as error:
            raise FileFormatError(f"{path}: not a CSV file: {printable(str(error), 120)}") from None
    return found


class Images:
    """Image files as rows for one input, decoded when they are needed."""

    def __init__(self, files: list[Path], port: Port, normalise: Normalise) -> None:
        self.name, self._files, self._normalise = port.name, files, normalise
        self.count, self.dtype = len(files), port.dtype
        shape = port.shape or ()
        if len(shape) == 4 and shape[1] in (1, 3) and all(isinstance(d, int) for d in shape[2:]):
            self._axis, channels, height, width = 0, shape[1], shape[2], shape[3]
        elif len(shape) == 4 and shape[3] in (1, 3) and all(isinstance(d, int) for d in shape[1:3]):
            self._axis, channels, height, width = 2, shape[3], shape[1], shape[2]
        else:
            raise InputError(
                f"input {quote(port.name)} is {port.told()}; images serve [N, 1 or 3, height, "
                "width] or [N, height, width, 1 or 3] with a fixed size. Save arrays with "
                "numpy.savez, or fix the size: kvant optimize --shape."
            )
        if port.dtype.kind == "f" and not normalise:
            raise UsageError(
                f"input {quote(port.name)} takes {port.dtype}; say what becomes of pixels 0 to 255 "
                "with --std and --mean: `--std 255` gives 0 to 1, `--mean 127 --std 128` -1 to 1."
            )
        assert isinstance(height, int)
        assert isinstance(width, int)
        assert isinstance(channels, int)
        self._size, self._mode = (width, height), "L" if channels == 1 else "RGB"
        plane = (height, width)
        self.shape: tuple[int, ...] = (channels, *plane) if self._axis == 0 else (*plane, channels)

    def rows(self, wanted: Wanted = every) -> Iterator[Array]:
        """The images that are wanted, as the input takes them."""
        for index, file in enumerate(self._files):
            if not wanted(index):
                continue
            pixels = self._decoded(file)
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
            if self._axis == 0:
                pixels = pixels.transpose(2, 0, 1)
            if self.dtype.kind == "f":
                pixels = self._normalise.apply(pixels, self._axis)
            yield np.ascontiguousarray(pixels, self.dtype)

    def _decoded(self, file: Path) -> Array:
        image = need("PIL.Image", "images")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", image.DecompressionBombWarning)
                with image.open(file) as opened:
                    resized = opened.convert(self._mode).resize(
                        self._size, image.Resampling.BILINEAR
                    )
                    return np.asarray(resized)
        except (OSError, ValueError, SyntaxError, Warning, image.DecompressionBombError) as error:
            raise DataError(
                f"{file}: not a sound image: {printable(str(error), 160)}. Remove or replace it."
            ) from None
