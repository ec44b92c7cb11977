"""Which images show the same thing: the same bytes, the same stated group, or nearly the same picture.

Rules kept here: where most of a set would look the same, the hash cannot tell and only bytes and stated groups count. How
pictures are compared is left to `linegate.near_duplicates`, how a split uses groups to `splits`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linegate.errors import DataError
from linegate.near_duplicates import (
    LIMIT_BITS,
    SIDE,
    crowded,
    hash_bits,
    joined,
    low_frequencies,
    near_duplicate_labels,
    numbered,
)
from linegate_training.data.parts import PartSet, Sample


@dataclass(frozen=True, slots=True, eq=False)
class Prints:
    """What is kept of images for comparing: names, SHA-256 of the bytes, and low frequencies (N, 255) of unit length."""

    names: tuple[str, ...]
    digests: tuple[str, ...]
    frequencies: NDArray[np.float32]

    def of(self, samples: Sequence[Sample]) -> Prints:
        """Return those of the given samples, in their order."""
        rows = {name: row for row, name in enumerate(self.names)}
        chosen = [rows[sample.name] for sample in samples]
        return Prints(
            tuple(self.names[row] for row in chosen), tuple(self.digests[row] for row in chosen), self.frequencies[chosen]
        )


@dataclass(frozen=True, slots=True)
class Groups:
    """A group number for each sample, and in words what was found to belong together."""

    ids: tuple[int, ...]
    near_groups: int
    near_images: int
    largest: int
    words: str


def read_prints(samples: Sequence[Sample]) -> Prints:
    """Read every image once, about 3 ms each.

    Raises:
        DataError: an image cannot be read.
    """
    digests, rows = [], []
    for sample in samples:
        try:
            data = sample.path.read_bytes()
        except OSError as error:
            raise DataError(f"{sample.path}: cannot be read ({error.strerror}); mend or remove this image") from error
        digests.append(hashlib.sha256(data).hexdigest())
        found = low_frequencies(data)
        if found is None:
            raise DataError(f"{sample.path}: not a readable picture; mend or remove this image")
        rows.append(found)
    frequencies = np.stack(rows) if rows else np.zeros((0, SIDE * SIDE - 1), np.float32)
    return Prints(tuple(sample.name for sample in samples), tuple(digests), frequencies)


def find_groups(samples: Sequence[Sample], near_duplicates: bool = True, prints: Prints | None = None) -> Groups:
    """Return which samples belong together: by bytes, by stated group and, where asked, by looks; chains are followed.

    Raises:
        DataError: an image cannot be read.
    """
    if not samples:
        return Groups((), 0, 0, 0, "no images to group")
    known = read_prints(samples) if prints is None else prints.of(samples)
    stated = [sample.group for sample in samples]
    keys: list[NDArray[np.int64]] = [numbered([("bytes", digest) for digest in known.digests])]
    keys.append(numbered([("group", group) if group is not None else ("alone", str(i)) for i, group in enumerate(stated)]))
    said = []
    near_groups = near_images = 0
    if near_duplicates:
        alike = near_duplicate_labels(hash_bits(known.frequencies))
        sizes = np.bincount(alike)
        if crowded(alike):
            said.append(f"near-duplicates not looked for: {sizes.max()} of {len(samples)} images look the same to the hash")
        else:
            near_groups, near_images = int((sizes > 1).sum()), int(sizes[sizes > 1].sum())
            largest = f", the largest of {sizes.max()}" if near_groups else ""
            said.append(f"{near_groups} groups of near-duplicates ({near_images} images{largest})")
            keys.append(alike)
    if any(group is not None for group in stated):
        distinct = len({group for group in stated if group is not None})
        said.insert(0, f"{distinct} stated groups (part, item or sequence)")
    ids = joined(keys)
    return Groups(tuple(ids.tolist()), near_groups, near_images, int(np.bincount(ids).max()), ", ".join(said) or "by bytes")


def group_samples(samples: Sequence[Sample], near_duplicates: bool = True, prints: Prints | None = None) -> list[int]:
    """Return a group number for each sample: exact bytes, `Sample.group` and near-duplicates taken together."""
    return list(find_groups(samples, near_duplicates, prints).ids)


def find_leaks(parts: PartSet, prints: Prints | None = None) -> list[tuple[Sample, Sample]]:
    """Return the test images that a training image shows too, each with one such, by bytes, stated group or looks.

    Raises:
        DataError: an image cannot be read.
    """
    learned, tests = [*parts.goods(), *parts.defects()], parts.tests()
    if not learned or not tests:
        return []
    samples = [*learned, *tests]
    known = read_prints(samples) if prints is None else prints.of(samples)
    hashes = hash_bits(known.frequencies)
    all_alike = crowded(near_duplicate_labels(hashes))
    by_digest = {digest: row for row, digest in reversed(list(enumerate(known.digests[: len(learned)])))}
    by_group = {sample.group: row for row, sample in reversed(list(enumerate(learned))) if sample.group is not None}
    leaks = []
    for row, sample in enumerate(tests, len(learned)):
        twin = by_digest.get(known.digests[row], by_group.get(sample.group) if sample.group is not None else None)
        if twin is None and not all_alike:
            distances = np.bitwise_count(hashes[: len(learned)] ^ hashes[row]).sum(1)
            nearest = int(np.argmin(distances))
            twin = nearest if distances[nearest] <= LIMIT_BITS else None
        if twin is not None:
            leaks.append((sample, learned[twin]))
    return leaks


def note_leaks(parts: PartSet, prints: Prints | None = None) -> int:
    """Say on standard error how many test images a training image shows too, and return that number."""
    leaks = find_leaks(parts, prints)
    if leaks:
        test, learned = leaks[0]
        said = f"a training image shows the same as {len(leaks)} of {len(parts.tests())} test images"
        first = f"the first {test.name}, like {learned.name}"
        print(f"note: {parts.name}: {said} ({first}); the numbers flatter: measure on other parts", file=sys.stderr)
    return len(leaks)
