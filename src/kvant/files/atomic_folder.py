"""A folder of files that appears whole or not at all: written beside its place, then renamed.

While it is written it is a hidden ``.NAME.XXXXXXXX.partial`` beside the final place, which stays
only after a kill. See `kvant.files.atomic` for single files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from kvant.errors import OutputError
from kvant.files.atomic import (
    AtomicFile,
    check_space,
    hidden_beside,
    sync_folder,
    write_atomic,
)

__all__ = ["AtomicFolder"]

_MODEL_FILES = (
    *(".safetensors", ".json", ".jinja", ".model", ".txt", ".md", ".onnx", ".data", ".gguf"),
    *(".npz", ".py", ".bin", ".tiktoken"),
)
"""Endings of what lies in a model's folder: only a folder of such files is ever replaced."""

_POOLING = "1_Pooling"  # sentence-transformers' folder beside an encoder


class AtomicFolder:
    """A folder being written, in place under its name once the ``with`` block ends well.

    When the block ends by an exception, KeyboardInterrupt included, nothing is left behind.

    Args:
        path: the final place. The folder it is in must exist.
        force: replace an existing folder, if nothing but files of a model lies in it; otherwise
            one that is not empty is an error.
        size: bytes that will be written, where known: too little space is an error at once.

    Raises:
        OutputError: on entering or leaving: exists, no space, no permission, ...
    """

    def __init__(
        self, path: str | os.PathLike[str], *, force: bool = False, size: int | None = None
    ) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
        self._force, self._size = force, size
        self._work: Path | None = None
        self._files: list[AtomicFile] = []

    def __enter__(self) -> AtomicFolder:
        self.check()
        work = hidden_beside(self.path)
        try:
            work.mkdir()
            self._work = work
            if self._size is not None:
                check_space(self.path, self._size, shutil.disk_usage(work).free)
        except OSError as error:
            self._discard()
            raise self._failed(error) from None
        except BaseException:
            self._discard()
            raise
        return self

    @property
    def work(self) -> Path:
        """Where the files are while they are written."""
        assert self._work is not None
        return self._work

    def open(self, name: str) -> AtomicFile:
        """A file of the folder to be written by position; it is whole when the folder is."""
        file = AtomicFile(self.work / name)
        file.__enter__()
        self._files.append(file)
        return file

    def write(self, name: str, data: bytes | str) -> None:
        """A whole small file (a text as UTF-8), perhaps in a folder of its own."""
        (self.work / name).parent.mkdir(exist_ok=True)
        write_atomic(self.work / name, data)

    def finish_files(self) -> None:
        """Give the files opened so far their names and have them on disk, so that they can be read
        in `work` before the folder appears."""
        files, self._files = self._files, []
        for at, file in enumerate(files):
            try:
                file.__exit__(None, None, None)
            except BaseException:
                _close(files[at + 1 :])
                raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish_files()
                self._appear()
        except OSError as failure:
            raise self._failed(failure) from None
        finally:
            self._discard()

    def check(self) -> None:
        """Whether the folder may be made, as is asked on entering.

        Raises:
            OutputError: it may not: says why.
        """
        try:
            if not os.path.lexists(self.path):
                if not self.path.parent.is_dir():
                    raise OutputError(
                        f"{self.path}: cannot be written: its folder does not exist. Create it "
                        "first."
                    )
                return
            if not self.path.is_dir():
                raise OutputError(
                    f"{self.path}: is a file, expected the name of a folder to be made. Choose "
                    "another."
                )
            found = sorted(entry.name for entry in self.path.iterdir())
            if not found:
                return
            if not self._force:
                raise OutputError(
                    f"{self.path}: exists already. Choose another name or pass --force."
                )
            odd = [n for n in found if not n.endswith(_MODEL_FILES) and n != _POOLING]
            odd += [n for n in found if (self.path / n).is_dir() and n != _POOLING]
            if odd:
                raise OutputError(
                    f"{self.path}: holds more than a model ({odd[0]!r}), so it is not replaced. "
                    "Choose another name, or remove it yourself."
                )
        except (OSError, ValueError) as error:
            raise self._failed(error) from None

    def _appear(self) -> None:
        assert self._work is not None
        sync_folder(self._work)
        aside: Path | None = None
        if os.path.lexists(self.path) and any(self.path.iterdir()):
            if not self._force:  # somebody made it meanwhile
                raise OutputError(
                    f"{self.path}: exists already. Choose another name or pass --force."
                )
            aside = self._work.with_suffix(".replaced")
            self.path.rename(aside)
        try:
            self._work.rename(self.path)
        except OSError:
            if aside is not None:
                aside.rename(self.path)
            raise
        self._work = None
        sync_folder(self.path.parent)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)

    def _discard(self) -> None:
        files, self._files = self._files, []
        _close(files)
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)
            self._work = None

    def _failed(self, error: OSError | ValueError) -> OutputError:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return OutputError(f"{self.path}: cannot be written: {reason}. Choose another folder.")


def _close(files: Sequence[AtomicFile]) -> None:
    abandoned = KeyboardInterrupt()
    for file in files:
        file.__exit__(type(abandoned), abandoned, None)
