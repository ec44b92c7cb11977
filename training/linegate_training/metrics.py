"""Scores, maps and truth → the numbers by which inspection is judged.

Rules kept here: undefined is None, never 0 or 1; a rate comes with its 95 % interval; nothing grows with the number of
pixels but a histogram.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, roc_auc_score

from linegate.stages import Region
from linegate_training.data.parts import Box

BINS = 1 << 16
SURE_ERRORS = 2.0
"""Standard errors by which a threshold of the map must be better than even odds to be taken."""
AUPRO_LIMIT = 0.3
"""AUPRO integrates the per-region overlap up to this false-positive rate, as MVTec AD defines it."""


def image_auroc(scores: NDArray[np.float64], defective: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve; None where one of the two classes is absent."""
    return float(roc_auc_score(defective, scores)) if 0 < defective.sum() < len(defective) else None


def image_ap(scores: NDArray[np.float64], defective: NDArray[np.bool_]) -> float | None:
    """Average precision with defective as the positive class; None where one of the two classes is absent."""
    return float(average_precision_score(defective, scores)) if 0 < defective.sum() < len(defective) else None


def clopper_pearson(events: int, trials: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Exact binomial interval (Clopper and Pearson, 1934) of a rate; None without trials."""
    if trials == 0:
        return None
    low, high = _binomial_bounds(np.array([events]), trials, confidence)
    return float(low[0]), float(high[0])


def _binomial_bounds(
    events: NDArray[np.int64], trials: int, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    tail = (1.0 - confidence) / 2.0
    low = np.where(events == 0, 0.0, stats.beta.ppf(tail, np.maximum(events, 1), trials - events + 1))
    high = np.where(events == trials, 1.0, stats.beta.ppf(1.0 - tail, events + 1, np.maximum(trials - events, 1)))
    return low, high


def auroc_interval(auroc: float | None, defects: int, goods: int) -> tuple[float, float] | None:
    """95 % score interval of an AUROC: the true values from which the seen one lies within 1.96 standard deviations.

    The deviation is that of the true value, not of the seen one, so that an AUROC of 1 has a width too. Newcombe,
    "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2", Statistics in Medicine
    25, 2006, method 5: Hanley and McNeil's variance (1982), with the mean of the two counts in place of each.
    """
    if auroc is None:
        return None
    limit = float(stats.norm.ppf(0.975))
    others = (defects + goods) / 2.0 - 1.0

    def excess(true: float) -> float:
        pairs = 1.0 + others * ((1.0 - true) / (2.0 - true) + true / (1.0 + true))
        return (auroc - true) ** 2 - limit**2 * true * (1.0 - true) * pairs / (defects * goods)

    # The seen value itself is inside; at 0 and 1, where the variance ends, a step away from it is.
    step = 1e-12
    low = 0.0 if auroc <= step else float(brentq(excess, 0.0, min(auroc, 1.0 - step)))
    high = 1.0 if auroc >= 1.0 - step else float(brentq(excess, max(auroc, step), 1.0))
    return low, high


def false_reject_rate_at_zero_escapes(scores: NDArray[np.float64], defective: NDArray[np.bool_]) -> float | None:
    """Share of good parts that fail when the threshold is lowered until every defect here fails."""
    if not 0 < defective.sum() < len(defective):
        return None
    return float((scores[~defective] >= scores[defective].min()).mean())


@dataclass(frozen=True, slots=True, eq=False)
class OperatingCurve:
    """What every threshold would do, from the highest down: shares of good and of defective parts that fail (T,).

    `good_low` … `defect_high` bound the two true shares: at each threshold the rectangle of both holds them together with
    95 % confidence, for each side is an exact interval of confidence √0.95 (the two samples are independent: Pepe, "The
    Statistical Evaluation of Medical Tests for Classification and Prediction", 2003). It has a width where no part errs too,
    which resampling would not give it.
    """

    thresholds: NDArray[np.float64]
    good: NDArray[np.float64]
    defect: NDArray[np.float64]
    good_low: NDArray[np.float64]
    good_high: NDArray[np.float64]
    defect_low: NDArray[np.float64]
    defect_high: NDArray[np.float64]
    prevalence: float

    def precision(self, good: NDArray[np.float64], defect: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of defective parts among those that fail, at the share of defective parts in the test set.

        Where nothing fails it is 1, as average precision has it.
        """
        hits, alarms = defect * self.prevalence, good * (1.0 - self.prevalence)
        failing = hits + alarms
        return np.where(failing > 0, hits / np.where(failing > 0, failing, 1.0), 1.0)


def operating_curve(scores: NDArray[np.float64], defective: NDArray[np.bool_]) -> OperatingCurve | None:
    """Return the curve behind ROC and precision-recall; None where one of the two classes is absent."""
    defects, goods = int(defective.sum()), int((~defective).sum())
    if defects == 0 or goods == 0:
        return None
    thresholds, places = np.unique(-scores, return_inverse=True)
    failing_goods = np.concatenate([[0], np.cumsum(np.bincount(places[~defective], minlength=len(thresholds)))])
    failing_defects = np.concatenate([[0], np.cumsum(np.bincount(places[defective], minlength=len(thresholds)))])
    joint = float(np.sqrt(0.95))
    good_low, good_high = _binomial_bounds(failing_goods, goods, joint)
    defect_low, defect_high = _binomial_bounds(failing_defects, defects, joint)
    return OperatingCurve(
        np.concatenate([[np.inf], -thresholds]), failing_goods / goods, failing_defects / defects,
        good_low, good_high, defect_low, defect_high, defects / (defects + goods),
    )  # fmt: skip


def box_iou(one: tuple[int, int, int, int], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of a box with others (n, 4), all xyxy with right and bottom exclusive."""
    sides = np.minimum(others[:, 2:], one[2:]) - np.maximum(others[:, :2], one[:2])
    shared = np.prod(np.clip(sides, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + (one[2] - one[0]) * (one[3] - one[1])
    return np.asarray(shared / np.maximum(areas - shared, 1e-12), np.float64)


def average_precisions(
    detections: Sequence[Sequence[Region]], truths: Sequence[Sequence[Box]], min_iou: float = 0.5
) -> dict[str, float]:
    """Return the average precision of boxes by class, of the classes that `truths` has; one entry for each image.

    The best scored detection comes first and takes the free true box that it overlaps most, by `min_iou` at least (COCO's
    matching); precision is made to fall with recall and integrated over all its steps (Everingham et al., "The PASCAL
    Visual Object Classes Challenge", 2010 and later).
    """
    classes = sorted({box.label for boxes in truths for box in boxes})
    return {label: _average_precision(detections, truths, label, min_iou) for label in classes}


def best_detection_threshold(
    detections: Sequence[Sequence[Region]], truths: Sequence[Sequence[Box]], min_iou: float = 0.5
) -> float | None:
    """Return the score from which on boxes of all classes together have the best F1; None where none is right."""
    labels = {box.label for boxes in truths for box in boxes} | {region.label for regions in detections for region in regions}
    found = [_matched(detections, truths, label, min_iou) for label in sorted(labels)]
    if not found:
        return None
    scores, hits = np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])
    if not hits.any():
        return None
    order = np.argsort(-scores, kind="stable")
    # Twice the hits over all that is said and all that is wanted.
    f1 = 2 * np.cumsum(hits[order]) / (np.arange(1, len(hits) + 1) + sum(one[2] for one in found))
    return float(scores[order][int(f1.argmax())])


def map_threshold(thresholds: Sequence[float], shared: NDArray[np.int64], either: NDArray[np.int64]) -> float:
    """Return the logit from which on a pixel is said to be defective: even odds, unless the parts ask for another one.

    `shared` and `either` (P, T) count, part by part and threshold by threshold, the pixels that map and mask share, and those
    of either; `thresholds` hold 0. The best of all pixels together replaces 0 where it wins by two standard errors of the
    difference at least (jackknife over the parts: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11):
    a few large defects make up most pixels, and what is best for them alone is chance.
    """
    neutral = list(thresholds).index(0.0)
    if len(shared) < 2:
        return 0.0
    whole = _ratio(shared.sum(0), either.sum(0))
    best = int(whole.argmax())
    without = _ratio(shared.sum(0) - shared, either.sum(0) - either)
    gains = without[:, best] - without[:, neutral]
    error = np.sqrt((len(gains) - 1) * gains.var())
    return float(thresholds[best]) if whole[best] - whole[neutral] > SURE_ERRORS * error else 0.0


def _ratio(shared: NDArray[np.int64], either: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(shared / np.maximum(1, either), np.float64)


def _average_precision(
    detections: Sequence[Sequence[Region]], truths: Sequence[Sequence[Box]], label: str, min_iou: float
) -> float:
    _, hits, wanted = _matched(detections, truths, label, min_iou)
    recall = np.cumsum(hits) / wanted
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * best_from_here).sum())


def _matched(
    detections: Sequence[Sequence[Region]], truths: Sequence[Sequence[Box]], label: str, min_iou: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """Return scores (n,) of a class's detections, the highest first, which of them are right (n,), and how many are wanted."""
    wanted = [np.array([box.xyxy for box in boxes if box.label == label], np.float64).reshape(-1, 4) for boxes in truths]
    free = [np.ones(len(boxes), bool) for boxes in wanted]
    found = [(region, image) for image, regions in enumerate(detections) for region in regions if region.label == label]
    found.sort(key=lambda pair: -pair[0].score)
    hits = np.zeros(len(found), bool)
    for rank, (region, image) in enumerate(found):
        overlaps = np.where(free[image], box_iou(region.box_xyxy, wanted[image]), -1.0)
        if len(overlaps) and overlaps.max() >= min_iou:
            hits[rank] = True
            free[image][int(overlaps.argmax())] = False
    scores = np.array([region.score for region, _ in found], np.float64)
    return scores, hits, sum(map(len, wanted))


class PixelCurve:
    """Pixel AUROC and AUPRO from histograms: maps go in one by one, none is kept.

    `low` and `high` bound the map values; 65,536 bins lie evenly between them, and values in one bin count as ties.
    """

    def __init__(self, low: float, high: float) -> None:
        self._low = low
        self._rate = (BINS - 1) / max(high - low, 1e-12)
        self._good = np.zeros(BINS, np.int64)
        self._defect = np.zeros(BINS, np.int64)
        self._overlap = np.zeros(BINS, np.float64)
        self._regions = 0

    def add(self, anomaly_map: NDArray[np.float32], regions: NDArray[np.int32] | None) -> None:
        """Add a map (H, W) and its defect regions, labelled 1, 2, … on 0 (H, W), or None where the part is good."""
        bins = np.clip((anomaly_map - self._low) * self._rate, 0, BINS - 1).astype(np.int32).ravel()
        if regions is None:
            self._good += np.bincount(bins, minlength=BINS)
            return
        labels = regions.ravel()
        inside = labels > 0
        self._good += np.bincount(bins[~inside], minlength=BINS)
        self._defect += np.bincount(bins[inside], minlength=BINS)
        areas = np.bincount(labels)
        # Each region counts once, whatever its area.
        self._overlap += np.bincount(bins[inside], weights=1.0 / areas[labels[inside]], minlength=BINS)
        self._regions += int((areas[1:] > 0).sum())

    def auroc(self) -> float | None:
        """Area under the pixel ROC curve; None where no pixel is defective or none is good."""
        goods, defects = int(self._good.sum()), int(self._defect.sum())
        if goods == 0 or defects == 0:
            return None
        below = np.cumsum(self._good) - self._good
        wins = float((self._defect * (below + 0.5 * self._good)).sum())
        return wins / goods / defects

    def aupro(self, limit: float = AUPRO_LIMIT) -> float | None:
        """Area under the per-region overlap against false-positive rate up to `limit`, divided by `limit`.

        Bergmann et al., "The MVTec Anomaly Detection Dataset", 2021; None without regions.
        """
        goods = int(self._good.sum())
        if goods == 0 or self._regions == 0:
            return None
        rates = np.concatenate([[0.0], np.cumsum(self._good[::-1]) / goods])
        overlaps = np.concatenate([[0.0], np.cumsum(self._overlap[::-1]) / self._regions])
        last = float(np.interp(limit, rates, overlaps))
        kept = rates < limit
        return float(np.trapezoid(np.append(overlaps[kept], last), np.append(rates[kept], limit)) / limit)
