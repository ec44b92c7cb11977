"""Held-out scores → what can be promised of a threshold, and what a threshold costs.

Rules kept here: no promise assumes a distribution; each is exact for scores that are exchangeable with those of parts to
come, ties included; too few parts make a promise of a worse rate, never a quiet one. Choosing among what was asked for
is left to `calibrate`.

Let r of n held-out scores lie beyond a threshold that is an order statistic. The true rate beyond it is above α with a
probability of at most P(Bin(n, α) ≤ r): Wilks, "Determination of sample sizes for setting tolerance limits", 1941; in
conformal words, Vovk, "Conditional validity of inductive conformal predictors", 2012, proposition 2a. So the greatest r with
P(Bin(n, α) ≤ r) ≤ δ gives a threshold that keeps α with a confidence of 1 − δ, over the draw of the n parts; r = 0 needs
(1 − α)ⁿ ≤ δ. The same r makes α the one-sided bound of Clopper and Pearson (1934). The rate falls as the threshold moves
to its safe side, so a promise holds for every threshold further out: one test decides, and none of the corrections for
many thresholds of Learn then Test (Angelopoulos et al., 2021) is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from linegate.errors import DataError

Floats = NDArray[np.float64]

COST_DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class Promise:
    """A threshold `value`, and the rate that may be promised of it.

    `beyond` of `parts` scores lie on its wrong side; with `confidence` the true rate is at most `bound`, which is not above
    `rate` where the promise asked for is `kept`. `needed` is how many parts would keep it with none on the wrong side.
    """

    value: float
    rate: float
    confidence: float
    parts: int
    beyond: int
    bound: float
    needed: int

    @property
    def kept(self) -> bool:
        """Whether `rate` is promised, and not only the worse `bound`."""
        return self.bound <= self.rate * (1.0 + 1e-9)


def parts_needed(rate: float, confidence: float) -> int:
    """Return the smallest n with (1 − rate)ⁿ ≤ 1 − confidence: 299 for 1 % with 95 %."""
    # The quotient of logarithms may miss a whole number by an ulp.
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate) - 1e-9)


def rate_bound(beyond: int, parts: int, confidence: float) -> float:
    """Return the one-sided upper bound of a rate of which `beyond` of `parts` were seen (Clopper and Pearson, 1934)."""
    return 1.0 if beyond >= parts else float(stats.beta.ppf(confidence, beyond + 1, parts - beyond))


def allowed_beyond(parts: int, rate: float, confidence: float) -> int | None:
    """Return how many of `parts` scores may lie beyond a threshold that promises `rate`; None where not even 0 may."""
    allowed = int(stats.binom.ppf(1.0 - confidence, parts, rate)) + 1
    while allowed >= 0 and stats.binom.cdf(allowed, parts, rate) > 1.0 - confidence + 1e-12:
        allowed -= 1
    return allowed if allowed >= 0 else None


def false_reject_promise(good_scores: Floats, rate: float, confidence: float) -> Promise:
    """Return the lowest threshold of which P(score of a good part ≥ threshold) ≤ `rate` can be promised.

    With too few parts it lies just above the highest score.

    Raises:
        DataError: there are fewer than two scores, or one is not finite.
    """
    _check(good_scores, "good")
    count = len(good_scores)
    allowed = allowed_beyond(count, rate, confidence)
    # A score at the threshold fails, so the threshold lies just above the highest score that must pass.
    value = just_above(float(np.sort(good_scores)[count - 1 - (allowed or 0)]))
    return promise_of_rejects(good_scores, value, rate, confidence)


def escape_promise(defect_scores: Floats, rate: float, confidence: float) -> Promise:
    """Return the highest threshold of which P(score of a defect < threshold) ≤ `rate` can be promised.

    It holds for defects like these. With too few it lies just under the lowest score.

    Raises:
        DataError: there are fewer than two scores, or one is not finite.
    """
    _check(defect_scores, "defective")
    allowed = allowed_beyond(len(defect_scores), rate, confidence)
    value = just_below(float(np.sort(defect_scores)[allowed or 0]))
    return promise_of_escapes(defect_scores, value, rate, confidence)


def promise_of_rejects(good_scores: Floats, threshold: float, rate: float, confidence: float) -> Promise:
    """Say what may be promised of good parts at a threshold; it binds where the scores did not choose it.

    That is also so for a threshold further out than `false_reject_promise` gives.
    """
    return _promise(int((good_scores >= threshold).sum()), len(good_scores), threshold, rate, confidence)


def promise_of_escapes(defect_scores: Floats, threshold: float, rate: float, confidence: float) -> Promise:
    """Say what may be promised of defective parts at a threshold under which they pass; see `promise_of_rejects`."""
    return _promise(int((defect_scores < threshold).sum()), len(defect_scores), threshold, rate, confidence)


def just_above(value: float) -> float:
    """Return a threshold that a part of this score does not reach on the line either."""
    # The line computes scores in fp32, with another provider too, and may differ in the last digits.
    return value + max(1e-4, 1e-5 * abs(value))


def just_below(value: float) -> float:
    """Return a threshold that a part of this score reaches on the line too."""
    return value - max(1e-4, 1e-5 * abs(value))


@dataclass(frozen=True, slots=True)
class Costs:
    """What one escape and one false reject cost, in any one unit, and the share of defective parts on the line."""

    escape: float
    false_reject: float
    defect_share: float

    def per_part(self, escape_rate: float, false_reject_rate: float) -> float:
        """Return the expected cost of one part on the line."""
        share = self.defect_share
        return self.escape * share * escape_rate + self.false_reject * (1.0 - share) * false_reject_rate


@dataclass(frozen=True, slots=True)
class CostPoint:
    """The cheapest threshold, its expected cost per part with a 95 % interval, and the cost without any inspection.

    `pass_all` and `fail_all` are what a part costs if every one is passed, or failed.
    """

    value: float
    cost: float
    interval: tuple[float, float]
    pass_all: float
    fail_all: float


def cheapest(good_scores: Floats, defect_scores: Floats, costs: Costs, low: float = -np.inf, high: float = np.inf) -> CostPoint:
    """Return the threshold in [`low`, `high`] of least expected cost over these scores.

    The cost changes at scores only: of the gaps between them that cost least, the widest, and there the middle. Only
    thresholds that pass a good part and fail a defective one count, for without them nothing is inspected; where the limits
    leave none, the limit is taken.

    The interval is of the two true rates at that threshold, each drawn from Jeffreys' posterior (Brown, Cai and DasGupta,
    "Interval estimation for a binomial proportion", 2001): resampling the parts would give a width of 0 where none errs.
    Choosing the threshold by the same parts makes it a little too good.

    Raises:
        DataError: there are fewer than two scores of either kind, one is not finite, or no defect scores above any good part.
    """
    _check(good_scores, "good")
    _check(defect_scores, "defective")
    goods, defects = np.sort(good_scores), np.sort(defect_scores)
    if defects[-1] <= goods[0]:
        raise DataError("no defective part scores above a good one, so costs choose nothing: check labels, or train again")
    scores = np.unique(np.concatenate([goods, defects]))
    # A threshold in the gap (start, end] fails what scores `end` or more.
    starts, ends = scores[:-1], scores[1:]
    left, right = np.maximum(starts, low), np.minimum(ends, high)
    open_gaps = (starts >= goods[0]) & (ends <= defects[-1]) & (left < right)
    if open_gaps.any():
        rejects = 1.0 - np.searchsorted(goods, ends) / len(goods)
        escapes = np.searchsorted(defects, ends) / len(defects)
        cost = costs.escape * costs.defect_share * escapes + costs.false_reject * (1.0 - costs.defect_share) * rejects
        least = cost[open_gaps].min()
        best = np.flatnonzero(open_gaps & (cost <= least * (1.0 + 1e-9)))
        chosen = best[np.argmax(right[best] - left[best])]
        value = float((left[chosen] + right[chosen]) / 2.0)
    else:
        value = low if math.isfinite(low) else high
    return _cost_point(goods, defects, costs, value)


def _cost_point(goods: Floats, defects: Floats, costs: Costs, value: float) -> CostPoint:
    rejected, escaped = int((goods >= value).sum()), int((defects < value).sum())
    random = np.random.default_rng(0)
    reject_rates = random.beta(rejected + 0.5, len(goods) - rejected + 0.5, COST_DRAWS)
    escape_rates = random.beta(escaped + 0.5, len(defects) - escaped + 0.5, COST_DRAWS)
    share = costs.defect_share
    drawn = costs.escape * share * escape_rates + costs.false_reject * (1.0 - share) * reject_rates
    cost = costs.per_part(escaped / len(defects), rejected / len(goods))
    low, high = np.quantile(drawn, [0.025, 0.975])
    # Where none errs, or all do, the interval goes on to what was seen, as Brown, Cai and DasGupta have it.
    interval = (min(float(low), cost), max(float(high), cost))
    return CostPoint(value, cost, interval, costs.per_part(1.0, 0.0), costs.per_part(0.0, 1.0))


def _promise(beyond: int, parts: int, value: float, rate: float, confidence: float) -> Promise:
    return Promise(
        value, rate, confidence, parts, beyond, rate_bound(beyond, parts, confidence), parts_needed(rate, confidence)
    )


def _check(scores: Floats, kind: str) -> None:
    if len(scores) < 2 or not np.isfinite(scores).all():
        count = int(np.isfinite(scores).sum())
        raise DataError(f"calibration needs at least 2 finite scores of {kind} parts, got {count} of {len(scores)}: add some")
