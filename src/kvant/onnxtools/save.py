"""A model written whole or not at all; weights in a second file where it is large.

ONNX keeps a model in one protobuf, which ends at 2 GB. Beyond that, weights lie in a file beside it
(docs/ExternalData.md), here ``NAME.data``, aligned to 4 KB so that runtimes can map them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kvant.errors import OutputError
from kvant.files.atomic import AtomicFile
from kvant.onnxtools.external import tensors
from kvant.onnxtools.model import weight_bytes

__all__ = ["EXTERNAL_FROM", "externalised", "paths_of", "save_model"]

EXTERNAL_FROM = 1_500_000_000
"""Bytes of weights from which they go to a file of their own."""
_ALIGN = 4096
_SMALL = 1024  # shapes and scalars stay in the model, where tools look for them


@contextmanager
def externalised(proto: Any, name: str, write: Callable[[bytes, int], None]) -> Iterator[None]:
    """Within the block, weights are references to the file ``name``; ``write`` got their bytes.

    Only one tensor at a time is held twice; afterwards the model is what it was.

    Args:
        proto: the model, changed for the time of the block.
        name: file name, as the model is to state it.
        write: takes bytes and their offset in that file.
    """
    moved: list[tuple[Any, bytes]] = []
    offset = 0
    try:
        for tensor in tensors(proto):
            values = tensor.raw_data
            if len(values) < _SMALL:
                continue
            write(values, offset)
            moved.append((tensor, values))
            tensor.ClearField("raw_data")
            tensor.data_location = 1
            entries = {"location": name, "offset": str(offset), "length": str(len(values))}
            for key, value in entries.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
            offset += -(-len(values) // _ALIGN) * _ALIGN
        yield
    finally:
        while moved:
            tensor, values = moved.pop()
            tensor.raw_data = values
            tensor.data_location = 0
            del tensor.external_data[:]


def paths_of(path: Path, proto: Any, *, external: bool | None = None) -> tuple[Path, ...]:
    """The files that ``save_model`` will write."""
    large = weight_bytes(proto) >= EXTERNAL_FROM if external is None else external
    return (path, path.with_name(path.name + ".data")) if large else (path,)


def save_model(
    proto: Any, path: Path, *, force: bool = False, external: bool | None = None
) -> tuple[Path, ...]:
    """Write ``proto`` to ``path``, by default with external data from 1.5 GB.

    Returns:
        the files written, the model first.

    Raises:
        OutputError: exists without ``force``, no space, no permission; nothing is left behind.
    """
    paths = paths_of(path, proto, external=external)
    if not path.parent.is_dir():
        raise OutputError(f"{path}: cannot be written: its folder does not exist. Create it first.")
    if len(paths) == 1:
        content = proto.SerializeToString(deterministic=True)
        with AtomicFile(path, force=force, size=len(content)) as file:
            file.write(content)
        return paths
    with ExitStack() as stack:
        # Left in reverse order: the data get their name before the model that needs them.
        file = stack.enter_context(AtomicFile(path, force=force))
        data = stack.enter_context(AtomicFile(paths[1], force=force, size=weight_bytes(proto)))
        with externalised(proto, paths[1].name, data.write_at):
            file.write(proto.SerializeToString(deterministic=True))
        file.flush()
    return paths
