"""Parts to learn from, as the line would see them: prepared once, varied anew each epoch, drawn in balance.

Rules kept here: pixels are prepared by the line's own path, masks and boxes by the same cut and resize; what an epoch shows
is a function of seed and epoch; a label that is not known is never taken for "nothing there".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from linegate.errors import DataError
from linegate.infer import prepare
from linegate.package import InputSpec
from linegate_training.augment import Augmenter
from linegate_training.data.parts import Box, Sample, label_regions, read_mask, read_part

COVERED = 0.3
"""Share of a pixel that a mask must cover to mark it after the resize: under a half, so that scratches stay whole."""
MIN_BOX_PX = 2
"""A box cut to less by the region of interest shows nothing to learn."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A part as the net sees it: `pixels` uint8 (H, W, 3), `label` 0 good and 1 … K defect classes.

    `mask` uint8 (H, W) and `boxes` are None where the labels do not tell them; a good part has neither.
    """

    name: str
    pixels: NDArray[np.uint8]
    label: int
    mask: NDArray[np.uint8] | None
    boxes: tuple[Box, ...] | None
    marked: bool = True
    """False where all that was marked lies outside of the region of interest."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.pixels.nbytes + (0 if self.mask is None else self.mask.nbytes)


def prepare_part(sample: Sample, spec: InputSpec, classes: Sequence[str]) -> Prepared:
    """Return a part as the net will see it.

    Raises:
        DataError: the image or its mask cannot be read, or its class is not among `classes`.
    """
    if sample.defective and sample.label not in classes:
        raise DataError(f"{sample.path}: class {sample.label} is not among {', '.join(classes)}")
    image, pixel_format = read_part(sample)
    height, width = image.shape[:2]
    pixels, roi = prepare(image, pixel_format, spec)
    if not sample.defective:
        return Prepared(sample.name, pixels[0], 0, None, ())
    label = classes.index(sample.label) + 1
    mask, boxes, marked = None, None, True
    if sample.mask is not None:
        drawn = read_mask(sample, (width, height))
        mask = _prepared_mask(drawn, roi, spec.size_wh)
        if mask is None:  # nothing is marked: the image's label is all that is known
            marked = not drawn.any()
        else:
            boxes = _regions(mask, sample.label)
    if sample.boxes:
        boxes = _prepared_boxes(sample.boxes, roi, spec.size_wh, classes)
        marked = bool(boxes) if mask is None else marked
    return Prepared(sample.name, pixels[0], label, mask, boxes or None, marked)


def _prepared_mask(
    drawn: NDArray[np.bool_], roi: tuple[int, int, int, int], size_wh: tuple[int, int]
) -> NDArray[np.uint8] | None:
    left, top, right, bottom = roi
    shrinks = right - left > size_wh[0] or bottom - top > size_wh[1]
    cut = drawn[top:bottom, left:right].astype(np.float32)
    share = np.asarray(cv2.resize(cut, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))
    most = float(share.max())
    # A defect finer than any pixel stays where it covers most.
    return (share >= min(COVERED, 0.5 * most)).astype(np.uint8) if most > 0 else None


def _prepared_boxes(
    boxes: Sequence[Box], roi: tuple[int, int, int, int], size_wh: tuple[int, int], classes: Sequence[str]
) -> tuple[Box, ...]:
    left, top, right, bottom = roi
    scale_x, scale_y = size_wh[0] / (right - left), size_wh[1] / (bottom - top)
    found = []
    for box in boxes:
        if box.label not in classes:
            continue
        x1, x2 = (round((min(max(x, left), right) - left) * scale_x) for x in box.xyxy[::2])
        y1, y2 = (round((min(max(y, top), bottom) - top) * scale_y) for y in box.xyxy[1::2])
        if x2 - x1 >= MIN_BOX_PX and y2 - y1 >= MIN_BOX_PX:
            found.append(Box(box.label, (x1, y1, x2, y2)))
    return tuple(found)


def _regions(mask: NDArray[np.uint8], label: str) -> tuple[Box, ...]:
    labels = label_regions(mask > 0)
    found = []
    for number in range(1, int(labels.max()) + 1):
        x, y, width, height = cv2.boundingRect((labels == number).astype(np.uint8))
        found.append(Box(label, (x, y, x + width, y + height)))
    return tuple(found)


class PartData(Dataset[dict[str, Any]]):
    """The parts to learn from, drawn in balance and varied: items as `collate` wants them.

    An epoch shows all defective parts, few of them several times, and as many good ones, all of them in turn.
    """

    def __init__(
        self, samples: Sequence[Sample], spec: InputSpec, classes: Sequence[str], varied: Augmenter | None, seed: int,
        epoch_defects: int, cache_mib: int,
    ) -> None:  # fmt: skip
        self.samples, self.spec, self.classes = tuple(samples), spec, tuple(classes)
        self._varied, self._seed, self._room = varied, seed, cache_mib << 20
        self._kept: dict[int, Prepared] = {}
        self._defects = [index for index, sample in enumerate(samples) if sample.defective]
        self._goods = [index for index, sample in enumerate(samples) if not sample.defective]
        self._shown = max(len(self._defects), epoch_defects)
        self._epoch, self._order = 0, list[int]()
        self.set_epoch(1)

    def __len__(self) -> int:
        return self._shown * (2 if self._goods else 1)

    def set_epoch(self, epoch: int) -> None:
        """Draw what an epoch, counted from 1, shows."""
        self._epoch = epoch
        self._order = self._turns(self._defects, 0) + (self._turns(self._goods, 1) if self._goods else [])

    def _turns(self, indices: list[int], stream: int) -> list[int]:
        """Return as many as an epoch shows of each kind: each part once, in an order drawn anew, before any comes again."""
        first, wanted = (self._epoch - 1) * self._shown, list[int]()
        while len(wanted) < self._shown:
            turn, place = divmod(first + len(wanted), len(indices))
            order = np.random.default_rng([self._seed, stream, turn]).permutation(len(indices))
            wanted += [indices[number] for number in order[place:]]
        return wanted[: self._shown]

    def part(self, index: int) -> Prepared:
        """Return a prepared part by its number among the samples."""
        found = self._kept.get(index)
        if found is None:
            found = prepare_part(self.samples[index], self.spec, self.classes)
            self._room -= found.nbytes
            if self._room >= 0:
                self._kept[index] = found
        return found

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = self._order[position]
        part = self.part(index)
        pixels, mask, boxes = part.pixels, part.mask, part.boxes
        if self._varied is not None:
            # The position too: a part shown twice in an epoch is varied in two ways.
            varied = self._varied(pixels, mask, boxes or (), self._epoch, position)
            pixels, mask, boxes = varied.image, varied.mask, None if boxes is None else varied.boxes
        return item(Prepared(part.name, pixels, part.label, mask, boxes), self.classes)


def item(part: Prepared, classes: Sequence[str]) -> dict[str, Any]:
    """Return tensors of a part for `collate`; where boxes are all that is known they stand for the mask."""
    height, width = part.pixels.shape[:2]
    mask, known = part.mask, part.label == 0 or part.mask is not None or part.boxes is not None
    if mask is None:
        mask = np.zeros((height, width), np.uint8)
        for box in part.boxes or ():
            x1, y1, x2, y2 = box.xyxy
            mask[y1:y2, x1:x2] = 1
    rows = [[*box.xyxy, classes.index(box.label)] for box in part.boxes or ()]
    return {
        "name": part.name,
        "pixels": torch.from_numpy(part.pixels),
        "label": part.label,
        "mask": torch.from_numpy(mask),
        "mask_known": known,
        "boxes": torch.tensor(rows, dtype=torch.float32).reshape(-1, 5),
        "boxes_known": part.label == 0 or part.boxes is not None,
    }


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch as `losses` describes it."""
    rows: list[Tensor] = []
    for index, one in enumerate(items):
        boxes = one["boxes"]
        rows.append(torch.cat([torch.full((len(boxes), 1), float(index)), boxes], 1))
    return {
        "name": [one["name"] for one in items],
        "pixels": torch.stack([one["pixels"] for one in items]),
        "label": torch.tensor([one["label"] for one in items]),
        "mask": torch.stack([one["mask"] for one in items]),
        "mask_known": torch.tensor([one["mask_known"] for one in items]),
        "boxes": torch.cat(rows),
        "boxes_known": torch.tensor([one["boxes_known"] for one in items]),
    }
