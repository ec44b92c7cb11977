"""A package and fresh parts → the same package at another operating point.

Rules kept here: the graph's bytes stay as they are; scores come from the line's own inspection; every move is recorded, with
who, when, why, from which parts, and all that stood before it; the package is replaced as a whole or not at all.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import linegate
from linegate.errors import DataError
from linegate.infer import Inspector
from linegate.package import CARD_FILE, MODEL_FILE, ModelPackage, Thresholds, write_package
from linegate.stages import Frame
from linegate_training.calibrate import FALSE_REJECT_RATE, Aim, operating_point
from linegate_training.data.held_out import HeldOut
from linegate_training.data.parts import read_part
from linegate_training.data.seen import CALIBRATION_FILE, with_calibration_rows
from linegate_training.operating_words import section

Floats = NDArray[np.float64]


def earlier_rate(package: ModelPackage) -> float:
    """Return the false-reject rate that the package's threshold was set for, or the default where it says none."""
    rate = package.manifest.thresholds.calibration.get("false_reject_rate")
    return float(rate) if isinstance(rate, int | float) and 0 < rate <= 0.5 else FALSE_REJECT_RATE


def recalibrate(
    package: ModelPackage, parts: HeldOut | None, aim: Aim, out: Path, set_by: str, reason: str | None = None,
    provider: str = "auto", threads: int = 1,
) -> ModelPackage:  # fmt: skip
    """Write `package` to `out` at the operating point that `aim` gives on `parts`, and return it.

    Without parts only a stated threshold can be set.

    Raises:
        DataError: `aim` needs parts that are not there, or the scores tell nothing.
        PackageError: the package cannot run here, or cannot be written.
    """
    earlier = package.manifest.thresholds
    if parts is None:
        scores, peaks, defective = np.empty(0), np.empty(0), np.empty(0, np.bool_)
    else:
        scores, peaks, defective = _measured(package, parts, provider, threads)
    goods, defects = scores[~defective], scores[defective]
    _refuse_missing(aim, goods, defects)
    point = operating_point(goods, defects, peaks[~defective], aim, parts=_told(parts))
    version = earlier.version + 1
    record: dict[str, Any] = {
        **point.calibration,
        "reason": reason,
        "data": None if parts is None else _data(parts),
        "model_sha256": package.manifest.files[MODEL_FILE],
        "software": linegate.__version__,
        "history": _history(earlier),
    }
    thresholds = earlier.model_copy(
        update={
            "version": version, "score": point.score, "undecided_below": point.undecided_below,
            "map": earlier.map if point.map is None else point.map, "set_by": set_by,
            "set_at": datetime.now(UTC).replace(microsecond=0), "calibration": record,
        }
    )  # fmt: skip
    files = dict(package.files)
    if parts is not None:
        rows = [
            (sample.name, parts.digests[sample.name], sample.label, float(score))
            for sample, score in zip(parts.samples, scores, strict=True)
        ]
        files[CALIBRATION_FILE] = with_calibration_rows(package, version, rows)
    files[CARD_FILE] = _card(package, thresholds).encode()
    return write_package(out, package.manifest.model_copy(update={"thresholds": thresholds}), files)


def _measured(package: ModelPackage, parts: HeldOut, provider: str, threads: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return scores, greatest map values and truth (n,) of the parts."""
    inspector = Inspector(package, provider, threads)
    scores, peaks = np.empty(len(parts.samples)), np.empty(len(parts.samples))
    for index, sample in enumerate(tqdm(parts.samples, "scoring", unit="part", disable=None)):
        image, pixel_format = read_part(sample)
        frame = Frame(image, pixel_format, sample.name, "data set", "calibration", index, datetime.now(UTC))
        prediction = inspector.predict(frame)
        scores[index], peaks[index] = prediction.score, float(prediction.anomaly_map.max())
        if not np.isfinite([scores[index], peaks[index]]).all():
            raise DataError(f"{sample.path}: the score or map is not a number: train the package again")
    if len(scores) > 1 and float(np.ptp(scores)) == 0.0:
        said = f"all {len(scores)} parts score {scores[0]:.4g}: the package does not tell them apart"
        raise DataError(f"{parts.name}: {said}, so no threshold can be set from them: train again")
    return scores, peaks, np.array([sample.defective for sample in parts.samples])


def _refuse_missing(aim: Aim, goods: Floats, defects: Floats) -> None:
    needs_goods = aim.false_reject_rate is not None or aim.costs is not None
    needs_defects = aim.escape_rate is not None or aim.costs is not None
    if needs_goods and len(goods) < 2:
        raise DataError(f"{len(goods)} good parts that the package has not seen, at least 2 are needed: add them in good/")
    if needs_defects and len(defects) < 2:
        asked = "an escape rate" if aim.escape_rate is not None else "costs"
        said = f"{asked} cannot be met with {len(defects)} defective parts, at least 2 are needed"
        raise DataError(f"{said}: add them in <defect class>/, or state a false-reject rate alone")


def _told(parts: HeldOut | None) -> str:
    if parts is None:
        return "none"
    told = f"{len(parts.samples)} parts of {parts.name}"
    if not parts.checked:
        return f"{told}; the package does not list what it learned from, so whether these are fresh is unknown"
    return f"{told} that the package has not learned from"


def _data(parts: HeldOut) -> dict[str, Any]:
    return {
        "name": parts.name,
        "digest": parts.digest,
        "images": len(parts.samples),
        "left_out_as_learned": parts.learned,
        "left_out_as_repeated": parts.repeated,
        "test_parts": parts.tests,
        "checked_against_training": parts.checked,
    }


def _history(earlier: Thresholds) -> list[dict[str, Any]]:
    """Return all thresholds before this one, the oldest first, each without a history of its own."""
    calibration = dict(earlier.calibration)
    before = calibration.pop("history", [])
    return [*before, {**earlier.model_dump(mode="json"), "calibration": calibration}]


def _card(package: ModelPackage, thresholds: Thresholds) -> str:
    """Return the card with its operating point told anew, at its end where it had none."""
    card = package.files[CARD_FILE].decode("utf-8", "replace")
    measured = package.manifest.metrics.get("test") or {}
    heading = "## Operating point"
    text = f"{heading}\n\n{section(thresholds, measured.get('threshold'))}\n"
    pattern = re.compile(rf"^{heading}[ \t]*\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    found = pattern.search(card)
    if found is None:
        return f"{card.rstrip()}\n\n{text}"
    after = card[found.end() :]
    return card[: found.start()] + text + (f"\n{after}" if after else "")
