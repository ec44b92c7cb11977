"""One frozen type per stage: Frame → Prediction → Verdict.

Rules kept here: nothing is filled in later; times are aware UTC; images are uint8; boxes are in the pixels of the
camera's frame. How a frame is got, judged, stored or published is left to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""uint8, (H, W) for Mono8 or (H, W, 3) for RGB8 and BGR8."""


class PixelFormat(StrEnum):
    """Pixel formats by their GenICam names (EMVA Pixel Format Naming Convention)."""

    MONO8 = "Mono8"
    RGB8 = "RGB8"
    BGR8 = "BGR8"


class Decision(StrEnum):
    """What the gate says of a part; OPC UA Machinery calls them OK, NotOK and NotDecidable."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


class Reason(StrEnum):
    """Why a decision fell as it did: a stable code for programs, beside the text for people."""

    BELOW_THRESHOLD = "below_threshold"
    ABOVE_THRESHOLD = "above_threshold"
    WITHIN_BAND = "within_undecided_band"
    IMAGE_EMPTY = "image_empty"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_INCOMPLETE = "image_incomplete"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_FORMAT = "image_format_not_supported"
    IMAGE_TOO_SMALL = "image_too_small"
    IMAGE_TOO_LARGE = "image_too_large"
    FRAME_TOO_DARK = "frame_too_dark"
    FRAME_SATURATED = "frame_saturated"
    FRAME_BLURRED = "frame_blurred"
    FRAME_FROZEN = "frame_frozen"
    VIEW_SHIFTED = "view_shifted"
    NO_VIEW = "no_view"
    NO_RECIPE = "no_recipe"
    TOO_FEW_VIEWS_FAIL = "too_few_views_fail"
    FRAME_OF_ANOTHER_PART = "frame_of_another_part"
    CAMERA_MISSING = "camera_missing"
    DEADLINE_MISSED = "deadline_missed"
    QUEUE_FULL = "queue_full"
    TRIGGER_MISSED = "trigger_missed"
    MODEL_FAULT = "model_fault"
    MODEL_TIMEOUT = "model_timeout"
    SCORE_NOT_FINITE = "score_not_finite"
    STOPPED = "stopped"
    STATION_RESTARTED = "station_restarted"


@dataclass(frozen=True, slots=True)
class Part:
    """One physical piece, as far as the station knows it.

    `serial` is known by `serial_source` (`"http"`, `"filename"`, `"counter"`, ...); `attempt` counts from 1.
    """

    serial: str
    serial_source: str
    part_type: str | None = None
    order: str | None = None
    batch: str | None = None
    supplier_lot: str | None = None
    carrier: str | None = None
    attempt: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image of one view of a part.

    `encoded` are the very bytes that the camera sent, where it sent an encoded image; evidence keeps those.

    Raises:
        ValueError: the image is not uint8 (H, W) or (H, W, 3), or the time is not aware.
    """

    image: Image
    pixel_format: PixelFormat
    frame_id: str
    camera: str
    view: str
    sequence: int
    captured_at: datetime
    encoded: bytes | None = None
    media_type: str | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.image.shape, self.image.dtype
        expected = "(H, W)" if self.pixel_format is PixelFormat.MONO8 else "(H, W, 3)"
        fits = len(shape) == 2 if self.pixel_format is PixelFormat.MONO8 else len(shape) == 3 and shape[2] == 3
        if dtype != np.uint8 or not fits or min(shape[:2]) == 0:
            raise ValueError(f"image of {self.pixel_format} must be uint8 {expected}, got {dtype} {shape}")
        if self.captured_at.tzinfo is not UTC:
            raise ValueError(f"captured_at must be aware UTC, got {self.captured_at!r}")

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class FrameFault:
    """A frame that should be there and cannot be judged: missing, torn, of a wrong format, or not fitting the queue.

    `encoded` are the bytes as they came, where any came, so that nothing is lost.
    """

    reason: Reason
    detail: str
    frame_id: str
    camera: str
    view: str
    sequence: int
    captured_at: datetime
    encoded: bytes | None = None
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A place in the frame that looks defective; `box_xyxy` in frame pixels, right and bottom exclusive."""

    label: str
    score: float
    box_xyxy: tuple[int, int, int, int]
    area_px: int


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a model says of one frame: a score (higher is more anomalous), a map and regions.

    `anomaly_map` is float32 (h, w) over the region of interest `roi_xyxy` of a frame of `frame_size_wh`.
    `durations_ms` names what each step took. `class_scores` are probabilities by defect class, where the model names classes.
    """

    frame_id: str
    camera: str
    view: str
    score: float
    anomaly_map: NDArray[np.float32]
    roi_xyxy: tuple[int, int, int, int]
    frame_size_wh: tuple[int, int]
    regions: tuple[Region, ...]
    durations_ms: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    class_scores: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class ViewVerdict:
    """What was decided on one view; `score` and `threshold` are absent where no model could judge it."""

    camera: str
    view: str
    frame_id: str
    decision: Decision
    reason: Reason
    reason_text: str
    score: float | None
    threshold: float | None
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of a part: the worst of its views, with the reason of the view that decided it."""

    decision: Decision
    reason: Reason
    reason_text: str
    views: tuple[ViewVerdict, ...]
