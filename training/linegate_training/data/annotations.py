"""Boxes drawn around defects, as Pascal VOC writes them.

Rules kept here: VOC counts pixels from 1 and includes the last one, `Box` counts from 0 and excludes it, and nothing else
in the room knows the difference; a file with a document type is refused, so no entity is ever expanded or fetched; boxes
that cannot be right are told by file and number, not mended. Which labels may occur is the reader's to say.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from PIL import Image as PillowImage

from linegate.errors import DataError
from linegate_training.data.parts import Box

MAX_BYTES: Final = 10_000_000
SLACK_PX: Final = 1.0
"""Some tools count from 0 in this format: a side that overshoots by no more than this is cut, not refused."""
_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")


def read_boxes(path: Path, image: Path, label: str, known: Collection[str] = ()) -> tuple[Box, ...]:
    """Return the boxes of the annotation at `path`, in pixels of `image`, which is listed as `label`.

    At least one box must be of class `label`; others may be of the classes `known`, for a part can have two defects.

    Raises:
        DataError: the file cannot be read, marks nothing, disagrees with the listed label or with the image's size, or a
            box is empty or reaches out of the image.
    """
    root = _parse(path)
    size_wh = _size_of(image)
    stated = root.find("size")
    if stated is not None:
        stated_wh = (round(_number(stated, "width", path)), round(_number(stated, "height", path)))
        if stated_wh not in (size_wh, (0, 0)):  # some tools leave zeros
            sizes = f"{stated_wh[0]} × {stated_wh[1]}, {image.name} is {size_wh[0]} × {size_wh[1]}"
            raise DataError(f"{path}: drawn on an image of {sizes}: draw the boxes on this image, at its size")
    found = root.findall("object")
    if not found:
        raise DataError(f"{path}: marks no box on a part listed as {label}: draw one, or remove the file")
    boxes = tuple(_box(node, number, path, size_wh) for number, node in enumerate(found, 1))
    labels = {box.label for box in boxes}
    if label not in labels:
        listed = ", ".join(sorted(labels))
        raise DataError(f"{path}: its boxes are labelled {listed}, its image is listed as {label}: mend one of the two")
    unknown = sorted(labels - {label, *known})
    if unknown:
        expected = ", ".join(sorted({label, *known}))
        raise DataError(f"{path}: a box is labelled {unknown[0]}, expected one of {expected}: mend the label")
    return boxes


def _parse(path: Path) -> ElementTree.Element:
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise DataError(f"{path}: {len(data):,} bytes, expected at most {MAX_BYTES:,}: this is no annotation of one image")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): mend or remove it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: save it as UTF-8 Pascal VOC xml, or remove it") from error
    if "<!DOCTYPE" in text:
        raise DataError(f"{path}: has a document type, which annotations do not need and which may hide others: remove it")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not readable xml ({error}): save it again as Pascal VOC, or remove it") from error
    if root.tag != "annotation":
        raise DataError(f"{path}: expected Pascal VOC (<annotation>), got <{root.tag}>: save it again as Pascal VOC")
    return root


def _box(node: ElementTree.Element, number: int, path: Path, size_wh: tuple[int, int]) -> Box:
    label = (node.findtext("name") or "").strip()
    frame = node.find("bndbox")
    if not label or frame is None:
        raise DataError(f"{path}: box {number} has no {'name' if not label else 'bndbox'}: mend or remove it")
    left, top, right, bottom = (_number(frame, side, path) for side in _SIDES)
    shown = f"{left:g} {top:g} {right:g} {bottom:g}"
    if right < left or bottom < top:
        raise DataError(f"{path}: box {number} is empty ({' '.join(_SIDES)} = {shown}): draw it again or remove it")
    width, height = size_wh
    if min(left, top) < 1 - SLACK_PX or right > width + SLACK_PX or bottom > height + SLACK_PX or left > width or top > height:
        raise DataError(f"{path}: box {number} ({shown}) reaches out of the image, {width} × {height}: draw it again")
    low = [max(math.floor(value) - 1, 0) for value in (left, top)]
    high = [min(math.ceil(value), side) for value, side in ((right, width), (bottom, height))]
    return Box(label, (low[0], low[1], max(high[0], low[0] + 1), max(high[1], low[1] + 1)))


def _number(node: ElementTree.Element, name: str, path: Path) -> float:
    text = node.findtext(name)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: {name} is {text!r}, expected a number of pixels: draw the box again")
    return value


def _size_of(image: Path) -> tuple[int, int]:
    try:
        with PillowImage.open(image) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError) as error:
        raise DataError(f"{image}: not a readable picture ({error}); mend or remove this image") from error
