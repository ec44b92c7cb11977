"""Which parts are fitted, which validate and which calibrate.

Rules kept here: decided by the seed, the labels and the order of the samples alone; a group (the same bytes, part, item or
picture) is never divided, for a copy on both sides would flatter; how a split was made is said in words. What belongs
together is left to `duplicates`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from linegate.errors import DataError

SUBSETS = ("fit", "validation", "calibration")


@dataclass(frozen=True, slots=True)
class Split:
    """Rounds of (fit, calibrate) indices into the good parts; `refit` says that the final model learns from all.

    A hold-out has one round. Cross-fitting has several, in which every part calibrates once, on a model that has not
    seen it.
    """

    rounds: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    refit: bool
    words: str
    grouped: bool = False
    """Whether some group holds several parts."""

    def subset(self, index: int) -> str:
        """Return the word for `split.csv`: train or calibration."""
        return "calibration" if not self.refit and index in self.rounds[0][1] else "train"


@dataclass(frozen=True, slots=True)
class LearningSplit:
    """Indices into all parts to learn from, good and defective; `words` and `notes` are for the report."""

    fit: tuple[int, ...]
    validation: tuple[int, ...]
    calibration: tuple[int, ...]
    words: str
    notes: tuple[str, ...] = ()

    def subset(self, index: int) -> str:
        """Return the word for `split.csv`: train, validation or calibration."""
        return "validation" if index in self.validation else "calibration" if index in self.calibration else "train"


def split_goods(
    groups: Sequence[Hashable], seed: int, share: float, cross_fit_below: int, folds: int, about: str = ""
) -> Split:
    """Split good parts, given by their groups in order of name; a group stays together.

    `about` says in the words what the groups are (`Groups.words`).

    Raises:
        DataError: all of them are one group.
    """
    members = _members(groups)
    if len(members) == 1 and len(groups) > 1:
        text = f"all {len(groups)} good images belong together (one group, item or picture)"
        raise DataError(f"{text}: photograph different parts, or mend groups.csv")
    order = [members[index] for index in np.random.default_rng(seed).permutation(len(members))]
    about = f"; {about}" if about else ""
    if len(order) >= cross_fit_below:
        wanted = max(1, round(share * len(groups)))
        taken: list[int] = []
        for group in order[:-1] if len(order) > 1 else order:
            if len(taken) < wanted:
                taken += group
        held = sorted(taken)
        words = f"hold-out by seed {seed}: {len(groups) - len(held)} good parts fitted, {len(held)} calibrate{about}"
        return Split((_without(len(groups), held),), False, words, len(members) < len(groups))
    folds = min(folds, len(order))
    rounds = [_without(len(groups), sorted(index for group in order[fold::folds] for index in group)) for fold in range(folds)]
    words = f"{folds}-fold cross-fitting by seed {seed}: all {len(groups)} good parts fitted, and all calibrate unseen{about}"
    return Split(tuple(rounds), True, words, len(members) < len(groups))


def split_learning(
    labels: Sequence[str],
    groups: Sequence[Hashable],
    seed: int,
    validation_share: float,
    calibration_share: float,
    about: str = "",
) -> LearningSplit:
    """Split all parts to learn from by whole groups, each class in about the stated shares.

    A class of one group is fitted; one of three or more validates at least once; one of four or more also calibrates at
    least once, each where its share is not 0. Greedy, the rarest class first: Sechidis, Tsoumakas and Vlahavas, "On the
    stratification of multi-label data", 2011. `about` says in the words what the groups are (`Groups.words`).

    Raises:
        DataError: the shares leave nothing to fit.
    """
    shares = (1 - validation_share - calibration_share, validation_share, calibration_share)
    if min(shares[1:]) < 0 or shares[0] <= 0:
        raise DataError(f"validation {validation_share:g} and calibration {calibration_share:g} must leave parts to fit")
    members = _members(groups)
    order = [members[index] for index in np.random.default_rng(seed).permutation(len(members))]
    contents = [Counter(labels[index] for index in group) for group in order]
    holding: dict[str, list[int]] = defaultdict(list)
    for number, content in enumerate(contents):
        for label in content:
            holding[label].append(number)
    totals = Counter(labels)
    wanted = [{label: share * count for label, count in totals.items()} for share in shares]
    placed: dict[int, int] = {}

    def place(number: int, subset: int) -> None:
        placed[number] = subset
        for label, count in contents[number].items():
            wanted[subset][label] -= count

    rarest_first = sorted(holding, key=lambda label: (len(holding[label]), label))
    for label in rarest_first:
        # What each class needs at the least, from its smallest groups, before shares are weighed.
        for subset, needed in ((0, 1), (1, 3), (2, 4)):
            numbers = holding[label]
            if len(numbers) < needed or shares[subset] == 0 or subset in {placed.get(number) for number in numbers}:
                continue
            free = [number for number in numbers if number not in placed]
            if free:
                place(min(free, key=lambda number: len(order[number])), subset)
    for label in rarest_first:
        for number in sorted((n for n in holding[label] if n not in placed), key=lambda n: -len(order[n])):
            open_to = [subset for subset in range(3) if shares[subset] > 0]
            if len(holding[label]) < 3:
                open_to = [0]  # two examples cannot be spared
            place(number, max(open_to, key=lambda subset: (wanted[subset][label], sum(wanted[subset].values()))))
    found: list[list[int]] = [[], [], []]
    for number, subset in placed.items():
        found[subset] += order[number]
    fit, validation, calibration = (tuple(sorted(indices)) for indices in found)
    words = _words(labels, (fit, validation, calibration), seed, members, about)
    return LearningSplit(fit, validation, calibration, words, _notes(holding, totals))


def _words(
    labels: Sequence[str], chosen: Sequence[tuple[int, ...]], seed: int, members: Sequence[Sequence[int]], about: str
) -> str:
    counts = [Counter(labels[index] for index in indices) for indices in chosen]
    classes = [f"{label} {'/'.join(str(count[label]) for count in counts)}" for label in sorted(set(labels))]
    sizes = "/".join(str(len(indices)) for indices in chosen)
    together = sum(len(group) > 1 for group in members)
    words = f"by seed {seed}, stratified by class, {len(members)} groups never divided ({together} of several images): "
    words += f"{'/'.join(SUBSETS)} {sizes} ({', '.join(classes)})"
    return f"{words}; {about}" if about else words


def _notes(holding: dict[str, list[int]], totals: Counter[str]) -> tuple[str, ...]:
    notes = []
    for label in sorted(holding):
        if len(holding[label]) < 3:
            count, groups = totals[label], len(holding[label])
            what = "one example" if count == 1 else f"{count} examples in {groups} group{'s' if groups > 1 else ''}"
            notes.append(f"{label}: {what}, all fitted, so neither validation nor calibration sees this class; add examples")
    return tuple(notes)


def _members(groups: Sequence[Hashable]) -> list[list[int]]:
    found: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return list(found.values())


def _without(count: int, held: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    left = sorted(set(range(count)) - set(held))
    return tuple(left), tuple(held)
