"""Which good parts are fitted and which calibrate.

Rules kept here: decided by the seed and the sorted names alone; a part whose bytes are those of another goes where that
one goes, for a copy in both halves would make the threshold too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Split:
    """Rounds of (fit, calibrate) indices into the good parts; `refit` says that the final model learns from all.

    A hold-out has one round. Cross-fitting has several, in which every part calibrates once, on a model that has not
    seen it.
    """

    rounds: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    refit: bool
    words: str

    def subset(self, index: int) -> str:
        """Return the word for `split.csv`: train or calibration."""
        return "calibration" if not self.refit and index in self.rounds[0][1] else "train"


def split_goods(digests: Sequence[str], seed: int, share: float, cross_fit_below: int, folds: int) -> Split:
    """Split good parts, given by their SHA-256 in order of name; identical parts stay together."""
    groups: dict[str, list[int]] = {}
    for index, digest in enumerate(digests):
        groups.setdefault(digest, []).append(index)
    members = list(groups.values())
    order = [members[index] for index in np.random.default_rng(seed).permutation(len(members))]
    if len(order) >= cross_fit_below:
        held = sorted(index for group in order[: max(1, round(share * len(order)))] for index in group)
        words = f"hold-out by seed {seed}: {len(digests) - len(held)} good parts fitted, {len(held)} calibrate"
        return Split((_without(len(digests), held),), False, words)
    folds = min(folds, len(order))
    rounds = [_without(len(digests), sorted(index for group in order[fold::folds] for index in group)) for fold in range(folds)]
    words = f"{folds}-fold cross-fitting by seed {seed}: all {len(digests)} good parts fitted, and all calibrate unseen"
    return Split(tuple(rounds), True, words)


def _without(count: int, held: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    left = sorted(set(range(count)) - set(held))
    return tuple(left), tuple(held)
