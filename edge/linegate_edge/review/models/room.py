"""All of a station that deals with candidates, put together: shelf, register, promotions, shadows, training runs.

Rules kept here: what was in force or shadowed when the station ended is so again when it starts; nothing here is needed for a
verdict. What each does is left to its module.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from linegate.dataset_version import is_version
from linegate.errors import LinegateError, StationError
from linegate.infer import Inspector
from linegate.package import ModelPackage
from linegate_edge.message import utc_now
from linegate_edge.recipes import Override, Place, RecipeBook
from linegate_edge.review.audit import Actor
from linegate_edge.review.models.promotion import Promotion, Promotions, champion_of, holds
from linegate_edge.review.models.register import Register
from linegate_edge.review.models.run_record import RunRecord
from linegate_edge.review.models.shelf import Shelf, quietly
from linegate_edge.review.models.training_runs import Options, TrainingRuns
from linegate_edge.review.reviews import Reviews
from linegate_edge.settings import StationSettings, ViewSettings
from linegate_edge.shadow import Shadow, Target

log = logging.getLogger("linegate.models")


class ModelRoom:
    """The models of one station; `behind` says whether its line has too much to do for a shadow."""

    def __init__(self, settings: StationSettings, reviews: Reviews, behind: Callable[[], bool]) -> None:
        database, trail = reviews.database, reviews.trail
        self.settings, self.database, self.trail = settings, database, trail
        review = settings.review
        self.shelf = Shelf(settings.models_folder, settings.model.provider, review.max_package_mib * 2**20)
        self.register = Register(database, trail, self.shelf, review.approvals)
        self.promotions = Promotions(database, trail, self.register)
        self.shadow = Shadow(database, review.shadow_share, behind)
        self.runs = TrainingRuns(database.folder, trail, gate=review.gate)
        self._book: RecipeBook | None = None
        self._is_open = False
        self._on_change: Callable[[], None] = lambda: None

    def open(self, book: RecipeBook, on_change: Callable[[], None] = lambda: None) -> None:
        """Take the recipes in force; `on_change` is called after each promotion. Shadows of the last run go on."""
        self._on_change = on_change
        self.use_book(book)
        self._is_open = True
        self.shelf.tidy()
        self.refresh_shadows()

    def use_book(self, book: RecipeBook) -> None:
        """Take the recipes alone: nothing judges in the shadow."""
        self._book = book

    def close(self) -> None:
        """End what works in the background."""
        self.shadow.stop()

    @property
    def book(self) -> RecipeBook:
        """The recipes in force."""
        if self._book is None:
            raise StationError("the station has not started yet")
        return self._book

    # -- promotions -------------------------------------------------------------------------------------------------

    def promote(self, actor: Actor, digest: str, place: Place, override_reason: str | None) -> tuple[Promotion, str | None]:
        """Put a candidate in force, as `Promotions.promote`; return with it what changed beside the package."""
        done = self.promotions.promote(self.book, actor, digest, place, override_reason)
        return done, self._changed(place)

    def roll_back(self, actor: Actor, number: int, reason: str) -> tuple[Promotion, str | None]:
        """Undo a promotion, as `Promotions.roll_back`; return with it what changed beside the package."""
        done = self.promotions.roll_back(self.book, actor, number, reason)
        return done, self._changed((done.recipe, done.view))

    def _changed(self, place: Place) -> str | None:
        self._on_change()
        if self._is_open:
            self.refresh_shadows()
        own = self.settings_of(place)
        if own.threshold is None and own.undecided_below is None:
            return None
        recipe = self.book.recipes[place[0]]
        limits, version = recipe.recipe.views[place[1]], recipe.views[place[1]].threshold_version
        if version.startswith("package:"):
            text = "the thresholds of STATION.toml belong to the package that it names, and are set aside: the package's own"
        else:
            text = "the thresholds of STATION.toml hold again:"
        return f"{text} {limits.threshold:g}, undecided from {limits.undecided_below:g} below"

    def usable_overrides(self, undoing: int | None = None) -> tuple[dict[Place, Override], list[str]]:
        """Return the promoted packages that are there, and a line for each that is not, for those who mend a station.

        Where the promotion `undoing` holds, it is what would judge there once that is rolled back.
        """
        usable: dict[Place, Override] = {}
        lines: list[str] = []
        held = self.promotions.in_force()
        for place, override in self.promotions.overrides().items():
            promotion = held.get(place)
            if promotion is not None and promotion.number == undoing:
                recipe = self.settings.all_recipes.get(place[0])
                own = None if recipe is None else recipe.views.get(place[1])
                former = None if own is None else self.promotions.former(promotion, own.package)
                if former is not None:
                    usable[place] = former
            elif holds(override.path, override.digest):
                usable[place] = override
            else:
                what = "the package" if promotion is None else f"{promotion.package} of promotion {promotion.number}"
                remedy = "put it back" if promotion is None else "put it back, or roll the promotion back"
                lines.append(f"recipe '{place[0]}', view '{place[1]}': {what} is not in {override.path} any more: {remedy}")
        return usable, lines

    def settings_of(self, place: Place) -> ViewSettings:
        """Return what STATION.toml says of a view that is there."""
        return self.book.settings.all_recipes[place[0]].views[place[1]]

    # -- training ---------------------------------------------------------------------------------------------------

    def start_training(self, actor: Actor, version: str, champion: str | None, options: Options) -> RunRecord:
        """Start a training on a version, by its folder's name, beside a champion (None: what judges the first view).

        Raises:
            LookupError: there is no such version or package.
            StationError: one is running already, or none can be started here.
        """
        folder = self.settings.datasets_folder
        there = {path.name: path for path in (folder.iterdir() if folder.is_dir() else ()) if is_version(path)}
        if version not in there:
            raise LookupError(f"no data set version '{version[:128]}' in {folder}: build one from reviewed parts first")
        serving = {known.package.digest: known.package for known in self.book.inspectors}
        digest = champion or next(iter(serving))
        if digest in serving:
            location, reference = serving[digest].location, serving[digest].reference
        else:
            candidate = self.register.candidate(digest)
            location, reference = candidate.location, candidate.reference
        return self.runs.start(actor, there[version].absolute(), location.absolute(), reference, digest, options)

    def reloaded(self) -> None:
        """Follow a change of the recipes that was none of ours; it has happened, and is not refused any more."""
        self._on_change()
        try:
            self.refresh_shadows()
        except LinegateError as error:
            log.error("the shadows stay as they were: %s", error)

    # -- shadows ----------------------------------------------------------------------------------------------------

    def shadow_places(self) -> dict[Place, str]:
        """Return which candidate shadows which view, by digest."""
        with self.database.look() as db:
            return {(str(row[0]), str(row[1])): str(row[2]) for row in db.execute("SELECT * FROM shadow_place")}

    def set_shadow(self, actor: Actor, digest: str, place: Place, on: bool) -> None:
        """Have a candidate judge a view's frames after the champion, or no more.

        Raises:
            LookupError: there is no such candidate, recipe or view.
            StationError: it is the champion there.
        """
        candidate = self.register.candidate(digest)
        champion = champion_of(self.book, place)
        if on and champion.digest == digest:
            raise StationError(f"{candidate.reference} is the champion of recipe '{place[0]}', view '{place[1]}'")
        if on:
            quietly(lambda: self._target(digest, place))  # refused here, where somebody reads why
        detail = {"package": candidate.reference, "digest": digest}
        action = "model.shadow_on" if on else "model.shadow_off"
        with self.trail.change(actor, action, f"{place[0]}/{place[1]}", detail) as db:
            db.execute(
                "DELETE FROM shadow_place WHERE recipe = ? AND view = ? AND (? OR package_digest = ?)", (*place, on, digest)
            )
            if on:
                now = utc_now().isoformat()
                db.execute("INSERT INTO shadow_place VALUES (?, ?, ?, ?, ?)", (*place, digest, actor.name, now))
        self.refresh_shadows()

    def refresh_shadows(self) -> None:
        """Let the shadows that the database names judge; one that cannot be loaded is logged, and left out."""
        targets: dict[Place, Target] = {}
        for place, digest in self.shadow_places().items():
            try:
                champion_of(self.book, place)
                targets[place] = quietly(lambda digest=digest, place=place: self._target(digest, place))  # type: ignore[misc]
            except (LinegateError, LookupError) as error:
                log.error("recipe '%s', view '%s': the shadow %s does not judge: %s", *place, digest[:12], error)
        self.shadow.use(targets)

    def _target(self, digest: str, place: Place) -> Target:
        package = ModelPackage.load(self.shelf.location(digest))
        if package.digest != digest:
            raise StationError(f"{package.location} holds {package.reference} by now: import the package again")
        inspector = Inspector(package, self.settings.model.provider)
        return Target(digest, inspector, inspector.view_recipe, self.book.recipes[place[0]].views[place[1]].roi_xyxy)
