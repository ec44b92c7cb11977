"""Reviews, the first photographs and the version before → pictures with one label each, or a conflict.

Rules kept here: one picture for each SHA-256; a person's newest word counts; two people who differ are a conflict for a third,
never a vote; bytes are read and judged by the line's own strict decoder before anything is written. Which split a picture
goes to is left to `dataset_split`.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from linegate.dataset_version import GOOD, Conflict, Split, Version, VersionBox
from linegate.errors import DataError, ImageError
from linegate.images import IMAGE_SUFFIXES, SUFFIX_OF_MEDIA_TYPE, decode_image, encode_png
from linegate.near_duplicates import low_frequencies
from linegate.stages import PixelFormat

BASE_VIEW: Final = "base"
_BASE_SUBSETS: Final[tuple[Split, ...]] = ("train", "test")
_UNREADABLE: Final = (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError)


@dataclass(frozen=True, slots=True, eq=False)
class ReviewedImage:
    """What one person said of one photograph that the line judged.

    `path` holds the evidence's bytes, of which `sha256` is the digest. `serial` names the part. `label` is `good` or a class of
    defects. `boxes` are in pixels of the image; `mask` is uint8 (H, W), not 0 where defective, or None.
    """

    path: Path
    sha256: str
    media_type: str
    view: str
    serial: str
    verdict_id: str
    disposition: str | None
    label: str
    reviewed_at: datetime
    reviewed_by: str
    boxes: tuple[VersionBox, ...] = ()
    mask: NDArray[np.uint8] | None = None
    score: float | None = None
    threshold: float | None = None
    station: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One photograph to be placed: bytes, label, and the `groups` that it belongs to, the first one its own.

    `fixed` is the split that its place in the first photographs or in the version before gives it; `carried` says that the
    version before has it.
    """

    path: Path
    sha256: str
    suffix: str
    view: str
    groups: tuple[str, ...]
    label: str
    source: Literal["review", "base"]
    verdict_ids: tuple[str, ...] = ()
    disposition: str | None = None
    boxes: tuple[VersionBox, ...] = ()
    mask: bytes | None = None
    reviewed_at: datetime | None = None
    reviewed_by: str | None = None
    score: float | None = None
    threshold: float | None = None
    fixed: Split | None = None
    carried: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """All pictures, those in conflict too, by SHA-256; `frequencies` are what looks are compared by."""

    pictures: Mapping[str, Picture]
    frequencies: Mapping[str, NDArray[np.float32]]
    conflicts: tuple[Conflict, ...]
    stations: tuple[str, ...] = field(default=())


def gather(reviewed: Iterable[ReviewedImage], base: Path | None, parent: Version | None) -> Gathered:
    """Return the pictures of reviews, of the folder `base` in MVTec AD layout, and of `parent` what neither of them has.

    Raises:
        DataError: nothing is reviewed, or an image, mask or box is wrong; the text names it.
    """
    reviews: dict[str, list[ReviewedImage]] = defaultdict(list)
    for review in reviewed:
        reviews[review.sha256].append(review)
    if not reviews:
        raise DataError("nothing has been reviewed yet: review some parts, then make a version of them")
    pictures: dict[str, Picture] = {}
    conflicts: list[Conflict] = []
    labels: dict[str, set[str]] = defaultdict(set)
    for picture in _base_pictures(base) if base is not None else ():
        known = pictures.get(picture.sha256)
        labels[picture.sha256].add(picture.label)
        # Measured on before learned from: what lies in both is not learned.
        if known is None or picture.fixed == "test":
            pictures[picture.sha256] = picture
    for digest, of_one in sorted(reviews.items()):
        picture, kind = _agreed(of_one)
        first = pictures.get(digest)
        labels[digest] |= {review.label for review in _newest_words(of_one)}
        if first is not None:
            picture = replace(picture, groups=(*picture.groups, *first.groups), fixed=first.fixed)
        if len(labels[digest]) > 1:
            conflicts.append(_conflict(picture, labels[digest], kind))
        pictures[digest] = picture
    for digest, said in labels.items():
        if len(said) > 1 and digest not in reviews:
            conflicts.append(_conflict(pictures[digest], said, "bytes"))
    stations = {review.station for of_one in reviews.values() for review in of_one if review.station is not None}
    if parent is not None:
        stations |= set(parent.record.stations)
        _carry(parent, pictures)
    frequencies = {}
    for digest, picture in pictures.items():
        frequencies[digest] = _checked(picture)
    conflicts.sort(key=lambda conflict: conflict.images)
    return Gathered(pictures, frequencies, tuple(conflicts), tuple(sorted(stations)))


def _newest_words(reviews: list[ReviewedImage]) -> list[ReviewedImage]:
    """Return what each person said last of each verdict on one image, the newest first."""
    newest: dict[tuple[str, str], ReviewedImage] = {}
    for review in sorted(reviews, key=_age):
        newest[review.reviewed_by, review.verdict_id] = review
    return sorted(newest.values(), key=_age, reverse=True)


def _age(review: ReviewedImage) -> tuple[datetime, str, str, str]:
    return review.reviewed_at, review.verdict_id, review.reviewed_by, review.label


def _agreed(reviews: list[ReviewedImage]) -> tuple[Picture, Literal["people", "bytes"]]:
    """Return the picture that the newest review describes, and how it is in conflict if labels differ."""
    words = _newest_words(reviews)
    newest = words[0]
    said = {(review.verdict_id, review.label) for review in words}
    verdicts = tuple(dict.fromkeys(review.verdict_id for review in words))
    picture = Picture(
        path=newest.path, sha256=newest.sha256, suffix=SUFFIX_OF_MEDIA_TYPE.get(newest.media_type, ".bin"), view=newest.view,
        groups=tuple(dict.fromkeys(review.serial for review in words)), label=newest.label, source="review",
        verdict_ids=verdicts, disposition=newest.disposition, boxes=newest.boxes, mask=_encoded(newest.mask, newest.path),
        reviewed_at=newest.reviewed_at, reviewed_by=newest.reviewed_by, score=newest.score, threshold=newest.threshold,
    )  # fmt: skip
    return picture, "people" if len(said) > len(verdicts) else "bytes"


def _conflict(picture: Picture, labels: set[str], kind: Literal["people", "bytes"]) -> Conflict:
    ordered = tuple(sorted(labels))
    shown = " and as ".join(ordered)
    who = "two people judged one part differently" if kind == "people" else "the same bytes were judged differently"
    text = f"{who}: {picture.groups[0]} as {shown}: agree on one, and review it again"
    return Conflict(
        kind=kind, images=(picture.sha256,), labels=ordered, groups=picture.groups, verdict_ids=picture.verdict_ids, text=text
    )


def _carry(parent: Version, pictures: dict[str, Picture]) -> None:
    """Add what the version before has and the new pictures lack, and mark what both have."""
    for item in parent.record.items:
        known = pictures.get(item.sha256)
        if known is not None:
            groups = tuple(dict.fromkeys((*known.groups, item.group)))
            pictures[item.sha256] = replace(known, groups=groups, fixed=item.split, carried=True)
            continue
        mask = None if item.mask is None else (parent.folder / item.mask).read_bytes()
        pictures[item.sha256] = Picture(
            path=parent.folder / item.image, sha256=item.sha256, suffix=Path(item.image).suffix, view=item.view,
            groups=(item.group,), label=item.label, source=item.source,
            verdict_ids=() if item.verdict_id is None else (item.verdict_id,), disposition=item.disposition, boxes=item.boxes,
            mask=mask, reviewed_at=item.reviewed_at, reviewed_by=item.reviewed_by, score=item.score, threshold=item.threshold,
            fixed=item.split, carried=True,
        )  # fmt: skip
    for digest, picture in pictures.items():
        if group_of_image(digest) in parent.record.groups:
            pictures[digest] = replace(picture, groups=(*picture.groups, group_of_image(digest)))


def group_of_image(digest: str) -> str:
    """Return the group under which an image is remembered that had a split once and is left out now."""
    return f"image/{digest}"


def _base_pictures(base: Path) -> Iterator[Picture]:
    """Yield the pictures of a folder in MVTec AD layout; groups.csv (image, group) says which show one part.

    Raises:
        DataError: the folder holds none, or a mask is wrong.
    """
    groups, found = _base_groups(base), False
    for subset in _BASE_SUBSETS:
        for path in sorted((base / subset).glob("*/*")):
            if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
                continue
            found = True
            label = path.parent.name
            try:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}): mend or remove this image") from error
            group = groups.get(path.relative_to(base).as_posix(), digest[:16])
            mask = _base_mask(base / "ground_truth" / label / f"{path.stem}_mask.png")
            yield Picture(
                path=path, sha256=digest, suffix=path.suffix.lower(), view=BASE_VIEW, groups=(f"base/{group}",), label=label,
                source="base", mask=_encoded(mask, path), fixed=subset,
            )  # fmt: skip
    if not found:
        raise DataError(f"{base}: no photographs in train/good, train/<class> or test/<class>: name the folder that holds them")


def _base_groups(base: Path) -> dict[str, str]:
    path = base / "groups.csv"
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())) if path.is_file() else []
        return {row["image"].strip(): row["group"].strip() for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read ({error}): save it as UTF-8 with the columns image and group") from error


def _base_mask(path: Path) -> NDArray[np.uint8] | None:
    if not path.is_file():
        return None
    try:
        with PillowImage.open(path) as picture:
            if picture.mode not in ("1", "L", "P"):
                raise DataError(f"{path}: expected an 8-bit or 1-bit mask, got mode {picture.mode}: save it as 8-bit grey")
            return np.asarray(picture).astype(np.uint8)
    except _UNREADABLE as error:
        raise DataError(f"{path}: the mask cannot be read ({error}): mend or remove it") from error


def _encoded(mask: NDArray[np.uint8] | None, of: Path) -> bytes | None:
    """Return a mask as PNG with 0 and 255; None where it marks nothing.

    Raises:
        DataError: it is not uint8 (H, W).
    """
    if mask is None or not mask.any():
        return None
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(f"{of}: its mask must be uint8 (H, W), got {mask.dtype} {mask.shape}: draw it again")
    return encode_png(np.where(mask != 0, np.uint8(255), np.uint8(0)), PixelFormat.MONO8)


def _checked(picture: Picture) -> NDArray[np.float32]:
    """Return the low frequencies of a picture whose bytes, mask and boxes are as they should be.

    Raises:
        DataError: they are not.
    """
    who = f"{picture.path} (part {picture.groups[0]})"
    try:
        data = picture.path.read_bytes()
    except OSError as error:
        raise DataError(f"{who}: cannot be read ({error.strerror}): take back its review, or bring the file back") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != picture.sha256:
        said = f"its bytes were changed: SHA-256 is {digest[:12]}…, expected {picture.sha256[:12]}…"
        raise DataError(f"{who}: {said}: take back its review, or bring the file back")
    try:
        image, _, _ = decode_image(data)
    except ImageError as error:
        raise DataError(f"{who}: {error}; or take back its review") from error
    size_wh = image.shape[1], image.shape[0]
    if picture.label == GOOD and (picture.mask is not None or picture.boxes):
        raise DataError(f"{who}: is labelled good and has a marked defect: remove the mark, or name its class")
    if picture.mask is not None:
        mask, _, _ = decode_image(picture.mask)
        if mask.shape != image.shape[:2]:
            sizes = f"its mask is {mask.shape[1]} × {mask.shape[0]}, the image {size_wh[0]} × {size_wh[1]}"
            raise DataError(f"{who}: {sizes}: draw the mask on this image, at its size")
    for box in picture.boxes:
        left, top, right, bottom = box.xyxy
        if not (0 <= left < right <= size_wh[0] and 0 <= top < bottom <= size_wh[1]):
            shown = f"box {left} {top} {right} {bottom} of {box.label} does not lie in the image"
            raise DataError(f"{who}: {shown}, {size_wh[0]} × {size_wh[1]}: draw it again")
    found = low_frequencies(data)
    if found is None:
        raise DataError(f"{who}: not a readable picture: take back its review")
    return found
