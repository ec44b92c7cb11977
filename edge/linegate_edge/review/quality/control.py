"""The control chart of a share: p, or Laney's p′ where the shares scatter otherwise than chance alone would make them.

Rules kept here: pure; a period without parts is no point; which chart was chosen is said, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from linegate_edge.review.quality.distributions import chi_square_tail

Floats = NDArray[np.float64]
Signal = Literal["above", "below", "run_above", "run_below"]

SIGNIFICANCE: Final = 0.05
RUN: Final = 8
"""Western Electric's fourth rule: so many points in a row on one side of the centre line."""
FEW_POINTS: Final = 20
"""Fewer points than this make preliminary limits (Montgomery: 20 to 25 samples)."""
_D2: Final = 1.128  # of a moving range of two


@dataclass(frozen=True, slots=True)
class ControlChart:
    """A chart of k points: `shares`, `low` and `high` limits, and `signals` by point; `sigma_z` is Laney's.

    `dispersion` is the index of dispersion, Σz²/(k − 1), 1 where chance alone is at work; `p_value` is of its test.
    """

    kind: Literal["p", "p_prime"]
    why: str
    centre: float
    shares: Floats
    low: Floats
    high: Floats
    signals: tuple[tuple[Signal, ...], ...]
    sigma_z: float | None
    dispersion: float | None
    p_value: float | None
    preliminary: bool


def control_chart(rejects: NDArray[np.int64], parts: NDArray[np.int64]) -> ControlChart | None:
    """Return the chart of `rejects` of `parts`, both (k,), in the order of time; None for no points.

    p chart: Shewhart's limits p̄ ± 3 σᵢ with σᵢ = √(p̄ (1 − p̄) / nᵢ). Laney's p′: p̄ ± 3 σᵢ σ_z, with σ_z the mean moving range of
    zᵢ = (pᵢ − p̄) / σᵢ over 1.128 (Laney, Quality Engineering 14 (2002) 531). p′ is chosen where the test for homogeneity of
    binomial shares (Σz² against chi-square of k − 1, two-sided; Snedecor and Cochran, Statistical Methods) differs at 5 %. A
    lasting shift makes that test differ too; it does no harm, for σ_z comes from neighbours and stays near 1 then.

    Raises:
        ValueError: the shapes differ, a period has no parts, or more rejects than parts.
    """
    if rejects.shape != parts.shape or rejects.ndim != 1 or (parts < 1).any() or (rejects > parts).any() or (rejects < 0).any():
        raise ValueError("expected rejects and parts (k,), with 0 ≤ rejects ≤ parts and at least one part in each period")
    k = len(parts)
    if k == 0:
        return None
    shares = rejects / parts
    centre = float(rejects.sum() / parts.sum())
    sigma = np.sqrt(centre * (1 - centre) / parts)
    sigma_z = dispersion = p_value = None
    kind: Literal["p", "p_prime"] = "p"
    if centre in (0.0, 1.0):
        why = "p chart: no part was rejected" if centre == 0 else "p chart: every part was rejected"
    elif k < 3:
        why = "p chart: too few periods to tell how the shares scatter"
    else:
        z = (shares - centre) / sigma
        sigma_z = float(np.abs(np.diff(z)).mean() / _D2)
        statistic = float((z * z).sum())
        dispersion = statistic / (k - 1)
        tail = chi_square_tail(statistic, k - 1)
        p_value = min(1.0, 2 * min(tail, 1 - tail))
        much = f"{dispersion:.2f} times as much as chance alone (dispersion test, p {_words(p_value)})"
        if p_value >= SIGNIFICANCE:
            why = f"p chart: the shares scatter {much}, which chance explains"
        elif sigma_z == 0:
            why = f"p chart: the shares scatter {much}, but neighbours do not differ, so that σ_z is 0"
        else:
            kind, more = "p_prime", "more" if dispersion > 1 else "less"
            why = f"Laney p′ chart: the shares scatter {more} than a p chart expects, {much}; σ_z is {sigma_z:.2f}"
    half = 3 * sigma * (sigma_z if kind == "p_prime" and sigma_z is not None else 1.0)
    low, high = np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)
    return ControlChart(
        kind, why, centre, shares, low, high, _signals(shares, low, high, centre), sigma_z, dispersion, p_value, k < FEW_POINTS
    )


def _signals(shares: Floats, low: Floats, high: Floats, centre: float) -> tuple[tuple[Signal, ...], ...]:
    """Return by point: outside the limits (Western Electric and Nelson rule 1), and the eighth and later of a run."""
    signals: list[tuple[Signal, ...]] = []
    run = 0  # signed length of the run so far; a point on the line ends it
    for share, bottom, top in zip(shares, low, high, strict=True):
        side = int(share > centre) - int(share < centre)
        run = run + side if side * run > 0 else side
        outside: Signal | None = "above" if share > top else "below" if share < bottom else None
        lasting: Signal | None = "run_above" if run >= RUN else "run_below" if run <= -RUN else None
        signals.append(tuple(signal for signal in (outside, lasting) if signal is not None))
    return tuple(signals)


def _words(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}"
