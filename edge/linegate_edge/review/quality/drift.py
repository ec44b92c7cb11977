"""Whether scores are still what they were: Kolmogorov and Smirnov's test, the population stability index, and many at once.

Rules kept here: pure. Both are given, for they answer two questions: the test whether there is a change at all, which many
parts make certain however small it is, and the index how large it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from linegate_edge.review.quality.distributions import kolmogorov_tail

Floats = NDArray[np.float64]
Level = Literal["stable", "watch", "drift"]

TEST: Final = "two-sample Kolmogorov–Smirnov, asymptotic"
SIGNIFICANCE: Final = 0.05
PSI_WATCH: Final = 0.1
PSI_DRIFT: Final = 0.25
_BINS: Final = 10


def kolmogorov_smirnov(reference: Floats, scores: Floats) -> tuple[float, float]:
    """Return the largest distance of the two empirical distributions, and its asymptotic two-sided p-value.

    Source: Smirnov (1939), with Stephens' correction for finite samples (J. Royal Statistical Society B 32 (1970) 115):
    Q((√n + 0.12 + 0.11/√n) D) with n = n₁ n₂ / (n₁ + n₂). It takes parts as independent; neighbours on a line often are not
    quite, and the p-value is then too small.

    Raises:
        ValueError: a sample is empty.
    """
    if not len(reference) or not len(scores):
        raise ValueError("expected two samples with at least one score each")
    first, second = np.sort(reference), np.sort(scores)
    both = np.concatenate([first, second])
    ahead = np.searchsorted(first, both, side="right") / len(first) - np.searchsorted(second, both, side="right") / len(second)
    distance = float(np.abs(ahead).max())
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    return distance, min(1.0, max(0.0, kolmogorov_tail((root + 0.12 + 0.11 / root) * distance)))


def stability_index(reference: Floats, scores: Floats) -> float:
    """Return the population stability index over the tenths of the reference: Σ (q − p) ln(q / p).

    Source: Siddiqi, Credit Risk Scorecards (2006): under 0.1 stable, from 0.25 on another population. Half a part is added
    to each bin, so that an empty one does not make it infinite.

    Raises:
        ValueError: a sample is empty.
    """
    if not len(reference) or not len(scores):
        raise ValueError("expected two samples with at least one score each")
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bins = len(edges) + 1
    expected, found = (
        (np.bincount(np.searchsorted(edges, sample, side="right"), minlength=bins) + 0.5) / (len(sample) + 0.5 * bins)
        for sample in (reference, scores)
    )
    return float(((found - expected) * np.log(found / expected)).sum())


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in their order: those under 0.05 are false alarms in 5 % at most.

    Source: Benjamini and Hochberg, Journal of the Royal Statistical Society B 57 (1995) 289.
    """
    adjusted, smallest, count = [0.0] * len(p_values), 1.0, len(p_values)
    for rank, place in reversed(list(enumerate(sorted(range(count), key=p_values.__getitem__), start=1))):
        smallest = min(smallest, p_values[place] * count / rank)
        adjusted[place] = smallest
    return adjusted


def level(adjusted_p: float, index: float) -> Level:
    """Return what to make of both: a change that is sure, and large enough to matter."""
    if adjusted_p >= SIGNIFICANCE or index < PSI_WATCH:
        return "stable"
    return "drift" if index >= PSI_DRIFT else "watch"
