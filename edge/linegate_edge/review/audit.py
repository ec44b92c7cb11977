"""The audit trail: one line for each thing that people decide or change, chained by SHA-256.

Rules kept here: a line is only ever added, in the transaction of the change that it tells of; its digest covers all of it and
the digest of the line before, so that a line edited, removed or moved breaks the chain from there on; how far the trail goes
stands in a file beside the database too, so that an end cut off is noticed. Who may read it is left to `access`.

The digest is SHA-256 over the canonical JSON of the line (keys sorted, no spaces, UTF-8), `previous` included; the first
line's `previous` is 64 zeros. It proves that nothing was changed since somebody else noted a digest: evidence downloads carry
the head of their moment, and `linegate audit head` prints it for a plant's own records. Whoever owns the disk can write a
whole new trail, but not one that contains a digest noted elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import apsw

from linegate.errors import StoreError
from linegate_edge.message import utc_now
from linegate_edge.review.database import REVIEWS_FILE, ReviewDatabase

log = logging.getLogger("linegate.review")
HEAD_FILE: Final = "audit.head"
FIRST: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something: a user's or token's name and role; the station itself is `SYSTEM`."""

    name: str
    role: str


SYSTEM: Final = Actor("station", "system")
NOBODY: Final = Actor("nobody", "none")
"""Who asks from the network without showing who they are."""


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One line of the trail; `at` is ISO 8601, UTC."""

    number: int
    at: str
    actor: str
    role: str
    action: str
    subject: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    previous: str = FIRST
    digest: str = ""

    def expected_digest(self) -> str:
        """Return the SHA-256 that a line of this content has."""
        content = {name: getattr(self, name) for name in self.__slots__ if name != "digest"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What `verify` found: how many lines hold, the head's digest, and the first thing that is wrong, or None."""

    lines: int
    head: str
    problem: str | None


class AuditTrail:
    """The trail of one station; all methods may be called from any thread."""

    def __init__(self, database: ReviewDatabase) -> None:
        self._database = database
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def change(
        self, actor: Actor, action: str, subject: str, detail: Mapping[str, Any] | None = None
    ) -> Iterator[apsw.Connection]:
        """Commit what is done inside together with its line of the trail; where it raises, neither happens.

        What is put into the mapping `detail` inside still gets into the line.

        Raises:
            StoreError: the disk is full or broken; nothing was changed.
        """
        with self._lock:
            with self._database.change() as db:
                yield db
                line = _append(db, actor, action, subject, detail or {})
            # After the commit: a crash between leaves a head that the trail has gone past, which is told apart from a cut.
            try:
                _write_head(self._database.folder, line)
            except OSError as error:
                log.error("%s could not be written, the trail itself holds: %s", HEAD_FILE, error)

    def add(self, actor: Actor, action: str, subject: str, detail: Mapping[str, Any] | None = None) -> None:
        """Add a line for something that changes nothing in the database: a login refused, a download."""
        with self.change(actor, action, subject, detail):
            pass

    def head(self) -> tuple[int, str]:
        """Return number and digest of the last line; 0 and zeros where there is none."""
        with self._database.look() as db:
            row = db.execute("SELECT number, digest FROM audit ORDER BY number DESC LIMIT 1").fetchone()
        return (0, FIRST) if row is None else (row[0], row[1])

    def lines(self, *, before: int | None = None, subject: str | None = None, limit: int = 100) -> list[AuditLine]:
        """Return lines, newest first: those before a number, those of one subject."""
        with self._database.look() as db:
            rows = db.execute(
                "SELECT number, at, actor, role, action, subject, detail, previous, digest FROM audit "
                "WHERE (?1 IS NULL OR number < ?1) AND (?2 IS NULL OR subject = ?2) ORDER BY number DESC LIMIT ?3",
                (before, subject, limit),
            ).fetchall()
        return [_line(row) for row in rows]


def _append(db: apsw.Connection, actor: Actor, action: str, subject: str, detail: Mapping[str, Any]) -> AuditLine:
    last = db.execute("SELECT number, digest FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    number, previous = (0, FIRST) if last is None else (last[0], last[1])
    # Through JSON once, so that what is digested is what is read again.
    plain = json.loads(json.dumps(dict(detail), ensure_ascii=False))
    line = AuditLine(number + 1, utc_now().isoformat(), actor.name, actor.role, action, subject, plain, previous)
    digest = line.expected_digest()
    db.execute(
        "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (line.number, line.at, line.actor, line.role, action, subject, json.dumps(plain, ensure_ascii=False), previous, digest),
    )
    return AuditLine(line.number, line.at, line.actor, line.role, action, subject, plain, previous, digest)


def _write_head(folder: Path, line: AuditLine) -> None:
    # In place, of one length, within one sector, and without an fsync that the line's disk would have to wait for: what a power
    # cut can leave is an older head, which the trail has gone past.
    descriptor = os.open(folder / HEAD_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, f"{line.number:019d} {line.digest}\n".encode(), 0)
    finally:
        os.close(descriptor)


def _line(row: tuple[Any, ...]) -> AuditLine:
    number, at, actor, role, action, subject, detail, previous, digest = row
    return AuditLine(number, at, actor, role, action, subject, json.loads(detail), previous, digest)


def verify(folder: Path, noted: str | None = None) -> AuditReport:
    """Go through the trail of a store from the first line to the last, and tell the first thing that is wrong.

    `noted` is a digest that somebody wrote down elsewhere, or that an evidence download carries: the trail must contain it.

    Raises:
        StoreError: there is no trail, or it cannot be read.
    """
    path = folder / REVIEWS_FILE
    if not path.is_file():
        raise StoreError(f"{folder}: no {REVIEWS_FILE} here: give the folder of a station's store")
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_timeout(5_000)
        with contextlib.closing(db):
            rows = db.execute(
                "SELECT number, at, actor, role, action, subject, detail, previous, digest FROM audit ORDER BY number"
            )
            return _verify(rows, _read_head(folder), noted)
    except apsw.Error as error:
        raise StoreError(f"{path}: the audit trail cannot be read: {error}") from error


def _verify(rows: Iterator[tuple[Any, ...]], head: tuple[int, str] | None, noted: str | None) -> AuditReport:
    number, previous, seen, reached = 0, FIRST, noted is None, head is None
    for row in rows:
        if row[0] != number + 1:
            return AuditReport(number, previous, f"line {number + 1} is missing: the next one there is line {row[0]}")
        try:
            line = _line(row)
        except ValueError:
            return AuditReport(number, previous, f"line {row[0]} was changed: its detail is no JSON any more")
        if line.previous != previous:
            return AuditReport(
                number, previous, f"line {line.number} does not follow line {number}: lines were moved or removed"
            )
        if line.expected_digest() != line.digest:
            return AuditReport(number, previous, f"line {line.number} was changed: its digest does not fit its content")
        number, previous = line.number, line.digest
        seen = seen or line.digest == noted
        reached = reached or head == (number, previous)
    if head is None and number:
        return AuditReport(number, previous, f"the file {HEAD_FILE} is missing, which says how far the trail goes")
    if head is not None and not reached:
        text = f"{HEAD_FILE} says line {head[0]} with another digest, or that there is one: the trail was cut off or replaced"
        return AuditReport(number, previous, text)
    if not seen:
        return AuditReport(number, previous, f"no line has the digest {noted}: the trail is not the one that it was noted from")
    return AuditReport(number, previous, None)


def _read_head(folder: Path) -> tuple[int, str] | None:
    try:
        number, digest = (folder / HEAD_FILE).read_text(encoding="ascii").split()
        return int(number), digest
    except (OSError, ValueError):
        return None
