"""Which images show the same thing: the same bytes, the same stated group, or nearly the same picture.

Rules kept here: pictures are compared by a perceptual hash of 255 bits, one for each low frequency of the discrete cosine
transform (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010); photographs of one product
all look alike, so a bit says on which side of the whole set's median a frequency lies, not of the image's own; where even
so most of a set would be one group, the hash cannot tell and only bytes and stated groups count. How a split uses groups
is left to `splits`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from linegate.errors import DataError
from linegate_training.data.parts import PartSet, Sample

LIMIT_BITS: Final = 12
"""Hashes that differ in no more bits than this are of one picture: saved again, resized, or photographed twice."""
RELATIVE_FROM: Final = 16
"""Below this many images the set's median says too little, and each image's own is taken."""
MAX_SHARE: Final = 0.5
"""A group of near-duplicates above this share of the images says that the hash cannot tell these parts apart."""
_SIDE: Final = 16
_SHRUNK_PX: Final = 64
_BLOCK: Final = 256


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
        rows.append(_frequencies(data, sample))
    frequencies = np.stack(rows) if rows else np.zeros((0, _SIDE * _SIDE - 1), np.float32)
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
    keys: list[NDArray[np.int64]] = [_numbered([("bytes", digest) for digest in known.digests])]
    keys.append(_numbered([("group", group) if group is not None else ("alone", str(i)) for i, group in enumerate(stated)]))
    said = []
    near_groups = near_images = 0
    if near_duplicates:
        alike = near_duplicate_labels(hash_bits(known.frequencies))
        sizes = np.bincount(alike)
        if len(samples) >= RELATIVE_FROM and sizes.max() > MAX_SHARE * len(samples):
            said.append(f"near-duplicates not looked for: {sizes.max()} of {len(samples)} images look the same to the hash")
        else:
            near_groups, near_images = int((sizes > 1).sum()), int(sizes[sizes > 1].sum())
            largest = f", the largest of {sizes.max()}" if near_groups else ""
            said.append(f"{near_groups} groups of near-duplicates ({near_images} images{largest})")
            keys.append(alike)
    if any(group is not None for group in stated):
        distinct = len({group for group in stated if group is not None})
        said.insert(0, f"{distinct} stated groups (part, item or sequence)")
    ids = _joined(keys)
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
    crowded = np.bincount(near_duplicate_labels(hashes)).max() > MAX_SHARE * len(samples) and len(samples) >= RELATIVE_FROM
    by_digest = {digest: row for row, digest in reversed(list(enumerate(known.digests[: len(learned)])))}
    by_group = {sample.group: row for row, sample in reversed(list(enumerate(learned))) if sample.group is not None}
    leaks = []
    for row, sample in enumerate(tests, len(learned)):
        twin = by_digest.get(known.digests[row], by_group.get(sample.group) if sample.group is not None else None)
        if twin is None and not crowded:
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


def hash_bits(frequencies: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return hashes (N, 4) of 255 bits from low frequencies (N, 255): is each above its median over the set?"""
    if not len(frequencies):
        return np.zeros((0, 4), np.uint64)
    relative = len(frequencies) >= RELATIVE_FROM
    middle = np.median(frequencies, axis=0) if relative else np.median(frequencies, axis=1, keepdims=True)
    bits = np.pad(frequencies > middle, ((0, 0), (0, 1)))
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64)


def near_duplicate_labels(hashes: NDArray[np.uint64], limit_bits: int = LIMIT_BITS) -> NDArray[np.int64]:
    """Return a label for each hash (N, 4), equal where a chain of pairs at most `limit_bits` apart joins two."""
    unique, inverse = np.unique(hashes, axis=0, return_inverse=True)
    labels = np.arange(len(unique))
    columns = [np.ascontiguousarray(unique[:, word]) for word in range(unique.shape[1])]
    # Blocks bound the memory: ten thousand images make fifty million pairs.
    for start in range(0, len(unique), _BLOCK):
        rows = slice(start, start + _BLOCK)
        distances = np.zeros((len(labels[rows]), len(unique) - start), np.uint16)
        for column in columns:
            distances += np.bitwise_count(column[rows, None] ^ column[None, start:])
        first, second = np.nonzero(distances <= limit_bits)
        labels = _merged(labels, labels[first + start], labels[second + start])
    found: NDArray[np.int64] = labels[inverse.reshape(-1)].astype(np.int64)
    return found


def _merged(labels: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    count = len(labels)
    links = coo_array((np.ones(len(left), bool), (left, right)), shape=(count, count))
    merged: NDArray[np.int64] = connected_components(links, directed=False)[1].astype(np.int64)[labels]
    return merged


def _joined(keys: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return group numbers by first appearance, where samples that share any key (N,) are in one group."""
    count = len(keys[0])
    offset = count
    left, right = [], []
    for key in keys:
        left.append(np.arange(count))
        right.append(key + offset)
        offset += int(key.max()) + 1
    ones = np.ones(count * len(keys), bool)
    links = coo_array((ones, (np.concatenate(left), np.concatenate(right))), shape=(offset, offset))
    components = connected_components(links, directed=False)[1][:count]
    return _numbered([(str(one), "") for one in components])


def _numbered(values: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)


def _frequencies(data: bytes, sample: Sample) -> NDArray[np.float32]:
    encoded = np.frombuffer(data, np.uint8)
    # Pixels as stored, half the resolution: JPEG then skips half the work. Judging the file strictly is `read_part`'s.
    half = cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_IGNORE_ORIENTATION
    grey = cv2.imdecode(encoded, half) if len(encoded) else None
    if grey is None:
        raise DataError(f"{sample.path}: not a readable picture; mend or remove this image")
    small = cv2.resize(grey, (_SHRUNK_PX, _SHRUNK_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:_SIDE, :_SIDE].ravel()[1:]
    # Of unit length, so that gain does not matter; the constant term is gone, so that brightness does not.
    found: NDArray[np.float32] = (low / max(float(np.linalg.norm(low)), 1e-3)).astype(np.float32)
    return found
