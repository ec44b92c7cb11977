"""What people decide about a part: confirmed, false reject, escape, limit sample; and how two of them never decide the same.

Rules kept here: a decision is only ever added, with its line in the audit trail, in one transaction; it names the decision
that it follows, and is refused where another came in between; to undo is a decision too. A part that somebody has before him is
lent to him for a while, and shown to nobody else's queue. Who may decide is left to `access`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import apsw

from linegate_edge.message import utc_now
from linegate_edge.review.audit import Actor, AuditTrail

Disposition = Literal["confirmed", "false_reject", "escape", "limit_sample"]
_REJECTED: Final = ("fail", "undecided")
_LEND_S: Final = 180.0


class DecisionError(Exception):
    """A decision that cannot be taken; `status` is the HTTP status that says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class DrawnRegion:
    """A box that a person drew: class, and `box_xyxy` in pixels of the view's frame, right and bottom exclusive."""

    view: str
    defect_class: str
    box_xyxy: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class NewDecision:
    """What somebody decides; `follows` is the number of the part's decision that he knows of, None where there was none.

    `masks` are PNGs by view, uint8 at the frame's size, not 0 where it is defective.
    """

    disposition: Disposition
    defect_class: str | None = None
    regions: Sequence[DrawnRegion] = ()
    masks: Mapping[str, bytes] | None = None
    comment: str = ""
    follows: int | None = None


def decide(trail: AuditTrail, actor: Actor, verdict_id: str, new: NewDecision) -> int:
    """Add a decision and return its number.

    Raises:
        DecisionError: there is no such part, somebody else has decided meanwhile, or the disposition does not fit the verdict.
        StoreError: it cannot be stored; nothing was changed.
    """
    detail = {
        "disposition": new.disposition,
        "defect_class": new.defect_class,
        "regions": len(new.regions),
        "masks": sorted(new.masks or ()),
        "comment": new.comment,
        "follows": new.follows,
    }
    with trail.change(actor, "decide", verdict_id, detail) as db:
        sequence, verdict, serial = _part(db, verdict_id)
        detail["serial"] = serial
        _check_follows(db, verdict_id, new.follows)
        if new.disposition == "false_reject" and verdict not in _REJECTED:
            raise DecisionError(409, f"part {serial} passed: a false reject is a part that did not pass")
        if new.disposition == "escape" and verdict != "pass":
            raise DecisionError(409, f"part {serial} did not pass: an escape is a defective part that passed; use confirmed")
        return _insert(db, sequence, verdict_id, new.disposition, new, actor)


def undo(trail: AuditTrail, actor: Actor, verdict_id: str, follows: int) -> int:
    """Take a part's decision back, so that it waits again, and return the number of this step.

    Raises:
        DecisionError: there is no such part, or `follows` is not its last decision.
        StoreError: it cannot be stored; nothing was changed.
    """
    with trail.change(actor, "undo", verdict_id, {"follows": follows}) as db:
        sequence, _, _ = _part(db, verdict_id)
        _check_follows(db, verdict_id, follows)
        current = db.execute("SELECT disposition FROM part WHERE verdict_id = ?", (verdict_id,)).fetchone()
        if current is None or current[0] is None:
            raise DecisionError(409, "there is no decision to undo")
        return _insert(db, sequence, verdict_id, None, NewDecision("confirmed", follows=follows), actor)


def _part(db: apsw.Connection, verdict_id: str) -> tuple[int, str, str]:
    row = db.execute("SELECT sequence, decision, serial FROM part WHERE verdict_id = ?", (verdict_id,)).fetchone()
    if row is None:
        raise DecisionError(404, f"this station has no part with the verdict '{verdict_id[:64]}'")
    return row[0], row[1], row[2]


def _check_follows(db: apsw.Connection, verdict_id: str, follows: int | None) -> None:
    row = db.execute(
        "SELECT p.decision_number, d.by, d.at, d.disposition FROM part p JOIN decision d ON d.number = p.decision_number "
        "WHERE p.verdict_id = ?",
        (verdict_id,),
    ).fetchone()
    if (row[0] if row is not None else None) != follows:
        if row is None:
            raise DecisionError(409, f"there is no decision {follows} on this part: load it again")
        what = row[3].replace("_", " ") if row[3] is not None else "undone"
        raise DecisionError(409, f"{row[1]} has decided this part already ({what}, {row[2][:19]} UTC): load it again")


def _insert(
    db: apsw.Connection, sequence: int, verdict_id: str, disposition: str | None, new: NewDecision, actor: Actor
) -> int:
    regions = [{"view": r.view, "defect_class": r.defect_class, "box_xyxy": r.box_xyxy} for r in new.regions]
    rows: list[tuple[Any, ...]] = db.execute(
        "INSERT INTO decision (sequence, verdict_id, disposition, defect_class, regions, comment, by, at, previous) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
        (
            sequence,
            verdict_id,
            disposition,
            new.defect_class,
            json.dumps(regions),
            new.comment,
            actor.name,
            utc_now().isoformat(),
            new.follows,
        ),
    ).fetchall()
    number = int(rows[0][0])
    for view, mask in (new.masks or {}).items():
        db.execute("INSERT INTO drawing VALUES (?, ?, ?)", (number, view, mask))
    db.execute(
        "UPDATE part SET disposition = ?, decided_class = ?, decision_number = ? WHERE sequence = ?",
        (disposition, new.defect_class, number, sequence),
    )
    return number


class Lending:
    """Which parts are before whose eyes; all methods may be called from any thread.

    A reader is a browser tab: who has two open does not decide the same part twice either. Nothing of it outlives a restart,
    for a decision is checked anyhow.
    """

    def __init__(self, lend_s: float = _LEND_S) -> None:
        self._lock = threading.Lock()
        self._lent: dict[str, tuple[str, float]] = {}
        self._lend_s = lend_s

    def take(self, reader: str, verdict_ids: Collection[str]) -> list[str]:
        """Lend those of these parts that nobody else has, for a while from now on, and return them."""
        now = time.monotonic()
        with self._lock:
            self._lent = {part: lent for part, lent in self._lent.items() if lent[1] > now}
            free = [part for part in verdict_ids if self._lent.get(part, (reader, 0.0))[0] == reader]
            self._lent.update((part, (reader, now + self._lend_s)) for part in free)
        return free

    def give_back(self, reader: str, verdict_ids: Collection[str] | None = None) -> None:
        """Take parts back from a reader, or all that he has."""
        with self._lock:
            for part in list(self._lent) if verdict_ids is None else verdict_ids:
                if self._lent.get(part, ("", 0.0))[0] == reader:
                    del self._lent[part]

    def others(self, reader: str) -> set[str]:
        """Return the parts that other readers have."""
        now = time.monotonic()
        with self._lock:
            return {part for part, (who, until) in self._lent.items() if who != reader and until > now}


def history(db: apsw.Connection, sequence: int) -> list[dict[str, Any]]:
    """Return all decisions on a part, the first one first, and which views have a mask drawn in each."""
    rows: list[tuple[Any, ...]] = db.execute(
        "SELECT number, disposition, defect_class, regions, comment, by, at, previous FROM decision "
        "WHERE sequence = ? ORDER BY number",
        (sequence,),
    ).fetchall()
    made = []
    for number, disposition, defect_class, regions, comment, by, at, previous in rows:
        views = [row[0] for row in db.execute("SELECT view FROM drawing WHERE decision = ? ORDER BY view", (number,))]
        made.append(
            {
                "number": number,
                "disposition": disposition,
                "defect_class": defect_class,
                "regions": json.loads(regions),
                "masks": views,
                "comment": comment,
                "by": by,
                "at": at,
                "previous": previous,
            }
        )
    return made
