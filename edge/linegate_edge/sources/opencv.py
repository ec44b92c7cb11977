"""Video files, RTSP streams and V4L2 devices through OpenCV; every frame is a part.

Rules kept here: a live camera cannot wait, so a frame that finds the queue full becomes undecided; a file can, and each of
its frames is judged once, over restarts too. Triggers and views joined to one part are left to a later source.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2

from linegate.stages import Frame, FrameFault, Part, PixelFormat, Reason
from linegate_edge.message import utc_now
from linegate_edge.metrics import Metrics
from linegate_edge.records import Capture
from linegate_edge.settings import OpenCVSource
from linegate_edge.sources.camera import Camera, CameraMissingError, KnowsOrigin, Submit

_TIMEOUT_MS = 5_000
_OLDEST_S = 5.0


class OpenCVCamera(Camera):
    """A camera that OpenCV can open by file name, address or device."""

    def __init__(
        self,
        settings: OpenCVSource,
        submit: Submit,
        metrics: Metrics,
        knows_origin: KnowsOrigin,
        boot_id: str,
        max_pixels: int,
    ) -> None:
        super().__init__(settings.camera, submit, metrics, settings.reconnect_s, settings.view)
        self._settings, self._knows_origin, self._boot_id = settings, knows_origin, boot_id
        self._max_pixels = max_pixels
        self._sequence = 0

    def deliver(self, submit: Submit) -> bool:
        """Deliver frames until stopped or, for a file, its end.

        Raises:
            CameraMissingError: the camera cannot be opened, or delivers no more.
        """
        address = self._settings.address
        file = Path(address)
        is_file = file.is_file()
        video = self._open()
        try:
            index = 0
            due = time.monotonic()
            while not self.stopping.is_set():
                if not is_file and self._too_early(due) and video.grab():
                    self._metrics.frames_skipped.labels(self.camera).inc()
                    continue  # what is buffered is drained, so that the frame which is due is the newest
                whole, pixels = video.read()
                if not whole:
                    if is_file and index > 0:
                        return True
                    raise CameraMissingError(f"{self._settings.address}: delivers no frame: check cable, address or file")
                self.delivering()
                origin = f"video:{self.camera}:{file.name}:{file.stat().st_mtime_ns}:{index}" if is_file else None
                index += 1
                if origin is not None and self._knows_origin(origin):
                    continue
                taken_at = utc_now() if is_file else _taken_at(video, address)
                submit(self._capture(pixels, origin, file.stem if is_file else None, index, taken_at), wait=is_file)
                if self._settings.max_frames_per_second is not None:
                    due = max(due + 1 / self._settings.max_frames_per_second, time.monotonic())
                    if is_file:
                        self.stopping.wait(due - time.monotonic())
        finally:
            video.release()
        return False

    def _open(self) -> cv2.VideoCapture:
        address = self._settings.address
        video = cv2.VideoCapture()
        if address.isdigit() or address.startswith("/dev/"):
            opened = video.open(int(address) if address.isdigit() else address, cv2.CAP_V4L2)
        else:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
            opened = video.open(address, cv2.CAP_FFMPEG, limits)
        if not opened:
            raise CameraMissingError(f"{address}: cannot be opened: check [[source]] address, cable and permissions")
        return video

    def _too_early(self, due: float) -> bool:
        return self._settings.max_frames_per_second is not None and time.monotonic() < due

    def _capture(self, pixels: Any, origin: str | None, stem: str | None, index: int, now: datetime) -> Capture:
        self._sequence += 1
        part = (
            Part(f"{stem}-{index:06d}", "filename")
            if stem is not None
            else Part(f"{self.camera}-{self._boot_id[:8]}-{self._sequence:06d}", "counter")
        )
        frame_id = str(uuid4())
        height, width = pixels.shape[:2]
        if width * height > self._max_pixels:
            text = f"the frame has {width} × {height} pixels, the limit is {self._max_pixels:,}: raise max_megapixels"
            fault = FrameFault(Reason.IMAGE_TOO_LARGE, text, frame_id, self.camera, self.view, self._sequence, now)
            return Capture(part, fault, origin)
        pixel_format = PixelFormat.MONO8 if pixels.ndim == 2 else PixelFormat.BGR8
        return Capture(part, Frame(pixels, pixel_format, frame_id, self.camera, self.view, self._sequence, now), origin)


def _taken_at(video: cv2.VideoCapture, address: str) -> datetime:
    """Return when a live frame was taken: a V4L2 driver stamps it by the monotonic clock, others do not say."""
    now = utc_now()
    if address.isdigit() or address.startswith("/dev/"):
        age_s = time.monotonic() - video.get(cv2.CAP_PROP_POS_MSEC) / 1e3
        if 0 <= age_s < _OLDEST_S:
            return now - timedelta(seconds=age_s)
    return now
