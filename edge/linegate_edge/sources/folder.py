"""Picture files in a folder, each judged exactly once, over restarts too.

Rules kept here: a file is taken when its size and time have stood still for the settle time, since a copy may be under
way; its name, time and size make its origin, by which the store knows it again; files are only read, never moved or
deleted. A folder is scanned by polling, for inotify is silent on network shares.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from pathlib import Path
from typing import Final
from uuid import uuid4

from linegate.images import IMAGE_SUFFIXES
from linegate.stages import FrameFault, Part, Reason
from linegate_edge.message import utc_now
from linegate_edge.metrics import Metrics
from linegate_edge.records import Capture
from linegate_edge.settings import FolderSource
from linegate_edge.sources.camera import Camera, CameraMissingError, KnowsOrigin, Submit
from linegate_edge.sources.encoded import capture_from_bytes

log = logging.getLogger("linegate.source")
_POLL_S: Final = 0.1
_RETRY_S: Final = 1.0


class FolderCamera(Camera):
    """A folder that serves as a camera."""

    def __init__(
        self, settings: FolderSource, submit: Submit, metrics: Metrics, knows_origin: KnowsOrigin, max_pixels: int
    ) -> None:
        super().__init__(settings.camera, submit, metrics, _RETRY_S, settings.view)
        self._settings, self._knows_origin, self._max_pixels = settings, knows_origin, max_pixels
        self._taken: dict[str, tuple[int, int]] = {}
        self._unreadable: set[str] = set()
        self._sequence = 0

    def deliver(self, submit: Submit) -> bool:
        """Deliver each picture file once; without `watch`, return True after those that lie there.

        Raises:
            CameraMissingError: the folder does not exist or cannot be read.
        """
        moving: dict[str, tuple[int, int, float]] = {}
        while not self.stopping.is_set():
            started = time.monotonic()
            try:
                found = self._scan()
            except OSError as error:
                text = f"folder {self._settings.path} cannot be read ({error.strerror}): check [[source]] path"
                raise CameraMissingError(text) from error
            self.delivering()
            now = time.monotonic()
            moving = {name: (*state, self._since(moving.get(name), state, now)) for name, state in found.items()}
            settled = [name for name, (_, _, since) in moving.items() if (now - since) * 1e3 >= self._settings.settle_ms]
            for name in sorted(settled):
                if self.stopping.is_set():
                    return False
                mtime_ns, size, _ = moving.pop(name)
                self._take(name, mtime_ns, size, submit)
            if not self._settings.watch and not moving:
                return True
            # A folder of a hundred thousand files takes long to scan: spend a twentieth of the time on it at most.
            self.stopping.wait(max(_POLL_S, 20 * (now - started)))
        return False

    def _scan(self) -> dict[str, tuple[int, int]]:
        """Return time and size of the picture files that were not taken yet."""
        found = {}
        with os.scandir(self._settings.path) as entries:
            for entry in entries:
                if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith("."):
                    try:
                        status = entry.stat()
                    except FileNotFoundError:  # gone between the listing and the look, or a link to nowhere
                        continue
                    except OSError as error:
                        self._complain(entry.name, error)
                        continue
                    state = (status.st_mtime_ns, status.st_size)
                    if self._taken.get(entry.name) != state and stat.S_ISREG(status.st_mode):
                        found[entry.name] = state
        return found

    def _complain(self, name: str, error: OSError) -> None:
        """Say once that an entry of the folder cannot be looked at; the others are not held up by it."""
        if name not in self._unreadable:
            self._unreadable.add(name)
            log.warning("camera %s: %s cannot be read (%s) and is left out", self.camera, _printable(name), error.strerror)

    @staticmethod
    def _since(before: tuple[int, int, float] | None, state: tuple[int, int], now: float) -> float:
        return before[2] if before is not None and before[:2] == state else now

    def _take(self, name: str, mtime_ns: int, size: int, submit: Submit) -> None:
        origin = f"folder:{self.camera}:{_printable(name)}:{mtime_ns}:{size}"
        if not self._knows_origin(origin):
            submit(self._capture(name, origin))
        # Only now: what was not handed over is found again by the next scan.
        self._taken[name] = (mtime_ns, size)

    def _capture(self, name: str, origin: str) -> Capture:
        self._sequence += 1
        path = self._settings.path / name
        part, now = Part(_printable(path.stem), "filename"), utc_now()
        try:
            data = path.read_bytes()
        except OSError as error:
            text = f"{_printable(str(path))}: cannot be read: {error.strerror}"
            fault = FrameFault(Reason.IMAGE_UNREADABLE, text, str(uuid4()), self.camera, self.view, self._sequence, now)
            return Capture(part, fault, origin)
        return capture_from_bytes(
            data,
            part=part,
            camera=self.camera,
            view=self.view,
            sequence=self._sequence,
            captured_at=now,
            max_pixels=self._max_pixels,
            origin=origin,
        )


def _printable(name: str) -> str:
    """Return a file name as text that any message can carry: bytes that are no UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
