"""What machine-vision cameras have in common, whoever drives them: buffers, triggers, frame numbers, a bounded ring.

Rules kept here: the acquisition thread copies a buffer into a bounded ring, gives it back and fetches the next; another thread
hands frames to the line. A frame that is incomplete, or finds the ring full, goes on as a fault and never as a picture. A
frame belongs to a trigger by the camera's own frame number, so that one lost on the way leaves its number out and the next
part does not get its frame. A camera that is busy ignores a software trigger without a word, and no number tells: therefore
one trigger is under way at a time, and a camera that does not answer it is opened anew. How buffers are got is left to the
drivers beside this module, the counting of frames to `frame_numbers`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from linegate.errors import StationError
from linegate.stages import Frame, FrameFault, Image, Part, PixelFormat, Reason
from linegate_edge.message import utc_now
from linegate_edge.metrics import Metrics
from linegate_edge.records import Capture
from linegate_edge.source_settings import IndustrialSource
from linegate_edge.sources.camera import Camera, CameraMissingError, Submit
from linegate_edge.sources.frame_numbers import FrameNumbers

log = logging.getLogger("linegate.source")
_POP_S: Final = 0.2
_SILENT_S: Final = 2.0
_UNASKED: Final = "trigger:0"  # no trigger has this number, so that the frame is recorded and becomes no part


@dataclass(frozen=True, slots=True, eq=False)
class Grab:
    """What a driver fetched: an image of its own (already copied), or the `problem` that it has.

    `number` is the camera's frame number as it sent it, or None where it has none; `encoder` the conveyor's count that came
    with the frame.
    """

    image: Image | None
    pixel_format: PixelFormat
    number: int | None
    captured_at: datetime
    problem: str | None = None
    encoder: int | None = None


@dataclass(frozen=True, slots=True)
class _Shot:
    """A software trigger under way: its part's key, and when it was asked for on the monotonic clock."""

    key: str
    at_s: float


class Driver(ABC):
    """An open camera that delivers; closed once, by whoever opened it.

    Raises:
        CameraMissingError: from any method, where the camera is gone or refuses.
    """

    @abstractmethod
    def start(self) -> None:
        """Begin to take frames."""

    @abstractmethod
    def grab(self, timeout_s: float) -> Grab | None:
        """Return the next frame, or None where none came in time."""

    @abstractmethod
    def fire(self) -> None:
        """Have the camera take one frame."""

    @abstractmethod
    def set(self, exposure_us: float | None, gain_db: float | None) -> None:
        """Set exposure and gain; None leaves one as it is."""

    @abstractmethod
    def check(self) -> None:
        """Talk to the camera, for it has been silent."""

    @abstractmethod
    def close(self) -> None:
        """Let the camera go."""


class IndustrialCamera(Camera):
    """A machine-vision camera in free run, or triggered by the station or by wire.

    `open_driver` opens the camera; `next_trigger` says which number the next trigger will have, by which frames of a camera
    that is triggered by wire are counted.
    """

    settable = True

    def __init__(
        self,
        settings: IndustrialSource,
        submit: Submit,
        metrics: Metrics,
        open_driver: Callable[[], Driver],
        *,
        boot_id: str,
        next_trigger: Callable[[], int],
        max_pixels: int,
    ) -> None:
        super().__init__(settings.camera, submit, metrics, settings.reconnect_s, settings.view)
        self.trigger_mode = settings.trigger
        self.problem = "is not opened yet"
        self._settings, self._open_driver, self._boot_id = settings, open_driver, boot_id
        self._next_trigger, self._max_pixels = next_trigger, max_pixels
        self._lock = threading.Lock()
        self._shot: _Shot | None = None
        self._commands: _Commands = queue.SimpleQueue()
        self._room = threading.Semaphore(settings.ring_frames)
        self._driver: Driver | None = None
        self._wanted: tuple[float | None, float | None] = settings.exposure_us, settings.gain_db
        self._sequence = 0

    # -- what the station asks --------------------------------------------------------------------------------------

    def trigger(self, key: str) -> None:
        """Have the camera take a frame for the part of `key`; returns at once.

        Raises:
            CameraMissingError: it is not there, is not triggered by the station, or has not answered the trigger before.
        """
        if self.trigger_mode != "software":
            super().trigger(key)
        with self._lock:
            if self._driver is None:
                raise CameraMissingError(f"camera {self.camera} is not there: {self.problem or 'is being opened'}")
            if self._shot is not None:
                raise CameraMissingError(
                    f"camera {self.camera} is busy with {self._shot.key}: triggers come faster than it answers them"
                )
            self._shot = _Shot(key, time.monotonic())
            self._commands.put(lambda driver: driver.fire())

    def configure(self, exposure_us: float | None, gain_db: float | None) -> None:
        """Set exposure and gain from the next frame on; None goes back to the camera's own settings in STATION.toml."""
        wanted = exposure_us or self._settings.exposure_us, gain_db if gain_db is not None else self._settings.gain_db
        with self._lock:
            self._wanted = wanted
            if self._driver is not None:
                self._commands.put(lambda driver: driver.set(*wanted))

    # -- one life of the camera -------------------------------------------------------------------------------------

    def deliver(self, submit: Submit) -> bool:
        """Deliver frames until stopped.

        Raises:
            CameraMissingError: the camera cannot be opened, or is gone.
        """
        driver = self._open_driver()
        ring: queue.SimpleQueue[Capture | None] = queue.SimpleQueue()
        handing = threading.Thread(target=self._hand_over, args=(ring, submit), name=f"ring-{self.camera}", daemon=True)
        commands: _Commands = queue.SimpleQueue()  # what the last life of the camera left undone is not this one's
        failed: list[CameraMissingError] = []
        commanding = threading.Thread(
            target=_command, args=(driver, commands, failed), name=f"command-{self.camera}", daemon=True
        )
        try:
            driver.set(*self._wanted)
            driver.start()
            handing.start()
            commanding.start()
            with self._lock:
                self._driver, self._commands = driver, commands
            self.delivering()
            self._acquire(driver, ring, failed)
        finally:
            with self._lock:
                self._driver = None
                shot, self._shot = self._shot, None
            commands.put(None)
            if shot is not None:
                text = "the camera went away, or did not answer, before its frame came"
                ring.put(self._fault(shot.key, Reason.CAMERA_MISSING, text))
            ring.put(None)
            for thread in (handing, commanding):
                if thread.ident is not None:
                    thread.join()
            driver.close()
        return False

    def _acquire(self, driver: Driver, ring: queue.SimpleQueue[Capture | None], failed: list[CameraMissingError]) -> None:
        numbers = FrameNumbers()
        count, base = 0, self._next_trigger()
        heard = time.monotonic()
        while not self.stopping.is_set():
            if failed:
                raise failed[0]
            self._check_answer()
            grab = driver.grab(_POP_S)
            if grab is None:
                if time.monotonic() - heard > _SILENT_S:
                    driver.check()
                    heard = time.monotonic()
                continue
            heard = time.monotonic()
            for _ in range(numbers.missed_before(grab.number)):
                count += 1
                lost = "the frame was lost between camera and station"
                ring.put(self._fault(self._key(base + count - 1, None), Reason.IMAGE_INCOMPLETE, lost))
            count += 1
            ring.put(self._capture(grab, self._key(base + count - 1, grab.encoder)))

    def _check_answer(self) -> None:
        """Give a camera up that owes a frame for too long: opened anew, it cannot give a late one to the next part."""
        with self._lock:
            shot, exposure_us = self._shot, self._wanted[0] or 0.0
        limit_ms = self._settings.answer_ms + exposure_us / 1e3
        if shot is not None and time.monotonic() - shot.at_s > limit_ms / 1e3:
            raise CameraMissingError(f"no frame came within {limit_ms:g} ms of {shot.key}: see [[source]] answer_ms")

    def _key(self, number: int, encoder: int | None) -> str | None:
        """Return what joins a frame to its part: of the trigger that asked for it, of the encoder, or of its number."""
        if self.trigger_mode == "software":
            with self._lock:
                shot, self._shot = self._shot, None
            return shot.key if shot is not None else _UNASKED
        if encoder is not None:
            return f"encoder:{encoder}"
        return f"pulse:{number}" if self.trigger_mode == "hardware" else None

    def _capture(self, grab: Grab, key: str | None) -> Capture:
        self._sequence += 1
        part = Part(f"{self.camera}-{self._boot_id[:8]}-{self._sequence:06d}", "counter")
        fields: Any = (str(uuid4()), self.camera, self.view, self._sequence, grab.captured_at)
        if grab.problem is not None or grab.image is None:
            return Capture(part, FrameFault(Reason.IMAGE_INCOMPLETE, grab.problem or "no image came", *fields), key=key)
        height, width = grab.image.shape[:2]
        if width * height > self._max_pixels:
            text = f"the frame has {width} × {height} pixels, the limit is {self._max_pixels:,}: raise max_megapixels"
            return Capture(part, FrameFault(Reason.IMAGE_TOO_LARGE, text, *fields), key=key)
        if not self._room.acquire(blocking=False):
            text = f"{self._settings.ring_frames} frames waited for the line already: raise ring_frames, or take fewer"
            return Capture(part, FrameFault(Reason.QUEUE_FULL, text, *fields), key=key)
        return Capture(part, Frame(grab.image, grab.pixel_format, *fields), key=key)

    def _fault(self, key: str | None, reason: Reason, text: str) -> Capture:
        self._sequence += 1
        part = Part(f"{self.camera}-{self._boot_id[:8]}-{self._sequence:06d}", "counter")
        return Capture(part, FrameFault(reason, text, str(uuid4()), self.camera, self.view, self._sequence, utc_now()), key=key)

    def _hand_over(self, ring: queue.SimpleQueue[Capture | None], submit: Submit) -> None:
        """Hand frames to the line, in order; what the line refuses is stopped by command or the station ends."""
        while (capture := ring.get()) is not None:
            try:
                submit(capture, wait=False)
            except StationError as error:
                self._set_problem(str(error))  # told once; the next frame is tried again
            except Exception as error:
                log.exception("camera %s: frame %s could not be handed over", self.camera, capture.item.frame_id)
                self._set_problem(f"{type(error).__name__}: {error}")
            else:
                self.delivering()
            finally:
                if isinstance(capture.item, Frame):
                    self._room.release()


_Commands = queue.SimpleQueue[Callable[[Driver], None] | None]


def _command(driver: Driver, commands: _Commands, failed: list[CameraMissingError]) -> None:
    """Talk to the camera beside the acquisition, for an answer may take its time."""
    while (command := commands.get()) is not None:
        try:
            command(driver)
        except CameraMissingError as error:
            failed.append(error)
