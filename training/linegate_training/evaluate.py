"""A package and a data set → what it says of every test part, and its numbers, through the line's own inspection.

Rules kept here: every score and map comes from `linegate.infer.Inspector` and every decision from `linegate.decide`, as on
the line; images are read one at a time, and of a part no more is kept than the map as the model gave it; parts of
uncertain truth are not counted; an image that the package learned from is told, byte for byte alone.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from linegate.decide import Recipe, decide
from linegate.errors import DataError
from linegate.infer import Inspector
from linegate.package import ModelPackage
from linegate.stages import Decision, Frame, Prediction, Region
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
from linegate_training.data.seen import digests_of_subset, learned_digests, recalibrated_digests

VIEW = "test"
DETECTION_FLOOR = 0.02
"""Detections under it are not measured: they change precision at recalls that no line uses."""


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredPart:
    """What a package says of one test part, at its own thresholds.

    `anomaly_map` is float16 (h, w) over `roi_xyxy` of a frame of `frame_size_wh`, as fine as the model gives it.
    `defect_px` is the area of the largest region of the true mask, in pixels of the image; None without a mask.
    `ms` is the whole of the line's `predict`, `durations_ms` its steps. `regions` are what the line would
    say; `all_regions` hold detections from `DETECTION_FLOOR` on, for precision is measured over all recalls.
    """

    sample: Sample
    score: float
    decision: Decision
    class_scores: Mapping[str, float] | None
    regions: tuple[Region, ...]
    all_regions: tuple[Region, ...]
    anomaly_map: NDArray[np.float16]
    roi_xyxy: tuple[int, int, int, int]
    frame_size_wh: tuple[int, int]
    defect_px: int | None
    ms: float
    durations_ms: Mapping[str, float]

    @property
    def predicted(self) -> str | None:
        """The defect class of the highest class score; None where the model names no classes."""
        return max(self.class_scores, key=self.class_scores.__getitem__) if self.class_scores else None


@dataclass(frozen=True, slots=True)
class PixelNumbers:
    """How well maps point at defects; all None where not every defective test part has a mask.

    `auroc` and `aupro` are over all test parts, `auroc_defective` over the defective ones alone, where a map must point at
    the defect and not merely be quiet on good parts. `iou` is that of the pixels at or over the map threshold with the true
    ones, pooled over all test parts; `iou_mean` the mean over defective parts.
    """

    auroc: float | None = None
    auroc_defective: float | None = None
    aupro: float | None = None
    iou: float | None = None
    iou_mean: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A package measured on the test parts of a data set; `seen` counts parts that it learned from, None if untold.

    `parity_difference` is the greatest difference of score when the package's own frames were replayed here.
    """

    package: ModelPackage
    data_set: str
    parts: tuple[MeasuredPart, ...]
    pixels: PixelNumbers
    seen: int | None
    provider: str
    threads: int
    parity_difference: float
    measured_at: datetime

    @property
    def scores(self) -> NDArray[np.float64]:
        """Scores (n,) of the parts."""
        return np.array([part.score for part in self.parts])

    @property
    def defective(self) -> NDArray[np.bool_]:
        """Truth (n,) of the parts."""
        return np.array([part.sample.defective for part in self.parts])

    def decided(self, decision: Decision) -> NDArray[np.bool_]:
        """Say (n,) of which parts the package decided so."""
        return np.array([part.decision is decision for part in self.parts])


def evaluate(
    package: ModelPackage, parts: PartSet, provider: str = "auto", threads: int = 1, checked: bool = False
) -> dict[str, Any]:
    """Return the metrics of `package` on the test parts of `parts`, as `summarise` does, and raise what `measure` raises."""
    return summarise(measure(package, parts, provider, threads, checked))


def measure(package: ModelPackage, parts: PartSet, provider: str = "auto", threads: int = 1, checked: bool = False) -> Measured:
    """Run `package` over the test parts of `parts`.

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
    seen = seen_in_training(package, samples)
    if seen:
        said = f"{len(seen)} of {len(samples)} test images are among those the package learned from, the first {seen[0].path}"
        print(f"note: {parts.name}: {said}; the numbers flatter: measure on other parts", file=sys.stderr)
    inspector = Inspector(_with_all_detections(package), provider, threads)
    recipe = Recipe(package.manifest.name, {VIEW: inspector.view_recipe})
    overlap = _Overlap(package.manifest.thresholds.map)
    least = package.manifest.thresholds.detection if package.manifest.outputs.detections is not None else -np.inf
    measured: list[MeasuredPart] = []
    for index, sample in enumerate(tqdm(samples, "measuring", unit="part", disable=None)):
        frame = frame_of(sample, index)
        started = time.perf_counter()
        prediction = inspector.predict(frame)
        ms = (time.perf_counter() - started) * 1e3
        if not np.isfinite(prediction.score):
            raise DataError(f"{sample.path}: the score is not a number: train again")
        mask = read_mask(sample, prediction.frame_size_wh) if sample.mask is not None else None
        if parts.has_masks:
            overlap.add(prediction, mask)
        measured.append(
            MeasuredPart(
                sample, prediction.score, decide([prediction], recipe).decision, prediction.class_scores,
                tuple(region for region in prediction.regions if region.score >= least), prediction.regions,
                _compact(prediction.anomaly_map), prediction.roi_xyxy, prediction.frame_size_wh,
                None if mask is None else _largest_region(mask), ms, prediction.durations_ms,
            )
        )  # fmt: skip
    pixels = _pixel_numbers(measured, overlap) if parts.has_masks else PixelNumbers()
    return Measured(
        package, parts.name, tuple(measured), pixels, None if seen is None else len(seen), inspector.provider, threads,
        inspector.parity_difference, datetime.now(UTC),
    )  # fmt: skip


def summarise(measured: Measured) -> dict[str, Any]:
    """Return the metrics of what was measured, fit for JSON; undefined ones are None."""
    scores, defective = measured.scores, measured.defective
    goods, defects = int((~defective).sum()), int(defective.sum())
    # The line's rule: at the threshold a part fails, and only under the undecided band does it pass.
    failed, passed = measured.decided(Decision.FAIL), measured.decided(Decision.PASS)
    false_rejects, escapes = int((failed & ~defective).sum()), int((passed & defective).sum())
    auroc = metrics.image_auroc(scores, defective)
    counts = decisions_by_class(measured)
    by_class = {label: one for label, one in counts.items() if label != "good"}
    package, pixels = measured.package, measured.pixels
    precisions = box_precisions(measured)
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
        "threshold": package.manifest.thresholds.score,
        "good": goods,
        "defective": defects,
        "false_rejects": false_rejects,
        "escapes": escapes,
        "escapes_by_class": {label: f"{one['pass']} of {sum(one.values())}" for label, one in by_class.items()},
        "decisions_by_class": counts,
        "class_accuracy": class_accuracy(measured),
        "map50": float(np.mean(list(precisions.values()))) if precisions else None,
        "ap50_by_class": precisions,
        "seen_in_training": measured.seen,
        "pixel_auroc": pixels.auroc,
        "pixel_auroc_defective": pixels.auroc_defective,
        "aupro": pixels.aupro,
        "pixel_iou": pixels.iou,
        "pixel_iou_mean": pixels.iou_mean,
        "ms_per_image": float(np.median([part.ms for part in measured.parts])),
        "provider": measured.provider,
        "threads": measured.threads,
        "data_set": measured.data_set,
        "package": package.manifest.name,
        "package_version": package.manifest.version,
        "model_sha256": package.manifest.files["model.onnx"],
    }


def decisions_by_class(measured: Measured) -> dict[str, dict[str, int]]:
    """Return how many parts of each true class pass, are undecided and fail; good first, then by name."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"pass": 0, "undecided": 0, "fail": 0})
    for part in measured.parts:
        counts[part.sample.label][part.decision.value] += 1
    return {label: counts[label] for label in sorted(counts, key=lambda label: (label != "good", label))}


def is_typed(measured: Measured) -> bool:
    """Say whether the package tells defect classes apart, and did so here."""
    typed = len(measured.package.manifest.labels) > 2
    return typed and any(part.predicted is not None for part in measured.parts)


def class_accuracy(measured: Measured) -> float | None:
    """Share of defective parts whose class has the highest class score; a class that the package lacks counts as wrong.

    None for a package that names no classes, or without defective parts.
    """
    judged = [part.predicted == part.sample.label for part in measured.parts if part.sample.defective]
    return float(np.mean(judged)) if judged and is_typed(measured) else None


def box_precisions(measured: Measured) -> dict[str, float]:
    """Return the average precision at IoU 0.5 by class; none without true boxes of a class that the package names."""
    named = set(measured.package.manifest.labels[1:])
    truths = [[box for box in part.sample.boxes if box.label in named] for part in measured.parts]
    return metrics.average_precisions([part.all_regions for part in measured.parts], truths)


def _with_all_detections(package: ModelPackage) -> ModelPackage:
    thresholds = package.manifest.thresholds
    lowered = thresholds.model_copy(update={"detection": min(DETECTION_FLOOR, thresholds.detection)})
    return replace(package, manifest=package.manifest.model_copy(update={"thresholds": lowered}))


def seen_in_training(package: ModelPackage, samples: Sequence[Sample]) -> list[Sample] | None:
    """Return the samples whose bytes the package learned from or was calibrated on; None where it does not say."""
    learned = learned_digests(package)
    known = (learned or set()) | digests_of_subset(package, ("calibration",)) | recalibrated_digests(package)
    seen = [sample for sample in samples if sha256_of(sample.path) in known]
    return seen if seen or learned is not None else None


def frame_of(sample: Sample, index: int) -> Frame:
    """Return a sample as the frame that the line would judge."""
    image, pixel_format = read_part(sample)
    return Frame(image, pixel_format, sample.name, "data set", VIEW, index, datetime.now(UTC))


def _compact(anomaly_map: NDArray[np.float32]) -> NDArray[np.float16]:
    limit = float(np.finfo(np.float16).max)
    return np.clip(anomaly_map, -limit, limit).astype(np.float16)


def _largest_region(mask: NDArray[np.bool_]) -> int | None:
    return int(np.bincount(label_regions(mask).ravel())[1:].max()) if mask.any() else None


def _drawn(
    anomaly_map: NDArray[np.float32], roi_xyxy: tuple[int, int, int, int], size_wh: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the map drawn over its region of interest in a frame (H, W) of its lowest value."""
    left, top, right, bottom = roi_xyxy
    drawn: Any = cv2.resize(anomaly_map, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    if drawn.shape == (size_wh[1], size_wh[0]):
        return np.asarray(drawn, np.float32)
    frame = np.full((size_wh[1], size_wh[0]), float(anomaly_map.min()), np.float32)
    frame[top:bottom, left:right] = drawn
    return frame


class _Overlap:
    """Counts predicted and true defect pixels, part by part."""

    def __init__(self, map_threshold: float) -> None:
        self._threshold = map_threshold
        self._shared = 0
        self._either = 0
        self._parts: list[float] = []

    def add(self, prediction: Prediction, mask: NDArray[np.bool_] | None) -> None:
        """Add a part; without a mask no pixel of it is defective."""
        left, top, right, bottom = prediction.roi_xyxy
        width, height = prediction.frame_size_wh
        predicted = np.zeros((height, width), bool)
        size = right - left, bottom - top
        predicted[top:bottom, left:right] = (
            cv2.resize(prediction.anomaly_map, size, interpolation=cv2.INTER_LINEAR) >= self._threshold
        )
        shared = 0 if mask is None else int((predicted & mask).sum())
        either = int(predicted.sum()) if mask is None else int((predicted | mask).sum())
        self._shared += shared
        self._either += either
        if mask is not None and mask.any():
            self._parts.append(shared / either)

    def pooled(self) -> float | None:
        return self._shared / self._either if self._either else None

    def mean(self) -> float | None:
        return float(np.mean(self._parts)) if self._parts else None


def _pixel_numbers(parts: Sequence[MeasuredPart], overlap: _Overlap) -> PixelNumbers:
    """Return the numbers over all pixels of all test parts, maps drawn up to the images' size."""
    low = min(float(part.anomaly_map.min()) for part in parts)
    high = max(float(part.anomaly_map.max()) for part in parts)
    everything, defective = metrics.PixelCurve(low, high), metrics.PixelCurve(low, high)
    for part in tqdm(parts, "masks", unit="part", disable=None):
        drawn = _drawn(part.anomaly_map.astype(np.float32), part.roi_xyxy, part.frame_size_wh)
        masked = part.sample.mask is not None
        regions = label_regions(read_mask(part.sample, part.frame_size_wh)) if masked else None
        everything.add(drawn, regions)
        if regions is not None:
            defective.add(drawn, regions)
    return PixelNumbers(everything.auroc(), defective.auroc(), everything.aupro(), overlap.pooled(), overlap.mean())
