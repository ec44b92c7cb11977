"""Splits of parts to learn from: whole groups, every class where it can be, the same for the same seed."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linegate.errors import DataError
from linegate_training.data.splits import split_goods, split_learning


def test_no_parts_give_an_empty_split() -> None:
    split = split_learning([], [], 0, 0.2, 0.2)
    assert (split.fit, split.validation, split.calibration, split.notes) == ((), (), (), ())


@settings(deadline=None, max_examples=60)
@given(
    data=st.lists(
        st.tuples(st.sampled_from(["good", "good", "good", "crack", "dent", "rust"]), st.integers(0, 25)), max_size=90
    ),
    seed=st.integers(0, 5),
    shares=st.sampled_from([(0.15, 0.15), (0.3, 0.0), (0.0, 0.2), (0.1, 0.3)]),
)
def test_groups_stay_whole_and_classes_validate_where_they_can(
    data: list[tuple[str, int]], seed: int, shares: tuple[float, float]
) -> None:
    labels, groups = [label for label, _ in data], [group for _, group in data]
    split = split_learning(labels, groups, seed, *shares)
    assert sorted([*split.fit, *split.validation, *split.calibration]) == list(range(len(data)))
    where = {index: split.subset(index) for index in range(len(data))}
    places = defaultdict(set)
    for index, group in enumerate(groups):
        places[group].add(where[index])
    assert all(len(found) == 1 for found in places.values())
    for share, subset in zip(shares, (split.validation, split.calibration), strict=True):
        assert share > 0 or not subset
    for label in set(labels):
        of_label = {groups[index] for index in range(len(data)) if labels[index] == label}
        if len(of_label) == 1 and len({one for one, group in data if group in of_label}) == 1:
            assert {where[index] for index in range(len(data)) if labels[index] == label} == {"train"}
    assert split == split_learning(labels, groups, seed, *shares)


@pytest.mark.parametrize("count", [3, 4, 7, 40])
def test_class_of_three_groups_or_more_is_fitted_and_validated(count: int) -> None:
    labels = ["good"] * 100 + ["crack"] * count
    split = split_learning(labels, range(len(labels)), 1, 0.1, 0.1)
    for subset in (split.fit, split.validation):
        assert any(labels[index] == "crack" for index in subset)
    assert any(labels[index] == "crack" for index in split.calibration) == (count >= 4)
    assert split.notes == ()


def test_shares_hold_for_each_class() -> None:
    labels = ["good"] * 700 + ["crack"] * 200 + ["dent"] * 100
    split = split_learning(labels, range(1000), 0, 0.2, 0.1)
    for label, total in (("good", 700), ("crack", 200), ("dent", 100)):
        for share, subset in ((0.2, split.validation), (0.1, split.calibration)):
            assert sum(labels[index] == label for index in subset) == pytest.approx(share * total, abs=2)


def test_single_example_is_fitted_and_noted() -> None:
    split = split_learning([*["good"] * 30, "crack", "dent", "dent"], range(33), 0, 0.2, 0.2)
    assert {30, 31, 32} <= set(split.fit)
    assert split.notes[0].startswith("crack: one example, all fitted")
    assert split.notes[1].startswith("dent: 2 examples in 2 groups")


def test_items_with_good_and_defective_images_stay_whole() -> None:
    labels = (["good"] * 7 + ["crack"]) * 20
    split = split_learning(labels, [index // 8 for index in range(160)], 0, 0.15, 0.15)
    assert len(split.validation) == 24
    assert len(split.calibration) == 24
    assert all({index // 8 for index in split.fit}.isdisjoint(i // 8 for i in other) for other in (split.validation,))


def test_words_say_how_the_split_was_made() -> None:
    labels = ["good"] * 20 + ["crack"] * 10
    split = split_learning(labels, [0, 0, *range(2, 30)], 7, 0.2, 0.1, "1 groups of near-duplicates (2 images)")
    assert "by seed 7" in split.words
    assert "29 groups never divided (1 of several images)" in split.words
    assert "crack 7/2/1" in split.words
    assert split.words.endswith("; 1 groups of near-duplicates (2 images)")


def test_another_seed_gives_another_learning_split() -> None:
    labels = ["good"] * 40
    assert split_learning(labels, range(40), 0, 0.2, 0.2) != split_learning(labels, range(40), 1, 0.2, 0.2)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.9, 0.3)])
def test_shares_that_leave_nothing_to_fit_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="must leave parts to fit"):
        split_learning(["good"] * 4, range(4), 0, *shares)


def test_good_parts_of_one_group_are_refused() -> None:
    with pytest.raises(DataError, match="all 20 good images belong together"):
        split_goods([1] * 20, 0, 0.2, 2000, 10)


@pytest.mark.parametrize("cross_fit_below", [0, 2000])
def test_good_groups_of_unequal_sizes_stay_whole(cross_fit_below: int) -> None:
    groups = [index if index < 60 else 60 for index in range(100)]
    split = split_goods(groups, 0, 0.2, cross_fit_below, 5, "by item")
    assert split.words.endswith("; by item")
    for fitted, held in split.rounds:
        assert fitted
        assert held
        assert {groups[index] for index in fitted}.isdisjoint(groups[index] for index in held)
