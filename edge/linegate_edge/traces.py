"""What is kept of a look beside its picture: the heat map that the model gave then, and a thumbnail to compare parts by.

Rules kept here: a few kilobytes a look, for they go with the verdict's own commit; the map is what the model saw at the time,
never computed again later by another one. What is drawn from them is left to the pages.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np

from linegate.stages import Frame, PixelFormat, Prediction
from linegate_edge.changes import Trace

_HEAT_SIDE_PX: Final = 160
THUMBNAIL_SIDE: Final = 16


def trace_of(frame: Frame, prediction: Prediction, map_threshold: float) -> Trace:
    """Return what is kept of a judged frame.

    The heat map is a grey PNG over the region of interest: 0 at half of the map's threshold and less, 85 at the threshold, 255
    at twice it and more, as the overlay colours it. The thumbnail is uint8 (16, 16), grey, of the whole frame.
    """
    low, high = sorted((map_threshold * 0.5, map_threshold * 2.0))
    heat: Any = np.nan_to_num(prediction.anomaly_map)
    longest = max(heat.shape)
    if longest > _HEAT_SIDE_PX:
        size = tuple(max(1, round(side * _HEAT_SIDE_PX / longest)) for side in (heat.shape[1], heat.shape[0]))
        heat = cv2.resize(heat, size, interpolation=cv2.INTER_AREA)
    strength = (np.clip((heat - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)
    _, png = cv2.imencode(".png", strength, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    # Every n-th pixel first: a thumbnail needs no more, and 20 megapixels would cost milliseconds.
    step = max(1, min(frame.image.shape[:2]) // (THUMBNAIL_SIDE * 8))
    small: Any = cv2.resize(frame.image[::step, ::step], (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    if small.ndim == 3:
        small = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY if frame.pixel_format is PixelFormat.BGR8 else cv2.COLOR_RGB2GRAY)
    return Trace(frame.view, frame.frame_id, frame.size_wh, prediction.roi_xyxy, png.tobytes(), small.tobytes())
