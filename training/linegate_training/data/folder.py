"""The MVTec AD folder layout: train/good, test/<class>, ground_truth/<class>/<stem>_mask.png.

Rules kept here: train/good is required to learn, test to measure, and nothing else; where ground_truth exists, masks and
defective images match one to one; names are UTF-8, as the files of a package are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from linegate.errors import DataError
from linegate.images import IMAGE_SUFFIXES
from linegate_training.data.parts import GOOD, UNCERTAIN, PartSet, Sample

PARTS = ("train", "test", "ground_truth")
LAYOUT = "train/good, and if you have them test/<class> and ground_truth/<class>/<stem>_mask.png"


def read_folder(
    root: Path, name: str | None = None, licence: str = "not stated", source: str = "own images", to_learn: bool = True
) -> PartSet:
    """Return the data set that lies in `root`, which needs good images `to_learn` and else a test folder.

    Raises:
        DataError: the folder is missing, has not what it needs, or its masks and images do not match.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder: name one that holds {LAYOUT}")
    goods = _images(root / "train" / GOOD)
    if not to_learn and not (root / "test").is_dir():
        wanted = "name the folder that holds test/good and test/<defect class>"
        raise DataError(f"{root}: there is no {root / 'test'} with parts to measure on: {wanted}")
    if to_learn and not goods:
        raise DataError(f"{root}: no good images in {root / 'train' / GOOD}: put images of good parts there ({LAYOUT})")
    samples = [Sample(path.relative_to(root).as_posix(), path, "train", GOOD) for path in goods]
    truth = root / "ground_truth"
    for folder in sorted(path for path in (root / "test").glob("*") if path.is_dir()):
        masks = _masks(truth / folder.name)
        images = _images(folder)
        if folder.name not in (GOOD, UNCERTAIN) and truth.is_dir():
            _match(images, masks, truth / folder.name)
        for path in images:
            mask = None if folder.name in (GOOD, UNCERTAIN) else masks.get(path.stem)
            samples.append(Sample(path.relative_to(root).as_posix(), path, "test", folder.name, mask))
    for folder in truth.glob("*"):
        if folder.is_dir() and any(folder.iterdir()) and not (root / "test" / folder.name).is_dir():
            raise DataError(f"{folder}: masks without images: there is no {root / 'test' / folder.name}")
    _check_names([root.resolve().name, *(sample.name for sample in samples)])
    split = "as the folders say: train/good to learn from, test to measure on"
    return PartSet(name or root.resolve().name, tuple(samples), licence, source, split=split)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            raise DataError(f"{shown}: this name is not UTF-8, so no package can list it: rename it") from error


def _masks(folder: Path) -> dict[str, Path]:
    return {path.stem.removesuffix("_mask"): path for path in _images(folder)}


def _match(images: list[Path], masks: dict[str, Path], folder: Path) -> None:
    stems = {path.stem for path in images}
    missing = [path for path in images if path.stem not in masks]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        wanted = folder / f"{missing[0].stem}_mask.png"
        raise DataError(f"{missing[0]}: has no mask{more}: draw {wanted}, or remove ground_truth to measure without masks")
    orphans = sorted(set(masks) - stems)
    if orphans:
        more = f" (and {len(orphans) - 1} more)" if len(orphans) > 1 else ""
        raise DataError(f"{masks[orphans[0]]}: a mask without an image{more}: remove it, or add the image to test")
