"""Rows of hidden states: in memory while they fit, else in a file without a name."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from kvant.errors import OutputError

__all__ = ["States"]

Floats = npt.NDArray[np.float32]


class States:
    """float32 [rows, width], read and written by ranges of rows.

    A file is read and written by position, not mapped: mapped pages would count as this process's
    memory, and a full disk would end it without a word.
    """

    def __init__(
        self, rows: int, width: int, *, max_memory: int | None = None, folder: Path | None = None
    ) -> None:
        """Make room.

        Args:
            rows, width: the shape.
            max_memory: most bytes in memory; None for any number.
            folder: where the file goes if it takes one; by default the system's temporary folder.

        Raises:
            OutputError: there is no room on the disk.
        """
        self.rows, self.width = rows, width
        self._memory: Floats | None = None
        self._file: IO[bytes] | None = None
        if max_memory is None or self.size <= max_memory:
            self._memory = np.empty((rows, width), np.float32)
        else:
            self._file = self._scratch(folder)

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.width * 4

    @property
    def on_disk(self) -> bool:
        """Whether they are in a file."""
        return self._file is not None

    def read(self, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop``: a copy."""
        if self._memory is not None:
            return self._memory[start:stop].copy()
        assert self._file is not None
        out = np.empty((stop - start, self.width), np.float32)
        view, at = out.reshape(-1).view(np.uint8).data, start * self.width * 4
        while view:
            done = os.preadv(self._file.fileno(), [view], at)
            if done < 1:
                raise OutputError("The scratch file of hidden states ends early; check the disk.")
            view, at = view[done:], at + done
        return out

    def write(self, start: int, values: Floats) -> None:
        """Put ``values`` at rows from ``start`` on."""
        if self._memory is not None:
            self._memory[start : start + len(values)] = values
            return
        assert self._file is not None
        rows = np.ascontiguousarray(values, np.float32)
        view, at = rows.reshape(-1).view(np.uint8).data, start * self.width * 4
        while view:
            done = os.pwritev(self._file.fileno(), [view], at)
            view, at = view[done:], at + done

    def _scratch(self, folder: Path | None) -> IO[bytes]:
        where = folder or Path(tempfile.gettempdir())
        try:
            # TemporaryFile unlinks it at once: nothing is left behind, however the process ends.
            file = tempfile.TemporaryFile(dir=where, buffering=0)  # noqa: SIM115
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, self.size))
            except OSError:
                file.close()
                raise
        except OSError as error:
            raise OutputError(
                f"{where}: hidden states take {self.size / 1e6:,.0f} MB of scratch space there: "
                f"{error.strerror}. Free space, set TMPDIR, or use fewer tokens."
            ) from None
        return file
