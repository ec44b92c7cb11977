"""Scores, maps and truth → the numbers by which inspection is judged.

Rules kept here: undefined is None, never 0 or 1; a rate comes with its 95 % interval; nothing grows with the number of
pixels but a histogram.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, roc_auc_score

BINS = 1 << 16
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
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if events == 0 else float(stats.beta.ppf(tail, events, trials - events + 1))
    high = 1.0 if events == trials else float(stats.beta.ppf(1.0 - tail, events + 1, trials - events))
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
