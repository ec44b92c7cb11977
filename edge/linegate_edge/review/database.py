"""What people do at a station, in a SQLite file of its own beside the verdicts: one change at a time, any number of readers.

Rules kept here: a change and its line in the audit trail are one transaction; a change waits for no other file, so that a
reviewer's commit never holds the lock that the line needs; readers see verdicts and reviews together, read-only. What the
tables mean is left to those who ask.

Why two files: SQLite has one writer a file. A reviewer who draws a mask of megabytes, or an index that catches up after a
night, would make the line wait for an fsync that is not its own. What it costs: a verdict and its review are not one
transaction, and need not be, for the review always comes later.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from linegate.errors import StoreError
from linegate_edge.review.schema import MIGRATIONS
from linegate_edge.store import DATABASE_FILE

REVIEWS_FILE: Final = "reviews.sqlite3"
_READERS: Final = 8


class ReviewDatabase:
    """The reviews of the station whose store lies in `folder`; all methods may be called from any thread.

    Raises:
        StoreError: the file cannot be opened, or was made by a newer Linegate.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / REVIEWS_FILE
        self._lock = threading.Lock()
        self._readers: list[apsw.Connection] = []
        self._readers_lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # password hashes lie in it
            self._db = apsw.Connection(str(self.path))
            self._db.set_busy_timeout(5_000)
            for pragma in ("journal_mode=WAL", "foreign_keys=ON", "cache_size=-4096"):
                self._db.execute(f"PRAGMA {pragma}").fetchall()
            self._migrate()
        except (apsw.Error, OSError) as error:
            raise StoreError(f"{self.path}: the reviews cannot be opened: {error}") from error

    def _migrate(self) -> None:
        with self.change() as db:
            version = next(iter(db.execute("PRAGMA user_version")))[0]
            if version > len(MIGRATIONS):
                text = f"schema version {version}, this Linegate knows {len(MIGRATIONS)}: update Linegate"
                raise StoreError(f"{self.path}: {text}")
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                db.execute(f"{script}; PRAGMA user_version={number}")

    @contextlib.contextmanager
    def change(self, *, durable: bool = True) -> Iterator[apsw.Connection]:
        """Commit durably what is done inside, or, where it raises, nothing of it.

        What is not `durable` is on the disk with the next change that is, or with the next checkpoint: a power cut may undo it,
        whole changes at a time, the last ones first.

        Raises:
            StoreError: the disk is full or broken; nothing was changed.
        """
        with self._lock:
            try:
                # In WAL mode NORMAL leaves out the fsync of a commit and nothing else: https://sqlite.org/pragma.html#pragma_synchronous
                self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except apsw.Error as error:
                raise StoreError(
                    f"{self.path}: {error}: nothing was changed; free some disk space, or look at the disk"
                ) from error

    @contextlib.contextmanager
    def look(self) -> Iterator[apsw.Connection]:
        """Lend a read-only connection in which the station's verdicts are there as `line.verdict`, `line.evidence` and so on.

        Raises:
            StoreError: the file cannot be read.
        """
        with self._readers_lock:
            db = self._readers.pop() if self._readers else None
        try:
            db = db or self._open_reader()
            yield db
        except apsw.Error as error:
            raise StoreError(f"{self.path}: cannot be read: {error}") from error
        finally:
            if db is not None:
                with self._readers_lock:
                    kept = len(self._readers) < _READERS
                    if kept:
                        self._readers.append(db)
                if not kept:
                    db.close()

    def _open_reader(self) -> apsw.Connection:
        db = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_timeout(5_000)
        db.execute("PRAGMA cache_size=-8192").fetchall()
        verdicts = self.folder / DATABASE_FILE
        if verdicts.exists():
            db.execute("ATTACH DATABASE ? AS line", (str(verdicts),)).fetchall()  # read-only as the connection is
        return db

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._db.close()
        with self._readers_lock:
            for reader in self._readers:
                reader.close()
            self._readers.clear()
