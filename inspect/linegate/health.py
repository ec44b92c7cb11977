"""Is a frame fit to be judged? Dark, saturated, blurred, frozen and shifted frames are told before a model sees them.

Rules kept here: no file, no clock; a frame is looked at through a small grey thumbnail, never copied; what a view normally
looks like is learned from its own first frames and never from another camera; a limit that is not set is not checked. A
frame that fails is undecided, never pass.

Sharpness is the variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000) over the
variance of the thumbnail, so that light does not count as focus; a shift is where the middle of the reference fits best, by
normalised cross-correlation (Lewis, "Fast normalized cross-correlation", 1995).
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from linegate.stages import Frame, FrameFault, PixelFormat, Reason

_THUMBNAIL_PX: Final = 128
_DARK_LEVEL: Final = 12
_SATURATED_LEVEL: Final = 254
_SAMPLES: Final = 16_384
_TEMPLATE_SHARE: Final = 0.6
_SURE: Final = 0.4
_CLEARLY_BETTER: Final = 0.1


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """What a frame may be; None: not checked.

    `min_bright_share` is the least share of pixels above grey level 12, `max_saturated_share` the greatest share at 254 and
    255. `max_frozen` is how many frames with the very same pixels may follow one another from a live camera: a sensor's noise
    never repeats. Pictures that came encoded (files, uploads) are not checked for that: who sends them may send one twice.
    `min_sharpness` is the least sharpness in units of the view's own; `max_shift` the greatest shift of the picture, as a share
    of its longer side; both are learned from the view's first `learn_frames` frames.

    Raises:
        ValueError: a limit is out of range.
    """

    min_bright_share: float | None = 0.0005
    max_saturated_share: float | None = 0.98
    max_frozen: int | None = 3
    min_sharpness: float | None = None
    max_shift: float | None = None
    learn_frames: int = 20

    def __post_init__(self) -> None:
        shares = ("min_bright_share", "max_saturated_share", "min_sharpness", "max_shift")
        for name in shares:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")
        if self.learn_frames < 1 or (self.max_frozen is not None and self.max_frozen < 1):
            raise ValueError("learn_frames and max_frozen must be at least 1")

    @property
    def needs_reference(self) -> bool:
        """Say whether a limit is measured against what the view normally looks like."""
        return self.min_sharpness is not None or self.max_shift is not None


@dataclass(frozen=True, slots=True, eq=False)
class HealthReference:
    """What a view normally looks like: its median sharpness, and a median thumbnail uint8 (h, w)."""

    sharpness: float
    thumbnail: NDArray[np.uint8]

    def to_json(self) -> dict[str, Any]:
        """Return the reference as a JSON object."""
        pixels = base64.b64encode(np.ascontiguousarray(self.thumbnail).tobytes()).decode("ascii")
        return {"sharpness": self.sharpness, "shape": list(self.thumbnail.shape), "thumbnail": pixels}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> HealthReference:
        """Return the reference that `to_json` has written.

        Raises:
            ValueError: the object is no reference.
        """
        try:
            pixels = np.frombuffer(base64.b64decode(value["thumbnail"]), np.uint8)
            return HealthReference(float(value["sharpness"]), pixels.reshape([int(side) for side in value["shape"]]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a reference of a view: {error}") from error


class HealthCheck:
    """Checks the frames of one view; `check` may be called from several threads.

    `reference` is what an earlier run has learned. Where a limit needs one and there is none, the first frames pass these
    limits and are learned from.
    """

    def __init__(self, limits: HealthLimits, reference: HealthReference | None = None) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._reference = reference
        self._learned: list[tuple[float, NDArray[np.uint8]]] = []
        self._last: tuple[int, bytes] = (-1, b"")
        self._same = 0

    @property
    def reference(self) -> HealthReference | None:
        """What the view normally looks like, once that is known."""
        return self._reference

    def check(self, frame: Frame) -> FrameFault | None:
        """Return why a frame is not fit to be judged, or None."""
        thumbnail = _thumbnail(frame)
        found = self._frozen(frame, thumbnail) or self._light(thumbnail) or self._against_reference(thumbnail)
        if found is None:
            return None
        reason, text = found
        return FrameFault(
            reason, text, frame.frame_id, frame.camera, frame.view, frame.sequence, frame.captured_at, frame.encoded,
            frame.media_type,
        )  # fmt: skip

    def _light(self, thumbnail: NDArray[np.uint8]) -> tuple[Reason, str] | None:
        limits = self._limits
        if limits.min_bright_share is not None:
            share = np.count_nonzero(thumbnail > _DARK_LEVEL) / thumbnail.size
            if share < limits.min_bright_share:
                text = f"{share:.2%} of the picture is above grey level {_DARK_LEVEL}, {limits.min_bright_share:.2%} must be"
                return Reason.FRAME_TOO_DARK, f"{text}: look at lamp, exposure and lens cap"
        if limits.max_saturated_share is not None:
            share = np.count_nonzero(thumbnail >= _SATURATED_LEVEL) / thumbnail.size
            if share > limits.max_saturated_share:
                text = f"{share:.1%} of the picture is saturated, {limits.max_saturated_share:.1%} are allowed"
                return Reason.FRAME_SATURATED, f"{text}: look at lamp and exposure"
        return None

    def _frozen(self, frame: Frame, thumbnail: NDArray[np.uint8]) -> tuple[Reason, str] | None:
        if self._limits.max_frozen is None or frame.encoded is not None:
            return None
        # Beside the thumbnail, which may hide noise, a sparse sample of the pixels as they are.
        every = max(1, frame.image.size // _SAMPLES) | 1  # odd, so that it walks through columns and colours
        mark = frame.image.reshape(-1)[::every].tobytes() + thumbnail.tobytes()
        with self._lock:
            if mark == self._last[1]:
                self._same += frame.sequence != self._last[0]
            else:
                self._same = 0
            self._last = frame.sequence, mark
            same = self._same
        if same < self._limits.max_frozen:
            return None
        text = f"{same + 1} frames in a row have the very same pixels"
        return Reason.FRAME_FROZEN, f"{text}: the camera or its driver stands still, restart it"

    def _against_reference(self, thumbnail: NDArray[np.uint8]) -> tuple[Reason, str] | None:
        limits = self._limits
        if not limits.needs_reference:
            return None
        sharpness = _sharpness(thumbnail)
        with self._lock:
            if self._reference is not None and self._reference.thumbnail.shape != thumbnail.shape:
                self._reference, self._learned = None, []  # another size: the camera was set up anew
            if self._reference is None:
                self._learn(sharpness, thumbnail)
                return None
            reference = self._reference
        if limits.min_sharpness is not None and sharpness < limits.min_sharpness * reference.sharpness:
            share = sharpness / reference.sharpness
            text = f"the picture is {share:.0%} as sharp as this view normally is, {limits.min_sharpness:.0%} are needed"
            return Reason.FRAME_BLURRED, f"{text}: look at focus, lens and vibration"
        if limits.max_shift is not None:
            shift = _shift(thumbnail, reference.thumbnail)
            if shift > limits.max_shift:
                text = f"the picture is shifted by {shift:.1%} of its side, {limits.max_shift:.1%} are allowed"
                return Reason.VIEW_SHIFTED, f"{text}: look at the camera's mount and the part's position"
        return None

    def _learn(self, sharpness: float, thumbnail: NDArray[np.uint8]) -> None:
        if self._learned and self._learned[0][1].shape != thumbnail.shape:
            self._learned = []
        self._learned.append((sharpness, thumbnail))
        if len(self._learned) >= self._limits.learn_frames:
            middle = np.median(np.stack([pixels for _, pixels in self._learned]), axis=0).astype(np.uint8)
            self._reference = HealthReference(float(np.median([value for value, _ in self._learned])), middle)
            self._learned = []


def _shift(thumbnail: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Return the shift as a share of the longer side; 0 unless the reference fits clearly better elsewhere."""
    height, width = reference.shape
    top, left = (round(side * (1 - _TEMPLATE_SHARE) / 2) for side in (height, width))
    template = reference[top : height - top, left : width - left]
    fits = cv2.matchTemplate(thumbnail, template, cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(fits)
    if best < _SURE or best - float(fits[top, left]) < _CLEARLY_BETTER:
        return 0.0
    shift = float(np.hypot(x - left, y - top))
    return shift / float(max(height, width))


def _thumbnail(frame: Frame) -> NDArray[np.uint8]:
    """Return a grey thumbnail uint8 (h, w), the longer side at most 128; every n-th pixel, for speed."""
    height, width = frame.image.shape[:2]
    step = max(1, max(height, width) // (2 * _THUMBNAIL_PX))
    small: Any = frame.image[::step, ::step]
    scale = min(1.0, _THUMBNAIL_PX / max(small.shape[:2]))
    if scale < 1.0:
        size = max(1, round(small.shape[1] * scale)), max(1, round(small.shape[0] * scale))
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    if frame.pixel_format is not PixelFormat.MONO8:
        code = cv2.COLOR_RGB2GRAY if frame.pixel_format is PixelFormat.RGB8 else cv2.COLOR_BGR2GRAY
        small = cv2.cvtColor(np.ascontiguousarray(small), code)
    return np.ascontiguousarray(small)


def _sharpness(thumbnail: NDArray[np.uint8]) -> float:
    contrast = float(thumbnail.var())
    edges = float(cv2.Laplacian(thumbnail, cv2.CV_32F).var())
    return edges / contrast if contrast > 0 else 0.0
