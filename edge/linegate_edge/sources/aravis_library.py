"""libaravis-0.8 by ctypes: the calls that a station needs, and their errors.

Rules kept here: all that is known of the C interface (Aravis 0.8, reference manual) stands here; a GError becomes a
`CameraMissingError`. No Python binding is needed, only the system's library. What is done with it is left to `aravis`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import Any, Final

from linegate.errors import SettingsError
from linegate_edge.sources.camera import CameraMissingError

STATUS_SUCCESS: Final = 0
STATUS_WORDS: Final = {
    1: "the buffer is empty",
    2: "it did not come in time",
    3: "packets of it are missing",
    4: "packets of it came in a wrong order",
    5: "it is of another size than expected",
    6: "it was still being filled",
    7: "it was given up",
    8: "it is of a kind that is not supported",
}
MONO8: Final = 0x01080001
RGB8: Final = 0x02180014
BGR8: Final = 0x02180015

_INSTALL: Final = "apt install libaravis-0.8-0"
_Error = POINTER(c_void_p)


class _GError(ctypes.Structure):
    _fields_ = (("domain", c_uint32), ("code", c_int), ("message", c_char_p))


# name: (result, arguments); those in _FALLIBLE take a GError ** at their end, which is not written here.
_PLAIN: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "arv_update_device_list": (None, ()),
    "arv_get_n_devices": (c_uint, ()),
    "arv_get_device_id": (c_char_p, (c_uint,)),
    "arv_camera_is_gv_device": (c_int, (c_void_p,)),
    "arv_buffer_new_allocate": (c_void_p, (c_size_t,)),
    "arv_stream_push_buffer": (None, (c_void_p, c_void_p)),
    "arv_stream_timeout_pop_buffer": (c_void_p, (c_void_p, c_uint64)),
    "arv_buffer_get_status": (c_int, (c_void_p,)),
    "arv_buffer_get_data": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "arv_buffer_get_image_region": (None, (c_void_p, *[POINTER(c_int)] * 4)),
    "arv_buffer_get_image_padding": (None, (c_void_p, POINTER(c_int), POINTER(c_int))),
    "arv_buffer_get_image_pixel_format": (c_uint32, (c_void_p,)),
    "arv_buffer_get_timestamp": (c_uint64, (c_void_p,)),
    "arv_buffer_get_system_timestamp": (c_uint64, (c_void_p,)),
    "arv_buffer_get_frame_id": (c_uint64, (c_void_p,)),
}
_FALLIBLE: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "arv_camera_new": (c_void_p, (c_char_p,)),
    "arv_camera_create_stream": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "arv_camera_get_payload": (c_uint, (c_void_p,)),
    "arv_camera_set_exposure_time": (None, (c_void_p, c_double)),
    "arv_camera_set_gain": (None, (c_void_p, c_double)),
    "arv_camera_set_region": (None, (c_void_p, c_int, c_int, c_int, c_int)),
    "arv_camera_set_pixel_format_from_string": (None, (c_void_p, c_char_p)),
    "arv_camera_set_frame_rate": (None, (c_void_p, c_double)),
    "arv_camera_set_trigger": (None, (c_void_p, c_char_p)),
    "arv_camera_clear_triggers": (None, (c_void_p,)),
    "arv_camera_software_trigger": (None, (c_void_p,)),
    "arv_camera_set_acquisition_mode": (None, (c_void_p, c_int)),
    "arv_camera_set_boolean": (None, (c_void_p, c_char_p, c_int)),
    "arv_camera_start_acquisition": (None, (c_void_p,)),
    "arv_camera_stop_acquisition": (None, (c_void_p,)),
    "arv_camera_gv_set_packet_size": (None, (c_void_p, c_int)),
}


class AravisLibrary:
    """The loaded library; its calls are attributes, named as in C without `arv_`.

    Raises:
        SettingsError: the library is not on this machine; the text has the line that installs it.
        CameraMissingError: from a call, where Aravis reports an error.
    """

    def __init__(self) -> None:
        name = ctypes.util.find_library("aravis-0.8") or "libaravis-0.8.so.0"
        try:
            self._library = ctypes.CDLL(name)
            self._glib = ctypes.CDLL(ctypes.util.find_library("gobject-2.0") or "libgobject-2.0.so.0")
        except OSError as error:
            raise SettingsError(f"[[source]] kind = 'aravis' needs the library libaravis-0.8 ({error}): {_INSTALL}") from error
        self._glib.g_object_unref.argtypes = (c_void_p,)
        for call, (result, arguments) in _PLAIN.items():
            function = getattr(self._library, call)
            function.restype, function.argtypes = result, arguments
            setattr(self, call.removeprefix("arv_"), function)
        for call, (result, arguments) in _FALLIBLE.items():
            function = getattr(self._library, call)
            function.restype, function.argtypes = result, (*arguments, _Error)
            setattr(self, call.removeprefix("arv_"), _raising(call, function))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"libaravis is not asked for '{name}' here")

    def devices(self) -> list[str]:
        """Return the ids of the cameras that answer on this machine's networks and buses."""
        self.update_device_list()
        return [self.get_device_id(index).decode() for index in range(self.get_n_devices())]

    def set_property(self, thing: int, name: str, value: int) -> None:
        """Set an integer or enumeration property of a GObject."""
        self._glib.g_object_set(c_void_p(thing), c_char_p(name.encode()), c_int(value), c_void_p(None))

    def unref(self, thing: int | None) -> None:
        """Let an object go."""
        if thing:
            self._glib.g_object_unref(thing)


def _raising(name: str, function: Any) -> Any:
    def call(*arguments: Any) -> Any:
        error = c_void_p()
        result = function(*arguments, byref(error))
        if error.value:
            message = ctypes.cast(error, POINTER(_GError)).contents.message or b""
            raise CameraMissingError(f"{message.decode(errors='replace')} ({name})")
        return result

    return call
