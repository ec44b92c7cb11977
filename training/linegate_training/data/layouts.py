"""Layouts of known data sets other than MVTec AD's.

Rules kept here: a split is fixed by the manifest's words and a seed, never by chance or by the order of a folder.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from linegate.errors import DataError
from linegate_training.data.parts import GOOD, UNCERTAIN, Sample

DEFECT = "defect"


def read_elpv(root: Path, test_good: int, seed: int) -> list[Sample]:
    """Read solar cells: labels.csv (path, probability of a defect, kind of cell) beside images/.

    0 is good, 0.5 and more defective, and 0.333 uncertain. All defective and `test_good` good cells, drawn with `seed`,
    are for measuring.
    """
    lines = _text(root / "labels.csv").splitlines()
    rows = [line.split() for line in lines if line.strip()]
    if not rows or any(len(row) != 3 for row in rows):
        raise DataError(f"{root / 'labels.csv'}: expected three columns, path, probability and kind: fetch it again")
    goods = [row[0] for row in rows if float(row[1]) == 0.0]
    if len(goods) <= test_good:
        raise DataError(f"{root / 'labels.csv'}: {len(goods)} good cells, more than {test_good} expected: fetch it again")
    held = {goods[index] for index in np.random.default_rng(seed).permutation(len(goods))[:test_good]}
    samples = []
    for name, probability, _ in rows:
        value = float(probability)
        label = GOOD if value == 0.0 else DEFECT if value >= 0.5 else UNCERTAIN
        subset = "train" if label == GOOD and name not in held else "test"
        samples.append(Sample(name, _existing(root / name), subset, label))
    return samples


def read_folds(root: Path, fold: int) -> list[Sample]:
    """Read folds.csv (image, label, mask, fold): good parts of the other folds to learn from, fold `fold` to measure on.

    Defective parts of the other folds are left out: good-only training has no use for them.
    """
    rows = list(csv.DictReader(_text(root / "folds.csv").splitlines()))
    if not rows or not {"image", "label", "fold"} <= set(rows[0]):
        raise DataError(f"{root / 'folds.csv'}: expected the columns image, label, mask and fold")
    folds = Counter(int(row["fold"]) for row in rows)
    if fold not in folds:
        raise DataError(f"{root / 'folds.csv'}: no fold {fold}: choose one of {', '.join(map(str, sorted(folds)))}")
    samples = []
    for row in rows:
        held = int(row["fold"]) == fold
        if held or row["label"] == GOOD:
            mask = root / row["mask"] if held and row.get("mask") and row["label"] != GOOD else None
            path = _existing(root / row["image"])
            samples.append(Sample(row["image"], path, "test" if held else "train", row["label"], mask and _existing(mask)))
    return samples


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}): fetch or place the data set again") from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: is listed but missing: fetch or place the data set again")
    return path
