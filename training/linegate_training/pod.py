"""Defect sizes, found or missed → the probability of detection against size, and a90/95.

Rules kept here: where the data do not carry a number, a sentence stands in its place; nothing is extrapolated unsaid.

The model is that of hit/miss data in MIL-HDBK-1823A, "Nondestructive Evaluation System Reliability Assessment", 2009,
appendix G: logit POD(a) = b₀ + b₁ ln a, by maximum likelihood. Bounds come from the likelihood ratio, which holds for small
and lopsided samples where the normal approximation does not: the lower bound on POD at a size is the least that any
(b₀, b₁) gives whose deviance exceeds the best one's by no more than χ²(1; 0.90) = 2.706, one-sided 95 %. a90/95 is the size
at which that bound reaches 0.9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

MIN_DEFECTS = 10
"""Under so many sizes no curve is fitted."""
ADVISED_DEFECTS = 60
"""MIL-HDBK-1823A asks for this many for hit/miss data."""
_DIRECTIONS = 240
_STEPS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A fitted curve: logit POD = `intercept` + `slope` · ln(size); `edge` (n, 2) are pairs on the rim of the 95 % region.

    `a90_95` is None where the data put no upper bound on the size that is found with probability 0.9.
    """

    intercept: float
    slope: float
    edge: Floats
    a50: float
    a90: float
    a90_95: float | None

    def probability(self, sizes: Floats) -> Floats:
        """Probability of detection at `sizes` (n,)."""
        return _logistic(self.intercept + self.slope * np.log(sizes))

    def lower(self, sizes: Floats) -> Floats:
        """One-sided 95 % lower bound of the probability of detection at `sizes` (n,)."""
        return _logistic((self.edge[:, :1] + self.edge[:, 1:] * np.log(sizes)).min(axis=0))


@dataclass(frozen=True, slots=True, eq=False)
class Pod:
    """Sizes (n,) and whether each was found (n,), what can be said of them in words, and the curve where there is one."""

    sizes: Floats
    found: NDArray[np.bool_]
    words: str
    curve: Curve | None


def equivalent_diameter(area: float) -> float:
    """Diameter of the circle of this area, in the same unit of length."""
    return math.sqrt(4.0 * area / math.pi)


def probability_of_detection(sizes: Sequence[float], found: Sequence[bool], unit: str = "px") -> Pod:
    """Fit the probability of detection to `sizes`, all positive, and whether each was found."""
    lengths, hits = np.asarray(sizes, np.float64), np.asarray(found, bool)
    why_not = _why_not(lengths, hits, unit)
    if why_not is not None:
        return Pod(lengths, hits, why_not, None)
    logs = np.log(lengths)
    # Centred, so that the two parameters hardly depend on each other.
    centre = float(logs.mean())
    parameters, information = _maximise(logs - centre, hits)
    edge = _edge(logs - centre, hits, parameters, information)
    edge[:, 0] -= edge[:, 1] * centre
    slope = float(parameters[1])
    intercept = float(parameters[0]) - slope * centre
    if slope <= 0:
        words = "Larger defects were not found more often than smaller ones, so size does not tell what is found: no a90."
        return Pod(lengths, hits, words, None)
    nine = math.log(9.0)
    a90_95 = _size(((nine - edge[:, 0]) / edge[:, 1]).max()) if (edge[:, 1] > 0).all() else None
    curve = Curve(intercept, slope, edge, _size(-intercept / slope), _size((nine - intercept) / slope), a90_95)
    return Pod(lengths, hits, _words(lengths, hits, curve, unit), curve)


def _why_not(sizes: Floats, found: NDArray[np.bool_], unit: str) -> str | None:
    """Say why no curve can be fitted; None where one can."""
    count, hits = len(sizes), int(found.sum())
    if count == 0:
        return "No defective part has a mask, so sizes are not known."
    if hits == count:
        return (
            f"All {count} defects were found, the smallest of {sizes.min():.3g} {unit}: without a miss no curve can be fitted. "
            f"By the count alone, defects like these are found with a probability of {100 * _at_least(count):.1f} % or more "
            "(95 %)."
        )
    if hits == 0:
        return f"None of {count} defects was found, the largest of {sizes.max():.3g} {unit}: no curve can be fitted."
    smallest_hit, largest_miss = sizes[found].min(), sizes[~found].max()
    if largest_miss <= smallest_hit:
        return (
            f"Every defect over {largest_miss:.3g} {unit} was found ({hits}) and every smaller one missed ({count - hits}): "
            "the limit lies between, but how steeply detection rises there cannot be told. By the count alone, defects like "
            f"these are found with a probability of {100 * _at_least(hits):.1f} % or more (95 %)."
        )
    if count < MIN_DEFECTS:
        return f"{hits} of {count} defects were found: too few for a curve, at least {MIN_DEFECTS} sizes are needed."
    if sizes[found].max() <= sizes[~found].min():
        return "Larger defects were missed and smaller ones found, so size does not tell what is found: no a90."
    return None


def _at_least(count: int) -> float:
    """Lower 95 % bound of a probability after `count` hits without a miss."""
    return float(0.05 ** (1.0 / count))


def _words(sizes: Floats, found: NDArray[np.bool_], curve: Curve, unit: str) -> str:
    smallest, largest = sizes.min(), sizes.max()
    text = f"{int(found.sum())} of {len(sizes)} defects were found, of {smallest:.3g} to {largest:.3g} {unit}."
    if not (curve.edge[:, 1] > 0).all():
        text += " Larger ones were not clearly found more often: size alone does not tell what is missed."
    for portion, name, size in (("Half", "a50", curve.a50), ("Nine of ten", "a90", curve.a90)):
        where = f"at {size:.3g} {unit}" if smallest <= size <= largest else "at no size measured"
        if size < smallest:
            where = "at every size measured"
        text += f" {portion} are found {where} ({name})."
    if curve.a90 <= largest:
        if curve.a90_95 is None or curve.a90_95 > largest:
            text += (
                " With 95 % confidence (a90/95) that holds at no size measured: measure on more defects, and on larger ones."
            )
        else:
            text += f" With 95 % confidence nine of ten are found from {curve.a90_95:.3g} {unit} on (a90/95)."
    if len(sizes) < ADVISED_DEFECTS:
        text += f" MIL-HDBK-1823A asks for {ADVISED_DEFECTS} defects or more, over the range of sizes."
    return text


def _size(log: float) -> float:
    # A slope of next to nothing puts a size beyond every number.
    return math.exp(min(log, 700.0))


def _logistic(values: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)), np.float64)


def _log_likelihood(parameters: Floats, logs: Floats, signs: Floats) -> Floats:
    """Log-likelihood (k,) of `parameters` (k, 2); `signs` are 1 for a hit and −1 for a miss."""
    return np.asarray(-np.logaddexp(0.0, -signs * (parameters[:, :1] + parameters[:, 1:] * logs)).sum(axis=1), np.float64)


def _maximise(logs: Floats, found: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the best parameters (2,) and the information (2, 2) there, by Newton's method with step halving."""
    design = np.column_stack([np.ones_like(logs), logs])
    signs = np.where(found, 1.0, -1.0)
    parameters = np.zeros(2)
    information = np.eye(2)
    for _ in range(100):
        probabilities = _logistic(design @ parameters)
        information = design.T @ (design * (probabilities * (1.0 - probabilities))[:, np.newaxis])
        step = np.linalg.solve(information, design.T @ (found - probabilities))
        now = _log_likelihood(parameters[np.newaxis], logs, signs)[0]
        while _log_likelihood((parameters + step)[np.newaxis], logs, signs)[0] < now and np.abs(step).max() > 1e-12:
            step = step / 2.0
        parameters = parameters + step
        if np.abs(step).max() < 1e-10:
            break
    return parameters, information


def _edge(logs: Floats, found: NDArray[np.bool_], best: Floats, information: Floats) -> Floats:
    """Return pairs (n, 2) on the rim of the likelihood-ratio region: in each direction the deviance only rises."""
    signs = np.where(found, 1.0, -1.0)
    limit = float(stats.chi2.ppf(0.90, 1))
    top = _log_likelihood(best[np.newaxis], logs, signs)[0]
    angles = np.linspace(0.0, 2.0 * np.pi, _DIRECTIONS, endpoint=False)
    # In units of the information the region is nearly a circle.
    directions = np.column_stack([np.cos(angles), np.sin(angles)]) @ np.linalg.inv(np.linalg.cholesky(information))

    def outside(distances: Floats) -> NDArray[np.bool_]:
        reached = best + distances[:, np.newaxis] * directions
        return np.asarray(2.0 * (top - _log_likelihood(reached, logs, signs)) > limit)

    far = np.full(_DIRECTIONS, 2.0)
    for _ in range(_STEPS):
        near = ~outside(far)
        if not near.any():
            break
        far[near] *= 2.0
    near_end, far_end = np.zeros(_DIRECTIONS), far
    for _ in range(_STEPS):
        middle = 0.5 * (near_end + far_end)
        beyond = outside(middle)
        near_end, far_end = np.where(beyond, near_end, middle), np.where(beyond, middle, far_end)
    return np.asarray(best + near_end[:, np.newaxis] * directions, np.float64)
