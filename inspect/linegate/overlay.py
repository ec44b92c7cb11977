"""Heat map and regions drawn on a frame, for people.

Rules kept here: the frame itself is never changed; colour says where, and the printed word says what, for some people do
not see red and green apart.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np

from linegate.stages import Decision, Frame, Image, PixelFormat, Prediction

# Colour-blind safe (Okabe and Ito, 2008), as RGB.
_COLOURS: Final = {
    Decision.PASS: (0, 158, 115),
    Decision.FAIL: (213, 94, 0),
    Decision.UNDECIDED: (240, 228, 66),
}
_MAX_SIDE_PX: Final = 1600
_MIN_SIDE_PX: Final = 480


def draw_overlay(frame: Frame, prediction: Prediction | None, decision: Decision, map_threshold: float | None = None) -> Image:
    """Return an RGB picture, uint8 (H, W, 3), of the frame with heat map, regions and a border in the verdict's colour.

    The heat map's colour begins at half of `map_threshold` and saturates at twice it (by default: over the map's own
    range). The picture is scaled to between 480 and 1,600 pixels on its longer side, so that it can be looked at.
    """
    width, height = frame.size_wh
    longest = max(width, height)
    scale = _MIN_SIDE_PX / longest if longest < _MIN_SIDE_PX else min(1.0, _MAX_SIDE_PX / longest)
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    picture: Any = cv2.resize(frame.image, size_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if frame.pixel_format is PixelFormat.MONO8:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    elif frame.pixel_format is PixelFormat.BGR8:
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    elif picture is frame.image:
        picture = picture.copy()
    if prediction is not None:
        _blend_map(picture, prediction, scale, map_threshold)
        for region in prediction.regions:
            left, top, right, bottom = (round(value * scale) for value in region.box_xyxy)
            cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), _COLOURS[Decision.FAIL], 2)
            _write(picture, f"{region.label} {region.score:.3g}", left, top)
    cv2.rectangle(picture, (0, 0), (size_wh[0] - 1, size_wh[1] - 1), _COLOURS[decision], 6)
    return np.asarray(picture, np.uint8)


def _write(picture: Image, text: str, left: int, bottom: int) -> None:
    """Write a region's label above it, inside the picture, white on black so that it reads on any part."""
    (width, height), descent = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    x, y = max(0, min(left, picture.shape[1] - width - 8)), max(height + 4, bottom - descent - 4)
    cv2.rectangle(picture, (x, y - height - 4), (x + width + 8, y + descent + 2), (0, 0, 0), cv2.FILLED)
    cv2.putText(picture, text, (x + 4, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)


def _blend_map(picture: Image, prediction: Prediction, scale: float, map_threshold: float | None) -> None:
    left, top, right, bottom = (round(value * scale) for value in prediction.roi_xyxy)
    view = picture[top:bottom, left:right]
    if view.size == 0 or prediction.anomaly_map.size == 0:
        return
    heat = np.nan_to_num(prediction.anomaly_map)
    if map_threshold is None:
        low, high = float(heat.min()), float(heat.max())
    else:
        low, high = sorted((map_threshold * 0.5, map_threshold * 2.0))
    strength: Any = np.clip((heat - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
    strength = cv2.resize(strength, (view.shape[1], view.shape[0]), interpolation=cv2.INTER_LINEAR)
    colours = cv2.cvtColor(cv2.applyColorMap((strength * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    weight = (0.6 * strength)[..., np.newaxis]
    view[:] = (view * (1 - weight) + colours * weight).astype(np.uint8)
