"""A file checked: structure, checksums, and how far its weights are from their source."""

from __future__ import annotations

from dataclasses import replace

from kvant.api.source import Source, open_source, resolve_whole, threads_or_default
from kvant.checkpoint import open_checkpoint
from kvant.export.gguf.stream import Progress
from kvant.export.gguf.verify import Verification, verify_against, verify_file
from kvant.files.gguf import read_gguf_split

__all__ = ["verify"]


def verify(
    file: Source,
    against: Source | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check a GGUF file; with ``against``, compare every weight with that source.

    Raises:
        InputError: a file cannot be read, or is damaged beyond reading.
        UsageError: the two are not of one model.
    """
    count = threads_or_default(threads)
    path = resolve_whole(file)
    result = verify_file(read_gguf_split(path), threads=count, progress=progress)
    if against is None or not result.ok:
        return result
    model, source = open_checkpoint(path), open_source(against)
    return replace(
        result,
        reconstruction=verify_against(model, source, threads=count, progress=progress),
    )
