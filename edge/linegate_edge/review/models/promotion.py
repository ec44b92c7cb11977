"""Which package judges which view, since when, by whom, and how it is undone.

Rules kept here: the new package is loaded and proved before anything changes, and is in force from the next part on; each
promotion can be undone by one call, which brings back the very package that was there, by its digest; every change is one
transaction with its line of the trail, and outlives the station. Whether a candidate may be promoted is left to `register`,
judging to the recipe book.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import apsw

from linegate.errors import LinegateError, PackageError, StationError, StoreError
from linegate.package import ModelPackage
from linegate_edge.message import utc_now
from linegate_edge.recipes import Override, Place, RecipeBook
from linegate_edge.review.audit import Actor, AuditTrail
from linegate_edge.review.database import REVIEWS_FILE, ReviewDatabase
from linegate_edge.review.models.register import Register, enter
from linegate_edge.review.models.shelf import Candidate

log = logging.getLogger("linegate.models")
Where = Literal["shelf", "station", "copy"]
"""Where the package of a view lies: on the shelf, where STATION.toml says, or on the shelf as a copy of what that was."""
_COLUMNS: Final = (
    "number, recipe, view, package_digest, package, place, configured, former_digest, former_package, former_place, by, at, "
    "override_reason, rolls_back"
)


@dataclass(frozen=True, slots=True)
class Promotion:
    """A package put in force for one view; `rolls_back` is the promotion that it undoes.

    `configured` is the package that STATION.toml named at the time.
    """

    number: int
    recipe: str
    view: str
    package_digest: str
    package: str
    place: Where
    configured: str
    former_digest: str
    former_package: str
    former_place: Where
    by: str
    at: str
    override_reason: str | None
    rolls_back: int | None


def promoted(store: Path) -> list[Promotion]:
    """Return the last promotion or roll-back of each view, read from a station's store that is only looked at.

    Raises:
        StoreError: the store cannot be read.
    """
    path = store / REVIEWS_FILE
    if not path.is_file():
        return []
    try:
        with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
            db.set_busy_timeout(5_000)
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'promotion'").fetchone():
                return []
            rows = [_promotion(row) for row in db.execute(f"SELECT {_COLUMNS} FROM promotion ORDER BY number")]
    except apsw.Error as error:
        raise StoreError(f"{path}: promotions cannot be read: {error}") from error
    return list({(row.recipe, row.view): row for row in rows}.values())


class Promotions:
    """The promotions of one station; all methods may be called from any thread."""

    def __init__(self, database: ReviewDatabase, trail: AuditTrail, register: Register) -> None:
        self._database, self._trail, self._register, self._shelf = database, trail, register, register.shelf

    def listed(self) -> list[Promotion]:
        """Return all promotions and roll-backs, the newest first."""
        with self._database.look() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM promotion ORDER BY number DESC").fetchall()
        return [_promotion(row) for row in rows]

    def in_force(self) -> dict[Place, Promotion]:
        """Return the promotion that holds for each view; one that was rolled back uncovers the one before."""
        stacks: dict[Place, list[Promotion]] = {}
        for row in reversed(self.listed()):
            stack = stacks.setdefault((row.recipe, row.view), [])
            if row.rolls_back is None:
                stack.append(row)
            elif stack:
                stack.pop()
        return {place: stack[-1] for place, stack in stacks.items() if stack}

    def overrides(self) -> dict[Place, Override]:
        """Return the packages that stand in the place of those that STATION.toml names."""
        latest = {(row.recipe, row.view): row for row in reversed(self.listed())}
        return {place: self._override(row) for place, row in latest.items() if row.place != "station"}

    def _override(self, row: Promotion) -> Override:
        path = self._shelf.location(row.package_digest)
        return Override(path, row.package_digest, Path(row.configured), station_thresholds=row.place == "copy")

    def former(self, promotion: Promotion, configured: Path) -> Override | None:
        """Return what judges again once a promotion is rolled back; None: what STATION.toml names, which is `configured`."""
        where = _where_back(promotion, configured)
        if where == "station":
            return None
        path = self._shelf.location(promotion.former_digest)
        return Override(path, promotion.former_digest, configured, station_thresholds=where == "copy")

    def promote(
        self, book: RecipeBook, actor: Actor, digest: str, place: Place, override_reason: str | None = None
    ) -> Promotion:
        """Put a candidate in the place of what judges a view, from the next part on.

        Raises:
            LookupError: there is no such candidate, recipe or view.
            StationError: approvals are missing, or a reason where the gate did not say go; it judges there already.
            PackageError: the candidate, or what it replaces, is gone or changed. Nothing was changed, in each case.
        """
        with book.changing:
            candidate = self._register.candidate(digest)
            loaded = champion_of(book, place)
            if loaded.digest == digest:
                raise StationError(f"{candidate.reference} judges recipe '{place[0]}', view '{place[1]}' already")
            self._register.check(candidate, loaded.digest, override_reason)
            before = self._latest(place)
            configured = book.settings.all_recipes[place[0]].views[place[1]]
            former_place: Where = before.place if before is not None else "station"
            own = former_place == "copy" or (former_place == "station" and _has_thresholds(configured))
            detail = {
                "package": candidate.reference,
                "digest": digest,
                "former": loaded.reference,
                "former_digest": loaded.digest,
                "approved_by": [known.by for known in self._register.counted(candidate)],
                "override_reason": override_reason,
                "threshold": candidate.manifest.thresholds.score,
                "station_threshold_set_aside": configured.threshold if own else None,
            }
            row = Promotion(
                0,
                *place,
                digest,
                candidate.reference,
                "shelf",
                str(configured.package),
                loaded.digest,
                loaded.reference,
                former_place,
                actor.name,
                utc_now().isoformat(),
                override_reason,
                None,
            )
            kept = None
            if former_place == "station":
                # So that the very package can come back, whatever becomes of the one that STATION.toml names.
                kept = self._shelf.put(loaded.location)
                if kept.digest != loaded.digest:
                    text = f"is {kept.reference} on disk by now, and {loaded.reference} in force: put that back first"
                    raise PackageError(f"{loaded.location}: {text}, or this promotion could not be undone")
            return self._put_in_force(book, actor, "model.promote", row, detail, kept)

    def roll_back(self, book: RecipeBook, actor: Actor, number: int, reason: str = "") -> Promotion:
        """Undo the promotion that is in force for its view: the package before it judges from the next part on.

        Raises:
            LookupError: there is no such promotion, or its view is no more.
            StationError: it is not the one in force.
            PackageError: the former package is gone or changed; nothing was changed.
        """
        with book.changing:
            undone = next((row for row in self.listed() if row.number == number), None)
            if undone is None:
                raise LookupError(f"no promotion {number}: see the list of promotions")
            place = undone.recipe, undone.view
            held = self.in_force().get(place)
            if held is None or held.number != number:
                now = "what STATION.toml names" if held is None else f"promotion {held.number}"
                raise StationError(f"promotion {number} is not in force: {now} is, for recipe '{place[0]}', view '{place[1]}'")
            champion_of(book, place)
            configured = book.settings.all_recipes[place[0]].views[place[1]].package
            # What is undone is told as it was put in force: by now its package may be gone, which is why it is undone.
            detail = {
                "promotion": number,
                "package": undone.former_package,
                "digest": undone.former_digest,
                "former": undone.package,
                "former_digest": undone.package_digest,
                "reason": reason,
            }
            row = Promotion(
                0,
                *place,
                undone.former_digest,
                undone.former_package,
                _where_back(undone, configured),
                str(configured),
                undone.package_digest,
                undone.package,
                undone.place,
                actor.name,
                utc_now().isoformat(),
                None,
                number,
            )
            return self._put_in_force(book, actor, "model.roll_back", row, detail)

    def _put_in_force(
        self,
        book: RecipeBook,
        actor: Actor,
        action: str,
        row: Promotion,
        detail: dict[str, Any],
        kept: Candidate | None = None,
    ) -> Promotion:
        place = row.recipe, row.view
        overrides = {known: value for known, value in book.overrides.items() if known != place}
        if row.place != "station":
            overrides[place] = self._override(row)
        try:
            fresh = book.prepare(book.settings, overrides)
            _check_others(book, fresh, place, row.package_digest)
        except LinegateError as error:
            self._trail.add(actor, f"{action}_refused", f"{row.recipe}/{row.view}", {**detail, "error": str(error)})
            raise
        with self._trail.change(actor, action, f"{row.recipe}/{row.view}", detail) as db:
            values = [getattr(row, name.strip()) for name in _COLUMNS.split(",")[1:]]
            db.execute(f"INSERT INTO promotion VALUES (NULL{', ?' * len(values)})", values)
            number = db.last_insert_rowid()
            if kept is not None:
                enter(db, kept, row.by, "judged here before a promotion", None)
            db.execute(
                "DELETE FROM shadow_place WHERE recipe = ? AND view = ? AND package_digest = ?", (*place, row.package_digest)
            )
        # Only now: a crash in between leaves the next start to put in force what was committed.
        book.adopt(fresh)
        log.info("recipe '%s', view '%s': %s judges from the next part on (%s by %s)", *place, row.package, action, row.by)
        return next(known for known in self.listed() if known.number == number)

    def _latest(self, place: Place) -> Promotion | None:
        return next((row for row in self.listed() if (row.recipe, row.view) == place), None)


def _check_others(book: RecipeBook, fresh: RecipeBook, place: Place, digest: str) -> None:
    """Refuse a change that would change more than its own view: packages are read again, and may have been replaced.

    Raises:
        PackageError: the text says which one was.
    """
    for name, recipe in fresh.recipes.items():
        for view, loaded in recipe.views.items():
            expected = digest if (name, view) == place else champion_of(book, (name, view)).digest
            package = loaded.inspector.package
            if package.digest != expected:
                text = f"{package.location} was replaced on disk by {package.reference}: reload the station or restore it first"
                raise PackageError(f"recipe '{name}', view '{view}': {text}")


def _promotion(row: tuple[Any, ...]) -> Promotion:
    return Promotion(*row)


def champion_of(book: RecipeBook, place: Place) -> ModelPackage:
    recipe = book.recipes.get(place[0])
    if recipe is None or place[1] not in recipe.views:
        known = ", ".join(f"{name}/{view}" for name, there in book.recipes.items() for view in there.views)
        raise LookupError(f"no recipe '{place[0][:64]}' with a view '{place[1][:64]}': this station has {known}")
    return recipe.views[place[1]].inspector.package


def _where_back(undone: Promotion, configured: Path) -> Where:
    """Return where the package lies that a roll-back brings back; `configured` is what STATION.toml names now."""
    if undone.former_place == "station" and not holds(configured, undone.former_digest):
        return "copy"
    return undone.former_place


def holds(location: Path, digest: str) -> bool:
    """Say whether a folder holds the package of this digest."""
    try:
        return ModelPackage.load(location).digest == digest
    except PackageError:
        return False


def _has_thresholds(view: Any) -> bool:
    return view.threshold is not None or view.undecided_below is not None
