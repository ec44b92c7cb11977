"""The register of the shelf: who brought each package, who approved it, and whether it may be promoted.

Rules kept here: a candidate judges no part before as many people approved it as the settings ask, and, where the gate did not
say go, before somebody gave a reason that the trail keeps; an approval speaks of a package and of the comparison that was there
when it was given; what was refused stands in the trail as well. Files are left to `shelf`, what judges to `promotion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import apsw

from linegate.errors import PackageError, StationError
from linegate_edge.message import utc_now
from linegate_edge.review.audit import Actor, AuditTrail
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.models.shelf import Candidate, Shelf


@dataclass(frozen=True, slots=True)
class Approval:
    """That somebody holds a candidate fit for the line, having seen the comparison of this digest."""

    number: int
    package_digest: str
    by: str
    at: str
    comment: str
    comparison: str


class Register:
    """The register of one station's shelf; `needed` is how many people must approve a promotion."""

    def __init__(self, database: ReviewDatabase, trail: AuditTrail, shelf: Shelf, needed: int) -> None:
        self._database, self._trail = database, trail
        self.shelf, self.needed = shelf, needed

    def bring(self, actor: Actor, source: Path, *, called: str | None = None, trained_by: str | None = None) -> Candidate:
        """Put a package on the shelf, and enter it in the register; a refusal stands in the trail too.

        Raises:
            PackageError, ProviderError: it cannot be used here; nothing was changed.
        """
        name = called or str(source)
        try:
            candidate = self.shelf.put(source, called)
        except PackageError as error:
            self._trail.add(actor, "model.import_refused", name[:200], {"error": str(error)})
            raise
        detail = {
            "package": candidate.reference,
            "source": name,
            "comparison": candidate.comparison_digest or None,
            "gate": gate_of(candidate),
            "trained_by": trained_by,
        }
        with self._trail.change(actor, "model.import", candidate.digest, detail) as db:
            enter(db, candidate, actor.name, name, trained_by)
        return candidate

    def registered(self) -> dict[str, dict[str, Any]]:
        """Return who brought and who trained the packages of the register, by digest, the newest first."""
        with self._database.look() as db:
            rows = db.execute(
                "SELECT digest, name, version, imported_by, imported_at, source, trained_by FROM model "
                "ORDER BY imported_at DESC"
            ).fetchall()
        keys = ("name", "version", "imported_by", "imported_at", "source", "trained_by")
        return {str(row[0]): dict(zip(keys, row[1:], strict=True)) for row in rows}

    # -- approvals --------------------------------------------------------------------------------------------------

    def approve(self, actor: Actor, digest: str, comment: str) -> None:
        """Note that somebody holds a candidate, with the comparison that it has now, fit for the line.

        Raises:
            LookupError: there is no such candidate.
            StationError: the same person approved it already.
        """
        candidate = self.candidate(digest)
        if any(known.by == actor.name for known in self.approvals(candidate)):
            raise StationError(f"{actor.name} has approved {candidate.reference} already")
        detail = {"package": candidate.reference, "comment": comment, "comparison": candidate.comparison_digest or None}
        with self._trail.change(actor, "model.approve", digest, detail) as db:
            # One that was given on an older comparison counts no more, and makes room.
            _withdraw(db, digest, actor.name)
            db.execute(
                "INSERT INTO approval (package_digest, by, at, comment, comparison) VALUES (?, ?, ?, ?, ?)",
                (digest, actor.name, utc_now().isoformat(), comment, candidate.comparison_digest),
            )

    def withdraw(self, actor: Actor, digest: str) -> None:
        """Take one's own approval back; a promotion that was made with it stays.

        Raises:
            LookupError: there is no such candidate, or no approval of this person.
        """
        candidate = self.candidate(digest)
        with self._trail.change(actor, "model.withdraw", digest, {"package": candidate.reference}) as db:
            if not _withdraw(db, digest, actor.name):
                raise LookupError(f"{actor.name} has not approved {candidate.reference}")

    def approvals(self, candidate: Candidate) -> list[Approval]:
        """Return the approvals that hold: not withdrawn, and given on the comparison that the candidate has now."""
        with self._database.look() as db:
            rows = db.execute(
                "SELECT number, package_digest, by, at, comment, comparison FROM approval "
                "WHERE package_digest = ? AND withdrawn_at IS NULL AND comparison = ? ORDER BY number",
                (candidate.digest, candidate.comparison_digest),
            ).fetchall()
        return [_approval(row) for row in rows]

    def counted(self, candidate: Candidate) -> list[Approval]:
        """Return the approvals that count: where two are needed, that of who trained the candidate does not."""
        trained_by = self.registered().get(candidate.digest, {}).get("trained_by")
        return [known for known in self.approvals(candidate) if self.needed < 2 or known.by != trained_by]

    def objections(self, candidate: Candidate, champion_digest: str) -> list[str]:
        """Return why the gate does not speak for putting the candidate in the champion's place; each needs a reason to pass."""
        comparison = candidate.comparison
        if comparison is None:
            return ["it was never compared with the champion"]
        broken = [rule.reason for rule in comparison.gate.rules if not rule.met]
        found = [] if comparison.gate.go else [f"the gate said no-go: {'; '.join(broken) or 'without a reason'}"]
        compared = comparison.champion.digest
        if compared != champion_digest:
            found.append(f"it was compared with {compared[:12]}, and {champion_digest[:12]} is the champion here")
        return found

    def check(self, candidate: Candidate, champion_digest: str, override_reason: str | None) -> None:
        """Refuse a promotion that too few people approved, or that the gate does not speak for and nobody gives a reason for.

        Raises:
            StationError: the text says what is missing.
        """
        have = len(self.counted(candidate))
        if have < self.needed:
            note = ", other than who trained it" if self.needed > 1 else ""
            raise StationError(f"{candidate.reference} needs {_people(self.needed)}{note} to approve it, and has {have}")
        objections = self.objections(candidate, champion_digest)
        if objections and not (override_reason or "").strip():
            raise StationError(
                f"{candidate.reference}: {'; '.join(objections)}: give an override_reason to promote it all the same"
            )

    def candidate(self, digest: str) -> Candidate:
        """Return a package of the register.

        Raises:
            LookupError: there is none of this digest.
        """
        candidate = self.shelf.find(digest)
        if candidate is None or digest not in self.registered():
            raise LookupError(f"no package '{digest[:64]}' on the shelf: import it first")
        return candidate


def _approval(row: tuple[Any, ...]) -> Approval:
    return Approval(*row)


def gate_of(candidate: Candidate) -> Literal["go", "no-go"] | None:
    """Return what the gate said of a candidate, or None: it was never asked."""
    if candidate.comparison is None:
        return None
    return "go" if candidate.comparison.gate.go else "no-go"


def enter(db: apsw.Connection, candidate: Candidate, by: str, source: str, trained_by: str | None) -> None:
    """Enter a package that stands on the shelf, inside a change; one that is known keeps its line."""
    manifest = candidate.manifest
    db.execute(
        "INSERT INTO model VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (digest) DO UPDATE SET trained_by = coalesce(trained_by, excluded.trained_by)",
        (candidate.digest, manifest.name, manifest.version, by, utc_now().isoformat(), source, trained_by),
    )


def _withdraw(db: apsw.Connection, digest: str, by: str) -> int:
    now = utc_now().isoformat()
    db.execute(
        "UPDATE approval SET withdrawn_at = ? WHERE package_digest = ? AND by = ? AND withdrawn_at IS NULL", (now, digest, by)
    )
    return db.changes()


def _people(count: int) -> str:
    return "one person" if count == 1 else f"{count} different people"
