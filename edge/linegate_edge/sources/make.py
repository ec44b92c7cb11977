"""Settings of a source → its camera.

Rules kept here: a camera technology that needs a library of its own is imported only where a station has such a camera.
"""

from __future__ import annotations

from collections.abc import Callable

from linegate_edge.metrics import Metrics
from linegate_edge.settings import FolderSource, OpenCVSource, Source
from linegate_edge.source_settings import AravisSource
from linegate_edge.sources.camera import Camera, KnowsOrigin, Submit
from linegate_edge.sources.folder import FolderCamera
from linegate_edge.sources.opencv import OpenCVCamera


def make_camera(
    source: Source,
    submit: Submit,
    metrics: Metrics,
    *,
    knows_origin: KnowsOrigin,
    boot_id: str,
    next_trigger: Callable[[], int],
    max_pixels: int,
) -> Camera:
    """Return the camera of a source, not started.

    Raises:
        SettingsError: a library that it needs is not installed; the text has the line that installs it.
    """
    if isinstance(source, FolderSource):
        return FolderCamera(source, submit, metrics, knows_origin, max_pixels)
    if isinstance(source, OpenCVSource):
        return OpenCVCamera(source, submit, metrics, knows_origin, boot_id, max_pixels)
    if isinstance(source, AravisSource):
        from linegate_edge.sources.aravis import aravis_camera

        return aravis_camera(source, submit, metrics, boot_id=boot_id, next_trigger=next_trigger, max_pixels=max_pixels)
    from linegate_edge.sources.genicam import genicam_camera

    return genicam_camera(source, submit, metrics, boot_id=boot_id, next_trigger=next_trigger, max_pixels=max_pixels)
