"""Scores of held-out good parts → a threshold for a stated false-reject rate.

Rules kept here: good parts alone decide, so the threshold exists without a defect and never collapses; what the number
of parts does not carry is said, not hidden.

With n exchangeable held-out scores the k-th smallest, k = ⌈(n + 1)(1 − α)⌉, is exceeded by the next good part with
probability at most α (split conformal prediction: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World",
2005). Where the scores come from cross-fitting (every part scored by a model that has not seen it, the final model fitted
to all) the same rule is the cross-conformal one (Vovk, "Cross-conformal predictors", 2015): the rounds' models know fewer
parts than the final one, which makes the threshold, if anything, too high. Where k > n no order statistic can promise α;
then the tail is assumed normal and the threshold is Student's prediction bound, mean + t(1 − α; n − 1) s √(1 + 1/n), but
never under the largest score seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from linegate.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold, and how much is known about the rate of good parts at or above it.

    `rate_interval` holds 95 % of what the true rate may be given these parts, exact for a hold-out and about right for
    cross-fitting; None under the normal assumption.
    """

    value: float
    method: str
    parts: int
    parts_needed: int
    rate_interval: tuple[float, float] | None

    @property
    def guaranteed(self) -> bool:
        """Whether the rate is promised without assuming a distribution."""
        return self.rate_interval is not None


def threshold_for(scores: Floats, false_reject_rate: float) -> Threshold:
    """Return the threshold at which good parts like these are rejected at `false_reject_rate` (0, 1) or less.

    Raises:
        DataError: there are fewer than two scores, or one of them is not finite.
    """
    count = len(scores)
    if count < 2 or not np.isfinite(scores).all():
        raise DataError(f"calibration needs at least 2 finite scores of good parts, got {count}: add good images")
    ordered = np.sort(scores)
    needed = math.ceil(1.0 / false_reject_rate - 1.0 - 1e-9)
    position = math.ceil((count + 1) * (1.0 - false_reject_rate) - 1e-9)
    if position <= count:
        # A score at the threshold fails, so the threshold lies just above the score that may still pass.
        value = float(ordered[position - 1])
        tail = stats.beta(count + 1 - position, position)
        interval = (float(tail.ppf(0.025)), float(tail.ppf(0.975)))
        return Threshold(_above(value), "conformal", count, needed, interval)
    spread = max(float(ordered.std(ddof=1)), 1e-3 * abs(float(ordered[-1])), 1e-6)
    reach = float(stats.t.ppf(1.0 - false_reject_rate, count - 1)) * spread * math.sqrt(1.0 + 1.0 / count)
    value = max(float(ordered.mean()) + reach, float(ordered[-1]) + 1e-3 * spread)
    return Threshold(_above(value), "normal tail", count, needed, None)


def _above(value: float) -> float:
    # One ulp of fp32 and a little: the line computes scores in fp32 and may differ in the last digits.
    return value + max(1e-4, 1e-5 * abs(value))
