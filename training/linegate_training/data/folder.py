"""The MVTec AD folder layout, with defects to learn from: train/<class>, test/<class>, ground_truth, annotations.

Rules kept here: train/good is required to learn, unless two defect classes are told apart without good parts; test is
measured on and never learned from; where the test has masks, masks and its defective images match one to one, while
defects to learn from may have a mask, boxes, both or neither; names are UTF-8, as the files of a package are.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from linegate.errors import DataError
from linegate.images import IMAGE_SUFFIXES
from linegate_training.data.annotations import read_boxes
from linegate_training.data.parts import GOOD, UNCERTAIN, PartSet, Sample

PARTS = ("train", "test", "ground_truth", "annotations")
GROUPS_FILE = "groups.csv"
LAYOUT = "train/good, and if you have them test/<class> and ground_truth/<class>/<stem>_mask.png"


def read_folder(
    root: Path,
    name: str | None = None,
    licence: str = "not stated",
    source: str = "own images",
    to_learn: bool = True,
    supervised: bool = False,
) -> PartSet:
    """Return the data set that lies in `root`, which needs good images `to_learn` and else a test folder.

    `supervised`, two classes of defects to learn from will do without good images.

    Raises:
        DataError: the folder is missing, has not what it needs, or its masks, boxes, groups and images do not match.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder: name one that holds {LAYOUT}")
    goods = _images(root / "train" / GOOD)
    learned = {path.name: _images(path) for path in _folders(root / "train") if path.name != GOOD}
    learned = {label: images for label, images in learned.items() if images}
    if not to_learn and not (root / "test").is_dir():
        wanted = "name the folder that holds test/good and test/<defect class>"
        raise DataError(f"{root}: there is no {root / 'test'} with parts to measure on: {wanted}")
    typed = supervised and len(learned.keys() - {UNCERTAIN}) > 1
    if to_learn and not goods and not typed:
        raise DataError(f"{root}: no good images in {root / 'train' / GOOD}: put images of good parts there ({LAYOUT})")
    tested = {path.name: _images(path) for path in _folders(root / "test")}
    _check_orphans(root, learned, tested)
    groups = read_groups(root)
    samples = list(_samples(root, "train", {GOOD: goods, **learned}, learned, tested, groups))
    samples += _samples(root, "test", tested, learned, tested, groups)
    names = {sample.name for sample in samples}
    for listed in groups:
        if listed not in names:
            raise DataError(f"{root / GROUPS_FILE}: lists {listed}, which is no image here: write it as train/good/1.png")
    _check_names([root.resolve().name, *(sample.name for sample in samples)])
    split = "as the folders say: train/good to learn from, test to measure on"
    if any(sample.subset == "train" and sample.defective for sample in samples):
        split = "as the folders say: train to learn from, good and defective, test to measure on"
    return PartSet(name or root.resolve().name, tuple(samples), licence, source, split=split)


def read_groups(root: Path) -> dict[str, str]:
    """Return the group of each image that `groups.csv` (image, group) at `root` lists, nothing where there is none.

    Raises:
        DataError: it cannot be read, lacks a column or a value, or puts one image into two groups.
    """
    path = root / GROUPS_FILE
    if not path.is_file():
        return {}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}): save it as UTF-8 with the columns image and group") from error
    groups: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        image, group = (row.get("image") or "").strip(), (row.get("group") or "").strip()
        if not image or not group:
            raise DataError(f"{path}: line {number} needs a value for image and for group: fill it in, or remove the line")
        if groups.setdefault(image, group) != group:
            raise DataError(f"{path}: line {number} puts {image} into {group}, before it was in {groups[image]}: keep one")
    return groups


def _samples(
    root: Path, subset: str, classes: dict[str, list[Path]], learned: dict[str, list[Path]], tested: dict[str, list[Path]],
    groups: dict[str, str],
) -> Iterator[Sample]:  # fmt: skip
    known = (set(learned) | set(tested)) - {GOOD, UNCERTAIN}
    for label, images in classes.items():
        masks, drawn = _masks(root / "ground_truth" / label), _annotations(root / "annotations" / label)
        if label in (GOOD, UNCERTAIN):
            # A good part may have a mask that marks nothing; that it marks nothing is checked with the other masks.
            masks, drawn = (masks if label == GOOD else {}), {}
        elif subset == "test" and (root / "ground_truth").is_dir() and _measures_masks(root, learned, tested):
            _match(images, masks, root / "ground_truth" / label, {path.stem for path in learned.get(label, [])})
        twins = {path.stem for path in tested.get(label, [])} & {path.stem for path in learned.get(label, [])}
        for path in images:
            mask, boxes = masks.get(path.stem), drawn.get(path.stem)
            truth = mask or boxes
            if truth is not None and path.stem in twins:
                both = f"belongs to train/{label}/{path.stem} and to test/{label}/{path.stem}"
                raise DataError(f"{truth}: {both}: give the two images different names, and the truth with them")
            name = path.relative_to(root).as_posix()
            marked = read_boxes(boxes, path, label, known) if boxes is not None else ()
            yield Sample(name, path, subset, label, mask, marked, groups.get(name))


def _measures_masks(root: Path, learned: dict[str, list[Path]], tested: dict[str, list[Path]]) -> bool:
    """Say whether ground_truth is meant for the test: it is, unless all its masks are of defects to learn from."""
    if not learned:
        return True
    return any(
        stem in {path.stem for path in images}
        for label, images in tested.items()
        if label not in (GOOD, UNCERTAIN)
        for stem in _masks(root / "ground_truth" / label)
    )


def _check_orphans(root: Path, learned: dict[str, list[Path]], tested: dict[str, list[Path]]) -> None:
    for kind, what in (("ground_truth", "masks"), ("annotations", "annotations")):
        for folder in _folders(root / kind):
            label = folder.name
            if any(folder.iterdir()) and label not in tested and label not in learned and label != GOOD:
                raise DataError(f"{folder}: {what} without images: there is no {root / 'test' / label}")
            if not learned and kind == "ground_truth":
                continue  # test images and their masks are matched one to one
            if label == GOOD:
                continue
            stems = {path.stem for path in [*learned.get(label, []), *tested.get(label, [])]}
            truths = _masks(folder) if kind == "ground_truth" else _annotations(folder)
            _refuse_orphans(sorted(set(truths) - stems), truths, "a mask" if kind == "ground_truth" else "an annotation")


def _refuse_orphans(orphans: list[str], truths: dict[str, Path], what: str) -> None:
    if orphans:
        more = f" (and {len(orphans) - 1} more)" if len(orphans) > 1 else ""
        raise DataError(f"{truths[orphans[0]]}: {what} without an image{more}: remove it, or add the image to train or test")


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir())


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


def _annotations(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*")) if path.suffix.lower() == ".xml" and path.is_file()}


def _match(images: list[Path], masks: dict[str, Path], folder: Path, learned: set[str]) -> None:
    stems = {path.stem for path in images}
    missing = [path for path in images if path.stem not in masks]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        wanted = folder / f"{missing[0].stem}_mask.png"
        raise DataError(f"{missing[0]}: has no mask{more}: draw {wanted}, or remove ground_truth to measure without masks")
    _refuse_orphans(sorted(set(masks) - stems - learned), masks, "a mask")
