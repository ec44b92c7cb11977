"""Which images a package has seen, by their bytes: learned from (`split.csv`), calibrated on (`calibration.csv`).

Rules kept here: an image is known by its SHA-256 and by nothing else, so a copy that was saved anew is not found; a package
that does not say what it learned from is told apart from one that learned from nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from typing import Final

from linegate.package import SPLIT_FILE, ModelPackage

CALIBRATION_FILE: Final = "calibration.csv"
"""Every part that a threshold was ever set from after training: version of the thresholds, name, sha256, label, score."""
_CALIBRATION_HEADER: Final = "version,name,sha256,label,score"
_UNLEARNED: Final = ("calibration", "test")


def learned_digests(package: ModelPackage) -> set[str] | None:
    """Return the digests of images that the model itself learned from; None where the package does not say."""
    if SPLIT_FILE not in package.files:
        return None
    return {row["sha256"] for row in _rows(package, SPLIT_FILE) if row.get("subset") not in _UNLEARNED}


def digests_of_subset(package: ModelPackage, subsets: Collection[str]) -> set[str]:
    """Return the digests that `split.csv` lists under one of `subsets`; none where there is no such file."""
    return {row["sha256"] for row in _rows(package, SPLIT_FILE) if row.get("subset") in subsets}


def recalibrated_digests(package: ModelPackage) -> set[str]:
    """Return the digests of images that a threshold was set from after training."""
    return {row["sha256"] for row in _rows(package, CALIBRATION_FILE)}


def with_calibration_rows(package: ModelPackage, version: int, rows: Collection[tuple[str, str, str, float]]) -> bytes:
    """Return `calibration.csv` with the rows (name, sha256, label, score) of one more move of the threshold."""
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\n")
    writer.writerows((version, name, digest, label, f"{score:.9g}") for name, digest, label, score in rows)
    before = package.files.get(CALIBRATION_FILE, f"{_CALIBRATION_HEADER}\n".encode())
    return before + target.getvalue().encode()


def _rows(package: ModelPackage, name: str) -> Iterator[dict[str, str]]:
    text = package.files.get(name, b"").decode("utf-8", "replace")
    return (row for row in csv.DictReader(io.StringIO(text, newline="")) if row.get("sha256"))
