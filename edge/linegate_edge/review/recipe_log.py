"""Changes of what judges, in the audit trail, by whichever way they came: settings, a reload, a promotion, a roll-back.

Rules kept here: what is in force is held against what was in force before, also over a restart; a recipe that
did not change adds no line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from linegate_edge.recipes import LoadedRecipe
from linegate_edge.review.audit import SYSTEM, AuditTrail
from linegate_edge.review.database import ReviewDatabase

_KEY: Final = "recipes"


def note_recipes(database: ReviewDatabase, trail: AuditTrail, recipes: Mapping[str, LoadedRecipe]) -> None:
    """Add a line for each recipe that came, went, or judges by another package, threshold or region than before.

    Raises:
        StoreError: the trail cannot be written.
    """
    now = {name: _content(recipe) for name, recipe in recipes.items()}
    with database.look() as db:
        row = db.execute("SELECT value FROM state WHERE key = ?", (_KEY,)).fetchone()
    before: dict[str, Any] = {} if row is None else json.loads(str(row[0]))
    for name in sorted(now.keys() | before.keys()):
        if now.get(name) == before.get(name):
            continue
        detail = {"before": before.get(name), "now": now.get(name)}
        kept = {**before, **({name: now[name]} if name in now else {})}
        if name not in now:
            kept.pop(name)
        with trail.change(SYSTEM, "recipe.change", name, detail) as db:
            db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (_KEY, json.dumps(kept)))
        before = kept


def _content(recipe: LoadedRecipe) -> dict[str, Any]:
    views = {}
    for name, view in recipe.views.items():
        limits = recipe.recipe.views[name]
        views[name] = {
            "package": view.inspector.package.reference,
            "package_digest": view.inspector.package.digest,
            "threshold": limits.threshold,
            "undecided_below": limits.undecided_below,
            "threshold_version": view.threshold_version,
            "roi_xyxy": None if view.roi_xyxy is None else list(view.roi_xyxy),
        }
    return {"digest": recipe.digest, "min_failing_views": recipe.recipe.min_failing_views, "views": views}
