"""The health checks of a station's views, by recipe, and what they have learned, kept over restarts.

Rules kept here: each view of each recipe has a reference of its own, for exposure and part differ; settings that are read
again keep what was learned. What fit means is the core's to say.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

from linegate.health import HealthCheck, HealthLimits, HealthReference
from linegate.stages import Frame, FrameFault
from linegate_edge.settings import HealthSection

log = logging.getLogger("linegate.health")
KEPT_REFERENCES: Final = "health_references"
"""The store's key for what was learned."""


class FrameHealth:
    """Checks frames by recipe and view; all methods may be called from any thread.

    `kept` is what an earlier run has handed to `keep`: a JSON object of references.
    """

    def __init__(self, settings: HealthSection, kept: str | None, keep: Callable[[str], None]) -> None:
        self._lock = threading.Lock()
        self._keep = keep
        self._checks: dict[str, HealthCheck] = {}
        self._kept = _read(kept)
        self._told: set[str] = set()
        self.limits = _limits(settings)

    def use(self, settings: HealthSection) -> None:
        """Put other limits in force from the next frame on."""
        with self._lock:
            self._kept |= self._references()
            self.limits, self._checks = _limits(settings), {}

    def check(self, recipe: str, frame: Frame) -> FrameFault | None:
        """Return why a frame is not fit to be judged, or None."""
        name = f"{recipe}/{frame.view}"
        check = self._checks.get(name)
        if check is None:
            with self._lock:
                check = self._checks.setdefault(name, HealthCheck(self.limits, self._kept.get(name)))
        fault = check.check(frame)
        if check.reference is not None and name not in self._told:
            self._tell(name)
        return fault

    @property
    def learned(self) -> set[str]:
        """The views, as recipe/view, whose normal look is known."""
        return set(self._references())

    def _references(self) -> dict[str, HealthReference]:
        checks = list(self._checks.items())
        return {name: check.reference for name, check in checks if check.reference is not None}

    def _tell(self, name: str) -> None:
        with self._lock:
            if name in self._told:
                return
            self._told.add(name)
            known = self._kept | self._references()
        log.info("view %s: what it normally looks like is known now", name)
        self._keep(json.dumps({view: reference.to_json() for view, reference in known.items()}))


def _limits(settings: HealthSection) -> HealthLimits:
    return HealthLimits(**settings.model_dump())


def _read(kept: str | None) -> dict[str, HealthReference]:
    values: Mapping[str, Mapping[str, object]] = json.loads(kept) if kept is not None else {}
    return {name: HealthReference.from_json(value) for name, value in values.items()}
