"""`linegate station check`: would this STATION.toml make a station, here and now?

Rules kept here: nothing is started, opened for writing or connected to; each mistake is one line with its mend. What the
machine and the network are like is left to `doctor`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from linegate.errors import SettingsError
from linegate_edge.certificates import certificate_finding
from linegate_edge.doctor_station import file_findings, package_findings
from linegate_edge.findings import Finding, fail, ok, show, warn
from linegate_edge.settings import StationSettings, load_station

_CERTIFICATES = ("ca_file", "cert_file")


def run_station_check(path: Path, *, as_json: bool) -> int:
    """Print what was found of a STATION.toml, and return the exit status."""
    try:
        settings = load_station(path)
    except SettingsError as error:
        return show([fail("settings", str(error), "mend the file; the rest of it was not looked at")], as_json=as_json)
    return show([ok("settings", f"{path}: station {settings.station.topic}"), *check(settings)], as_json=as_json)


def check(settings: StationSettings) -> Iterator[Finding]:
    """Yield what was found of a station's settings and the files that they name."""
    yield from package_findings(settings)
    recipes = {name: tuple(recipe.views) for name, recipe in settings.all_recipes.items()}
    yield from view_findings(recipes, {source.camera: source.view for source in settings.source})
    yield from file_findings(settings)
    for key in _CERTIFICATES:
        certificate = getattr(settings.mqtt, key, None)
        if certificate is not None:
            yield certificate_finding(f"[mqtt] {key}", certificate, datetime.now(UTC))


def view_findings(recipes: Mapping[str, Collection[str]], cameras: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether each view that a recipe asks for has a camera, and each camera's view a recipe.

    `recipes` names the views by recipe, `cameras` the view by camera.
    """
    served = set(cameras.values())
    for name, views in recipes.items():
        missing = [view for view in views if view not in served]
        if missing:
            what = f"{name}: no camera for {', '.join(missing)}"
            yield warn("recipe", what, "give a [[source]] that view, or bring its frames by POST /frames")
        else:
            yield ok("recipe", f"{name}: each view has its camera ({', '.join(views)})")
    asked = {view for views in recipes.values() for view in views}
    for camera, view in cameras.items():
        if view not in asked:
            mend = f"name view '{view}' in a recipe, or take the [[source]] out"
            yield fail("recipe", f"camera {camera} delivers view '{view}', for which no recipe has a threshold", mend)
