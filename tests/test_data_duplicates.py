"""What belongs together: bytes, stated groups, and pictures that look the same though saved anew."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from linegate.errors import DataError
from linegate.near_duplicates import LIMIT_BITS, hash_bits, near_duplicate_labels
from linegate_training.data.duplicates import find_groups, find_leaks, group_samples, note_leaks, read_prints
from linegate_training.data.parts import PartSet, Sample


def part(seed: int) -> NDArray[np.uint8]:
    """Draw a ring as a camera sees it: always the same product, a little shifted, lit and grained differently."""
    random = np.random.default_rng(seed)
    grey: NDArray[np.floating] = np.full((160, 200), 40, np.float32)
    centre = (100 + int(random.integers(-2, 3)), 80 + int(random.integers(-2, 3)))
    cv2.circle(grey, centre, 60, 180, -1, cv2.LINE_AA)
    cv2.circle(grey, centre, 35, 90, -1, cv2.LINE_AA)
    grain = cv2.resize(random.normal(0, 6, (16, 16)).astype(np.float32), (200, 160))
    grey = grey * random.uniform(0.95, 1.05) + grain + random.normal(0, 2, grey.shape)
    return np.clip(grey, 0, 255).astype(np.uint8)


def saved(path: Path, pixels: NDArray[np.uint8], **more: str) -> Sample:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return Sample(path.name, path, more.get("subset", "train"), more.get("label", "good"), group=more.get("group"))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return [saved(tmp_path / f"{index:03}.png", part(index)) for index in range(40)]


def test_nothing_gives_no_groups() -> None:
    assert group_samples([]) == []
    assert len(near_duplicate_labels(hash_bits(np.zeros((0, 255), np.float32)))) == 0


def test_photographs_of_different_parts_of_one_product_stay_apart(samples: list[Sample]) -> None:
    assert group_samples(samples) == list(range(40))
    assert "0 groups of near-duplicates" in find_groups(samples).words


@pytest.mark.parametrize("change", ["jpeg", "smaller", "brighter", "bytes"])
def test_picture_saved_anew_is_found(samples: list[Sample], tmp_path: Path, change: str) -> None:
    pixels = part(5)
    name = "copy.png"
    if change == "jpeg":
        name = "copy.jpg"
    elif change == "smaller":
        pixels = np.asarray(cv2.resize(pixels, (160, 128), interpolation=cv2.INTER_AREA), np.uint8)
    elif change == "brighter":
        pixels = np.clip(pixels.astype(np.float32) * 1.1 + 8, 0, 255).astype(np.uint8)
    groups = group_samples([*samples, saved(tmp_path / name, pixels)])
    assert groups[-1] == groups[5]
    assert len(set(groups)) == 40


def test_without_near_duplicates_bytes_alone_count(samples: list[Sample], tmp_path: Path) -> None:
    anew = [saved(tmp_path / "copy.jpg", part(5)), saved(tmp_path / "copy.png", part(5))]
    groups = group_samples([*samples, *anew], near_duplicates=False)
    assert groups[-1] == groups[5]
    assert groups[-2] not in groups[:-2]


def test_groups_chain_through_bytes_looks_and_what_is_stated(samples: list[Sample], tmp_path: Path) -> None:
    samples[1] = replace(samples[1], group="item 1")
    copy = replace(saved(tmp_path / "copy.jpg", part(5)), group="item 1")
    found = find_groups([*samples, copy])
    assert found.ids[1] == found.ids[5] == found.ids[-1]
    assert found.largest == 3
    assert found.near_groups == 1
    assert "1 stated groups" in found.words


def test_where_all_pictures_look_the_same_only_bytes_count(tmp_path: Path) -> None:
    flat = [np.full((640, 640), 100, np.uint8) for _ in range(20)]
    for index, pixels in enumerate(flat):
        pixels[0, 0] = 90 + index  # lost when the picture is made small
    found = find_groups([saved(tmp_path / f"{index}.png", pixels) for index, pixels in enumerate(flat)])
    assert len(set(found.ids)) == 20
    assert "look the same to the hash" in found.words


def test_labels_join_exactly_the_pairs_within_the_limit_and_their_chains() -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 2, (600, 256)).astype(np.uint8)
    bits[300:] = bits[:300]
    for row in range(300, 600):
        flipped = random.permutation(256)[: LIMIT_BITS + (row % 2)]
        bits[row, flipped] ^= 1
    hashes = np.packbits(bits, axis=1).view(np.uint64)
    labels = near_duplicate_labels(hashes)
    joined = labels[300:] == labels[:300]
    assert joined[::2].all()
    assert not joined[1::2].any()


def test_ten_thousand_hashes_are_compared_in_seconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, (10_000, 4)).astype(np.uint64)
    started = time.process_time()
    assert len(set(near_duplicate_labels(hashes).tolist())) == 10_000
    assert time.process_time() - started < 20


def test_unreadable_picture_is_refused_by_name(tmp_path: Path) -> None:
    for content in (b"", b"no picture"):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.png: not a readable picture"):
            read_prints([Sample("bad.png", tmp_path / "bad.png", "train", "good")])
    with pytest.raises(DataError, match="cannot be read"):
        read_prints([Sample("no.png", tmp_path / "no.png", "train", "good")])


def test_test_image_that_training_shows_too_is_noted_not_refused(
    samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = [saved(tmp_path / f"t{index}.png", part(100 + index), subset="test") for index in range(10)]
    clean = PartSet("rings", (*samples, *tests), "", "")
    assert note_leaks(clean) == 0
    copy = saved(tmp_path / "anew.jpg", part(7), subset="test", label="dent")
    same_item = replace(tests[0], group="item 3")
    learned = [replace(samples[3], group="item 3"), *samples[:3], *samples[4:]]
    leaky = PartSet("rings", (*learned, same_item, *tests[1:], copy), "", "")
    assert [(test.name, train.name) for test, train in find_leaks(leaky)] == [("t0.png", "003.png"), ("anew.jpg", "007.png")]
    assert note_leaks(leaky) == 2
    shown = capsys.readouterr().err
    assert "2 of 11 test images (the first t0.png, like 003.png)" in shown
    assert len(shown.splitlines()) == 1
