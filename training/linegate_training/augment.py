"""Photographs of a part, varied as the line itself varies: a recipe in settings, and what it does to one image.

Rules kept here: by default nothing that turns a good part into a defective one, so flips and turns must be asked for, where
the part may lie in any pose; image, mask and boxes move together; what is drawn is a function of seed, epoch and image; a
defect that was marked stays marked. Which images are varied, and when, is left to the data sets of the heads.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from linegate.errors import DataError, LinegateError, SettingsError
from linegate.settings import Settings, parse
from linegate_training.data.parts import Box

TRIES: Final = 4
"""Draws in which every marked defect may leave the frame, before the image is left where it is."""

Mask: TypeAlias = NDArray[np.uint8]


class AugmentRecipe(Settings):
    """How much the photographs of one kind of part are varied; each move is drawn evenly up to its limit."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    rotate_90: bool = False
    """Any number of quarter turns; square images only."""
    rotate_deg: float = Field(default=3.0, ge=0, le=180)
    shift_share: float = Field(default=0.03, ge=0, le=0.5)
    """Of width and height."""
    scale_share: float = Field(default=0.05, ge=0, le=0.5)
    brightness: float = Field(default=0.1, ge=0, le=1)
    """Of the full range, added."""
    contrast: float = Field(default=0.1, ge=0, lt=1)
    noise: float = Field(default=0.01, ge=0, le=1)
    """Standard deviation of Gaussian noise, of the full range, the same on all channels."""
    blur_px: float = Field(default=0.0, ge=0, le=10)
    """Standard deviation of Gaussian blur, in one image of two; 0, for blur hides the smallest defects."""


PRESETS: Final[Mapping[str, AugmentRecipe]] = {
    "fixed": AugmentRecipe(),
    "mirrored": AugmentRecipe(flip_horizontal=True, flip_vertical=True),
    "texture": AugmentRecipe(flip_horizontal=True, flip_vertical=True, rotate_90=True),
    "none": AugmentRecipe(rotate_deg=0, shift_share=0, scale_share=0, brightness=0, contrast=0, noise=0),
}
"""fixed: the part lies in one pose; mirrored: its mirror images are as good; texture: a surface that has no up and no left;
none: as photographed."""


def recipe_from(values: str | Mapping[str, object], where: str = "augment") -> AugmentRecipe:
    """Return the recipe that a preset's name, or a table of settings with an optional `preset`, stands for.

    Raises:
        SettingsError: no such preset, an unknown key, or a value out of range; `where` opens the text.
    """
    table: dict[str, object] = {"preset": values} if isinstance(values, str) else dict(values)
    preset = table.pop("preset", "fixed")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise SettingsError(f"{where}: no preset {preset!r}: known are {', '.join(PRESETS)}")
    return parse(PRESETS[preset].model_dump() | table, AugmentRecipe, where)


@dataclass(frozen=True, slots=True, eq=False)
class Augmented:
    """An image (H, W, 3) uint8 with its mask (H, W) uint8 or None, and its boxes, moved alike."""

    image: NDArray[np.uint8]
    mask: Mask | None
    boxes: tuple[Box, ...]


Augmenter: TypeAlias = Callable[[NDArray[np.uint8], "NDArray[np.bool_] | Mask | None", Sequence[Box], int, int], Augmented]


def augmenter(recipe: AugmentRecipe, seed: int = 0) -> Augmenter:
    """Return a function of image (H, W, 3) uint8 RGB, mask (H, W) or None, boxes, epoch and image number.

    The same seed, epoch and number give the same draw. Sizes stay; what comes in at the borders is the image, reflected,
    and a defect reflected into view is marked like its original. A turned box is the upright one around
    the ellipse in it, turned: around its corners it would grow with each turn.

    Raises:
        LinegateError: albumentations is not installed.
        DataError: (from the function) image or mask is of a wrong type or size, or not square where quarter turns are asked.
    """
    whole = _compose(recipe, moves=True)
    # For the image whose defect every move would lose.
    still = _compose(recipe, moves=False)

    def augment(
        image: NDArray[np.uint8], mask: NDArray[np.bool_] | Mask | None, boxes: Sequence[Box], epoch: int, index: int
    ) -> Augmented:
        _check(image, mask, recipe)
        for attempt in range(TRIES):
            drawn = _draw(whole, image, mask, boxes, (seed, epoch, index, attempt))
            mask_lost = mask is not None and drawn.mask is not None and mask.any() and not drawn.mask.any()
            if not mask_lost and bool(boxes) == bool(drawn.boxes):
                return drawn
        unmoved = _draw(still, image, None, (), (seed, epoch, index, TRIES))
        return Augmented(unmoved.image, None if mask is None else mask.astype(np.uint8), tuple(boxes))

    return augment


def _draw(
    compose: Any, image: NDArray[np.uint8], mask: NDArray[np.bool_] | Mask | None, boxes: Sequence[Box], key: tuple[int, ...]
) -> Augmented:
    one, two = np.random.SeedSequence(key).generate_state(2).tolist()
    # One state for all transforms: seeding each with the same number would couple their draws.
    compose.set_random_state(np.random.default_rng(one), random.Random(two))
    data: dict[str, Any] = {
        "image": image,
        "bboxes": np.array([box.xyxy for box in boxes], dtype=np.float32).reshape(-1, 4),
        "numbers": np.arange(len(boxes)),
    }
    if mask is not None:
        data["mask"] = np.ascontiguousarray(mask, dtype=np.uint8)
    out = compose(**data)
    height, width = out["image"].shape[:2]
    moved = []
    for (left, top, right, bottom), number in zip(out["bboxes"], out["numbers"], strict=True):
        # Outwards to whole pixels, but for what floats add: a box that did not move keeps its numbers.
        xyxy = (
            max(0, math.floor(left + 0.01)), max(0, math.floor(top + 0.01)),
            min(width, math.ceil(right - 0.01)), min(height, math.ceil(bottom - 0.01)),
        )  # fmt: skip
        if xyxy[0] < xyxy[2] and xyxy[1] < xyxy[3]:
            moved.append(Box(boxes[int(number)].label, xyxy))
    return Augmented(np.ascontiguousarray(out["image"]), out.get("mask"), tuple(moved))


def _compose(recipe: AugmentRecipe, moves: bool) -> Any:
    alb = _albumentations()
    steps: list[Any] = []
    if moves:
        if recipe.flip_horizontal:
            steps.append(alb.HorizontalFlip(p=0.5))
        if recipe.flip_vertical:
            steps.append(alb.VerticalFlip(p=0.5))
        if recipe.rotate_90:
            steps.append(alb.RandomRotate90(p=1))
        if recipe.rotate_deg or recipe.shift_share or recipe.scale_share:
            shift = (-recipe.shift_share, recipe.shift_share)
            steps.append(
                alb.Affine(
                    rotate=(-recipe.rotate_deg, recipe.rotate_deg), translate_percent={"x": shift, "y": shift},
                    scale=(1 - recipe.scale_share, 1 + recipe.scale_share), keep_ratio=True, rotate_method="ellipse",
                    interpolation=cv2.INTER_LINEAR, mask_interpolation=cv2.INTER_NEAREST,
                    border_mode=cv2.BORDER_REFLECT_101, p=1,
                )
            )  # fmt: skip
    if recipe.brightness or recipe.contrast:
        steps.append(
            alb.RandomBrightnessContrast(
                brightness_limit=(-recipe.brightness, recipe.brightness),
                contrast_limit=(-recipe.contrast, recipe.contrast),
                p=1,
            )
        )
    if recipe.blur_px:
        steps.append(alb.GaussianBlur(blur_limit=0, sigma_limit=(0, recipe.blur_px), p=0.5))
    if recipe.noise:
        steps.append(alb.GaussNoise(std_range=(0, recipe.noise), per_channel=False, p=1))
    # A step that does nothing, for albumentations warns of boxes that nothing moves.
    steps.append(alb.HorizontalFlip(p=0))
    return alb.Compose(steps, bbox_params=alb.BboxParams(format="pascal_voc", label_fields=["numbers"], clip=True))


def _check(image: NDArray[np.uint8], mask: NDArray[np.bool_] | Mask | None, recipe: AugmentRecipe) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if mask is not None and mask.shape != image.shape[:2]:
        raise DataError(f"mask must be {image.shape[:2]}, as the image is, got {mask.shape}")
    if recipe.rotate_90 and image.shape[0] != image.shape[1]:
        width, height = image.shape[1], image.shape[0]
        raise DataError(f"rotate_90 needs square images, got {width} x {height}: set rotate_90 = false, or use flips")


def _albumentations() -> Any:
    # Its import would ask the network for a newer version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        import albumentations
    except ImportError as error:
        raise LinegateError("augmentation needs albumentations: pip install 'linegate[training]'") from error
    return albumentations
