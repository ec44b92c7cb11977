"""GigE Vision and USB3 Vision cameras by libaravis.

Rules kept here: a buffer whose status is not success is no image, whatever its bytes; it is copied once, and given back at
once. Triggers, ring and joining are left to `industrial`, the C interface to `aravis_library`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from linegate.stages import Image, PixelFormat
from linegate_edge.metrics import Metrics
from linegate_edge.source_settings import AravisSource
from linegate_edge.sources.aravis_library import BGR8, MONO8, RGB8, STATUS_SUCCESS, STATUS_WORDS, AravisLibrary
from linegate_edge.sources.camera import CameraMissingError, Submit
from linegate_edge.sources.camera_clock import CameraClock
from linegate_edge.sources.industrial import Driver, Grab, IndustrialCamera
from linegate_edge.sources.pixels import copy_image

_BUFFERS: Final = 8
_CONTINUOUS: Final = 0
_FORMATS: Final = {MONO8: PixelFormat.MONO8, RGB8: PixelFormat.RGB8, BGR8: PixelFormat.BGR8}


def aravis_camera(
    settings: AravisSource,
    submit: Submit,
    metrics: Metrics,
    *,
    boot_id: str,
    next_trigger: Callable[[], int],
    max_pixels: int,
) -> IndustrialCamera:
    """Return a camera that libaravis drives, not started.

    Raises:
        SettingsError: libaravis is not on this machine.
    """
    library = AravisLibrary()
    opened = functools.partial(AravisDriver, library, settings)
    return IndustrialCamera(
        settings, submit, metrics, opened, boot_id=boot_id, next_trigger=next_trigger, max_pixels=max_pixels
    )


class AravisDriver(Driver):
    """One camera, opened and set up.

    Raises:
        CameraMissingError: it is not there, is somebody else's, or refuses a setting.
    """

    def __init__(self, library: AravisLibrary, settings: AravisSource) -> None:
        self._library, self._settings = library, settings
        self._stream: int | None = None
        self._clock = CameraClock(settings.timestamps)
        name = settings.device.encode() if settings.device else None
        # Opened without looking around first, a camera may be told a wrong address of this host, and sends its frames there.
        library.update_device_list()
        try:
            self._camera = library.camera_new(name)
        except CameraMissingError as error:
            raise CameraMissingError(f"{error}: {self._who_is_there()}") from None
        if not self._camera:
            raise CameraMissingError(f"no camera {settings.device or ''} answers: {self._who_is_there()}")
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise

    def _who_is_there(self) -> str:
        there = self._library.devices()
        answers = f"there are {', '.join(there)}" if there else "none answers at all"
        return f"{answers}; check [[source]] device, cable and network"

    def _set_up(self) -> None:
        library, settings, camera = self._library, self._settings, self._camera
        library.camera_set_acquisition_mode(camera, _CONTINUOUS)
        if settings.pixel_format is not None:
            library.camera_set_pixel_format_from_string(camera, settings.pixel_format.encode())
        if settings.region_xywh is not None:
            library.camera_set_region(camera, *settings.region_xywh)
        library.camera_clear_triggers(camera)
        if settings.frames_per_second is not None:
            library.camera_set_frame_rate(camera, settings.frames_per_second)
        if settings.trigger != "free_run":
            source = "Software" if settings.trigger == "software" else settings.trigger_line
            library.camera_set_trigger(camera, source.encode())
        if settings.timestamps == "ptp":
            library.camera_set_boolean(camera, b"PtpEnable", 1)
        is_gige = bool(library.camera_is_gv_device(camera))
        if is_gige and settings.packet_size is not None:
            library.camera_gv_set_packet_size(camera, settings.packet_size)
        self._stream = library.camera_create_stream(camera, None, None)
        if not self._stream:
            raise CameraMissingError("the camera opens no stream: is another program connected to it?")
        if is_gige:
            library.set_property(self._stream, "packet-resend", int(settings.packet_resend))
            library.set_property(self._stream, "packet-timeout", round(settings.packet_timeout_ms * 1e3))
        payload = library.camera_get_payload(camera)
        for _ in range(_BUFFERS):
            library.stream_push_buffer(self._stream, library.buffer_new_allocate(payload))

    def start(self) -> None:
        """Begin to take frames."""
        self._library.camera_start_acquisition(self._camera)

    def grab(self, timeout_s: float) -> Grab | None:
        """Return the next frame, or None where none came in time."""
        buffer = self._library.stream_timeout_pop_buffer(self._stream, round(timeout_s * 1e6))
        if not buffer:
            return None
        try:
            return self._read(buffer)
        finally:
            self._library.stream_push_buffer(self._stream, buffer)

    def _read(self, buffer: int) -> Grab:
        library = self._library
        number, captured_at = int(library.buffer_get_frame_id(buffer)), self._captured_at(buffer)
        status = library.buffer_get_status(buffer)
        if status != STATUS_SUCCESS:
            words = STATUS_WORDS.get(status, f"it has the status {status}")
            text = f"the frame is incomplete: {words}; check network card, switch and packet_size"
            return Grab(None, PixelFormat.MONO8, number, captured_at, text)
        code = library.buffer_get_image_pixel_format(buffer)
        pixel_format = _FORMATS.get(code)
        if pixel_format is None:
            text = f"the camera sends the pixel format {code:#010x}: set pixel_format to Mono8, RGB8 or BGR8"
            return Grab(None, PixelFormat.MONO8, number, captured_at, text)
        image = self._copy(buffer, pixel_format)
        problem = None if image is not None else "the frame has fewer bytes than its size asks for"
        return Grab(image, pixel_format, number, captured_at, problem)

    def _copy(self, buffer: int, pixel_format: PixelFormat) -> Image | None:
        x, y, width, height, padding, below = (ctypes.c_int() for _ in range(6))
        self._library.buffer_get_image_region(buffer, *(ctypes.byref(side) for side in (x, y, width, height)))
        self._library.buffer_get_image_padding(buffer, ctypes.byref(padding), ctypes.byref(below))
        size = ctypes.c_size_t()
        address = self._library.buffer_get_data(buffer, ctypes.byref(size))
        if not address:
            return None
        data: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size.value).from_address(address))
        return copy_image(data, (width.value, height.value), pixel_format, padding.value)

    def _captured_at(self, buffer: int) -> datetime:
        """Return when the frame was taken, by the clock that the settings name."""
        host_ns = int(self._library.buffer_get_system_timestamp(buffer)) or time.time_ns()
        return self._clock.moment(int(self._library.buffer_get_timestamp(buffer)), host_ns)

    def fire(self) -> None:
        """Have the camera take one frame."""
        self._library.camera_software_trigger(self._camera)

    def set(self, exposure_us: float | None, gain_db: float | None) -> None:
        """Set exposure and gain; None leaves one as it is."""
        if exposure_us is not None:
            self._library.camera_set_exposure_time(self._camera, exposure_us)
        if gain_db is not None:
            self._library.camera_set_gain(self._camera, gain_db)

    def check(self) -> None:
        """Read a register, for the camera has been silent."""
        self._library.camera_get_payload(self._camera)

    def close(self) -> None:
        """Let the camera go."""
        with contextlib.suppress(CameraMissingError):  # it may be gone
            self._library.camera_stop_acquisition(self._camera)
        self._library.unref(self._stream)
        self._library.unref(self._camera)
        self._stream = None
