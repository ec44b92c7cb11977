"""Data set versions: a frozen test set over all versions, one digest for one content, and every change noticed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from linegate.dataset_version import Version, VersionBox
from linegate.errors import DataError
from linegate_edge.review.dataset_versions import ReviewedImage, build_version, list_versions
from simulators.reviews import NOON, plate, reviewed


def build(reviews: list[ReviewedImage], out: Path, parent: Version | None = None, **options: object) -> Version:
    given_options = {"name": "plates", "created_by": "ada", **options}
    return build_version(reviews, out, parent=None if parent is None else parent.folder, **given_options)  # type: ignore[arg-type]


def splits(version: Version) -> dict[str, str]:
    return {item.group: item.split for item in version.record.items}


def test_nothing_reviewed_makes_no_version(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing has been reviewed yet"):
        build([], tmp_path / "datasets")
    assert not (tmp_path / "datasets").exists()


def test_a_version_holds_the_very_bytes_labels_and_masks(tmp_path: Path) -> None:
    reviews = [reviewed(tmp_path / "evidence", seed, "scratch" if seed % 3 == 0 else "good") for seed in range(12)]
    version = build(reviews, tmp_path / "datasets", note="first")
    record = version.record
    assert version.folder.name == f"plates-v1-{record.digest[:12]}"
    assert sorted(item.sha256 for item in record.items) == sorted(review.sha256 for review in reviews)
    for item in record.items:
        review = next(review for review in reviews if review.sha256 == item.sha256)
        assert (version.folder / item.image).read_bytes() == review.path.read_bytes()
        assert (item.label, item.group, item.reviewed_by) == (review.label, review.serial, "ada")
        assert (item.mask is not None) == (item.label == "scratch")
        if item.mask is not None:
            assert review.mask is not None
            assert np.array_equal(cv2.imread(str(version.folder / item.mask), cv2.IMREAD_UNCHANGED), review.mask)
    assert record.counts.train["good"] + record.counts.test["good"] == 8
    assert record.stations == ("acme/press-1",)
    assert all(not path.stat().st_mode & 0o222 for path in version.folder.rglob("*") if path.is_file())


def test_the_same_content_is_the_same_version_and_not_made_twice(tmp_path: Path) -> None:
    reviews = [reviewed(tmp_path / "evidence", seed) for seed in range(6)]
    first = build(reviews, tmp_path / "datasets")
    again = build(reviews[::-1], tmp_path / "datasets", created_by="bob")
    assert again == first
    assert build(reviews, tmp_path / "datasets", parent=first) == first
    assert [version.folder for version in list_versions(tmp_path / "datasets")] == [first.folder]


def test_the_manifest_lists_all_versions_and_is_yaml(tmp_path: Path) -> None:
    first = build([reviewed(tmp_path / "evidence", seed) for seed in range(4)], tmp_path / "datasets")
    second = build([reviewed(tmp_path / "evidence", seed) for seed in range(8)], tmp_path / "datasets", parent=first)
    listed = yaml.safe_load((tmp_path / "datasets" / "datasets-manifest.yaml").read_text())
    assert [entry["folder"] for entry in listed["versions"]] == [first.folder.name, second.folder.name]
    assert listed["versions"][1]["parent"] == first.record.digest
    assert second.record.number == 2


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_test_parts_never_leak_into_training_over_any_number_of_versions(data: st.DataObject) -> None:
    """Parts of several views, near-duplicates, withdrawn and new reviews, shares that change: a group keeps its side."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        held: dict[str, str] = {}
        of_bytes: dict[str, str] = {}
        parent = None
        for number in range(data.draw(st.integers(2, 4), "versions")):
            seeds = data.draw(st.sets(st.integers(0, 11), min_size=1, max_size=8), f"parts of {number}")
            reviews = []
            for seed in sorted(seeds):
                serial = f"part-{data.draw(st.integers(0, 7), 'serial')}"
                kind = data.draw(st.sampled_from(["good", "good", "scratch"]), "kind")
                reviews.append(reviewed(folder / "evidence", seed, kind, side=32, serial=serial))
                if data.draw(st.booleans(), "twin"):  # saved anew with a little noise, as another part
                    noisy = np.clip(plate(seed, kind, 32)[0] + np.random.default_rng(number).integers(0, 2, (32, 32)), 0, 255)
                    twin = f"part-{data.draw(st.integers(0, 7), 'twin of')}"
                    more = {"serial": twin, "verdict_id": f"twin-{seed}", "pixels": noisy.astype(np.uint8)}
                    reviews.append(reviewed(folder / "evidence", seed, kind, side=32, **more))
            share = data.draw(st.sampled_from([0.2, 0.5, 0.8]), "share")
            parent = build(reviews, folder / "datasets", parent, test_share=share)
            for group, split in parent.record.groups.items():
                assert held.setdefault(group, split) == split
            for item in parent.record.items:
                assert held[item.group] == item.split
                assert of_bytes.setdefault(item.sha256, item.split) == item.split


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(8)), copies=st.lists(st.integers(0, 7), max_size=3))
def test_digest_does_not_depend_on_order_or_repetition(order: list[int], copies: list[int]) -> None:
    with tempfile.TemporaryDirectory() as place:
        kinds = ["good", "scratch", "spot", "good"]
        reviews = [reviewed(Path(place) / "evidence", seed, kinds[seed % 4], side=32) for seed in range(8)]
        straight = build(reviews, Path(place) / "one").record
        shuffled = build([reviews[index] for index in [*order, *copies]], Path(place) / "two").record
        assert shuffled.digest == straight.digest
        assert shuffled.items == straight.items


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Version:
    place = tmp_path_factory.mktemp("frozen")
    return build([reviewed(place / "evidence", seed, ["good", "spot"][seed % 2], side=32) for seed in range(6)], place / "out")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_editing_any_byte_of_any_file_is_noticed(frozen: Version, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(path for path in frozen.folder.rglob("*") if path.is_file())))
    before = path.read_bytes()
    at = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[at] ^= data.draw(st.integers(1, 255))
    path.chmod(0o644)
    try:
        path.write_bytes(changed)
        with pytest.raises(DataError) as error:
            Version.load(frozen.folder)
        assert "\n" not in str(error.value)
    finally:
        path.write_bytes(before)
    Version.load(frozen.folder)


def test_a_missing_and_an_added_file_are_noticed(frozen: Version) -> None:
    image = frozen.folder / frozen.record.items[0].image
    image.rename(image.with_suffix(".away"))
    try:
        with pytest.raises(DataError, match=r"is listed in version\.json and cannot be read"):
            Version.load(frozen.folder)
    finally:
        image.with_suffix(".away").rename(image)
    added = image.with_name("more.png")
    added.write_bytes(b"x")
    try:
        with pytest.raises(DataError, match=r"is not listed in version\.json"):
            Version.load(frozen.folder)
    finally:
        added.unlink()


def test_what_the_version_before_has_is_taken_over_and_a_new_word_counts(tmp_path: Path) -> None:
    first = build([reviewed(tmp_path / "evidence", seed) for seed in range(8)], tmp_path / "datasets")
    mended = reviewed(tmp_path / "evidence", 3, label="stain", reviewed_at=NOON + timedelta(days=1))
    second = build([mended, reviewed(tmp_path / "evidence", 20)], tmp_path / "datasets", first)
    labels = {item.group: item.label for item in second.record.items}
    assert len(labels) == 9
    assert labels["part-00003"] == "stain"
    assert splits(second).items() >= splits(first).items()


def test_two_people_who_differ_are_a_conflict_until_one_agrees(tmp_path: Path) -> None:
    others = [reviewed(tmp_path / "evidence", seed) for seed in range(4)]
    ada = reviewed(tmp_path / "evidence", 9)
    bob = replace(ada, label="stain", reviewed_by="bob", reviewed_at=ada.reviewed_at + timedelta(minutes=1))
    first = build([*others, ada, bob], tmp_path / "datasets")
    (conflict,) = first.record.conflicts
    assert (conflict.kind, conflict.labels, conflict.groups) == ("people", ("good", "stain"), ("part-00009",))
    assert "part-00009" not in splits(first)
    assert first.record.counts.left_out == 1
    agreed = replace(ada, label="stain", reviewed_at=bob.reviewed_at + timedelta(minutes=1))
    second = build([*others, ada, bob, agreed], tmp_path / "datasets", first)
    assert second.record.conflicts == ()
    assert splits(second)["part-00009"] == first.record.groups["part-00009"]


def test_one_person_s_newest_word_counts(tmp_path: Path) -> None:
    ada = reviewed(tmp_path / "evidence", 1)
    later = replace(ada, label="stain", reviewed_at=ada.reviewed_at + timedelta(hours=1))
    version = build([later, ada, reviewed(tmp_path / "evidence", 2)], tmp_path / "datasets")
    assert {item.group: item.label for item in version.record.items}["part-00001"] == "stain"
    assert version.record.conflicts == ()


def test_the_same_bytes_with_two_labels_are_left_out(tmp_path: Path) -> None:
    one = reviewed(tmp_path / "evidence", 1)
    other = replace(one, label="stain", verdict_id="verdict-b", serial="part-b")
    version = build([one, other, *[reviewed(tmp_path / "evidence", seed) for seed in range(2, 6)]], tmp_path / "datasets")
    (conflict,) = version.record.conflicts
    assert (conflict.kind, set(conflict.groups)) == ("bytes", {"part-00001", "part-b"})
    assert one.sha256 not in {item.sha256 for item in version.record.items}


def twin_of(folder: Path, seed: int, **changed: object) -> ReviewedImage:
    """Return the same plate with one pixel a grey value brighter: other bytes, the same look."""
    pixels = plate(seed)[0].copy()
    pixels[0, 0] += 1
    return reviewed(folder, seed, pixels=pixels, **{"serial": f"twin-{seed}", "verdict_id": f"twin-{seed}", **changed})


def test_pictures_that_look_the_same_stay_together(tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    reviews = [*[reviewed(folder, seed) for seed in range(20)], *[twin_of(folder, seed) for seed in range(6)]]
    version = build(reviews, tmp_path / "datasets", test_share=0.5)
    found = splits(version)
    assert len(version.record.near_duplicates) == 6
    assert all(found[f"twin-{seed}"] == found[f"part-{seed:05d}"] for seed in range(6))
    assert set(found.values()) == {"train", "test"}


def test_pictures_that_look_the_same_with_two_labels_wait_for_a_person(tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    reviews = [*[reviewed(folder, seed) for seed in range(20)], twin_of(folder, 4, label="stain")]
    version = build(reviews, tmp_path / "datasets")
    (conflict,) = version.record.conflicts
    assert (conflict.kind, conflict.groups) == ("near-duplicates", ("part-00004", "twin-4"))
    assert not {"part-00004", "twin-4"} & set(splits(version))
    assert set(conflict.images) == {reviews[4].sha256, reviews[-1].sha256}
    second = build(reviews, tmp_path / "datasets", version, settled=conflict.images)
    assert second.record.conflicts == ()
    assert {"part-00004", "twin-4"} <= set(splits(second))


def test_what_looks_like_both_splits_goes_into_neither(tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    first = build([reviewed(folder, seed) for seed in range(20)], tmp_path / "datasets", test_share=0.5)
    sides = splits(first)
    learned = next(seed for seed in range(20) if sides[f"part-{seed:05d}"] == "train")
    measured = next(seed for seed in range(20) if sides[f"part-{seed:05d}"] == "test")
    new = [twin_of(folder, seed, serial="part-new") for seed in (learned, measured)]
    second = build(new, tmp_path / "datasets", first)
    assert "part-new" not in splits(second)
    assert "part-new" not in second.record.groups
    assert splits(second) == sides
    assert {digest for one in second.record.near_duplicates for digest in one.left_out} == {one.sha256 for one in new}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for number, (subset, kind) in enumerate(
        itertools.chain([("train", "good")] * 6, [("test", "good")] * 3, [("test", "scratch")] * 3)
    ):
        image, mask = plate(100 + number, kind)
        (tmp_path / "base" / subset / kind).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "base" / subset / kind / f"{number:03d}.png"), image)
        if kind != "good":
            (tmp_path / "base" / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "base" / "ground_truth" / kind / f"{number:03d}_mask.png"), mask)
    return tmp_path / "base"


def test_the_first_photographs_keep_the_split_that_they_have(tmp_path: Path, base: Path) -> None:
    version = build([reviewed(tmp_path / "evidence", seed) for seed in range(4)], tmp_path / "datasets", base=base)
    mine = [item for item in version.record.items if item.source == "base"]
    assert sum(item.split == "train" for item in mine) == 6
    assert sum(item.split == "test" for item in mine) == 6
    assert all(item.mask is not None and item.split == "test" for item in mine if item.label == "scratch")
    # The next version need not name the folder again.
    assert (
        splits(build([reviewed(tmp_path / "evidence", 9)], tmp_path / "datasets", version)).items() >= splits(version).items()
    )


def test_a_reviewed_part_that_looks_like_a_first_photograph_goes_where_that_one_is(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "evidence"
    twins = [twin_of(folder, 100 + number) for number in (0, 1, 6, 7)]
    version = build([*twins, *[reviewed(folder, seed) for seed in range(6)]], tmp_path / "datasets", base=base)
    found = splits(version)
    assert [found[f"twin-{100 + number}"] for number in (0, 1, 6, 7)] == ["train", "train", "test", "test"]


def bad(kind: str, folder: Path) -> ReviewedImage:
    if kind == "torn":
        whole = reviewed(folder, 50)
        torn = whole.path.read_bytes()[:-40]
        path = folder / "torn.png"
        path.write_bytes(torn)
        return replace(whole, path=path, sha256=hashlib.sha256(torn).hexdigest())
    if kind == "changed":
        return replace(reviewed(folder, 50), sha256="0" * 64)
    if kind == "gone":
        return replace(reviewed(folder, 50), path=folder / "gone.png")
    if kind == "mask":
        return reviewed(folder, 50, "spot", mask=np.full((64, 128), 255, np.uint8))
    if kind == "box":
        return reviewed(folder, 50, "spot", mask=None, boxes=(VersionBox(label="spot", xyxy=(0, 0, 129, 10)),))
    if kind == "good but marked":
        return reviewed(folder, 50, mask=np.full((128, 128), 255, np.uint8))
    return reviewed(folder, 50, label="a/b")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("torn", "torn or damaged"),
        ("changed", "its bytes were changed"),
        ("gone", "cannot be read (No such file or directory)"),
        ("mask", "its mask is 128 × 64, the image 128 × 128: draw the mask on this image"),
        ("box", "does not lie in the image, 128 × 128: draw it again"),
        ("good but marked", "is labelled good and has a marked defect"),
        ("label", "label is 'a/b'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, kind: str, expected: str) -> None:
    reviews = [reviewed(tmp_path / "evidence", 1), bad(kind, tmp_path / "evidence")]
    with pytest.raises(DataError) as error:
        build(reviews, tmp_path / "datasets")
    assert expected in str(error.value)
    assert "part-00050" in str(error.value)
    assert "\n" not in str(error.value)
    assert list_versions(tmp_path / "datasets") == []


def test_a_changed_parent_is_refused(tmp_path: Path) -> None:
    first = build([reviewed(tmp_path / "evidence", seed) for seed in range(3)], tmp_path / "datasets")
    image = first.folder / first.record.items[0].image
    image.chmod(0o644)
    image.write_bytes(image.read_bytes() + b"more")
    with pytest.raises(DataError, match="was changed: SHA-256 is"):
        build([reviewed(tmp_path / "evidence", 7)], tmp_path / "datasets", first)


def test_a_record_of_another_schema_is_refused_with_both_numbers(tmp_path: Path) -> None:
    version = build([reviewed(tmp_path / "evidence", seed) for seed in range(3)], tmp_path / "datasets")
    path = version.folder / "version.json"
    values = json.loads(path.read_text())
    path.chmod(0o644)
    path.write_text(json.dumps({**values, "schema_version": 9}))
    with pytest.raises(DataError, match="schema_version is 9, this Linegate reads 1"):
        Version.load(version.folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, or a skip where this user may not mount one."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small tmpfs needs the right to mount: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(os.urandom(900_000))
    reviews = [reviewed(tmp_path / "evidence", seed, side=256) for seed in range(8)]
    with pytest.raises(DataError, match=r"the disk is full .* make room"):
        build(reviews, small_disk / "datasets")
    assert [path.name for path in (small_disk / "datasets").iterdir() if path.name != ".lock"] == []
    (small_disk / "ballast").unlink()
    assert build(reviews, small_disk / "datasets").record.number == 1
