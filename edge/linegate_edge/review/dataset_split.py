"""Pictures → which are learned from, which are measured on for ever, and which wait for a person.

Rules kept here: a group (a part's serial) lies in one split, and never changes sides once it was placed; groups whose pictures
look the same go together; a new group goes by its SHA-256, so the split depends on neither order nor chance; where a new
picture looks like parts of both splits, it goes into neither. Nothing here reads a file or a clock.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linegate.dataset_version import Conflict, NearDuplicates, Split
from linegate.near_duplicates import LIMIT_BITS, crowded, hash_bits, near_duplicate_labels
from linegate_edge.review.dataset_pictures import Gathered, Picture, group_of_image


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Where each picture goes by SHA-256 (those left out are missing), every group's split, and what was found."""

    splits: Mapping[str, Split]
    groups: Mapping[str, Split]
    conflicts: tuple[Conflict, ...]
    near_duplicates: tuple[NearDuplicates, ...]


def place(gathered: Gathered, known: Mapping[str, Split], test_share: float, settled: Collection[str] = ()) -> Placed:
    """Place the pictures; `known` has the split of every group that a version before placed.

    Pictures in `settled` keep their labels though others that look the same have another one.
    """
    digests = sorted(gathered.pictures)
    pictures = gathered.pictures
    alike = _alike(gathered, digests)
    together = _Together()
    for digest in digests:
        together.join(pictures[digest].groups)
    stated = {group: together.of(group) for digest in digests for group in pictures[digest].groups}
    joins = []
    for same in alike:
        # Joined by looks, and not by the serial alone.
        if len({stated[pictures[digest].groups[0]] for digest in same}) > 1:
            joins.append(same)
        together.join([pictures[digest].groups[0] for digest in same])
    before = {**{group: one.fixed for one in pictures.values() if one.fixed for group in one.groups}, **known}
    groups: dict[str, Split] = {group: split for group, split in before.items() if split is not None}
    members: dict[str, list[str]] = defaultdict(list)
    for digest in digests:
        members[together.of(pictures[digest].groups[0])].append(digest)
    splits: dict[str, Split] = {}
    left_out: set[str] = set()
    for component in members.values():
        names = sorted({group for digest in component for group in pictures[digest].groups})
        held = {groups[name] for name in names if name in groups}
        if len(held) < 2:
            split = held.pop() if held else by_hash(names[0], test_share)
            groups |= dict.fromkeys(names, split)
            splits |= dict.fromkeys(component, split)
            continue
        for digest in component:
            picture = pictures[digest]
            own = {groups[name] for name in picture.groups if name in groups}
            if (picture.carried or picture.source == "base") and len(own) == 1:
                splits[digest] = own.pop()
            else:
                left_out.add(digest)
    conflicts = [*gathered.conflicts, *_conflicts_of_looks(gathered, alike, settled)]
    for conflict in conflicts:
        for digest in conflict.images:
            splits.pop(digest, None)
    for digest in digests:
        fixed = pictures[digest].fixed
        if digest not in splits and fixed is not None:
            groups.setdefault(group_of_image(digest), fixed)
    found = [_told(same, pictures, groups, left_out) for same in joins]
    return Placed(splits, groups, tuple(conflicts), tuple(sorted(found, key=lambda one: one.groups)))


def by_hash(group: str, test_share: float) -> Split:
    """Return the split of a group that nothing else decides: `test_share` of all groups are measured on."""
    number = int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8])
    return "test" if number < test_share * 2**64 else "train"


def own_group(picture: Picture, split: Split, groups: Mapping[str, Split]) -> str:
    """Return the group that a picture is listed under: the first of its own that lies in `split`."""
    return next(group for group in picture.groups if groups.get(group) == split)


def _alike(gathered: Gathered, digests: list[str]) -> list[list[str]]:
    """Return the pictures that look the same, two or more at a time; none where most of them do."""
    labels = near_duplicate_labels(_hashes(gathered, digests))
    if crowded(labels):
        return []
    same: dict[int, list[str]] = defaultdict(list)
    for digest, label in zip(digests, labels.tolist(), strict=True):
        same[label].append(digest)
    return [found for found in same.values() if len(found) > 1]


def _hashes(gathered: Gathered, digests: list[str]) -> NDArray[np.uint64]:
    return hash_bits(np.stack([gathered.frequencies[digest] for digest in digests]))


def _conflicts_of_looks(gathered: Gathered, alike: list[list[str]], settled: Collection[str]) -> list[Conflict]:
    """Return the reviewed pictures that look like another one with another label, chain by chain.

    Pairs of first photographs are left alone: their labels were settled when the first package was made.
    """
    pictures, sure = gathered.pictures, {*settled}
    disputed = {digest for conflict in gathered.conflicts for digest in conflict.images}
    hashes = dict(zip(sorted(pictures), _hashes(gathered, sorted(pictures)), strict=True))
    found = []
    for same in alike:
        involved = _unlike_neighbours([digest for digest in same if digest not in disputed], pictures, hashes)
        doubted = sorted({digest for digest in involved if pictures[digest].source == "review"} - sure)
        if doubted:
            labels = tuple(sorted({pictures[digest].label for digest in involved}))
            names = tuple(sorted({pictures[digest].groups[0] for digest in involved}))
            text = f"{' and '.join(names)} look the same and are labelled {' and '.join(labels)}: look at them side by side"
            verdicts = tuple(verdict for digest in doubted for verdict in pictures[digest].verdict_ids)
            found.append(
                Conflict(
                    kind="near-duplicates", images=tuple(doubted), labels=labels, groups=names, verdict_ids=verdicts, text=text
                )
            )
    return found


def _unlike_neighbours(same: list[str], pictures: Mapping[str, Picture], hashes: Mapping[str, NDArray[np.uint64]]) -> list[str]:
    """Return those that look like another one with another label, less pairs of first photographs."""
    labels = np.array([pictures[digest].label for digest in same])
    if len(set(labels.tolist())) < 2:
        return []
    reviewed = np.array([pictures[digest].source == "review" for digest in same])
    bits = np.stack([hashes[digest] for digest in same])
    return [
        digest
        for digest, label, review in zip(same, labels, reviewed, strict=True)
        if ((labels != label) & (reviewed | review) & (np.bitwise_count(bits ^ hashes[digest]).sum(1) <= LIMIT_BITS)).any()
    ]


def _told(same: list[str], pictures: Mapping[str, Picture], groups: Mapping[str, Split], left_out: set[str]) -> NearDuplicates:
    names = tuple(sorted({pictures[digest].groups[0] for digest in same}))
    held = {groups[name] for name in names if name in groups}
    dropped = tuple(digest for digest in same if digest in left_out)
    if len(held) > 1:
        text = f"{' and '.join(names)} look the same, and lie in both splits from before: new pictures go into neither"
        return NearDuplicates(groups=names, split=None, left_out=dropped, text=text)
    split = next(iter(held), None)
    text = f"{' and '.join(names)} look the same: they stay together"
    return NearDuplicates(groups=names, split=split, left_out=dropped, text=text)


class _Together:
    """Which groups belong together, chains followed."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def of(self, group: str) -> str:
        """Return the group that stands for all that belong together with this one."""
        while (above := self._above.get(group, group)) != group:
            self._above[group] = self._above.get(above, above)
            group = above
        return group

    def join(self, groups: Collection[str]) -> None:
        """Put groups together; the smallest name stands for them."""
        roots = sorted({self.of(group) for group in groups})
        for root in roots[1:]:
            self._above[root] = roots[0]
