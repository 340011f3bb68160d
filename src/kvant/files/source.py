"""Opening a file somebody else made: regular files only, sizes known, wrong kinds told apart."""

from __future__ import annotations

import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvant.errors import FileFormatError, InputError, UnsupportedError

__all__ = [
    "open_source",
    "pickle_error",
    "printable",
    "quote",
    "read_exactly",
    "refuse_other_kinds",
    "show",
    "with_home",
]

_SAFETENSORS_REMEDY = (
    "Get the safetensors version of the model, or make one where you trust the file: "
    "transformers' AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
)


def quote(text: str, limit: int = 80) -> str:
    """``text`` as it may stand in a message: quoted, escaped, and cut after ``limit`` characters.

    Names come from files that may be hostile, so control characters must not reach a terminal
    and a name of a megabyte must not become a message of a megabyte.
    """
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}… ({len(text)} characters)"


def printable(text: str, limit: int = 4000) -> str:
    """``text`` as it may stand bare on a terminal: controls escaped, cut after ``limit``."""
    shown = text if len(text) <= limit else f"{text[:limit]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def show(value: object) -> str:
    """Any value read from JSON as it may stand in a message: escaped, and cut at every level."""
    short = reprlib.Repr()
    short.maxlist = short.maxdict = 8
    short.maxstring = 60
    return short.repr(value)


def with_home(text: str | os.PathLike[str]) -> Path:
    """A path with ``~`` as the home it means; as it stands where nobody has one.

    ``Path.expanduser`` raises RuntimeError there (``~nosuch/x``), which no user should meet.
    """
    return Path(os.path.expanduser(text))  # noqa: PTH111


@contextmanager
def open_source(path: Path) -> Iterator[tuple[int, int]]:
    """Open a regular file for reading: yields its descriptor and its size in bytes.

    Raises:
        InputError: there is no such file, it may not be read, or it is a folder, pipe or device.
    """
    try:
        # Without O_NONBLOCK, opening a pipe nobody writes to would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. Check the path.") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read it. Check its owner and mode.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path}: cannot be opened: {error}.") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise InputError(f"{path}: expected a file, got {kind}. Name a regular file.")
        yield fd, status.st_size
    finally:
        os.close(fd)


def read_exactly(fd: int, path: Path, offset: int, count: int) -> bytes:
    """Read ``count`` bytes at ``offset`` by positioned reads.

    The caller has compared ``count`` with the file's size, so it may be allocated.

    Raises:
        FileFormatError: the file ends earlier (it shrank since it was opened).
        InputError: the device failed.
    """
    parts: list[bytes] = []
    done = 0
    while done < count:
        try:
            part = os.pread(fd, count - done, offset + done)
        except OSError as error:
            raise InputError(
                f"{path}: reading failed at byte {offset + done}: {error.strerror}. "
                "Check the disk or fetch the file again."
            ) from None
        if not part:
            raise FileFormatError(
                f"{path}: expected {count} bytes at {offset}, the file ends at {offset + done}; "
                "it was cut short while being read. Fetch it again."
            )
        parts.append(part)
        done += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def pickle_error(path: Path) -> UnsupportedError:
    """The refusal of a pickle checkpoint, worded the same wherever one turns up."""
    return UnsupportedError(
        f"{path}: this is a pickle checkpoint (PyTorch .bin, .pt, .pth), which can run any code "
        f"when loaded, so kvant never loads one. {_SAFETENSORS_REMEDY}"
    )


def refuse_other_kinds(path: Path, head: bytes, expected: str) -> None:
    """Raise where the first bytes show the file to be of another well-known kind.

    Returns when they do not; the caller then says what its own format expected.

    Args:
        path: for the message.
        head: the first bytes of the file; 64 are enough.
        expected: the format the caller reads, ``"GGUF"`` or ``"safetensors"``.

    Raises:
        UnsupportedError: a pickle checkpoint, or a model file of another kind.
        FileFormatError: not a model file at all (a Git LFS pointer, a web page, nothing).
    """
    # Protocol 2 to 5 pickles start with 0x80 and the protocol; torch's newer files are zips.
    if head[:4] == b"PK\x03\x04" or (
        head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    ):
        raise pickle_error(path)
    if not head:
        raise FileFormatError(
            f"{path}: expected a {expected} file, got an empty one. Fetch it again."
        )
    if head.startswith(b"version https://git-lfs"):
        raise FileFormatError(
            f"{path}: expected a {expected} file, got a Git LFS pointer to one. "
            "Run `git lfs pull` in its folder."
        )
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise FileFormatError(
            f"{path}: expected a {expected} file, got a web page, as a failed download leaves. "
            "Fetch it again."
        )
    if expected != "GGUF" and head[:4] == b"GGUF":
        raise UnsupportedError(
            f"{path}: expected a {expected} file, got a GGUF file. Name it with .gguf."
        )
    if expected != "safetensors" and len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\0\0":
        raise UnsupportedError(
            f"{path}: expected a {expected} file, got a safetensors file. "
            "Name the folder that holds it and its config.json."
        )
