"""Cameras with a GenTL producer (GenICam), by harvesters: any vendor's, whatever the cable.

Rules kept here: features are set by their SFNC names; what a camera lacks and the settings ask for is told in one line; a
buffer that the producer calls incomplete is no image. The only module that imports `harvesters` and `genicam`. Triggers, ring
and joining are left to `industrial`.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from linegate.errors import SettingsError
from linegate.stages import Image, PixelFormat
from linegate_edge.message import utc_now
from linegate_edge.metrics import Metrics
from linegate_edge.source_settings import GenicamSource
from linegate_edge.sources.camera import CameraMissingError, Submit
from linegate_edge.sources.camera_clock import CameraClock
from linegate_edge.sources.industrial import Driver, Grab, IndustrialCamera
from linegate_edge.sources.pixels import CHANNELS, copy_image

try:
    from genicam.genapi import GenericException as GenApiError
    from genicam.gentl import GenericException as GenTLError
    from genicam.gentl import TimeoutException
    from harvesters.core import Callback, Harvester
except ImportError as import_error:
    text = f"[[source]] kind = 'genicam' needs harvesters ({import_error}): pip install 'linegate[genicam]'"
    raise SettingsError(text) from import_error

log = logging.getLogger("linegate.source")
_ENVIRONMENT: Final = "GENICAM_GENTL64_PATH"
_EVENT_WAIT_MS: Final = 50
_ERRORS: Final = (GenApiError, GenTLError, AttributeError, RuntimeError, ValueError, OSError)


def genicam_camera(
    settings: GenicamSource,
    submit: Submit,
    metrics: Metrics,
    *,
    boot_id: str,
    next_trigger: Callable[[], int],
    max_pixels: int,
) -> IndustrialCamera:
    """Return a camera that a GenTL producer drives, not started.

    Raises:
        SettingsError: there is no producer where the settings or the environment say.
    """
    producers = [settings.producer] if settings.producer is not None else list(_installed_producers())
    if not producers:
        raise SettingsError(f"[[source]] kind = 'genicam' names no producer, and {_ENVIRONMENT} is empty: give the .cti file")
    for producer in producers:
        if not producer.is_file():
            raise SettingsError(f"[[source]] producer {producer}: no such file: give the .cti file of the camera's vendor")
    opened = functools.partial(GenicamDriver, producers, settings)
    return IndustrialCamera(
        settings, submit, metrics, opened, boot_id=boot_id, next_trigger=next_trigger, max_pixels=max_pixels
    )


def _installed_producers() -> Iterator[Path]:
    for folder in os.environ.get(_ENVIRONMENT, "").split(os.pathsep):
        if folder:
            yield from sorted(Path(folder).glob("*.cti"))


class GenicamDriver(Driver):
    """One camera, opened and set up.

    Raises:
        CameraMissingError: it is not there, is somebody else's, or refuses a setting.
    """

    def __init__(self, producers: list[Path], settings: GenicamSource) -> None:
        self._settings = settings
        self._harvester = Harvester()
        self._acquirer: Any = None
        self._clock = CameraClock(settings.timestamps)
        self._incomplete = 0
        try:
            for producer in producers:
                self._harvester.add_file(str(producer))
            self._harvester.update()
            self._acquirer = self._harvester.create(self._chosen())
            self._features = self._acquirer.remote_device.node_map
            # harvesters gives incomplete buffers back by itself, and tells of them only so.
            self._acquirer.add_callback(self._acquirer.Events.INCOMPLETE_BUFFER, _Counting(self))
            self._acquirer.timeout_period_on_update_event_data_call = _EVENT_WAIT_MS
            self._set_up()
        except CameraMissingError:
            self.close()
            raise
        except _ERRORS as error:
            self.close()
            raise CameraMissingError(f"the camera cannot be opened: {_words(error)}") from error

    def _chosen(self) -> int:
        """Return the index of the device that the settings name by id, serial number, user's name or model."""
        there = self._harvester.device_info_list
        names = [{_known(info, key) for key in ("id_", "serial_number", "user_defined_name", "model")} for info in there]
        wanted = self._settings.device
        for index, known in enumerate(names):
            if not wanted or wanted in known:
                return index
        answers = ", ".join(str(info.id_) for info in there) or "none"
        raise CameraMissingError(
            f"no camera {wanted} answers, there are: {answers}; check [[source]] device, cable and producer"
        )

    def _set_up(self) -> None:
        settings = self._settings
        if settings.pixel_format is not None:
            self._write("PixelFormat", settings.pixel_format)
        if settings.region_xywh is not None:
            x, y, width, height = settings.region_xywh
            for name, value in (("OffsetX", 0), ("OffsetY", 0), ("Width", width), ("Height", height)):
                if value or self._has(name):
                    self._write(name, value)
            for name, value in (("OffsetX", x), ("OffsetY", y)):
                if value:
                    self._write(name, value)
        if settings.frames_per_second is not None:
            if self._has("AcquisitionFrameRateEnable"):
                self._write("AcquisitionFrameRateEnable", True)
            self._write("AcquisitionFrameRate", settings.frames_per_second)
        if self._has("TriggerSelector"):
            self._write("TriggerSelector", "FrameStart")
        if settings.trigger != "free_run":
            self._write("TriggerMode", "On")
            self._write("TriggerSource", "Software" if settings.trigger == "software" else settings.trigger_line)
        elif self._has("TriggerMode"):
            self._write("TriggerMode", "Off")
        if settings.timestamps == "ptp":
            self._write("PtpEnable", True)
        if settings.trigger == "hardware" and self._has("ChunkModeActive"):
            self._enable_encoder_chunk()

    def _enable_encoder_chunk(self) -> None:
        self._write("ChunkModeActive", True)
        selector = self._features.ChunkSelector
        if "EncoderValue" in selector.symbolics:
            selector.value = "EncoderValue"
            self._write("ChunkEnable", True)

    def _has(self, name: str) -> bool:
        return hasattr(self._features, name)

    def _write(self, name: str, value: object) -> None:
        if not self._has(name):
            raise CameraMissingError(f"the camera has no feature {name}, which the settings need")
        try:
            getattr(self._features, name).value = value
        except _ERRORS as error:
            raise CameraMissingError(f"the camera refuses {name} = {value}: {_words(error)}") from error

    def start(self) -> None:
        """Begin to take frames."""
        try:
            self._acquirer.start()
        except _ERRORS as error:
            raise CameraMissingError(f"the camera does not start: {_words(error)}") from error

    def grab(self, timeout_s: float) -> Grab | None:
        """Return the next frame, or None where none came in time."""
        try:
            before = self._incomplete
            buffer = self._acquirer.try_fetch(timeout=timeout_s)
            if self._incomplete > before:
                text = "the frame is incomplete: check network or cable"
                return Grab(None, PixelFormat.MONO8, None, utc_now(), text)
            if buffer is None:
                return None
            try:
                return self._read(buffer)
            finally:
                buffer.queue()
        except TimeoutException:
            return None
        except _ERRORS as error:
            raise CameraMissingError(f"the camera delivers no more: {_words(error)}") from error

    def _read(self, buffer: Any) -> Grab:
        number = _info(buffer.module, "frame_id")
        captured_at = self._captured_at(buffer.module)
        component = buffer.payload.components[0]
        try:
            pixel_format = PixelFormat(component.data_format)
        except ValueError:
            text = f"the camera sends {component.data_format}: set pixel_format to Mono8, RGB8 or BGR8"
            return Grab(None, PixelFormat.MONO8, number, captured_at, text)
        image = self._copy(component, pixel_format)
        if image is None:
            return Grab(None, pixel_format, number, captured_at, "the frame has fewer bytes than its size asks for")
        return Grab(image, pixel_format, number, captured_at, encoder=self._encoder())

    @staticmethod
    def _copy(component: Any, pixel_format: PixelFormat) -> Image | None:
        size_wh = int(component.width), int(component.height)
        # harvesters 1.4.3 leaves the padding of lines in `data`; without it there is just the image.
        is_bare = component.data.size == size_wh[0] * size_wh[1] * CHANNELS[pixel_format]
        return copy_image(component.data, size_wh, pixel_format, 0 if is_bare else int(component.x_padding))

    def count_incomplete(self) -> None:
        """Take note of a buffer that the producer could not fill."""
        self._incomplete += 1

    def _encoder(self) -> int | None:
        """Return the conveyor's count that came with the frame as a chunk, where the camera sends one."""
        if self._settings.trigger != "hardware" or not self._has("ChunkEncoderValue"):
            return None
        try:
            return int(self._features.ChunkEncoderValue.value)
        except _ERRORS:
            return None

    def _captured_at(self, module: Any) -> datetime:
        """Return when the frame was taken, by the clock that the settings name; the host's where the camera has none."""
        host_ns = time.time_ns()
        return self._clock.moment(_info(module, "timestamp_ns"), host_ns)

    def fire(self) -> None:
        """Have the camera take one frame."""
        try:
            self._features.TriggerSoftware.execute()
        except _ERRORS as error:
            raise CameraMissingError(f"the camera takes no software trigger: {_words(error)}") from error

    def set(self, exposure_us: float | None, gain_db: float | None) -> None:
        """Set exposure and gain; None leaves one as it is."""
        if exposure_us is not None:
            self._write("ExposureTime", exposure_us)
        if gain_db is not None:
            self._write("Gain", gain_db)

    def check(self) -> None:
        """Read a feature, for the camera has been silent."""
        try:
            _ = self._features.Width.value
        except _ERRORS as error:
            raise CameraMissingError(f"the camera answers no more: {_words(error)}") from error

    def close(self) -> None:
        """Let the camera go."""
        try:
            if self._acquirer is not None:
                self._acquirer.stop()
                self._acquirer.destroy()
            self._harvester.reset()
        except _ERRORS as error:
            log.debug("camera %s could not be let go: %s", self._settings.camera, _words(error))  # it may be gone


class _Counting(Callback):  # type: ignore[misc]
    def __init__(self, driver: GenicamDriver) -> None:
        super().__init__()
        self._driver = driver

    def emit(self, context: Any = None) -> None:
        self._driver.count_incomplete()


def _known(info: Any, key: str) -> str:
    """Return what a producer says of a device, empty where it says nothing."""
    try:
        return str(getattr(info, key))
    except _ERRORS:
        return ""


def _info(module: Any, name: str) -> int | None:
    """Return what the producer knows of a buffer, or None where it does not."""
    try:
        return int(getattr(module, name))
    except _ERRORS:
        return None


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
