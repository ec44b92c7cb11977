"""Two packages on the same images: are they really different, or is it chance?

Rules kept here: pure functions of numbers; a test is exact where it can be; what is resampled is resampled in pairs, so that
images which are hard for both do not count as noise; the same seed gives the same numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from linegate.comparison import AurocDifference, PairedErrors, Rate
from linegate_training.metrics import clopper_pearson

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

DRAWS = 2000
_BLOCK = 512


def rate(events: int, trials: int) -> Rate:
    """Return a rate with its 95 % interval (Clopper and Pearson, 1934); None without trials."""
    return Rate(events=events, trials=trials, rate=events / trials if trials else None, ci95=clopper_pearson(events, trials))


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Return the two-sided exact p of two error counts that only one of two judges made on the same images.

    Under no difference each such image is as likely one's as the other's, so the smaller count is binomial with one half
    (McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; exact as in Agresti,
    "Categorical Data Analysis", 2013, section 11.1.2). 1 where there is none.

    >>> round(mcnemar_exact(1, 5), 4)
    0.2188
    """
    discordant = first_only + second_only
    if discordant == 0:
        return 1.0
    return float(min(1.0, 2.0 * stats.binom.cdf(min(first_only, second_only), discordant, 0.5)))


def paired_errors(champion: Bools, candidate: Bools) -> PairedErrors:
    """Return the errors (n,) that two packages make on the same images, and whether they differ in number."""
    champion_only, candidate_only = int((champion & ~candidate).sum()), int((candidate & ~champion).sum())
    return PairedErrors(
        both=int((champion & candidate).sum()), champion_only=champion_only, candidate_only=candidate_only,
        p=mcnemar_exact(champion_only, candidate_only),
    )  # fmt: skip


def auroc_difference(
    champion: Floats, candidate: Floats, defective: Bools, seed: int = 0, draws: int = DRAWS
) -> AurocDifference | None:
    """Return the candidate's AUROC less the champion's over the same images (n,); None where one kind of part is missing.

    Images are drawn with replacement, good and defective ones apart, and both packages are measured on each draw (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: percentiles; chapter 15 for the achieved significance
    level). p is twice the smaller share of draws on either side of 0, itself counted as a draw, so it is never 0.
    """
    goods, defects = np.flatnonzero(~defective), np.flatnonzero(defective)
    if not len(goods) or not len(defects):
        return None
    random = np.random.default_rng(seed)
    of_goods = random.multinomial(len(goods), np.full(len(goods), 1 / len(goods)), size=draws).astype(np.float32)
    of_defects = random.multinomial(len(defects), np.full(len(defects), 1 / len(defects)), size=draws).astype(np.float32)
    found, whole = np.zeros(draws), 0.0
    # An AUROC is the mean over pairs of a good and a defective image, so that of a draw is a weighted mean of the same pairs.
    for start in range(0, len(defects), _BLOCK):
        rows = defects[start : start + _BLOCK]
        gains = _wins(candidate, rows, goods) - _wins(champion, rows, goods)
        whole += float(gains.sum(dtype=np.float64))
        found += ((of_defects[:, start : start + _BLOCK] @ gains) * of_goods).sum(1, dtype=np.float64)
    pairs = len(goods) * len(defects)
    found /= pairs
    below, above = int((found <= 0).sum()), int((found >= 0).sum())
    low, high = np.quantile(found, [0.025, 0.975])
    p = min(1.0, 2.0 * (1 + min(below, above)) / (1 + draws))
    return AurocDifference(difference=whole / pairs, ci95=(float(low), float(high)), p=p, draws=draws)


def _wins(scores: Floats, defects: NDArray[np.int64], goods: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return (D, G) whether each defective image scores above each good one; a tie is half."""
    above = scores[defects, None] > scores[None, goods]
    tied = scores[defects, None] == scores[None, goods]
    wins: NDArray[np.float32] = (above + 0.5 * tied).astype(np.float32)
    return wins
