"""The probability of detection against size: against a published fit, known truths, and what no data can tell."""

from __future__ import annotations

import math

import numpy as np
import pytest

from linegate_training.pod import equivalent_diameter, probability_of_detection


def test_without_sizes_there_is_a_sentence_instead_of_a_curve() -> None:
    pod = probability_of_detection([], [])
    assert pod.curve is None
    assert "sizes are not known" in pod.words


def test_where_all_were_found_the_count_alone_speaks() -> None:
    """29 of 29 is the rule of old: a detection of 90 % with 95 % confidence."""
    pod = probability_of_detection(np.linspace(5, 50, 29).tolist(), [True] * 29)
    assert pod.curve is None
    assert "All 29 defects were found, the smallest of 5 px" in pod.words
    assert "90.2 % or more" in pod.words


def test_where_none_was_found_no_curve_is_fitted() -> None:
    pod = probability_of_detection([1.0, 2.0, 3.0] * 5, [False] * 15)
    assert pod.curve is None
    assert "None of 15 defects was found, the largest of 3 px" in pod.words


@pytest.mark.parametrize("touching", [False, True])
def test_where_size_separates_found_from_missed_the_limit_is_told_and_no_number(touching: bool) -> None:
    sizes = [float(size) for size in range(1, 21)] + ([10.0] if touching else [])
    pod = probability_of_detection(sizes, [size > 10 for size in sizes[:20]] + ([True] if touching else []))
    assert pod.curve is None
    assert "Every defect over 10 px was found" in pod.words


def test_where_only_the_smaller_were_found_size_is_said_to_tell_nothing() -> None:
    sizes = [float(size) for size in range(1, 21)]
    separated = probability_of_detection(sizes, [size < 10 for size in sizes])
    mixed = probability_of_detection(sizes, [size < 10 or size == 15 for size in sizes])
    for pod in (separated, mixed):
        assert pod.curve is None
        assert "no a90" in pod.words


def test_few_defects_give_no_curve() -> None:
    pod = probability_of_detection([1, 2, 3, 4], [False, True, False, True])
    assert pod.curve is None
    assert "too few for a curve" in pod.words


def test_fit_is_the_published_one_of_bliss_beetles() -> None:
    """Bliss 1935 as fitted by Dobson, "An Introduction to Generalized Linear Models": −60.72 and 34.27 per log₁₀ dose."""
    log_doses = [1.6907, 1.7242, 1.7552, 1.7842, 1.8113, 1.8369, 1.8610, 1.8839]
    totals, killed = [59, 60, 62, 56, 63, 59, 62, 60], [6, 13, 18, 28, 52, 53, 61, 60]
    sizes, found = [], []
    for log_dose, total, hits in zip(log_doses, totals, killed, strict=True):
        sizes += [10.0**log_dose] * total
        found += [True] * hits + [False] * (total - hits)
    curve = probability_of_detection(sizes, found).curve
    assert curve is not None
    assert curve.intercept == pytest.approx(-60.72, abs=0.02)
    assert curve.slope * math.log(10) == pytest.approx(34.27, abs=0.01)
    assert math.log10(curve.a50) == pytest.approx(60.72 / 34.27, abs=1e-3)
    # With so many the likelihood-ratio bound is close to the normal one: 34.27 ± 1.645 · 2.91.
    assert curve.edge[:, 1].min() * math.log(10) == pytest.approx(34.27 - 1.645 * 2.91, abs=0.25)


def simulated(random: np.random.Generator, count: int) -> tuple[list[float], list[bool]]:
    """Sizes of 2 to 60 px and whether they are found, where a50 is 12 px and the slope 3."""
    sizes = np.exp(random.uniform(np.log(2), np.log(60), count))
    found = random.uniform(size=count) < 1 / (1 + np.exp(-3 * np.log(sizes / 12)))
    return sizes.tolist(), found.tolist()


def test_lower_bound_reaches_nine_tenths_at_a90_95_and_lies_under_the_curve() -> None:
    pod = probability_of_detection(*simulated(np.random.default_rng(3), 150))
    assert pod.curve is not None
    assert pod.curve.a90_95 is not None
    assert pod.curve.a50 < pod.curve.a90 < pod.curve.a90_95
    assert pod.curve.lower(np.array([pod.curve.a90_95]))[0] == pytest.approx(0.9, abs=1e-3)
    assert pod.curve.probability(np.array([pod.curve.a90, pod.curve.a50])) == pytest.approx([0.9, 0.5])
    sizes = np.geomspace(2, 60, 50)
    assert (pod.curve.lower(sizes) < pod.curve.probability(sizes)).all()
    assert "(a90/95)" in pod.words


def test_a90_95_holds_in_about_nineteen_of_twenty_draws() -> None:
    random = np.random.default_rng(0)
    true_a90 = 12 * math.exp(math.log(9) / 3)
    held = 0
    for _ in range(200):
        curve = probability_of_detection(*simulated(random, 80)).curve
        held += curve is None or curve.a90_95 is None or curve.a90_95 >= true_a90
    assert 0.91 <= held / 200 <= 0.99


def test_nothing_is_extrapolated() -> None:
    sizes = [float(size) for size in range(5, 45)]
    found = [index % 5 in (1, 3) or size in (40, 42) for index, size in enumerate(sizes)]
    pod = probability_of_detection(sizes, found)
    assert pod.curve is not None
    assert pod.curve.a90 > 44
    assert "Nine of ten are found at no size measured (a90)" in pod.words
    assert "not clearly found more often" in pod.words
    assert "a90/95" not in pod.words


def test_small_samples_are_told_to_be_small() -> None:
    pod = probability_of_detection(*simulated(np.random.default_rng(5), 30))
    assert pod.curve is not None
    assert "asks for 60 defects" in pod.words


def test_equivalent_diameter_is_that_of_the_circle() -> None:
    assert equivalent_diameter(math.pi * 25) == pytest.approx(10)
