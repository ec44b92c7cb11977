"""A data set version, as the line's reviewers made it → the parts to learn from and to measure on.

Rules kept here: a version is checked whole, byte for byte, before any of it is used; its split is taken as it is, for its
test parts are those that every package of it is measured on; its groups are the samples' groups.
"""

from __future__ import annotations

from pathlib import Path

from linegate.dataset_version import Version, VersionItem
from linegate.errors import DataError
from linegate_training.data.parts import GOOD, Box, PartSet, Sample


def read_version(folder: Path, to_learn: bool = True) -> PartSet:
    """Return the data set version in `folder`, checked, as parts; `to_learn`, with enough of them to learn from.

    Raises:
        DataError: it was changed or is damaged, or has nothing to learn from, or nothing to measure on.
    """
    return parts_of(Version.load(folder), to_learn)


def parts_of(version: Version, to_learn: bool = True) -> PartSet:
    """Return a checked version as parts.

    Raises:
        DataError: it has nothing to learn from `to_learn`, or else nothing to measure on.
    """
    record = version.record
    samples = tuple(_sample(version.folder, item) for item in record.items)
    counts = record.counts
    split = (
        f"data set version {record.reference}, digest {record.digest}: {sum(counts.train.values())} images to learn from, "
        f"{sum(counts.test.values())} to measure on, frozen"
    )
    stations = ", ".join(record.stations) or "stations not stated"
    parts = PartSet(f"{record.name}-v{record.number}", samples, "not stated", f"reviewed parts of {stations}", split=split)
    classes = {sample.label for sample in parts.defects()}
    if to_learn and not parts.goods() and len(classes) < 2:
        raise DataError(f"{version.folder}: no good images to learn from: review some good parts, and make a new version")
    if not to_learn and not parts.tests():
        raise DataError(f"{version.folder}: no images to measure on: review more parts, and make a new version")
    return parts


def _sample(folder: Path, item: VersionItem) -> Sample:
    marked = item.label != GOOD
    mask = folder / item.mask if item.mask is not None else None
    boxes = tuple(Box(box.label, box.xyxy) for box in item.boxes) if marked else ()
    return Sample(item.image, folder / item.image, item.split, item.label, mask, boxes, item.group)
