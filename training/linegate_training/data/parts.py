"""The one form in which every layout reaches training and evaluation: a set of samples.

Rules kept here: images are read by the line's own strict decoder and prepared by the line's own resize, so that training
and line cannot diverge; a data set is checked whole before anything is computed. What lies where is left to the readers.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from linegate.errors import DataError, ImageError
from linegate.images import read_image
from linegate.stages import Image, PixelFormat

GOOD: Final = "good"
UNCERTAIN: Final = "uncertain"
"""Parts on which the data set's own labels are not sure: neither trained on nor counted."""
MAX_ASPECT_RATIO: Final = 4.0
"""A set whose widest and narrowest images differ in aspect by more than this holds more than one kind of part."""

# What Pillow raises on damaged files, by format and by where the damage lies.
_UNREADABLE: Final = (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class Box:
    """A marked defect: its class and `xyxy` in pixels of the image, right and bottom exclusive."""

    label: str
    xyxy: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: `name` as the split lists it, `subset` train or test, `label` good, uncertain or a defect class.

    `boxes` are the defects marked by boxes. `group` names the part, item or capture sequence that the image is of.
    """

    name: str
    path: Path
    subset: str
    label: str
    mask: Path | None = None
    boxes: tuple[Box, ...] = ()
    group: str | None = None

    @property
    def defective(self) -> bool:
        """Whether the truth says defective."""
        return self.label not in (GOOD, UNCERTAIN)


@dataclass(frozen=True, slots=True)
class PartSet:
    """A data set: its samples in order of name, and where it is from."""

    name: str
    samples: tuple[Sample, ...]
    licence: str
    source: str
    citation: str = ""
    split: str = ""

    def goods(self) -> list[Sample]:
        """Good parts to learn from."""
        return [sample for sample in self.samples if sample.subset == "train" and sample.label == GOOD]

    def limited(self, goods: int, seed: int) -> PartSet:
        """Return the same with at most so many good parts to learn from, drawn by `seed`."""
        found = self.goods()
        kept = {found[index].name for index in np.random.default_rng(seed).permutation(len(found))[:goods]}
        samples = tuple(
            sample for sample in self.samples if sample.subset != "train" or sample.label != GOOD or sample.name in kept
        )
        words = f"{self.split}; {len(kept)} of {len(found)} good parts, drawn by seed {seed}"
        return replace(self, samples=samples, split=words)

    def defects(self) -> list[Sample]:
        """Defective parts to learn from."""
        return [sample for sample in self.samples if sample.subset == "train" and sample.defective]

    def tests(self) -> list[Sample]:
        """Parts to measure on, good and defective."""
        return [sample for sample in self.samples if sample.subset == "test" and sample.label != UNCERTAIN]

    @property
    def has_masks(self) -> bool:
        """Whether every defective test part has a mask."""
        defects = [sample for sample in self.tests() if sample.defective]
        return bool(defects) and all(sample.mask is not None for sample in defects)


def read_part(sample: Sample) -> tuple[Image, PixelFormat]:
    """Return the pixels and their format.

    Raises:
        DataError: the image cannot be read or is of a kind that the line refuses; the text names the file.
    """
    try:
        image, pixel_format, _, _ = read_image(sample.path)
    except ImageError as error:
        raise DataError(f"{error}; mend or remove this image") from error
    return image, pixel_format


def read_mask(sample: Sample, size_wh: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the defect pixels (H, W) of a sample with a mask.

    Raises:
        DataError: the mask cannot be read, or is of another size than its image.
    """
    assert sample.mask is not None
    try:
        with PillowImage.open(sample.mask) as picture:
            if picture.mode not in ("1", "L", "P"):
                kind = f"an 8-bit or 1-bit mask with one channel is needed, got mode {picture.mode}"
                raise DataError(f"{sample.mask}: {kind}: save it as 8-bit grey")
            mask: NDArray[np.bool_] = np.asarray(picture) != 0
    except _UNREADABLE as error:
        raise DataError(f"{sample.mask}: the mask cannot be read: {error}") from error
    if mask.shape != (size_wh[1], size_wh[0]):
        sizes = f"is {mask.shape[1]} × {mask.shape[0]}, its image {size_wh[0]} × {size_wh[1]}"
        raise DataError(f"{sample.mask}: the mask {sizes}: draw it on this image, at its size")
    return mask


def check_masks(samples: Sequence[Sample], name: str) -> None:
    """Read every mask once, before anything is computed, and say how many mark nothing.

    A defective part whose mask is empty still counts as defective; its pixels count as good.

    Raises:
        DataError: as `read_mask`, or the mask of a good part marks pixels.
    """
    defective = 0
    empty = []
    for sample in samples:
        if sample.mask is None:
            continue
        with PillowImage.open(sample.path) as picture:
            size_wh = picture.size
        marked = int(read_mask(sample, size_wh).sum())
        defective += sample.defective
        if marked and not sample.defective:
            said = f"marks {marked} pixels of {sample.name}, which is labelled {sample.label}"
            raise DataError(f"{sample.mask}: {said}: move the image to its defect class, or remove the mask")
        if not marked and sample.defective:
            empty.append(sample)
    if empty:
        said = f"{len(empty)} of {defective} masks mark no pixel, the first {empty[0].mask}"
        print(f"note: {name}: {said}; those parts count as defective, their pixels as good", file=sys.stderr)


def check_different(digests: Sequence[str], name: str, what: str) -> None:
    """Look whether images, given by their SHA-256, differ at all; `what` names them, as good images.

    Raises:
        DataError: there are two or more, and all are one and the same.
    """
    if len(digests) > 1 and len(set(digests)) == 1:
        raise DataError(f"{name}: all {len(digests)} {what} are one and the same: photograph different parts")


def check_classes(defects: Sequence[Sample], name: str) -> None:
    """Say which defect classes to learn have one example only."""
    counts = Counter(sample.label for sample in defects)
    single = sorted(label for label, count in counts.items() if count == 1)
    if single:
        said = f"one example only of {', '.join(single)}"
        print(f"note: {name}: {said}: it is learned from, but nothing validates that class; add more", file=sys.stderr)


def label_regions(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the 8-connected regions of a mask (H, W) from 1."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return cast("NDArray[np.int32]", labels)


def image_sizes(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Return each image's sides (w, h), from its header.

    Raises:
        DataError: a header cannot be read.
    """
    sizes: list[tuple[int, int]] = []
    for sample in samples:
        try:
            with PillowImage.open(sample.path) as picture:
                sizes.append(picture.size)
        except _UNREADABLE as error:
            raise DataError(f"{sample.path}: not a readable picture ({error}); mend or remove this image") from error
    return sizes


def check_sizes(samples: Sequence[Sample], name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the smallest and largest sides (w, h) among the images, from their headers.

    Sizes may differ: each image is resized to the model's input, as on the line. It is said once.

    Raises:
        DataError: a header cannot be read, or aspects differ so much that the images cannot be of one kind of part.
    """
    sizes = image_sizes(samples)
    widths, heights = [size[0] for size in sizes], [size[1] for size in sizes]
    low, high = (min(widths), min(heights)), (max(widths), max(heights))
    aspects = [width / height for width, height in sizes]
    narrow, wide = int(np.argmin(aspects)), int(np.argmax(aspects))
    # Compared with the median, so that tiles lying both ways round are still one kind.
    middle = float(np.median(aspects))
    for index in (narrow, wide):
        if not 1 / MAX_ASPECT_RATIO <= aspects[index] / middle <= MAX_ASPECT_RATIO:
            odd = f"{samples[index].path} is {sizes[index][0]} × {sizes[index][1]}, aspect {aspects[index]:.2f}"
            raise DataError(f"{name}: {odd}, where most have {middle:.2f}: train one model for each kind of image")
    if low != high:
        span = f"{low[0]}–{high[0]} wide, {low[1]}–{high[1]} high"
        print(f"note: {name}: images are {span} pixels; each is resized to the model's input, as on the line", file=sys.stderr)
    return low, high


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_of(listed: Iterable[tuple[str, str]]) -> str:
    """Return one SHA-256 over the sorted names and digests of images."""
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(listed))
    return hashlib.sha256(lines.encode()).hexdigest()
