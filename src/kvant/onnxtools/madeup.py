"""Values for a model when there are no data: enough to run it, time it, and hold two against each
other. What they say of quality is marked, as they are noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kvant.errors import KvantError, NotEnoughMemoryError
from kvant.files.source import quote
from kvant.onnxtools.model import OnnxModel, Port
from kvant.onnxtools.session import Array, Session

__all__ = ["MadeUp", "make_up"]

_SIZES = (128, 512, 8, 64, 32, 16, 256, 576, 1, 2, 4, 1024, 16000)
"""Tried for free dimensions, in this order: lengths of texts and pieces of sound."""
_IMAGES = (
    *((224, 224), (48, 320), (640, 640), (32, 128), (64, 64), (320, 320), (112, 112)),
    *((28, 28), (299, 299), (512, 512), (96, 96), (256, 256), (1024, 1024)),
)
"""Tried for heights and widths; all but one are multiples of 16."""
_DIMENSIONS = 32
"""Of an input; NumPy has no more."""
_MOST = 1 << 24
"""Elements of an input; what needs more is not made up."""
_IDS = 100
"""Whole numbers are below this, where the model takes that."""


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Values that a model takes, or why there are none."""

    shapes: dict[str, tuple[int, ...]]
    ids: int
    """Whole numbers are below this."""
    ports: tuple[Port, ...]
    refused: str = ""
    """ONNX Runtime's word on the first values tried; empty where some were taken."""

    def feeds(self, seed: int = 0) -> dict[str, Array]:
        """Values for one run."""
        random = np.random.default_rng(seed)
        return {
            port.name: _values(port, self.shapes[port.name], self.ids, random)
            for port in self.ports
        }

    def told(self) -> str:
        """The shapes: ``image float32 [1, 3, 224, 224]``."""
        return ", ".join(
            f"{quote(p.name)} {p.dtype} {list(self.shapes[p.name])}" for p in self.ports
        )

    def remedy(self) -> str:
        """What a user can do where nothing was taken."""
        arrays = ", ".join(f"{quote(port.name)} ({port.told()})" for port in self.ports)
        return (
            f"no values could be made up that the model takes: {self.refused} So steps are not "
            "checked by running, nor times and output error measured. Give data: --calibrate "
            f"samples.npz with arrays {arrays}, each with one more dimension in front that counts "
            "samples, unless the first one does"
        )


def make_up(model: OnnxModel, session: Session) -> MadeUp:
    """Find values that ``session`` takes: one size of free dimensions after another.

    Args:
        model: what its inputs are.
        session: it, loaded.

    Returns:
        values, or (``refused``) why there are none.
    """
    ports = model.inputs
    seen: set[tuple[object, ...]] = set()
    refused = ""
    for shapes in _trials(ports):
        for ids in (_IDS, 2, 1):
            key = (*shapes.items(), ids if any(_is_ids(p) for p in ports) else 0)
            if key in seen:
                continue
            seen.add(key)
            made = MadeUp(shapes, ids, ports)
            try:
                session.run(made.feeds())
            except NotEnoughMemoryError:
                continue
            except KvantError as error:
                refused = refused or str(error)
                continue
            return made
    return MadeUp({}, 1, ports, refused or "its inputs are too large.")


def _trials(ports: Sequence[Port]) -> Iterator[dict[str, tuple[int, ...]]]:
    batch: set[int | str | None] = {
        p.shape[0] for p in ports if p.shape and isinstance(p.shape[0], str)
    }
    for size, image in zip(_SIZES, _IMAGES, strict=True):
        for others in (size, 1):  # state beside the first input is often one wide
            shapes = {
                port.name: _shape(port, size if index == 0 else others, image, batch)
                for index, port in enumerate(ports)
            }
            if all(len(s) <= _DIMENSIONS and math.prod(s) <= _MOST for s in shapes.values()):
                yield shapes


def _shape(
    port: Port, size: int, image: tuple[int, int], batch: set[int | str | None]
) -> tuple[int, ...]:
    shape = port.shape if port.shape is not None else (1,)
    free = [i for i, d in enumerate(shape) if not isinstance(d, int)]
    sizes = dict.fromkeys(free, size)
    sizes |= {i: 1 for i in free if i == 0 or (isinstance(shape[i], str) and shape[i] in batch)}
    if len(shape) == 4:  # [batch, channels, height, width], or channels last
        channels_last = shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
        places = (1, 2) if channels_last else (2, 3)
        if shape[3 if channels_last else 1] in (1, 3, 4):
            sizes |= {i: n for i, n in zip(places, image, strict=True) if i in free}
    return tuple(sizes.get(i, d if isinstance(d, int) else 1) for i, d in enumerate(shape))


def _is_ids(port: Port) -> bool:
    return port.dtype.kind in "iu" and bool(port.shape) and "mask" not in port.name.lower()


def _values(port: Port, shape: tuple[int, ...], ids: int, random: np.random.Generator) -> Array:
    if port.dtype.kind == "f":
        return random.standard_normal(shape).astype(port.dtype)
    if _is_ids(port):
        return random.integers(0 if ids > 1 else 1, max(ids, 2), shape).astype(port.dtype)
    rate = port.dtype.kind in "iu" and port.name.lower() in ("sr", "rate", "sample_rate")
    return np.full(shape, 16000 if rate and port.dtype.itemsize > 1 else 1, port.dtype)
