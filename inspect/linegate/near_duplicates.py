"""Which pictures look the same: perceptual hashes, and what chains of near pairs join.

Rules kept here: pictures are compared by a perceptual hash of 255 bits, one for each low frequency of the discrete cosine
transform (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010); photographs of one product
all look alike, so a bit says on which side of the whole set's median a frequency lies, not of the image's own; where even
so most of a set would be one group, the hash cannot tell. numpy and OpenCV alone, for the line looks too. Reading files, and
what is done with pictures that look the same, are left to others.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

LIMIT_BITS: Final = 12
"""Hashes that differ in no more bits than this are of one picture: saved again, resized, or photographed twice."""
RELATIVE_FROM: Final = 16
"""Below this many images the set's median says too little, and each image's own is taken."""
MAX_SHARE: Final = 0.5
"""A group of near-duplicates above this share of the images says that the hash cannot tell these parts apart."""
SIDE: Final = 16
"""Low frequencies a side: their square less the constant term is the number of bits."""
_SHRUNK_PX: Final = 64
_BLOCK: Final = 256


def low_frequencies(data: bytes) -> NDArray[np.float32] | None:
    """Return the low frequencies (255,) of an encoded picture, of unit length; None where the bytes are no picture."""
    encoded = np.frombuffer(data, np.uint8)
    # Pixels as stored, half the resolution: JPEG then skips half the work. Judging the file strictly is left to others.
    half = cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_IGNORE_ORIENTATION
    grey = cv2.imdecode(encoded, half) if len(encoded) else None
    if grey is None:
        return None
    small = cv2.resize(grey, (_SHRUNK_PX, _SHRUNK_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:SIDE, :SIDE].ravel()[1:]
    # Of unit length, so that gain does not matter; the constant term is gone, so that brightness does not.
    found: NDArray[np.float32] = (low / max(float(np.linalg.norm(low)), 1e-3)).astype(np.float32)
    return found


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
        labels = _components(len(labels), labels[first + start], labels[second + start])[labels]
    found: NDArray[np.int64] = labels[inverse.reshape(-1)].astype(np.int64)
    return found


def crowded(labels: NDArray[np.int64]) -> bool:
    """Say whether most of the images (N,) are in one group of near-duplicates, so that the hash cannot tell them apart."""
    return len(labels) >= RELATIVE_FROM and int(np.bincount(labels).max()) > MAX_SHARE * len(labels)


def joined(keys: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return group numbers by first appearance, where samples that share any key (N,) are in one group."""
    count = len(keys[0])
    offset = count
    left, right = [], []
    for key in keys:
        left.append(np.arange(count))
        right.append(key + offset)
        offset += int(key.max()) + 1
    components = _components(offset, np.concatenate(left), np.concatenate(right))[:count]
    return numbered(components.tolist())


def numbered(values: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return a number for each value, by first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)


def _components(count: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each of `count` nodes the smallest one that the links `left[i]`-`right[i]` join it with.

    Each round hangs the roots of both ends of a link under the smaller one, then shortens all paths (Shiloach and Vishkin,
    "An O(log n) parallel connectivity algorithm", 1982).
    """
    labels = np.arange(count)
    while True:
        one, other = labels[left], labels[right]
        apart = one != other
        if not apart.any():
            return labels
        left, right, one, other = left[apart], right[apart], one[apart], other[apart]
        np.minimum.at(labels, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(shorter := labels[labels], labels):
            labels = shorter
