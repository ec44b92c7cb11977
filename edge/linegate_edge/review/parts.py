"""Finding parts: the queue, the search, one part with all that is known of it, and a good one to compare it with.

Rules kept here: every question is answered by an index, in the order of the sequence, so that a million parts are no slower
than a thousand; values are bound, never written into the SQL. Deciding is left to `decisions`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import apsw
import numpy as np
from numpy.typing import NDArray

from linegate_edge.review.decisions import history
from linegate_edge.sampling import Asked

COLUMNS: Final = (
    "sequence, verdict_id, serial, decision, decided_at, recipe, package, part_type, batch, supplier_lot, defect_class, "
    "reason, view, score, threshold, queued, disposition, decided_class, decision_number"
)
_NAMES: Final = tuple(name.strip() for name in COLUMNS.split(","))
_VERDICT_ID: Final = _NAMES.index("verdict_id")
_REFERENCES: Final = 400


@dataclass(frozen=True, slots=True)
class PartFilter:
    """Which parts; None does not choose. `since` and `until` are ISO 8601 in UTC, without a zone."""

    serial: str | None = None
    decision: str | None = None
    defect_class: str | None = None
    recipe: str | None = None
    package: str | None = None
    batch: str | None = None
    disposition: str | None = None
    since: str | None = None
    until: str | None = None


def find(db: apsw.Connection, wanted: PartFilter, *, before: int | None, limit: int) -> list[dict[str, Any]]:
    """Return up to `limit` parts, newest first, those before a sequence number."""
    terms: list[str] = []
    values: list[Any] = []

    def term(text: str, value: Any) -> None:
        terms.append(text)
        values.append(value)

    # The most choosing index first; a plus takes the others out of SQLite's hands.
    leading = next(
        (
            name
            for name in ("serial", "disposition", "defect_class", "batch", "decision")
            if getattr(wanted, name) is not None and not (name == "decision" and wanted.decision == "pass")
        ),
        None,
    )
    for name in ("serial", "decision", "defect_class", "recipe", "package", "batch", "disposition"):
        value = getattr(wanted, name)
        if value is None:
            continue
        if name == "disposition" and value == "none":
            terms.append("disposition IS NULL")
        else:
            term(f"{name if name == leading else '+' + name} = ?", value)
    if leading == "decision":
        terms.append("decision <> 'pass'")
    if wanted.disposition is not None and wanted.disposition != "none":
        terms.append("disposition IS NOT NULL")
    if wanted.batch is not None:
        terms.append("batch IS NOT NULL")
    if wanted.defect_class is not None:
        terms.append("defect_class IS NOT NULL")
    low, high = _span(db, wanted)
    if before is not None:
        high = min(high, before - 1)
    term("sequence >= ?", low)
    term("sequence <= ?", high)
    if wanted.since is not None:
        term("+decided_at >= ?", wanted.since)
    if wanted.until is not None:
        term("+decided_at < ?", wanted.until)
    sql = f"SELECT {COLUMNS} FROM part WHERE {' AND '.join(terms)} ORDER BY sequence DESC LIMIT ?"
    return [_named(row) for row in db.execute(sql, (*values, limit))]


def _span(db: apsw.Connection, wanted: PartFilter) -> tuple[int, int]:
    """Return the least and the greatest sequence number that a time can have, by the blocks that the verdicts keep."""
    if wanted.since is None and wanted.until is None:
        return 0, 2**62
    row = db.execute(
        "SELECT min(block), max(block) FROM line.verdict_span "
        "WHERE (?1 IS NULL OR latest >= ?1) AND (?2 IS NULL OR earliest < ?2)",
        (wanted.since, wanted.until),
    ).fetchone()
    return (1, 0) if row is None or row[0] is None else (row[0] * 1024 + 1, (row[1] + 1) * 1024)


def waiting(
    db: apsw.Connection,
    *,
    kind: Asked | None,
    defect_class: str | None,
    recipe: str | None,
    oldest_first: bool,
    after: int | None,
    without: Collection[str],
    limit: int,
) -> list[dict[str, Any]]:
    """Return up to `limit` parts that wait for a decision, those after (or before) a sequence number, but for some."""
    terms = ["queued IS NOT NULL", "disposition IS NULL"]
    values: list[Any] = []
    # The class chooses most; a plus takes the others out of SQLite's hands.
    leading = "defect_class" if defect_class is not None else "queued"
    for name, value in (("queued", kind), ("defect_class", defect_class), ("recipe", recipe)):
        if value is not None:
            terms.append(f"{name if name == leading else '+' + name} = ?")
            values.append(value)
    index = "part_waiting"
    if defect_class is not None:
        terms.append("defect_class IS NOT NULL")
        index = "part_waiting_by_class"
    elif kind is not None:
        index = "part_waiting_by_kind"
    if after is not None:
        terms.append("sequence > ?" if oldest_first else "sequence < ?")
        values.append(after)
    order = "ASC" if oldest_first else "DESC"
    sql = f"SELECT {COLUMNS} FROM part INDEXED BY {index} WHERE {' AND '.join(terms)} ORDER BY sequence {order} LIMIT ?"
    found: list[dict[str, Any]] = []
    # Closed before its end, or the connection would go on reading the past.
    with contextlib.closing(db.execute(sql, (*values, limit + len(without)))) as rows:
        for row in rows:
            if row[_VERDICT_ID] not in without:
                found.append(_named(row))
                if len(found) == limit:
                    break
    return found


def waiting_count(db: apsw.Connection, most: int = 10_000) -> int:
    """Return how many parts wait for a decision; counting ends at `most`."""
    sql = "SELECT count(*) FROM (SELECT 1 FROM part WHERE queued IS NOT NULL AND disposition IS NULL LIMIT ?)"
    return int(_rows(db, sql, most)[0][0])


def one(db: apsw.Connection, verdict_id: str) -> dict[str, Any] | None:
    """Return a part with its message, looks and decisions, or None."""
    rows = _rows(db, f"SELECT {COLUMNS} FROM part WHERE verdict_id = ?", verdict_id)
    if not rows:
        return None
    part = _named(rows[0])
    sequence = part["sequence"]
    text = _rows(db, "SELECT message FROM line.verdict WHERE sequence = ?", sequence)[0][0]
    traces = _rows(db, "SELECT view, width, height, roi FROM line.trace WHERE sequence = ?", sequence)
    looks = {view: {"size_wh": (width, height), "roi_xyxy": json.loads(roi)} for view, width, height, roi in traces}
    kept = {name for (name,) in _rows(db, "SELECT name FROM line.evidence WHERE sequence = ?", sequence)}
    return {"part": part, "message": json.loads(text), "looks": looks, "kept": kept, "decisions": history(db, sequence)}


def heat_map(db: apsw.Connection, verdict_id: str, view: str) -> bytes | None:
    """Return the heat map of a look as a grey PNG, or None."""
    sql = "SELECT t.heat FROM line.trace t JOIN part p USING (sequence) WHERE p.verdict_id = ? AND t.view = ?"
    rows = _rows(db, sql, verdict_id, view)
    return bytes(rows[0][0]) if rows else None


class GoodParts:
    """Finds good parts to compare others with; what one view and recipe have is read once, for as long as this is kept.

    Compared are the thumbnails of the last few hundred good parts whose pictures are kept, by the mean absolute difference
    after each one's own mean was taken out, for the light may have changed since.
    """

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._read: dict[tuple[str, str], tuple[NDArray[np.int64], NDArray[np.float32]]] = {}

    def nearest(self, verdict_id: str, view: str) -> tuple[str, str] | None:
        """Return verdict id and evidence URI of the good part that looks most like this one, by the same recipe and view."""
        own = _rows(
            self._db,
            "SELECT p.sequence, p.recipe, t.thumbnail FROM part p JOIN line.trace t USING (sequence) "
            "WHERE p.verdict_id = ? AND t.view = ?",
            verdict_id,
            view,
        )
        if not own:
            return None
        sequence, recipe, thumbnail = own[0]
        if (view, recipe) not in self._read:
            self._read[view, recipe] = self._of(view, recipe)
        sequences, thumbnails = self._read[view, recipe]
        others = sequences != sequence
        if not others.any():
            return None
        distances = np.abs(thumbnails - _levelled([thumbnail])).mean(axis=1)
        nearest = int(sequences[np.where(others, distances, np.inf).argmin()])
        found, text = _rows(self._db, "SELECT verdict_id, message FROM line.verdict WHERE sequence = ?", nearest)[0]
        uri = next((look["image_uri"] for look in json.loads(text)["views"] if look["view"] == view), None)
        return None if uri is None else (found, uri)

    def _of(self, view: str, recipe: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return sequence numbers, shape (n,), and thumbnails without their means, shape (n, pixels)."""
        rows = _rows(
            self._db,
            "SELECT t.sequence, t.thumbnail FROM (SELECT sequence, thumbnail FROM line.trace WHERE view = ?1 "
            "ORDER BY sequence DESC LIMIT 5000) t JOIN part p USING (sequence) WHERE p.recipe = ?2 "
            "AND (p.disposition = 'false_reject' OR p.decision = 'pass' AND coalesce(p.disposition, '') <> 'escape') LIMIT ?3",
            view,
            recipe,
            _REFERENCES,
        )
        return np.array([sequence for sequence, _ in rows], np.int64), _levelled([blob for _, blob in rows])


def _levelled(blobs: list[bytes]) -> NDArray[np.float32]:
    if not blobs:
        return np.empty((0, 0), np.float32)
    thumbnails = np.frombuffer(b"".join(blobs), np.uint8).reshape(len(blobs), -1).astype(np.float32)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    return thumbnails


def known_values(db: apsw.Connection) -> dict[str, list[str]]:
    """Return what there is to choose from: recipes, packages and defect classes, by the counts, which are few rows."""
    return {
        "recipes": [row[0] for row in db.execute("SELECT DISTINCT recipe FROM tally ORDER BY 1")],
        "packages": [row[0] for row in db.execute("SELECT DISTINCT package FROM tally ORDER BY 1")],
        "defect_classes": [
            row[0] for row in db.execute("SELECT DISTINCT defect_class FROM part WHERE defect_class IS NOT NULL ORDER BY 1")
        ],
    }


def _rows(db: apsw.Connection, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    return list(db.execute(sql, values))


def _named(row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(_NAMES, row, strict=True))
