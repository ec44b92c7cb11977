"""Recipes, loaded and proved: which package and thresholds serve which part, per view.

Rules kept here: every package of every recipe is loaded before the station starts, so that a change-over takes no time and
cannot fail; a package that several views name is loaded once; a part keeps the recipe that was in force when it was
triggered; a promoted package stands in the place of the one that STATION.toml names, with the thresholds that it was approved
with, until it is rolled back. Judging is left to `line`, deciding to the core, who may promote to `review.models`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from linegate import __version__
from linegate.decide import Recipe, ViewRecipe
from linegate.errors import PackageError, SettingsError, StationError
from linegate.infer import Inspector
from linegate.package import ModelPackage
from linegate.stages import Part
from linegate_edge.message import MessageProvenance
from linegate_edge.plant_codes import check_plant_codes
from linegate_edge.settings import ModelSection, RecipeSettings, StationSettings, ViewSettings

log = logging.getLogger("linegate.recipes")
Place = tuple[str, str]
"""A recipe and one of its views, by name."""


@dataclass(frozen=True, slots=True)
class Override:
    """A package in the place of the one that STATION.toml names; `path` must hold the very package of `digest`.

    `configured` is what STATION.toml named when it was put there. With `station_thresholds` those of STATION.toml still hold,
    for it is the package that they were set for; else the package's own do.
    """

    path: Path
    digest: str
    configured: Path
    station_thresholds: bool = False


NO_OVERRIDES: Final[Mapping[Place, Override]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class LoadedView:
    """What judges one view, and how its camera is set; `roi_xyxy` are shares of the frame's sides."""

    inspector: Inspector
    threshold_version: str
    roi_xyxy: tuple[float, float, float, float] | None = None
    exposure_us: float | None = None
    gain_db: float | None = None


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe with its packages in memory; `digest` changes with anything that could change a verdict."""

    recipe: Recipe
    views: Mapping[str, LoadedView]
    part_types: frozenset[str]
    digest: str

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.recipe.name

    def provenance(self, view: str | None) -> MessageProvenance:
        """Return what judged a part; the package is that of `view`, or of the first where that is none of the recipe's."""
        chosen = self.views.get(view or "") or next(iter(self.views.values()))
        manifest = chosen.inspector.package.manifest
        return MessageProvenance(
            recipe=self.name,
            recipe_digest=self.digest,
            package=manifest.name,
            package_version=manifest.version,
            package_digest=chosen.inspector.package.digest,
            threshold_version=chosen.threshold_version,
            software_version=__version__,
        )


class RecipeBook:
    """All recipes of a station, and the one in force; all methods may be called from any thread.

    Raises:
        PackageError, ProviderError: a package cannot be used here.
        SettingsError: a recipe, or a plant code, does not fit the packages.
    """

    def __init__(
        self,
        settings: StationSettings,
        kept: RecipeBook | None = None,
        overrides: Mapping[Place, Override] = NO_OVERRIDES,
    ) -> None:
        self.changing = threading.RLock()
        """Held by whoever prepares a change and puts it in force, so that no other change is lost between."""
        self.settings, self.overrides = settings, overrides
        self._lock = threading.Lock()
        self._inspectors: dict[Path, Inspector] = {}
        self._kept = kept
        recipes = settings.all_recipes
        self._recipes = {name: self._load(name, recipe, settings.model) for name, recipe in recipes.items()}
        self._kept = None
        for name, view in overrides:
            if name not in recipes or view not in recipes[name].views:
                text = "a package was promoted for recipe '%s', view '%s', which STATION.toml does not have: it judges nothing"
                log.warning(text, name, view)
        classes = {name for known in self.inspectors for name in known.package.manifest.labels[1:]}
        check_plant_codes(settings.plant_codes, classes)
        self._by_type = {kind: recipe for recipe in self._recipes.values() for kind in recipe.part_types}
        self._active = next((name for name, recipe in recipes.items() if recipe.default), next(iter(recipes)))

    def for_part(self, part: Part) -> LoadedRecipe | None:
        """Return the recipe of a part: by its type where it says one, else the one in force; None: no recipe fits.

        A recipe that names no part types serves any part while it is in force.
        """
        by_type = self._by_type.get(part.part_type or "")
        active = self.active
        if by_type is None and (part.part_type is None or not active.part_types):
            return active
        return by_type

    @property
    def active(self) -> LoadedRecipe:
        """The recipe in force for parts that do not say their type."""
        return self._recipes[self._active]

    def choose(self, name: str) -> LoadedRecipe:
        """Put a recipe in force from the next part on, and return it.

        Raises:
            StationError: there is no such recipe; the text names those there are.
        """
        with self._lock:
            if name not in self._recipes:
                raise StationError(f"no recipe '{name[:64]}': this station has {', '.join(sorted(self._recipes))}")
            self._active = name
            return self._recipes[name]

    def reload(self, settings: StationSettings) -> None:
        """Put other recipes in the place of these, from the next part on; packages that did not change stay in memory.

        The recipe in force stays so by its name; where it is gone, the default of the new ones takes its place.

        Raises:
            LinegateError: they cannot be used; nothing was changed.
        """
        with self.changing:
            self.adopt(self.prepare(settings, self.overrides))

    def prepare(self, settings: StationSettings, overrides: Mapping[Place, Override]) -> RecipeBook:
        """Return the book that these settings and overrides make; packages in memory are not loaded again.

        Raises:
            LinegateError: they cannot be used.
        """
        return RecipeBook(settings, kept=self, overrides=overrides)

    def adopt(self, fresh: RecipeBook) -> None:
        """Put a prepared book in force from the next part on; parts in hand keep their recipe. It cannot fail."""
        with self._lock:
            self.settings, self.overrides = fresh.settings, fresh.overrides
            # In an order in which whoever reads between two of these finds the recipe in force.
            self._recipes = {**self._recipes, **fresh._recipes}
            self._active = self._active if self._active in fresh._recipes else fresh._active
            self._recipes, self._by_type, self._inspectors = fresh._recipes, fresh._by_type, fresh._inspectors

    @property
    def recipes(self) -> Mapping[str, LoadedRecipe]:
        """All recipes by name."""
        return self._recipes

    @property
    def inspectors(self) -> list[Inspector]:
        """The inspectors in use, each package once."""
        return list(self._inspectors.values())

    def _load(self, name: str, settings: RecipeSettings, model: ModelSection) -> LoadedRecipe:
        limits: dict[str, ViewRecipe] = {}
        views: dict[str, LoadedView] = {}
        for view, own in settings.views.items():
            override = self.overrides.get((name, view))
            if override is None:
                inspector = self._inspector(own.package, model)
            else:
                inspector = self._promoted(name, view, override, model)
                _tell_other(name, view, override, own.package, inspector.package)
                if not override.station_thresholds:
                    own = own.model_copy(update={"threshold": None, "undecided_below": None})
            limits[view], version = _limits(own, inspector)
            views[view] = LoadedView(inspector, version, own.roi_xyxy, own.exposure_us, own.gain_db)
        try:
            recipe = Recipe(name, limits, settings.min_failing_views)
        except ValueError as error:
            raise SettingsError(f"recipe '{name}': {error}") from None
        return LoadedRecipe(recipe, views, frozenset(settings.part_types), _digest(recipe, views))

    def _promoted(self, name: str, view: str, override: Override, model: ModelSection) -> Inspector:
        remedy = "put it back, or undo the promotion: linegate model list, linegate model roll-back"
        try:
            inspector = self._inspector(override.path, model)
        except PackageError as error:
            raise PackageError(f"recipe '{name}', view '{view}': the promoted package is gone: {error}; {remedy}") from error
        if inspector.package.digest != override.digest:
            text = f"{override.path} is {inspector.package.reference}, promoted was {override.digest[:12]}"
            raise PackageError(f"recipe '{name}', view '{view}': {text}; {remedy}")
        return inspector

    def _inspector(self, package: Path, model: ModelSection) -> Inspector:
        known = self._inspectors.get(package)
        if known is None:
            loaded = ModelPackage.load(package)
            # After a reload a package that did not change keeps its session.
            known = self._kept.inspector_of(package, loaded.digest) if self._kept is not None else None
            known = known or Inspector(loaded, model.provider, model.threads_per_worker)
            self._inspectors[package] = known
        return known

    def inspector_of(self, package: Path, digest: str) -> Inspector | None:
        """Return the inspector of a package that is loaded already, if its digest is the same."""
        known = self._inspectors.get(package)
        return known if known is not None and known.package.digest == digest else None


def _tell_other(name: str, view: str, override: Override, configured: Path, package: ModelPackage) -> None:
    """Say which package holds where STATION.toml names a new one."""
    if configured != override.configured:
        log.warning(
            "recipe '%s', view '%s': STATION.toml names %s, but the promoted %s holds: roll the promotion back to use it",
            name,
            view,
            configured,
            package.reference,
        )


def _limits(own: ViewSettings, inspector: Inspector) -> tuple[ViewRecipe, str]:
    """Return a view's limits, and a version that tells where its threshold comes from."""
    approved = inspector.view_recipe
    if own.threshold is None and own.undecided_below is None:
        return approved, f"package:{inspector.package.manifest.thresholds.version}"
    view = ViewRecipe(
        approved.threshold if own.threshold is None else own.threshold,
        approved.undecided_below if own.undecided_below is None else own.undecided_below,
    )
    return view, f"station:{view.threshold:g}/{view.undecided_below:g}"


def _digest(recipe: Recipe, views: Mapping[str, LoadedView]) -> str:
    """Return the SHA-256 over all that decides: packages, thresholds, regions, exposures, and the rule over views."""
    content: dict[str, Any] = {"name": recipe.name, "min_failing_views": recipe.min_failing_views, "views": {}}
    for name, view in views.items():
        limits = recipe.views[name]
        content["views"][name] = {
            "package": view.inspector.package.digest,
            "threshold": limits.threshold,
            "undecided_below": limits.undecided_below,
            "roi_xyxy": view.roi_xyxy,
            "exposure_us": view.exposure_us,
            "gain_db": view.gain_db,
        }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
