"""Verdicts and their outbox, in one SQLite file: one writer, any number of readers.

Rules kept here: a verdict and its outbox row are committed together, durably (WAL, synchronous FULL), before anybody
hears of them; a trigger stands in the journal until its verdict does; the sequence has no gap, for it is given inside the
transaction; a repeated origin gives the first verdict again; one station owns a store, for as long as it lives. Evidence
files are left to `evidence`, MQTT to `publish`.

SQLite comes with apsw, for the one in Python 3.11 may corrupt a WAL database on a reset with concurrent connections.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import apsw

from linegate.errors import StoreError
from linegate.stages import Part
from linegate_edge.changes import Changes, LateFrame, NewVerdict, OpenTrigger
from linegate_edge.records import Recorded
from linegate_edge.schema import MIGRATIONS
from linegate_edge.selection import SPANS, Selection, page_query

_READER_CACHE_KIB: Final = 256
"""Of a reader: what it reads once is not read again, and would fill SQLite's two megabytes over a day."""
_CACHE_KIB: Final = 512
DATABASE_FILE: Final = "linegate.sqlite3"
LOCK_FILE: Final = "lock"


@dataclass(frozen=True, slots=True)
class StoredEvidence:
    """One row of the evidence table."""

    sequence: int
    name: str
    size_bytes: int
    stored_at: str


# A verdict by the origin of its trigger, of one of its frames, or of a frame that came after it.
_RECORDED: Final = """
    SELECT sequence, verdict_id, message FROM verdict WHERE origin = ?
    UNION ALL
    SELECT v.sequence, v.verdict_id, v.message FROM frame_origin f JOIN verdict v USING (sequence) WHERE f.origin = ?
    UNION ALL
    SELECT v.sequence, v.verdict_id, v.message FROM late_frame l JOIN verdict v USING (verdict_id) WHERE l.origin = ?
    LIMIT 1
"""


class Store:
    """The writer's side of a station's store; all its methods belong to one thread at a time.

    Raises:
        StoreError: the folder cannot be made, another station holds the store, or it belongs to another station.
    """

    def __init__(self, folder: Path, station_topic: str) -> None:
        self.path = folder / DATABASE_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(folder)
        except OSError as error:
            raise StoreError(f"{folder}: the store cannot be made here: {error.strerror}") from error
        try:
            self._db = apsw.Connection(str(self.path))
            self._db.set_busy_timeout(5_000)
            # One by one: apsw stops at the first row, and would not run what follows a statement that gives one.
            # A small cache, full within minutes: the kernel's holds the rest, and the station does not grow with its store.
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"cache_size=-{_CACHE_KIB}"):
                self._db.execute(f"PRAGMA {pragma}").fetchall()
            self._migrate(station_topic)
            self._identity = _identity(self.path)
            row = _one(self._db, "SELECT coalesce(max(sequence), 0) FROM verdict")
            self.last_sequence: int = row[0]
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, apsw.Error):
                raise StoreError(f"{self.path}: the store cannot be opened: {error}") from error
            raise

    def _migrate(self, station_topic: str) -> None:
        with self._transaction():
            version = _one(self._db, "PRAGMA user_version")[0]
            if version > len(MIGRATIONS):
                text = f"schema version {version}, this Linegate knows {len(MIGRATIONS)}: update Linegate"
                raise StoreError(f"{self.path}: {text}")
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                self._db.execute(f"{script}; PRAGMA user_version={number}")
            self._db.execute("INSERT OR IGNORE INTO station VALUES ('topic', ?)", (station_topic,))
            owner = _one(self._db, "SELECT value FROM station WHERE key = 'topic'")[0]
        if owner != station_topic:
            text = f"belongs to station '{owner}', not '{station_topic}': give each station a store of its own"
            raise StoreError(f"{self.path}: {text}")

    def commit(self, changes: Changes) -> list[Recorded]:
        """Commit verdicts with their outbox and evidence rows, and all else that `changes` asks for.

        All of it happens, durably, or nothing does. Sequence numbers follow on without a gap. A verdict takes its trigger
        out of the journal.

        Raises:
            StoreError: the disk is full or broken; nothing was changed, and the same call may be made again.
        """
        recorded: list[Recorded] = []
        sequence = self.last_sequence
        if _identity(self.path) != self._identity:
            # SQLite would go on writing into a file that has no name any more, and all of it would be gone at the end.
            raise StoreError(f"{self.path}: was removed or replaced under the running station: stop it and restore the store")
        try:
            with self._transaction():
                self._open_triggers(changes)
                for new in changes.verdicts:
                    known = self._find_origin(new.origins[0]) if new.origins else None
                    if known is not None:
                        recorded.append(known)
                    else:
                        sequence += 1
                        recorded.append(self._insert(new, sequence))
                    if new.journalled:
                        self._db.execute("DELETE FROM open_trigger WHERE verdict_id = ?", (new.verdict_id,))
                self._insert_late(changes.late)
                self._db.executemany("DELETE FROM outbox WHERE sequence = ?", ((number,) for number in changes.acknowledged))
                self._db.executemany(
                    "INSERT OR IGNORE INTO outbox SELECT sequence FROM verdict WHERE sequence BETWEEN ? AND ?", changes.replayed
                )
                for table in ("evidence", "trace"):
                    forgotten = ((number,) for number in changes.forgotten)
                    self._db.executemany(f"DELETE FROM {table} WHERE sequence = ?", forgotten)
                self._db.executemany("INSERT OR REPLACE INTO station VALUES (?, ?)", changes.values.items())
        except apsw.Error as error:
            raise StoreError(f"{self.path}: {error}: free some disk space, or look at the disk") from error
        self.last_sequence = sequence
        return recorded

    def _open_triggers(self, changes: Changes) -> None:
        if not changes.opened:
            return
        done = {new.verdict_id for new in changes.verdicts}  # its verdict comes in this very transaction
        self._db.executemany(
            "INSERT OR IGNORE INTO open_trigger VALUES (?, ?, ?, ?)",
            (
                (new.verdict_id, new.origin, json.dumps(asdict(new.part)), new.triggered_at)
                for new in changes.opened
                if new.verdict_id not in done
            ),
        )

    def _insert(self, new: NewVerdict, sequence: int) -> Recorded:
        text = new.message(sequence)
        self._db.execute(
            "INSERT INTO verdict VALUES (?, ?, ?, ?, ?, ?, ?)",
            (sequence, new.verdict_id, next(iter(new.origins), None), new.serial, new.decision, new.decided_at, text),
        )
        for origin in new.origins[1:]:
            self._db.execute("INSERT OR IGNORE INTO frame_origin VALUES (?, ?)", (origin, sequence))
        self._db.execute("INSERT INTO outbox VALUES (?)", (sequence,))
        for item in new.evidence:
            self._db.execute(
                "INSERT OR IGNORE INTO evidence VALUES (?, ?, ?, ?, ?, ?, ?)",  # two views may show the very same picture
                (sequence, item.sha256, item.name, item.media_type, item.size_bytes, new.decision, new.decided_at),
            )
        for trace in new.traces:
            self._db.execute(
                "INSERT OR IGNORE INTO trace VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (sequence, trace.view, trace.frame_id, *trace.size_wh, json.dumps(trace.roi_xyxy), trace.heat, trace.thumbnail),
            )
        return Recorded(sequence, new.verdict_id, text)

    def _insert_late(self, late: Sequence[LateFrame]) -> None:
        for row in late:
            of = (row.verdict_id, row.verdict_id, row.view, row.camera, row.frame_id)
            self._db.execute(
                "INSERT INTO late_frame VALUES ((SELECT sequence FROM verdict WHERE verdict_id = ?), ?, ?, ?, ?, ?, ?, ?, ?)",
                (*of, row.captured_at, row.arrived_at, row.detail, row.origin),
            )

    def open_triggers(self) -> list[OpenTrigger]:
        """Return the triggers whose parts got no verdict before the last station ended, in the order they came."""
        rows = self._db.execute("SELECT verdict_id, origin, part, triggered_at FROM open_trigger ORDER BY triggered_at")
        return [OpenTrigger(row[0], row[1], Part(**json.loads(row[2])), row[3]) for row in rows]

    def value(self, key: str) -> str | None:
        """Return what the station has kept under this key, or None."""
        row = self._db.execute("SELECT value FROM station WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _find_origin(self, origin: str) -> Recorded | None:
        row = self._db.execute(_RECORDED, (origin,) * 3).fetchone()
        return None if row is None else Recorded(row[0], row[1], row[2], repeated=True)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what is done inside, or undo it.

        Spelled out, for apsw's own `with connection:` keeps Python's lock during the fsync, and the workers wait.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def knows_evidence(self, name: str) -> bool:
        """Say whether a verdict has this evidence file."""
        return bool(list(self._db.execute("SELECT 1 FROM evidence WHERE name = ? LIMIT 1", (name,))))

    def widen_cache(self, kibibytes: int) -> None:
        """Keep so much of the file in memory, for one who writes many rows at once."""
        self._db.execute(f"PRAGMA cache_size=-{kibibytes:d}")

    def close(self) -> None:
        """Close the store and let another station have it."""
        self._db.close()
        os.close(self._lock)


class StoreReader:
    """A read-only look at a store, for one thread.

    Raises:
        StoreError: the store cannot be opened or read; so does each of its methods.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            self._db.set_busy_timeout(5_000)
            self._db.execute(f"PRAGMA cache_size=-{_READER_CACHE_KIB}").fetchall()
        except apsw.Error as error:
            raise StoreError(f"{path}: the store cannot be opened: {error}") from error

    def outbox_after(self, sequence: int, limit: int) -> list[tuple[int, str]]:
        """Return sequence and message JSON of up to `limit` outbox rows after `sequence`, in order."""
        return self._rows(
            "SELECT o.sequence, v.message FROM outbox o JOIN verdict v USING (sequence) "
            "WHERE o.sequence > ? ORDER BY o.sequence LIMIT ?",
            sequence,
            limit,
        )

    def sequences_of(self, verdict_ids: Sequence[str]) -> list[int]:
        """Return the sequence numbers of those of these verdicts that are known."""
        marks = ", ".join("?" * len(verdict_ids))
        return [row[0] for row in self._rows(f"SELECT sequence FROM verdict WHERE verdict_id IN ({marks})", *verdict_ids)]

    def outbox_count(self) -> int:
        """Return how many verdicts wait for the broker."""
        return int(self._rows("SELECT count(*) FROM outbox")[0][0])

    def verdict_count(self) -> int:
        """Return how many verdicts the store holds."""
        return int(self._rows("SELECT count(*) FROM verdict")[0][0])

    def verdict_rows(self) -> Iterator[tuple[int, str, str]]:
        """Yield sequence, verdict id and serial of all verdicts, in order."""
        after = 0
        while rows := self._rows(
            "SELECT sequence, verdict_id, serial FROM verdict WHERE sequence > ? ORDER BY sequence LIMIT 1000", after
        ):
            yield from rows
            after = rows[-1][0]

    def last_decided_at(self) -> str | None:
        """Return when the last verdict fell, ISO 8601, or None where there is none."""
        rows = self._rows("SELECT decided_at FROM verdict ORDER BY sequence DESC LIMIT 1")
        return str(rows[0][0]) if rows else None

    def recorded(self, origin: str) -> Recorded | None:
        """Return the verdict that a picture or trigger of this origin has already, or None."""
        rows = self._rows(_RECORDED, *(origin,) * 3)
        return Recorded(rows[0][0], rows[0][1], rows[0][2], repeated=True) if rows else None

    def late_frames(self, verdict_id: str) -> list[LateFrame]:
        """Return the frames that came after this verdict."""
        columns = "verdict_id, view, camera, frame_id, captured_at, arrived_at, detail, origin"
        rows = self._rows(f"SELECT {columns} FROM late_frame WHERE verdict_id = ?", verdict_id)
        return [LateFrame(*row) for row in rows]

    def verdict(self, verdict_id: str) -> dict[str, Any] | None:
        """Return the message of a verdict, or None."""
        rows = self._rows("SELECT message FROM verdict WHERE verdict_id = ?", verdict_id)
        return json.loads(rows[0][0]) if rows else None

    def page(self, selection: Selection, *, newest_first: bool, after: int | None, limit: int) -> list[tuple[int, str]]:
        """Return sequence and message JSON of up to `limit` verdicts of a selection, from the sequence number `after` on.

        `after` itself is not among them; None begins at the newest or the oldest.
        """
        blocks = None
        if any(selection.times):
            blocks = self._rows(SPANS, *selection.times)[0]
            if blocks[0] is None:
                return []
        sql, values = page_query(selection, blocks, newest_first=newest_first, after=after, limit=limit)
        return self._rows(sql, *values)

    def evidence(self, name: str) -> str | None:
        """Return the media type of an evidence file, or None where the store does not know it."""
        rows = self._rows("SELECT media_type FROM evidence WHERE name = ? LIMIT 1", name)
        return str(rows[0][0]) if rows else None

    def evidence_count(self, name: str) -> int:
        """Return how many verdicts have this evidence file."""
        return int(self._rows("SELECT count(*) FROM evidence WHERE name = ?", name)[0][0])

    def evidence_size_bytes(self) -> int:
        """Return the size of all evidence that the store knows."""
        return int(self._rows("SELECT coalesce(sum(size_bytes), 0) FROM evidence")[0][0])

    def oldest_evidence(self, *, passed: bool, after: int = 0, limit: int) -> list[StoredEvidence]:
        """Return the oldest evidence rows of parts that passed, or of those that did not, after a sequence number.

        A picture that a part which did not pass shares with one that passed (the same bytes) is none of the latter.
        """
        where = (
            "e.decision = 'pass' AND NOT EXISTS (SELECT 1 FROM evidence o WHERE o.name = e.name AND o.decision <> 'pass')"
            if passed
            else "e.decision <> 'pass'"
        )
        rows = self._rows(
            f"SELECT e.sequence, e.name, e.size_bytes, e.stored_at FROM evidence e WHERE {where} "
            "AND e.sequence > ? ORDER BY e.sequence LIMIT ?",
            after,
            limit,
        )
        return [StoredEvidence(*row) for row in rows]

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _rows(self, query: str, *values: int | str | None) -> list[Any]:
        try:
            return list(self._db.execute(query, values))
        except apsw.Error as error:
            raise StoreError(f"{self._path}: the store cannot be read: {error}") from error


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file, or None where it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _one(db: apsw.Connection, query: str) -> tuple[Any, ...]:
    """Return the one row of a query that always has one."""
    row: tuple[Any, ...] = next(iter(db.execute(query)))
    return row


def _take_lock(folder: Path) -> int:
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        text = f"is in use by process {holder}: stop that station, or give this one a store of its own"
        raise StoreError(f"{folder}: the store {text}") from None
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
