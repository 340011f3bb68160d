"""What can be computed from the layout, kept in SQLite so that listing reads one file.

Nothing here is true by itself: the database notes the digest of the ``index.json`` it was made
from, and is brought up to date when another one lies there. A damaged database is made anew.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from kvant.errors import OutputError

__all__ = ["Blobs", "Index", "Row", "Sealed"]

_SCHEMA = 1
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE models (key TEXT PRIMARY KEY, digest TEXT NOT NULL, row TEXT NOT NULL);
CREATE TABLE blobs (manifest TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
                    role TEXT NOT NULL, title TEXT NOT NULL, PRIMARY KEY (manifest, digest));
CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL,
                    inode INTEGER NOT NULL, digest TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What is listed of a model without opening any of its files."""

    name: str
    digest: str
    size: int
    created: str
    source: str
    format: str
    family: str
    parameters: int
    quantization: str
    license: str
    context: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """How a file looked when its digest was computed."""

    path: str
    size: int
    mtime: int
    inode: int


Blobs: TypeAlias = Sequence[tuple[str, int, str, str]]
"""Digest, size, role and title of a model's blobs."""
_T = TypeVar("_T")


class Index:
    """The database beside a layout. Any number of processes may have it open."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rows(
        self,
        state: str,
        keys: Iterable[tuple[str, str]],
        describe: Callable[[str], tuple[Row, Blobs]],
    ) -> list[Row]:
        """The models, brought up to date.

        Args:
            state: of ``index.json``, as `Layout.models` gives it.
            keys: key and manifest's digest of each model.
            describe: the row and the blobs (digest, size, role, title) of the model of a key.
        """
        return self._try(lambda db: self._rows(db, state, list(keys), describe))

    def _rows(
        self,
        db: sqlite3.Connection,
        state: str,
        keys: list[tuple[str, str]],
        describe: Callable[[str], tuple[Row, Blobs]],
    ) -> list[Row]:
        known = db.execute("SELECT value FROM meta WHERE key = 'state'").fetchone()
        if known is None or known[0] != state:
            with db:  # one transaction
                db.execute("BEGIN IMMEDIATE")
                db.execute("DELETE FROM models")
                db.execute("DELETE FROM blobs")
                for key, digest in keys:
                    row, blobs = describe(key)
                    db.execute(
                        "INSERT INTO models VALUES (?, ?, ?)",
                        (key, digest, json.dumps(asdict(row))),
                    )
                    db.executemany(
                        "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?)",
                        [(digest, *blob) for blob in blobs],
                    )
                db.execute("INSERT OR REPLACE INTO meta VALUES ('state', ?)", (state,))
        found = db.execute("SELECT row FROM models ORDER BY key").fetchall()
        return [Row(**json.loads(text)) for (text,) in found]

    def blobs(self, manifest: str) -> list[tuple[str, int]]:
        """Digest and size of a model's blobs, as of the last `rows`."""
        query = "SELECT digest, size FROM blobs WHERE manifest = ?"
        return self._try(lambda db: list(db.execute(query, (manifest,))))

    def digest(self, file: Sealed) -> str | None:
        """The digest of a file that was computed before, if it has not changed since."""
        query = "SELECT digest FROM files WHERE path = ? AND size = ? AND mtime = ? AND inode = ?"
        values = (file.path, file.size, file.mtime, file.inode)
        found = self._try(lambda db: db.execute(query, values).fetchone())
        return None if found is None else str(found[0])

    def remember(self, file: Sealed, digest: str) -> None:
        """Note the digest of a file."""
        values = (file.path, file.size, file.mtime, file.inode, digest)

        def write(db: sqlite3.Connection) -> None:
            with db:
                db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", values)

        self._try(write)

    def _try(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do it; with a new database where the old one is damaged or of another version."""
        for again in (False, True):
            try:
                with closing(self._open()) as db:
                    return work(db)
            except sqlite3.DatabaseError as error:
                busy = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
                if again or busy:
                    raise OutputError(
                        f"{self._path}: the store's index cannot be used: {error}. "
                        "Check permissions and space; it may be deleted, and is made again."
                    ) from None
                with suppress(OSError):
                    self._path.unlink()
                for suffix in ("-wal", "-shm", "-journal"):
                    with suppress(OSError):
                        self._path.with_name(self._path.name + suffix).unlink()
        raise AssertionError("the second time returns or raises")

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version != _SCHEMA:
                with db:
                    db.execute("BEGIN EXCLUSIVE")
                    # Another process may have been first.
                    if db.execute("PRAGMA user_version").fetchone()[0] != _SCHEMA:
                        tables = db.execute(
                            "SELECT name FROM sqlite_master WHERE type = 'table'"
                        ).fetchall()
                        for (name,) in tables:
                            db.execute(f'DROP TABLE "{name}"')
                        for statement in _TABLES.split(";"):
                            db.execute(statement)
                        db.execute(f"PRAGMA user_version = {_SCHEMA}")
        except BaseException:
            db.close()
            raise
        return db
