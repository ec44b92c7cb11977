"""The index of parts: verdicts as rows that a question finds at once, and counts by quarter of an hour.

Rules kept here: the verdicts are the truth, the index only repeats them, and follows them within a second, off the line's
path; it takes small bites, rests between them and forces nothing onto the disk, so that neither the line nor a reviewer waits
for it: what a power cut takes from it is indexed again. What a part's queue is comes from `sampling`; reading is left to
those who ask.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import apsw

from linegate.errors import StoreError
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.schema import TALLY_MINUTES
from linegate_edge.sampling import asks_about
from linegate_edge.settings import ReviewSection

log = logging.getLogger("linegate.review")
_BITE: Final = 200
_REST_S: Final = 0.02
_EVERY_S: Final = 0.5
_DONE: Final = "indexed"

_PART: Final = f"INSERT OR IGNORE INTO part VALUES ({', '.join('?' * 21)})"
_TALLY: Final = """
    INSERT INTO tally VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET count = count + excluded.count
"""


@dataclass(frozen=True, slots=True)
class _Row:
    part: tuple[Any, ...]
    tally: tuple[Any, ...]


class PartIndex(threading.Thread):
    """Follows the verdicts of a station into `database`."""

    def __init__(self, database: ReviewDatabase, settings: ReviewSection) -> None:
        super().__init__(name="part-index", daemon=True)
        self._database, self._settings = database, settings
        self._stopping = threading.Event()
        self._turn = threading.Lock()

    def run(self) -> None:
        """Follow until `stop`."""
        while not self._stopping.is_set():
            try:
                while not self._stopping.is_set() and self.bite() == _BITE:
                    self._stopping.wait(_REST_S)
            except StoreError as error:
                log.error("the index of parts does not follow the verdicts: %s", error)
                self._stopping.wait(10 * _EVERY_S)
            except Exception:
                log.exception("the index of parts does not follow the verdicts")
                self._stopping.wait(10 * _EVERY_S)
            self._stopping.wait(_EVERY_S)

    def stop(self) -> None:
        """End the thread after the bite in hand."""
        self._stopping.set()
        if self.is_alive():
            self.join()

    def catch_up(self) -> None:
        """Take in all verdicts that there are now."""
        while self.bite(5_000):
            pass

    def bite(self, limit: int = _BITE) -> int:
        """Take in up to `limit` verdicts, and return how many there were."""
        with self._turn:
            with self._database.look() as db:
                after = _value(db)
                rows: list[tuple[Any, ...]] = db.execute(
                    "SELECT sequence, message FROM line.verdict WHERE sequence > ? ORDER BY sequence LIMIT ?", (after, limit)
                ).fetchall()
            if not rows:
                return 0
            made = [_row(sequence, json.loads(text), self._settings) for sequence, text in rows]
            tallies = Counter(row.tally for row in made)
            with self._database.change(durable=False) as db:
                db.executemany(_PART, (row.part for row in made))
                db.executemany(_TALLY, ((*tally, count) for tally, count in tallies.items()))
                db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (_DONE, str(rows[-1][0])))
            return len(rows)


def _value(db: apsw.Connection) -> int:
    row = db.execute("SELECT value FROM state WHERE key = ?", (_DONE,)).fetchone()
    return 0 if row is None else int(row[0])


def _row(sequence: int, message: dict[str, Any], settings: ReviewSection) -> _Row:
    part, provenance, views, decision = message["part"], message["provenance"], message["views"], message["decision"]
    scored = [view for view in views if view["score"] is not None]
    # The view that came nearest to failing, or went furthest beyond.
    worst = max(scored, key=lambda view: view["score"] - view["threshold"], default=None)
    regions = [region for view in views for region in view["regions"]] if decision != "pass" else []
    strongest = max(regions, key=lambda region: float(region["score"]), default=None)
    defect_class = strongest["defect_class"] if strongest is not None else None
    decided_at = message["time"]["decided"]
    supplier_lot = part.get("supplier_lot")
    asked = asks_about(
        decision,
        message["verdict_id"],
        [(view["score"], view["threshold"]) for view in views],
        close_share=settings.close_share,
        audit_share=settings.audit_share,
    )
    package = f"{provenance['package']}@{provenance['package_version']}"
    row = (
        sequence,
        message["verdict_id"],
        part["serial"],
        decision,
        decided_at,
        message["mode"],
        provenance["recipe"],
        package,
        provenance["package_digest"],
        part["type"],
        part["batch"],
        supplier_lot,
        defect_class,
        message["reason"],
        None if worst is None else worst["view"],
        None if worst is None else worst["score"],
        None if worst is None else worst["threshold"],
        asked if message["mode"] == "production" else None,
        None,
        None,
        None,
    )
    # What a person would call the cause: the class where one was found, else why there is no verdict.
    cause = "" if decision == "pass" else defect_class or message["reason"]
    tally = (
        quarter_of(decided_at),
        provenance["recipe"],
        package,
        part["batch"] or "",
        supplier_lot or "",
        message["mode"],
        int(part["attempt"] == 1),
        decision,
        cause,
    )
    return _Row(row, tally)


def quarter_of(moment: str) -> str:
    """Return the beginning of the quarter of an hour in which a moment lies, both ISO 8601 in UTC, to the minute.

    >>> quarter_of("2026-11-24T09:44:59.123456Z")
    '2026-11-24T09:30'
    """
    return f"{moment[:14]}{int(moment[14:16]) // TALLY_MINUTES * TALLY_MINUTES:02d}"
