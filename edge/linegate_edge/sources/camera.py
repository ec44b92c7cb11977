"""What every camera thread has in common: a life of its own, a state for people, captures for the line.

Rules kept here: a camera that is missing is reported once and looked for again, and the station goes on meanwhile; a
thread ends only when stopped or when its source has no more. How frames are got is left to the modules beside this one.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal, Protocol

from linegate.errors import StationError
from linegate_edge.metrics import Metrics
from linegate_edge.records import Capture, Recorded
from linegate_edge.setting_types import VIEW

log = logging.getLogger("linegate.source")


class Submit(Protocol):
    """`Line.submit`: takes a capture, gives the future of its committed verdict."""

    def __call__(self, capture: Capture, *, wait: bool = True) -> Future[Recorded]: ...


class Camera(threading.Thread, ABC):
    """One camera of a station, which looks at one view; `problem` is why it delivers nothing, in one line, or None."""

    trigger_mode: Literal["free_run", "software", "hardware"] = "free_run"
    settable = False
    """Whether `configure` sets anything."""

    def __init__(self, camera: str, submit: Submit, metrics: Metrics, retry_s: float, view: str = VIEW) -> None:
        super().__init__(name=f"source-{camera}", daemon=True)
        self.camera, self.view = camera, view
        self.problem: str | None = None
        self.stopping = threading.Event()
        self._submit, self._metrics, self._retry_s = submit, metrics, retry_s

    @abstractmethod
    def deliver(self, submit: Submit) -> bool:
        """Deliver captures until stopped or out of frames; return True where there will never be more.

        Raises:
            CameraMissingError: the camera is not there, or no longer.
        """

    def run(self) -> None:
        """Deliver, and look for a missing camera again and again."""
        while not self.stopping.is_set():
            try:
                if self.deliver(self._submit):
                    log.info("camera %s: has no more frames", self.camera)
                    return
            except (CameraMissingError, StationError) as error:
                self._set_problem(str(error))
            except Exception as error:
                log.exception("camera %s failed", self.camera)
                self._set_problem(f"{type(error).__name__}: {error}")
            self.stopping.wait(self._retry_s)

    def trigger(self, key: str) -> None:
        """Have the camera take a frame for the part of `key`; returns at once.

        Raises:
            CameraMissingError: it is not there, or takes frames of itself only.
        """
        raise CameraMissingError(
            f"camera {self.camera} cannot be triggered by the station, {key} is lost: see [[source]] trigger"
        )

    def configure(self, exposure_us: float | None, gain_db: float | None) -> None:
        """Set exposure and gain from the next frame on; None leaves them as they are."""

    def delivering(self) -> None:
        """Take note that the camera is there."""
        self._set_problem(None)

    def stop(self) -> None:
        """Ask the thread to end after the frame in hand."""
        self.stopping.set()

    def _set_problem(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            log.warning("camera %s: %s; looking again every %g s", self.camera, problem, self._retry_s)
        elif problem is None and self.problem is not None:
            log.info("camera %s: delivers again", self.camera)
        self.problem = problem
        self._metrics.source_up.labels(self.camera).set(problem is None)


class CameraMissingError(Exception):
    """The camera is not there; the text says what was looked for and how to mend it."""


KnowsOrigin = Callable[[str], bool]
"""Says whether a picture of this origin has its verdict already."""
