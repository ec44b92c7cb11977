"""Which verdicts somebody asks for, as SQL that reads no more rows than it must.

Rules kept here: pages follow the sequence, the only order without gaps and without surprises when the clock is set back;
values are bound, never written into the SQL; one index answers each question. Reading is left to `store`, cursors to
`review.records`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from linegate.stages import Decision
from linegate_edge.schema import SPAN

LAST: Final = 2**63 - 1
"""The greatest sequence number that SQLite can hold."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Verdicts of a serial, of a decision, decided from `since` on and before `until` (aware); None does not choose."""

    serial: str | None = None
    decision: Decision | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def times(self) -> tuple[str | None, str | None]:
        """`since` and `until` as the store writes times, which compare as text."""
        return _stored(self.since), _stored(self.until)


SPANS = """
    SELECT min(block), max(block) FROM verdict_span
    WHERE (?1 IS NULL OR latest >= ?1) AND (?2 IS NULL OR earliest < ?2)
"""
"""First and last block of verdicts in which the times of a selection lie; null where there is none."""


def page_query(
    selection: Selection, blocks: tuple[int, int] | None, *, newest_first: bool, after: int | None, limit: int
) -> tuple[str, list[int | str]]:
    """Return SQL and its values for up to `limit` rows (sequence, message) that follow the sequence number `after`.

    `blocks` is what `SPANS` gave, where the selection names a time.
    """
    # One bound a side: of two, SQLite would seek by the first and go through what lies up to the second.
    least, most = (0, LAST) if blocks is None else (blocks[0] * SPAN + 1, (blocks[1] + 1) * SPAN)
    if after is not None:
        least, most = (least, min(most, after - 1)) if newest_first else (max(least, after + 1), most)
    terms: list[tuple[str, int | str]] = [("sequence >= ?", least), ("sequence <= ?", most)]
    if selection.serial is not None:
        terms.append(("serial = ?", selection.serial))
    if selection.decision is not None:
        # A serial has few verdicts: the plus keeps SQLite from taking the index of the decision instead.
        terms.append(("+decision = ?" if selection.serial is not None else "decision = ?", selection.decision))
    since, until = selection.times
    if since is not None:
        terms.append(("decided_at >= ?", since))
    if until is not None:
        terms.append(("decided_at < ?", until))
    where = [term for term, _ in terms]
    if selection.serial is None and selection.decision not in (None, Decision.PASS):
        where.append("decision <> 'pass'")  # tells SQLite that its index of what did not pass will do
    order = "DESC" if newest_first else "ASC"
    sql = f"SELECT sequence, message FROM verdict WHERE {' AND '.join(where)} ORDER BY sequence {order} LIMIT ?"
    return sql, [*(value for _, value in terms), limit]


def _stored(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()
