"""STATION.toml read again while the station runs: what can change now, and what needs a restart.

Rules kept here: a file that cannot be used changes nothing, and is told in one line; what can change does, from the next
part on, and no part is lost; what cannot is named, and the station goes on with the old value. How a change is put into
force is left to the station, when to reload to its signals.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import BaseModel

from linegate.errors import LinegateError
from linegate.settings import parse
from linegate_edge.settings import StationSettings, load_station

log = logging.getLogger("linegate.reload")
LIVE: Final = frozenset({"recipe", "recipes", "evidence", "health", "plant_codes"})
"""What may change while the station runs: sections, and keys of sections that otherwise may not."""


class Reloadable(Protocol):
    """A station whose settings can change while it runs."""

    settings: StationSettings

    def apply(self, settings: StationSettings) -> None:
        """Put settings in force from the next part on; they differ from those in force by what is in `LIVE` alone.

        Raises:
            LinegateError: they cannot be used; nothing was changed.
        """


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reload comes to: the settings to put in force, the keys that change, and those that need a restart."""

    settings: StationSettings
    changed: tuple[str, ...]
    restart: tuple[str, ...]


def plan(old: StationSettings, new: StationSettings) -> Plan:
    """Return what of `new` can replace `old` in a running station.

    Raises:
        SettingsError: what can change does not fit what cannot.
    """
    different = sorted(_different(old, new))
    live = [key for key in different if _is_live(key)]
    values: dict[str, Any] = {name: getattr(old, name) for name in StationSettings.model_fields}
    for key in live:
        section, *rest = key.split(".")
        if section in LIVE:
            values[section] = getattr(new, section)
        else:
            values[section] = values[section].model_copy(update={rest[0]: getattr(getattr(new, section), rest[0])})
    settings = parse(values, StationSettings, "of the new settings only a part can change without a restart, and that fails")
    return Plan(settings, tuple(map(_shown, live)), tuple(_shown(key) for key in different if not _is_live(key)))


def reload_station(path: Path, station: Reloadable) -> None:
    """Read a station's settings again and put in force what can change; log in a line what became of it."""
    try:
        planned = plan(station.settings, load_station(path))
        if planned.changed:
            station.apply(planned.settings)
    except LinegateError as error:
        log.error("reload refused, the station goes on as before: %s", error)
        return
    log.info("reloaded: %s", f"changed {', '.join(planned.changed)}" if planned.changed else "nothing has changed")
    if planned.restart:
        log.warning("restart needed for: %s", ", ".join(planned.restart))


def _different(old: BaseModel, new: BaseModel, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the fields in which two settings differ."""
    if type(old) is not type(new):  # another kind of trigger
        yield prefix.removesuffix(".")
        return
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, BaseModel) and isinstance(after, BaseModel):
            yield from _different(before, after, f"{prefix}{name}.")
        elif before != after:
            yield prefix + name


def _is_live(key: str) -> bool:
    return key in LIVE or key.split(".")[0] in LIVE


def _shown(key: str) -> str:
    """Return a dotted key as it stands in STATION.toml."""
    section, _, rest = key.partition(".")
    if section == "source":
        return "[[source]]"
    return f"[{section}] {rest}" if rest else f"[{section}]"
