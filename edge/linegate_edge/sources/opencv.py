"""Video files, RTSP streams and V4L2 devices through OpenCV; every frame is a part.

Rules kept here: a live camera cannot wait, so a frame that finds the queue full becomes undecided; a file can, and each of
its frames is judged once, over restarts too. Triggers and views joined to one part are left to a later source.
"""

from __future__ import annotations

import time
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
        file = Path(self._settings.address)
        is_file = file.is_file()
        video = self._open()
        try:
            index = 0
            due = time.monotonic()
            while not self.stopping.is_set():
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
                submit(self._capture(pixels, origin, file.stem if is_file else None, index), wait=is_file)
                if self._settings.max_frames_per_second is not None:
                    due = max(due + 1 / self._settings.max_frames_per_second, time.monotonic())
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

    def _capture(self, pixels: Any, origin: str | None, stem: str | None, index: int) -> Capture:
        self._sequence += 1
        part = (
            Part(f"{stem}-{index:06d}", "filename")
            if stem is not None
            else Part(f"{self.camera}-{self._boot_id[:8]}-{self._sequence:06d}", "counter")
        )
        now, frame_id = utc_now(), str(uuid4())
        height, width = pixels.shape[:2]
        if width * height > self._max_pixels:
            text = f"the frame has {width} × {height} pixels, the limit is {self._max_pixels:,}: raise max_megapixels"
            fault = FrameFault(Reason.IMAGE_TOO_LARGE, text, frame_id, self.camera, self.view, self._sequence, now)
            return Capture(part, fault, origin)
        pixel_format = PixelFormat.MONO8 if pixels.ndim == 2 else PixelFormat.BGR8
        return Capture(part, Frame(pixels, pixel_format, frame_id, self.camera, self.view, self._sequence, now), origin)
