"""Counts and scores out of the tables `part` and `tally`, for the pure functions beside it.

Rules kept here: production parts only, for challenge parts are defective on purpose; each part once, at its first inspection,
where parts are tallied; read-only. Moments are compared by their first 16 characters, `2026-11-24T09:30`, which every row has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import apsw
import numpy as np
from numpy.typing import NDArray

from linegate_edge.review.quality.periods import Period

Column = Literal["defect_class", "recipe", "package", "batch", "supplier_lot"]
_COLUMNS: Final[frozenset[str]] = frozenset({"defect_class", "recipe", "package", "batch", "supplier_lot"})
_DISPOSITIONS: Final = "('confirmed', 'false_reject', 'escape', 'limit_sample')"
_ALMOST_A_MINUTE: Final = timedelta(minutes=1, microseconds=-1)
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Span:
    """Which parts: decided from `since` to before `until`, both UTC, of a recipe and a package where these are named."""

    since: datetime
    until: datetime
    recipe: str | None = None
    package: str | None = None

    def where(self, moment: str) -> tuple[str, tuple[str, ...]]:
        """Return the condition on a table whose column `moment` has the time, and its values."""
        words, values = (
            f"{moment} >= ? AND {moment} < ? AND mode = 'production'",
            [stamp(self.since), stamp(self.until + _ALMOST_A_MINUTE)],
        )
        for column, value in (("recipe", self.recipe), ("package", self.package)):
            if value is not None:
                words += f" AND {column} = ?"
                values.append(value)
        return words, tuple(values)


@dataclass(frozen=True, slots=True)
class Totals:
    """Parts by what was decided of them."""

    passed: int = 0
    failed: int = 0
    undecided: int = 0

    @property
    def parts(self) -> int:
        """All of them."""
        return self.passed + self.failed + self.undecided


def stamp(moment: datetime) -> str:
    """Return a moment as the tables compare it, UTC to the minute."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M")


def totals(db: apsw.Connection, span: Span) -> Totals:
    """Return how many parts passed, failed or stayed undecided at their first inspection."""
    where, values = span.where("quarter")
    rows = db.execute(f"SELECT decision, sum(count) FROM tally WHERE {where} AND first_pass = 1 GROUP BY 1", values)
    found = dict(rows)
    return Totals(found.get("pass", 0), found.get("fail", 0), found.get("undecided", 0))


def groups(db: apsw.Connection, span: Span, column: Column) -> list[tuple[str, Totals]]:
    """Return the totals by a column, in no order; of parts that passed, the column `defect_class` knows nothing."""
    assert column in _COLUMNS
    where, values = span.where("quarter")
    rejects = " AND decision <> 'pass'" if column == "defect_class" else ""
    found: dict[str, dict[str, int]] = {}
    for value, decision, count in db.execute(
        f"SELECT {column}, decision, sum(count) FROM tally WHERE {where} AND first_pass = 1{rejects} GROUP BY 1, 2", values
    ):
        found.setdefault(value, {})[decision] = count
    return [(name, Totals(by.get("pass", 0), by.get("fail", 0), by.get("undecided", 0))) for name, by in found.items()]


def by_period(db: apsw.Connection, span: Span, spans: Sequence[Period]) -> tuple[Ints, Ints, Ints]:
    """Return how many parts passed, failed and stayed undecided in each period, (k,) each."""
    where, values = span.where("quarter")
    rows = db.execute(
        "SELECT quarter, sum(CASE decision WHEN 'pass' THEN count ELSE 0 END), "
        "sum(CASE decision WHEN 'fail' THEN count ELSE 0 END), sum(CASE decision WHEN 'undecided' THEN count ELSE 0 END)"
        f" FROM tally WHERE {where} AND first_pass = 1 GROUP BY 1",
        values,
    ).fetchall()
    found = np.zeros((len(spans), 3), np.int64)
    if rows and spans:
        moments = [str(row[0]) for row in rows]
        np.add.at(found, places(moments, spans), np.array([row[1:] for row in rows], np.int64))
    return found[:, 0], found[:, 1], found[:, 2]


def places(moments: Sequence[str], spans: Sequence[Period]) -> Ints:
    """Return for each moment the index of its period; periods follow without a gap, and the first begins before all moments."""
    begins = np.array([stamp(span.begin) for span in spans], "datetime64[m]")
    return np.searchsorted(begins, np.array([moment[:16] for moment in moments], "datetime64[m]"), side="right") - 1


@dataclass(frozen=True, slots=True)
class ReviewedGroup:
    """How many parts of a kind were reviewed, and with which result."""

    decision: str
    queued: str | None
    package: str
    defect_class: str
    minute: str
    disposition: str
    count: int


def reviewed(db: apsw.Connection, span: Span) -> list[ReviewedGroup]:
    """Return the parts of the span that somebody has decided about, by all that they are asked for."""
    where, values = span.where("decided_at")
    rows = db.execute(
        "SELECT decision, queued, package, coalesce(decided_class, defect_class, reason), substr(decided_at, 1, 16),"
        f" disposition, count(*) FROM part WHERE {where} AND disposition IN {_DISPOSITIONS} GROUP BY 1, 2, 3, 4, 5, 6",
        values,
    )
    return [ReviewedGroup(*row) for row in rows]


def waiting(db: apsw.Connection, span: Span) -> int:
    """Return how many parts of the audit sample nobody has decided about yet."""
    where, values = span.where("decided_at")
    text = f"SELECT count(*) FROM part INDEXED BY part_waiting WHERE {where} AND queued = 'audit' AND disposition IS NULL"
    return int(_one(db, f"{text} AND queued IS NOT NULL", values)[0])


def packages(db: apsw.Connection) -> list[tuple[str, str]]:
    """Return all packages that have judged production parts, with the first quarter of an hour of each, the newest last."""
    rows = db.execute("SELECT package, min(quarter) FROM tally WHERE mode = 'production' GROUP BY 1 ORDER BY max(quarter), 1")
    return [(name, quarter) for name, quarter in rows]


def first_scores(db: apsw.Connection, package: str, since: str, limit: int) -> Floats:
    """Return the scores of the first parts that a package judged, from a quarter of an hour on."""
    return _scores(db, "decided_at >= ?", "ASC", (since, package, limit))


def last_scores(db: apsw.Connection, package: str, span: Span, limit: int) -> Floats:
    """Return the scores of the last parts that a package judged within the span."""
    return _scores(
        db,
        "decided_at >= ? AND decided_at < ?",
        "DESC",
        (stamp(span.since), stamp(span.until + _ALMOST_A_MINUTE), package, limit),
    )


def _scores(db: apsw.Connection, when: str, order: str, values: tuple[Any, ...]) -> Floats:
    rows = db.execute(
        f"SELECT score FROM part INDEXED BY part_by_time WHERE {when} AND package = ? AND mode = 'production'"
        f" AND score IS NOT NULL ORDER BY decided_at {order} LIMIT ?",
        values,
    ).fetchall()
    return np.array([row[0] for row in rows], np.float64)


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A reviewed part with a score."""

    decision: str
    disposition: str
    score: float
    threshold: float | None


def last_reviewed(db: apsw.Connection, package: str, limit: int) -> list[Reviewed]:
    """Return the parts of a package that were reviewed last, newest review first."""
    rows = db.execute(
        "SELECT decision, disposition, score, threshold FROM part INDEXED BY part_by_disposition"
        f" WHERE disposition IN {_DISPOSITIONS} AND disposition IS NOT NULL AND package = ? AND mode = 'production'"
        " AND score IS NOT NULL ORDER BY decision_number DESC LIMIT ?",
        (package, limit),
    )
    return [Reviewed(*row) for row in rows]


def threshold_in_force(db: apsw.Connection, package: str, since: str) -> float | None:
    """Return the threshold of the last part that a package judged, from a quarter of an hour on."""
    row = db.execute(
        "SELECT threshold FROM part INDEXED BY part_by_time WHERE decided_at >= ? AND package = ? AND mode = 'production'"
        " AND threshold IS NOT NULL ORDER BY decided_at DESC LIMIT 1",
        (since, package),
    ).fetchone()
    return None if row is None else float(row[0])


def _one(db: apsw.Connection, text: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = db.execute(text, values).fetchone()
    assert row is not None  # an aggregate always has a row
    return row
