"""What any other threshold would have done with parts that people have looked at.

Rules kept here: pure; a part is what its reviewer said; a limit sample is neither good nor defective, and counts nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def is_defective(decision: str, disposition: str) -> bool | None:
    """Return what a reviewed part truly is, None for a limit sample: `confirmed` bears out the gate's own decision.

    >>> is_defective("pass", "confirmed"), is_defective("fail", "confirmed"), is_defective("fail", "false_reject")
    (False, True, False)
    """
    if disposition == "limit_sample":
        return None
    return disposition == "escape" or (disposition == "confirmed" and decision != "pass")


@dataclass(frozen=True, slots=True, eq=False)
class OperatingCurve:
    """Counts at n thresholds, ascending, each (n,); the last threshold is infinite: everything passes.

    Between two thresholds nothing changes: a threshold t gives the counts at the first one ≥ t.
    """

    thresholds: Floats
    escapes: NDArray[np.int64]
    false_rejects: NDArray[np.int64]
    confirmed: NDArray[np.int64]
    passes: NDArray[np.int64]


def operating_curve(scores: Floats, defective: NDArray[np.bool_]) -> OperatingCurve:
    """Return what each threshold makes of parts with these scores, both (m,): a score at or above it fails.

    Raises:
        ValueError: the shapes differ, or a score is not finite.
    """
    if scores.shape != defective.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError("expected finite scores (m,) and as many truths")
    bad, good = np.sort(scores[defective]), np.sort(scores[~defective])
    thresholds = np.append(np.unique(scores), np.inf)
    escapes, passes = np.searchsorted(bad, thresholds), np.searchsorted(good, thresholds)
    return OperatingCurve(thresholds, escapes, len(good) - passes, len(bad) - escapes, passes)
