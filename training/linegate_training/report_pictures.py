"""The worst cases as pictures: the photograph with its true defect drawn in, beside what the model saw in it.

Rules kept here: pictures go into the page as data URIs, small enough to be mailed; they are of the data set and may be
bound to its licence, which is why a report lies in a run's folder and never in a package.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import cv2
import numpy as np

from linegate.images import encode_jpeg
from linegate.overlay import draw_overlay
from linegate.stages import Decision, Frame, Image, PixelFormat, Prediction
from linegate_training.data.parts import Sample, read_mask, read_part
from linegate_training.evaluate import MeasuredPart
from linegate_training.report_text import escape, number

MAX_WIDTH: Final = 320
MAX_HEIGHT: Final = 420
_TRUTH: Final = (86, 180, 233)
_FOUND: Final = (213, 94, 0)


def gallery(parts: list[MeasuredPart], threshold: float, map_threshold: float) -> str:
    """Return a list of cases: photograph, heat map, and a caption."""
    return '<div class="cases">' + "".join(_case(part, threshold, map_threshold) for part in parts) + "</div>"


def _case(part: MeasuredPart, threshold: float, map_threshold: float) -> str:
    sample = part.sample
    image, pixel_format = read_part(sample)
    frame = Frame(image, pixel_format, sample.name, "data set", "test", 0, datetime.now(UTC))
    anomaly_map = part.anomaly_map.astype(np.float32)
    prediction = Prediction(
        sample.name, "data set", "test", part.score, anomaly_map, part.roi_xyxy, part.frame_size_wh, part.regions
    )
    quiet = float(anomaly_map.max()) < map_threshold
    seen = draw_seen(frame, prediction, part.decision, map_threshold)
    photograph = draw_photograph(frame, sample)
    words = f"{sample.label}, score {number(part.score)} against a threshold of {number(threshold)}, {part.decision.value}"
    words += f", called {part.predicted}" if part.predicted is not None else ""
    words += "; no place reached the map threshold, colours span the map's own range" if quiet else ""
    alternatives = f"Photograph of {sample.name}, {sample.label}", f"Heat map of {sample.name}, score {number(part.score)}"
    pictures = "".join(_img(picture, text) for picture, text in zip((photograph, seen), alternatives, strict=True))
    return (
        f'<figure class="case"><div class="pair">{pictures}</div>'
        f"<figcaption><strong>{escape(sample.name)}</strong><br>{escape(words)}</figcaption></figure>"
    )


def draw_photograph(frame: Frame, sample: Sample) -> Image:
    """Return the photograph, RGB (H, W, 3), with its true defect outlined where it is known."""
    photograph = _fitted(_rgb(frame.image, frame.pixel_format))
    _draw_truth(photograph, sample, frame.size_wh)
    return photograph


def draw_seen(frame: Frame, prediction: Prediction, decision: Decision, map_threshold: float) -> Image:
    """Return what a model saw, RGB (H, W, 3): heat map, boxes of regions, and a frame in the decision's colour."""
    # Under the map threshold the overlay would show nothing: then the map's own range tells where the model looked.
    quiet = float(prediction.anomaly_map.max()) < map_threshold
    # Boxes are drawn at the picture's final size; the overlay's labels would be too small to read.
    bare = replace(prediction, regions=())
    seen = _fitted(draw_overlay(frame, bare, decision, None if quiet else map_threshold))
    _boxes(seen, [region.box_xyxy for region in prediction.regions], prediction.frame_size_wh, _FOUND)
    return seen


def _rgb(image: Image, pixel_format: PixelFormat) -> Image:
    if pixel_format is PixelFormat.MONO8:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), np.uint8)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8) if pixel_format is PixelFormat.BGR8 else image


def _fitted(picture: Image) -> Image:
    """Return the picture (H, W, 3) as large as a case may be, small ones drawn up to the same width."""
    height, width = picture.shape[:2]
    scale = min(MAX_WIDTH / width, MAX_HEIGHT / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    drawn: Any = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return np.ascontiguousarray(drawn, np.uint8)


def _draw_truth(picture: Image, sample: Sample, size_wh: tuple[int, int]) -> None:
    if sample.mask is not None:
        mask = read_mask(sample, size_wh).astype(np.uint8)
        # Area average and a low limit: a defect a pixel wide does not vanish.
        small = cv2.resize(mask * 255, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_AREA)
        outlines, _ = cv2.findContours((small > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, _TRUTH, 2, cv2.LINE_8)
    _boxes(picture, [box.xyxy for box in sample.boxes], size_wh, _TRUTH)


def _boxes(
    picture: Image, boxes: list[tuple[int, int, int, int]], size_wh: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    wide, high = picture.shape[1] / size_wh[0], picture.shape[0] / size_wh[1]
    for left, top, right, bottom in boxes:
        corners = (round(left * wide), round(top * high)), (round(right * wide) - 1, round(bottom * high) - 1)
        cv2.rectangle(picture, *corners, colour, 2)


def _img(picture: Image, text: str) -> str:
    data = base64.b64encode(encode_jpeg(picture, PixelFormat.RGB8, 85)).decode()
    size = f'width="{picture.shape[1]}" height="{picture.shape[0]}"'
    return f'<img src="data:image/jpeg;base64,{data}" {size} alt="{escape(text)}">'
