"""Layouts of known data sets other than MVTec AD's.

Rules kept here: a split is fixed by the manifest's words and a seed, never by chance or by the order of a folder; which
images show one item is stated by the list or by the manifest's rule.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from linegate.errors import DataError
from linegate_training.data.annotations import read_boxes
from linegate_training.data.manifest import ItemRule
from linegate_training.data.parts import GOOD, UNCERTAIN, Sample

DEFECT = "defect"
_EXPOSURE = re.compile(r"exp(?P<step>\d+)_num_(?P<number>\d+)")
_MAX_PAUSE = 200
"""Numbers of two photographs of one item lie no further apart than this."""


def read_elpv(root: Path, test_good: int, seed: int) -> list[Sample]:
    """Read solar cells: labels.csv (path, probability of a defect, kind of cell) beside images/.

    0 is good, 0.5 and more defective, and 0.333 uncertain. All defective and `test_good` good cells, drawn with `seed`,
    are for measuring.
    """
    rows = _elpv_rows(root)
    goods = [name for name, probability, _ in rows if probability == 0.0]
    if len(goods) <= test_good:
        raise DataError(f"{root / 'labels.csv'}: {len(goods)} good cells, more than {test_good} expected: fetch it again")
    held = {goods[index] for index in np.random.default_rng(seed).permutation(len(goods))[:test_good]}
    samples = []
    for name, value, _ in rows:
        label = GOOD if value == 0.0 else DEFECT if value >= 0.5 else UNCERTAIN
        subset = "train" if label == GOOD and name not in held else "test"
        samples.append(Sample(name, _existing(root / name), subset, label))
    return samples


def read_elpv_supervised(root: Path, test_share: float, seed: int) -> list[Sample]:
    """Read solar cells with 0.5 and more as defective and the others as good; `test_share` of each label and kind tests."""
    rows = _elpv_rows(root)
    strata: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for name, probability, kind in rows:
        strata[probability >= 0.5, kind].append(name)
    random = np.random.default_rng(seed)
    held: set[str] = set()
    for key in sorted(strata):
        order = random.permutation(len(strata[key]))
        held |= {strata[key][index] for index in order[: round(test_share * len(order))]}
    return [
        Sample(name, _existing(root / name), "test" if name in held else "train", DEFECT if probability >= 0.5 else GOOD)
        for name, probability, _ in rows
    ]


def _elpv_rows(root: Path) -> list[tuple[str, float, str]]:
    lines = _text(root / "labels.csv").splitlines()
    rows = [line.split() for line in lines if line.strip()]
    if not rows or any(len(row) != 3 for row in rows):
        raise DataError(f"{root / 'labels.csv'}: expected three columns, path, probability and kind: fetch it again")
    return [(name, float(probability), kind) for name, probability, kind in rows]


def read_folds(root: Path, fold: int, supervised: bool = False, items: ItemRule | None = None) -> list[Sample]:
    """Read folds.csv (image, label, mask, fold, and if it has them group): fold `fold` is measured on.

    The good parts of the other folds are for learning; `supervised`, the defective ones too, with their masks, but for parts
    of a group that fold `fold` has too. Masks not listed are looked for as ground_truth/<class>/<stem>_mask.png.
    """
    path = root / "folds.csv"
    rows = list(csv.DictReader(_text(path).splitlines()))
    if not rows or not {"image", "label", "fold"} <= set(rows[0]):
        raise DataError(f"{path}: expected the columns image, label, mask and fold")
    try:
        folds = Counter(int(row["fold"]) for row in rows)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: a fold is not a whole number ({error}): mend the list") from error
    if fold not in folds:
        raise DataError(f"{path}: no fold {fold}: choose one of {', '.join(map(str, sorted(folds)))}")
    everything = []
    for row in rows:
        subset = "test" if int(row["fold"]) == fold else "train"
        image, mask = _existing(root / row["image"]), None
        if row.get("mask") and row["label"] != GOOD:
            mask = _existing(root / row["mask"])
        elif "mask" not in row and row["label"] != GOOD:
            beside = root / "ground_truth" / row["label"] / f"{image.stem}_mask.png"
            mask = beside if beside.is_file() else None
        everything.append(Sample(row["image"], image, subset, row["label"], mask, group=row.get("group") or None))
    everything = with_items(everything, items)
    if not supervised:
        return [sample for sample in everything if sample.subset == "test" or sample.label == GOOD]
    if items is not None and items.kind == "exposures":
        # Drawn image by image: nearly every item lies in all folds, and nothing would be left to learn from.
        return everything
    held = {sample.group for sample in everything if sample.subset == "test" and sample.group is not None}
    return [sample for sample in everything if sample.subset == "test" or sample.group not in held]


def read_boxes_layout(root: Path) -> list[Sample]:
    """Read split.csv (image, label, boxes, split) with boxes as Pascal VOC: train learns, test is measured on."""
    path = root / "split.csv"
    rows = list(csv.DictReader(_text(path).splitlines()))
    if not rows or not {"image", "label", "boxes", "split"} <= set(rows[0]):
        raise DataError(f"{path}: expected the columns image, label, boxes and split")
    labels = {row["label"] for row in rows}
    samples = []
    for row in rows:
        if row["split"] not in ("train", "test"):
            raise DataError(f"{path}: {row['image']} is in split {row['split']!r}, expected train or test: mend the list")
        image = _existing(root / row["image"])
        boxes = read_boxes(_existing(root / row["boxes"]), image, row["label"], labels) if row["boxes"] else ()
        samples.append(Sample(row["image"], image, row["split"], row["label"], boxes=boxes))
    return samples


def with_items(samples: Sequence[Sample], rule: ItemRule | None) -> list[Sample]:
    """Return the samples with the item that each shows as its group, where the rule can say."""
    if rule is None:
        return list(samples)
    groups = _by_exposures(samples) if rule.kind == "exposures" else _by_runs(samples, rule)
    return [replace(sample, group=groups.get(sample.name, sample.group)) for sample in samples]


def _by_runs(samples: Sequence[Sample], rule: ItemRule) -> dict[str, str]:
    first = {number: min(alike) for alike in rule.same for number in alike}
    groups, item, left = {}, 0, rule.short.get(0, rule.run)
    for sample in sorted(samples, key=lambda sample: sample.name):
        if left == 0:
            item += 1
            left = rule.short.get(item, rule.run)
        left -= 1
        groups[sample.name] = f"item {first.get(item, item)}"
    return groups


def _by_exposures(samples: Sequence[Sample]) -> dict[str, str]:
    """Return for each name the first photograph of its item: one class, near numbers, rising exposure."""
    found = []
    for sample in samples:
        match = _EXPOSURE.search(sample.name)
        if match is not None:
            found.append((sample.label, int(match["number"]), int(match["step"]), sample.name))
    groups = {}
    label, number, step, item = "", 0, 0, ""
    for one in sorted(found):
        if one[0] != label or one[1] - number > _MAX_PAUSE or one[2] <= step:
            item = f"{one[0]} {one[1]}"
        label, number, step, name = one
        groups[name] = item
    return groups


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}): fetch or place the data set again") from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: is listed but missing: fetch or place the data set again")
    return path
