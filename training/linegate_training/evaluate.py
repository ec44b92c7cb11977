"""A package and a data set → its numbers, through the line's own inspection.

Rules kept here: every score and map comes from `linegate.infer.Inspector`, as on the line; images are read one at a
time; parts of uncertain truth are not counted; an image that the package learned from is told, byte for byte alone.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from linegate.errors import DataError
from linegate.infer import Inspector
from linegate.package import SPLIT_FILE, ModelPackage
from linegate.stages import Frame
from linegate_training import metrics
from linegate_training.data.parts import (
    PartSet,
    Sample,
    check_masks,
    check_sizes,
    label_regions,
    read_mask,
    read_part,
    sha256_of,
)


def evaluate(
    package: ModelPackage, parts: PartSet, provider: str = "auto", threads: int = 1, checked: bool = False
) -> dict[str, Any]:
    """Return the metrics of `package` on the test parts of `parts`; undefined ones are None.

    `checked` says that sizes and masks have been looked at already.

    Raises:
        DataError: there are no test parts, or an image or mask is wrong.
    """
    samples = parts.tests()
    if not samples:
        raise DataError(f"{parts.name}: no test images: put parts to measure on in test/good and test/<defect class>")
    if not checked:
        check_sizes(samples, parts.name)
        check_masks(samples, parts.name)
    seen = _seen_in_training(package, samples)
    if seen:
        said = f"{len(seen)} of {len(samples)} test images are among those the package learned from, the first {seen[0].path}"
        print(f"note: {parts.name}: {said}; the numbers flatter: measure on other parts", file=sys.stderr)
    inspector = Inspector(package, provider, threads)
    scores = np.empty(len(samples))
    durations = np.empty(len(samples))
    maps: list[NDArray[np.float32]] = []
    for index, sample in enumerate(tqdm(samples, "measuring", unit="part", disable=None)):
        frame = _frame(sample, index)
        started = time.perf_counter()
        prediction = inspector.predict(frame)
        durations[index] = (time.perf_counter() - started) * 1e3
        scores[index] = prediction.score
        if parts.has_masks:
            maps.append(_whole_frame(prediction.anomaly_map, prediction.roi_xyxy, prediction.frame_size_wh))
    if not np.isfinite(scores).all():
        raise DataError(f"{samples[int(np.argmin(np.isfinite(scores)))].path}: the score is not a number: train again")
    pixel_auroc, aupro = _pixel_metrics(samples, maps) if parts.has_masks else (None, None)
    return {
        **_image_metrics(samples, scores, package),
        "seen_in_training": None if seen is None else len(seen),
        "pixel_auroc": pixel_auroc,
        "aupro": aupro,
        "ms_per_image": float(np.median(durations)),
        "provider": inspector.provider,
        "threads": threads,
        "data_set": parts.name,
        "package": package.manifest.name,
        "package_version": package.manifest.version,
        "model_sha256": package.manifest.files["model.onnx"],
    }


def _seen_in_training(package: ModelPackage, samples: Sequence[Sample]) -> list[Sample] | None:
    """Return the samples whose bytes the package learned from or was calibrated on; None where it does not say."""
    listed = package.files.get(SPLIT_FILE)
    if listed is None:
        return None
    rows = csv.DictReader(io.StringIO(listed.decode("utf-8", "replace"), newline=""))
    known = {row.get("sha256") for row in rows if row.get("subset") in ("train", "calibration")}
    return [sample for sample in samples if sha256_of(sample.path) in known]


def _frame(sample: Sample, index: int) -> Frame:
    image, pixel_format = read_part(sample)
    return Frame(image, pixel_format, sample.name, "data set", "test", index, datetime.now(UTC))


def _image_metrics(samples: Sequence[Sample], scores: NDArray[np.float64], package: ModelPackage) -> dict[str, Any]:
    defective = np.array([sample.defective for sample in samples])
    goods, defects = int((~defective).sum()), int(defective.sum())
    thresholds = package.manifest.thresholds
    # The line's rule: at the threshold a part fails, and only under the undecided band does it pass.
    failed = scores >= thresholds.score
    passed = scores < thresholds.score - thresholds.undecided_below
    false_rejects, escapes = int((failed & ~defective).sum()), int((passed & defective).sum())
    auroc = metrics.image_auroc(scores, defective)
    by_class: dict[str, list[bool]] = defaultdict(list)
    for sample, let_pass in zip(samples, passed, strict=True):
        if sample.defective:
            by_class[sample.label].append(bool(let_pass))
    return {
        "image_auroc": auroc,
        "image_auroc_ci95": metrics.auroc_interval(auroc, defects, goods),
        "image_ap": metrics.image_ap(scores, defective),
        "false_reject_rate": false_rejects / goods if goods else None,
        "false_reject_rate_ci95": metrics.clopper_pearson(false_rejects, goods),
        "escape_rate": escapes / defects if defects else None,
        "escape_rate_ci95": metrics.clopper_pearson(escapes, defects),
        "false_reject_rate_at_zero_escapes": metrics.false_reject_rate_at_zero_escapes(scores, defective),
        "accuracy": float((failed == defective).mean()),
        "undecided_rate": float((~failed & ~passed).mean()),
        "threshold": thresholds.score,
        "good": goods,
        "defective": defects,
        "false_rejects": false_rejects,
        "escapes": escapes,
        "escapes_by_class": {label: f"{sum(values)} of {len(values)}" for label, values in sorted(by_class.items())},
    }


def _whole_frame(
    anomaly_map: NDArray[np.float32], roi_xyxy: tuple[int, int, int, int], size_wh: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the map as it is where it covers the frame, else laid into a frame of its lowest value."""
    left, top, right, bottom = roi_xyxy
    if (left, top, right, bottom) == (0, 0, *size_wh):
        return anomaly_map
    frame = np.full((size_wh[1], size_wh[0]), float(anomaly_map.min()), np.float32)
    frame[top:bottom, left:right] = cv2.resize(anomaly_map, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    return frame


def _pixel_metrics(samples: Sequence[Sample], maps: Sequence[NDArray[np.float32]]) -> tuple[float | None, float | None]:
    """Return pixel AUROC and AUPRO over all pixels of all test parts, maps drawn up to the images' size."""
    curve = metrics.PixelCurve(min(float(one.min()) for one in maps), max(float(one.max()) for one in maps))
    pairs = zip(samples, maps, strict=True)
    for sample, anomaly_map in tqdm(pairs, "masks", total=len(samples), unit="part", disable=None):
        height, width = read_part(sample)[0].shape[:2]
        drawn = cv2.resize(anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)
        regions = label_regions(read_mask(sample, (width, height))) if sample.mask is not None else None
        curve.add(drawn.astype(np.float32, copy=False), regions)
    return curve.auroc(), curve.aupro()
