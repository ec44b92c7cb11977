"""Held-out scores and what an engineer asks for → an operating point: threshold, undecided band, and what they promise.

Rules kept here: without a defect good parts alone decide, so the threshold exists and never collapses; what the number of
parts does not carry is said, not hidden; a promise is exact only for parts held out from the final model. The bounds are
left to `risk`, reading and writing packages to `recalibrate`.

A false-reject promise holds for every higher threshold, an escape promise for every lower one. Where both hold somewhere,
the threshold lies there; where they cross, what lies between the two is undecided, and both hold. Each has the confidence
stated; both together have its square, for good and defective parts are drawn apart.

Beside promises with a confidence there is `threshold_for`, whose rate holds on average over the draw of parts. With n
exchangeable held-out scores the k-th smallest, k = ⌈(n + 1)(1 − α)⌉, is exceeded by the next good part with probability at
most α (split conformal prediction: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005). Where the
scores come from cross-fitting (every part scored by a model that has not seen it, the final model fitted to all) the same
rule is the cross-conformal one (Vovk, "Cross-conformal predictors", 2015): the rounds' models know fewer parts than the
final one, which makes the threshold, if anything, too high. Where k > n no order statistic can promise α; then the tail is
assumed normal and the threshold is Student's prediction bound, mean + t(1 − α; n − 1) s √(1 + 1/n), but never under the
largest score seen.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from linegate.errors import DataError, SettingsError
from linegate.package import Thresholds
from linegate_training.operating_words import words
from linegate_training.risk import (
    CostPoint,
    Costs,
    Promise,
    cheapest,
    escape_promise,
    false_reject_promise,
    just_above,
    promise_of_rejects,
    rate_bound,
)

Floats = NDArray[np.float64]

FALSE_REJECT_RATE = 0.01
"""What is promised where nothing else is asked for."""
CONFIDENCE = 0.95


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


@dataclass(frozen=True, slots=True)
class Aim:
    """What is asked of an operating point.

    Rates in (0, 0.5] are promised with `confidence` [0.5, 1): `false_reject_rate` of good parts that fail, `escape_rate` of
    defective parts that pass, `undecided_rate` of good parts that are undecided beside those that fail. `costs` choose among
    the thresholds that the rates leave. `threshold` is stated outright. `undecided_below` is a band of that width. A promise of
    false rejects sets no threshold below `at_least`, unless a defective part scores between the two.

    Raises:
        SettingsError: nothing is asked for, a number is out of range, or two of them contradict each other.
    """

    false_reject_rate: float | None = None
    escape_rate: float | None = None
    undecided_rate: float | None = None
    confidence: float = CONFIDENCE
    costs: Costs | None = None
    threshold: float | None = None
    undecided_below: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        rates = {name: getattr(self, name) for name in ("false_reject_rate", "escape_rate", "undecided_rate")}
        for name, rate in rates.items():
            if rate is not None and not 0 < rate <= 0.5:
                raise SettingsError(f"{name.replace('_', ' ')} {rate:g}: must be a share above 0 and up to 0.5, as 0.01")
        if not 0.5 <= self.confidence < 1:
            raise SettingsError(f"confidence {self.confidence:g}: must be from 0.5 to under 1, as 0.95")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise SettingsError(f"threshold {self.threshold:g}: must be a finite number")
        if self.undecided_below is not None and not (math.isfinite(self.undecided_below) and self.undecided_below >= 0):
            raise SettingsError(f"undecided below {self.undecided_below:g}: must be a finite number, 0 or more")
        chosen = [*rates.values(), self.costs]
        if self.threshold is None and self.costs is None and self.false_reject_rate is None and self.escape_rate is None:
            raise SettingsError("nothing is asked for: state a false-reject rate, an escape rate, costs or a threshold")
        if self.threshold is not None and any(value is not None for value in chosen):
            raise SettingsError("a threshold is stated, so rates and costs cannot choose one: give one or the other")
        if self.undecided_rate is not None and (self.false_reject_rate is None or self.escape_rate is not None):
            raise SettingsError(
                "an undecided rate goes with a false-reject rate, and not with an escape rate, which sets the band"
            )
        if self.undecided_below is not None and (self.undecided_rate is not None or self.escape_rate is not None):
            raise SettingsError("the band is stated, so neither an escape rate nor an undecided rate can set it: leave one out")
        if self.costs is not None:
            _check_costs(self.costs)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A part fails at `score`, is undecided within `undecided_below` under it; `map` is where regions begin.

    `map` is None where there are no maps to set it from. `calibration` is the record for `package.json`, `words` says in
    sentences what is promised and what is not; they also stand in `calibration["words"]`.
    """

    score: float
    undecided_below: float
    map: float | None
    calibration: dict[str, Any]
    words: str

    def thresholds(
        self, set_by: str, set_at: datetime, min_region_share: float, map_threshold: float | None = None
    ) -> Thresholds:
        """Return the first thresholds of a new package; `map_threshold` serves where there is no `map`."""
        value = map_threshold if self.map is None else self.map
        assert value is not None
        return Thresholds(
            score=self.score, undecided_below=self.undecided_below, map=value, min_region_share=min_region_share,
            set_by=set_by, set_at=set_at, calibration=self.calibration,
        )  # fmt: skip


def operating_point(
    good_scores: Floats,
    defect_scores: Floats,
    peaks: Floats,
    aim: Aim,
    *,
    held_out: bool = True,
    parts: str = "",
    caveat: str = "",
) -> OperatingPoint:
    """Return the operating point for `aim` from scores of parts that the scoring model has not learned from.

    `peaks` are the greatest map values of good parts, and may be empty, as either kind of score may where `aim` does not need
    it. `held_out` says that the final model gave the scores; where it did not, every promise is an "about", and `caveat` says
    why (nothing: the scores are of cross-fitting). `parts` says in words which parts these are.

    Raises:
        DataError: a kind of part that `aim` needs has fewer than two scores, or a score is not finite.
    """
    for kind, scores in (("good", good_scores), ("defective", defect_scores)):
        if not np.isfinite(scores).all():
            raise DataError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores of {kind} parts are not numbers")
    rejects, tail = _reject_limit(good_scores, defect_scores, aim)
    escapes = None if aim.escape_rate is None else escape_promise(defect_scores, aim.escape_rate, aim.confidence)
    low = -math.inf if rejects is None else rejects.value
    high = math.inf if escapes is None else escapes.value
    crossed = low > high
    cost: CostPoint | None = None
    if aim.threshold is not None:
        value, method = aim.threshold, "stated"
    elif crossed:
        value, method = low, "both promises, crossed"
    elif aim.costs is not None:
        cost = cheapest(good_scores, defect_scores, aim.costs, low, high)
        value, method = cost.value, "costs"
    elif rejects is not None and escapes is not None:
        value, method = (low + high) / 2.0, "both promises, middle"
    else:
        value, method = (low, "false-reject promise") if escapes is None else (high, "escape promise")
    band = value - high if crossed else aim.undecided_below or 0.0
    undecided = None
    if aim.undecided_rate is not None and aim.false_reject_rate is not None:
        undecided = false_reject_promise(good_scores, min(aim.false_reject_rate + aim.undecided_rate, 0.999), aim.confidence)
        band = max(0.0, value - undecided.value)
    map_threshold = None
    if len(peaks) >= 2 and aim.threshold is None:
        map_threshold = threshold_for(peaks, aim.false_reject_rate or FALSE_REJECT_RATE)
    asked = [promise for promise in (rejects, escapes, undecided) if promise is not None]
    calibration: dict[str, Any] = {
        "method": method,
        "false_reject_rate": aim.false_reject_rate,
        "escape_rate": aim.escape_rate,
        "undecided_rate": aim.undecided_rate,
        "confidence": aim.confidence,
        "held_out": held_out,
        "caveat": caveat,
        "guaranteed": held_out and bool(asked) and all(promise.kept for promise in asked),
        "score": _recorded(rejects, tail),
        "escape": _recorded(escapes, "smallest score"),
        "undecided": _recorded(undecided, "largest score"),
        "costs": None if aim.costs is None else dataclasses.asdict(aim.costs),
        "cost_per_part": None if cost is None else dataclasses.asdict(cost),
        "seen": _seen(good_scores, defect_scores, value, band),
        "map": None if map_threshold is None else dataclasses.asdict(map_threshold),
        "parts": parts,
    }
    calibration["words"] = words(calibration, value, band)
    return OperatingPoint(
        value, band, None if map_threshold is None else map_threshold.value, calibration, str(calibration["words"])
    )


def threshold_for(scores: Floats, false_reject_rate: float) -> Threshold:
    """Return the threshold at which good parts like these are rejected at `false_reject_rate` (0, 1) or less, on average.

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
        return Threshold(just_above(value), "conformal", count, needed, interval)
    spread = max(float(ordered.std(ddof=1)), 1e-3 * abs(float(ordered[-1])), 1e-6)
    reach = float(stats.t.ppf(1.0 - false_reject_rate, count - 1)) * spread * math.sqrt(1.0 + 1.0 / count)
    value = max(float(ordered.mean()) + reach, float(ordered[-1]) + 1e-3 * spread)
    return Threshold(just_above(value), "normal tail", count, needed, None)


def _reject_limit(scores: Floats, defects: Floats, aim: Aim) -> tuple[Promise | None, str]:
    """Return the promise of false rejects, and how a threshold is set that cannot keep it."""
    if aim.false_reject_rate is None:
        return None, ""
    promise, tail = _lowest_limit(scores, aim.false_reject_rate, aim)
    least = aim.at_least
    if least is None or promise.value >= least or ((defects >= promise.value) & (defects < least)).any():
        return promise, tail
    return promise_of_rejects(scores, least, aim.false_reject_rate, aim.confidence), "stated least"


def _lowest_limit(scores: Floats, rate: float, aim: Aim) -> tuple[Promise, str]:
    promise = false_reject_promise(scores, rate, aim.confidence)
    if promise.kept:
        return promise, ""
    # Too few parts for the confidence: further out only, where the assumption of a normal tail says so.
    assumed = threshold_for(scores, rate)
    if assumed.value <= promise.value:
        return promise, "largest score"
    return promise_of_rejects(scores, assumed.value, rate, aim.confidence), "normal tail"


def _recorded(promise: Promise | None, otherwise: str) -> dict[str, Any] | None:
    if promise is None:
        return None
    return {
        "value": promise.value,
        "method": "order statistic" if promise.kept else otherwise,
        "kept": promise.kept,
        "rate": promise.rate,
        "promised_rate": promise.rate if promise.kept else promise.bound,
        "parts": promise.parts,
        "parts_beyond": promise.beyond,
        "parts_needed": promise.needed,
    }


def _seen(goods: Floats, defects: Floats, value: float, band: float) -> dict[str, Any]:
    """Count these parts by the line's rule; `*_at_most` bounds the true rate with 95 % where they did not choose it."""
    fails_good, passes_defect = int((goods >= value).sum()), int((defects < value - band).sum())
    return {
        "good": len(goods),
        "false_rejects": fails_good,
        "undecided_good": int((goods >= value - band).sum()) - fails_good,
        "false_reject_rate_at_most": rate_bound(fails_good, len(goods), CONFIDENCE) if len(goods) else None,
        "defective": len(defects),
        "escapes": passes_defect,
        "undecided_defective": int((defects < value).sum()) - passes_defect,
        "escape_rate_at_most": rate_bound(passes_defect, len(defects), CONFIDENCE) if len(defects) else None,
    }


def _check_costs(costs: Costs) -> None:
    for name, cost in (("an escape", costs.escape), ("a false reject", costs.false_reject)):
        if not (math.isfinite(cost) and cost > 0):
            raise SettingsError(f"the cost of {name} is {cost:g}: must be a finite number above 0")
    if not 0 < costs.defect_share < 1:
        raise SettingsError(f"defect share {costs.defect_share:g}: must be the share of defective parts on the line, as 0.02")
