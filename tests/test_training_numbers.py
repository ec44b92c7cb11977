"""Metrics, thresholds and splits: against hand-computed cases, known values and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from linegate.errors import DataError
from linegate_training.calibrate import threshold_for
from linegate_training.data.splits import split_goods
from linegate_training.metrics import (
    PixelCurve,
    auroc_interval,
    clopper_pearson,
    false_reject_rate_at_zero_escapes,
    image_ap,
    image_auroc,
    map_threshold,
)
from linegate_training.models.gaussian import estimate_shrinkage, fit_gaussian


def test_metrics_without_parts_or_without_defects_are_undefined() -> None:
    nothing, nobody = np.zeros(0), np.zeros(0, bool)
    assert image_auroc(nothing, nobody) is None
    assert image_ap(np.ones(3), np.zeros(3, bool)) is None
    assert false_reject_rate_at_zero_escapes(np.ones(3), np.ones(3, bool)) is None
    assert clopper_pearson(0, 0) is None
    assert auroc_interval(None, 0, 0) is None
    assert PixelCurve(0, 1).auroc() is None
    assert PixelCurve(0, 1).aupro() is None


def test_image_metrics_of_four_parts_are_those_counted_by_hand() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    defective = np.array([False, False, True, True])
    # Three of the four pairs of a good and a defective part are in order.
    assert image_auroc(scores, defective) == pytest.approx(0.75)
    # Precision 1 at the first defect and 2/3 at the second.
    assert image_ap(scores, defective) == pytest.approx((1 + 2 / 3) / 2)
    # At 0.35, where both defects fail, one of two good parts does.
    assert false_reject_rate_at_zero_escapes(scores, defective) == 0.5


@pytest.mark.parametrize(
    ("events", "trials", "low", "high"),
    [(0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (1, 10, 0.0025, 0.4450), (5, 10, 0.1871, 0.8129), (0, 100, 0.0, 0.0362)],
)
def test_clopper_pearson_gives_the_tabulated_bounds(events: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(events, trials) == pytest.approx((low, high), abs=5e-5)


def test_interval_of_an_auroc_has_a_width_at_its_ends_and_is_skewed_inwards() -> None:
    for defects, goods in ((5, 10), (1, 1), (400, 20)):
        low, high = auroc_interval(1.0, defects, goods) or (0.0, 0.0)
        assert 0.0 < low < 0.99
        assert high == 1.0
        # Good and defective exchanged is the same question asked the other way round.
        assert auroc_interval(0.0, goods, defects) == pytest.approx((0.0, 1.0 - low))
    low, high = auroc_interval(0.5, 30, 30) or (0.0, 0.0)
    assert low + high == pytest.approx(1.0)
    assert 0.3 < low < 0.4
    low, high = auroc_interval(0.95, 20, 50) or (0.0, 0.0)
    assert 0.95 - low > 2 * (high - 0.95) > 0
    wide, narrow = auroc_interval(0.9, 10, 10), auroc_interval(0.9, 1000, 1000)
    assert wide is not None
    assert narrow is not None
    assert wide[0] < narrow[0] < 0.9 < narrow[1] < wide[1] <= 1.0


@pytest.mark.parametrize(("defects", "goods"), [(5, 10), (20, 50), (100, 20)])
@pytest.mark.parametrize("true", [0.6, 0.8, 0.95])
def test_interval_of_an_auroc_holds_the_true_one_in_about_nineteen_of_twenty_draws(
    defects: int, goods: int, true: float
) -> None:
    from scipy.stats import norm

    random = np.random.default_rng(0)
    shift = float(np.sqrt(2) * norm.ppf(true))
    inside = 0
    for _ in range(300):
        seen = (random.normal(shift, 1, (defects, 1)) > random.normal(size=goods)).mean()
        low, high = auroc_interval(float(seen), defects, goods) or (1.0, 0.0)
        inside += low <= true <= high
    assert inside / 300 >= 0.92


def test_pixel_curve_of_a_perfect_a_useless_and_an_inverted_map() -> None:
    truth = np.zeros((8, 8), np.int32)
    truth[2:4, 2:4] = 1
    for anomaly_map, expected in ((truth, 1.0), (np.zeros((8, 8)), 0.5), (1 - truth, 0.0)):
        curve = PixelCurve(0.0, 1.0)
        curve.add(anomaly_map.astype(np.float32), truth)
        assert curve.auroc() == pytest.approx(expected)


def test_pixel_auroc_agrees_with_sorting_all_pixels() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(1)
    maps = random.normal(size=(5, 30, 40)).astype(np.float32)
    truth = (random.uniform(size=maps.shape) < 0.1).astype(np.int32)
    maps += 0.7 * truth
    curve = PixelCurve(float(maps.min()), float(maps.max()))
    for anomaly_map, regions in zip(maps, truth, strict=True):
        curve.add(anomaly_map, regions)
    assert curve.auroc() == pytest.approx(roc_auc_score(truth.ravel(), maps.ravel()), abs=1e-4)


def test_aupro_counts_every_region_once_whatever_its_area() -> None:
    """Two regions, of 1 and of 16 pixels: the map finds only the small one, so half of the overlap is there."""
    truth = np.zeros((10, 20), np.int32)
    truth[0, 0], truth[4:8, 4:8] = 1, 2
    anomaly_map = np.zeros((10, 20), np.float32)
    anomaly_map[0, 0] = 1.0
    curve = PixelCurve(0.0, 1.0)
    curve.add(anomaly_map, truth)
    # From (0, 0.5) the curve goes straight to (1, 1): up to 0.3 its mean height is 0.5 + 0.5 · 0.15.
    assert curve.aupro() == pytest.approx(0.575, abs=1e-6)
    # By pixels only 1 of 17 is found.
    assert curve.auroc() == pytest.approx((1 + 16 * 0.5) / 17)


def test_aupro_of_a_perfect_map_is_one_and_good_images_count_as_negatives() -> None:
    truth = np.zeros((6, 6), np.int32)
    truth[1, 1] = 1
    curve = PixelCurve(0.0, 1.0)
    curve.add(truth.astype(np.float32), truth)
    curve.add(np.zeros((6, 6), np.float32), None)
    assert curve.aupro() == pytest.approx(1.0)
    loud = PixelCurve(0.0, 1.0)
    loud.add(truth.astype(np.float32), truth)
    loud.add(np.ones((6, 6), np.float32), None)
    value = loud.aupro()
    assert value is not None
    assert value < 0.6


THRESHOLDS = (-1.0, 0.0, 1.0)


def test_map_threshold_without_parts_or_of_a_single_one_is_even_odds() -> None:
    for parts in (0, 1):
        shared = np.tile([90, 50, 10], (parts, 1))
        assert map_threshold(THRESHOLDS, shared, np.full_like(shared, 100)) == 0.0


def test_map_threshold_is_the_one_that_the_parts_agree_on() -> None:
    spread = np.random.default_rng(0).integers(-5, 6, (12, 1))
    shared, either = np.tile([60, 50, 30], (12, 1)) + spread, np.full((12, 3), 100)
    assert map_threshold(THRESHOLDS, shared, either) == -1.0
    assert map_threshold(THRESHOLDS, shared[:, ::-1], either) == 1.0
    assert map_threshold(THRESHOLDS, shared[:, [0, 0, 2]], either) == 0.0, "of equals even odds"


def test_one_large_defect_alone_does_not_move_the_map_threshold() -> None:
    shared, either = np.tile([49, 50, 48], (12, 1)), np.full((12, 3), 100)
    shared[0], either[0] = [9_000, 5_000, 1_000], 10_000
    whole = shared.sum(0) / either.sum(0)
    assert whole.argmax() == 0, "it is most of all pixels"
    assert map_threshold(THRESHOLDS, shared, either) == 0.0


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("parts", [99, 150, 400])
def test_threshold_keeps_its_false_reject_rate_over_many_draws(rate: float, parts: int) -> None:
    """The promise is on the mean over draws of calibration parts, whatever the distribution."""
    random = np.random.default_rng(7)
    rates = []
    for _ in range(400):
        scores = random.exponential(size=parts) ** 2
        threshold = threshold_for(scores, rate)
        assert threshold.guaranteed
        rates.append(float(np.exp(-np.sqrt(threshold.value))))
    mean, error = float(np.mean(rates)), float(np.std(rates) / np.sqrt(len(rates)))
    assert mean <= rate + 3 * error
    assert mean >= 0.5 * rate - 3 * error


def test_interval_of_the_true_rate_holds_it_in_nineteen_of_twenty_draws() -> None:
    random = np.random.default_rng(3)
    inside = 0
    for _ in range(400):
        threshold = threshold_for(random.uniform(size=200), 0.05)
        assert threshold.rate_interval is not None
        low, high = threshold.rate_interval
        inside += low <= 1 - threshold.value <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_too_few_parts_give_a_threshold_above_all_of_them_and_say_so() -> None:
    random = np.random.default_rng(5)
    rates = []
    for _ in range(300):
        scores = random.normal(size=20)
        threshold = threshold_for(scores, 0.01)
        assert not threshold.guaranteed
        assert threshold.parts_needed == 99
        assert threshold.value > scores.max()
        rates.append(threshold.value)
    from scipy.stats import norm

    assert float(norm.sf(rates).mean()) == pytest.approx(0.01, abs=0.004)


@pytest.mark.parametrize("count", [2, 20, 200])
def test_threshold_of_equal_scores_lies_above_them(count: int) -> None:
    for value in (0.0, 1.0, -3.0, 1e4):
        threshold = threshold_for(np.full(count, value), 0.01)
        assert value < threshold.value <= value + 0.2 + 0.2 * abs(value)


def test_threshold_needs_two_finite_scores() -> None:
    for scores in (np.zeros(0), np.zeros(1), np.array([1.0, np.nan])):
        with pytest.raises(DataError, match="at least 2 finite scores"):
            threshold_for(scores, 0.01)


def test_hold_out_is_fixed_by_the_seed_and_keeps_copies_together() -> None:
    digests = [f"{index // 2:064x}" for index in range(100)]
    split = split_goods(digests, 3, 0.2, 0, 5)
    assert split == split_goods(digests, 3, 0.2, 0, 5)
    assert split != split_goods(digests, 4, 0.2, 0, 5)
    ((fitted, held),) = split.rounds
    assert not split.refit
    assert sorted([*fitted, *held]) == list(range(100))
    assert len(held) == 20
    assert {digests[index] for index in fitted}.isdisjoint(digests[index] for index in held)


def test_in_cross_fitting_every_part_calibrates_once_unseen() -> None:
    digests = [f"{index:064x}" for index in range(23)]
    split = split_goods(digests, 0, 0.2, 100, 5)
    assert split.refit
    assert sorted(index for _, held in split.rounds for index in held) == list(range(23))
    for fitted, held in split.rounds:
        assert sorted([*fitted, *held]) == list(range(23))
    assert {split.subset(index) for index in range(23)} == {"train"}


@pytest.mark.parametrize(("count", "width"), [(400, 12), (20, 50)])
def test_gaussian_with_all_axes_is_the_shrunk_mahalanobis_distance(count: int, width: int) -> None:
    random = np.random.default_rng(2)
    x = random.normal(size=(count, width)) @ random.normal(size=(width, width)) + 5
    shrinkage = 0.2
    gaussian = fit_gaussian(x, rank=width, shrinkage=shrinkage)
    z = (x - x.mean(0)) / x.std(0)
    covariance = (1 - shrinkage) * z.T @ z / count + shrinkage * np.eye(width)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", z, np.linalg.inv(covariance), z) / width)
    np.testing.assert_allclose(gaussian.distance(x), expected, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_cross_fitted_threshold_keeps_its_rate_with_more_channels_than_parts(rate: float) -> None:
    """Fit as training does: rounds and final model with one shrinkage, 150 parts of 400 correlated channels."""
    random = np.random.default_rng(9)
    mixing = random.normal(size=(40, 400))
    rates = []
    for _ in range(12):
        parts, new = (random.normal(size=(n, 40)) @ mixing + 3 * random.normal(size=(n, 400)) for n in (150, 600))
        shrinkage = estimate_shrinkage(parts)
        split = split_goods([f"{index:064x}" for index in range(150)], 0, 0.2, 2000, 10)
        scores = np.empty(150)
        for fitted, held in split.rounds:
            scores[list(held)] = fit_gaussian(parts[list(fitted)], 64, shrinkage).distance(parts[list(held)])
        threshold = threshold_for(scores, rate).value
        rates.append(float((fit_gaussian(parts, 64, shrinkage).distance(new) >= threshold).mean()))
    assert float(np.mean(rates)) <= 1.25 * rate
    assert float(np.mean(rates)) >= 0.1 * rate


def test_gaussian_of_equal_rows_stays_finite() -> None:
    gaussian = fit_gaussian(np.ones((10, 6)), rank=4, shrinkage=estimate_shrinkage(np.ones((10, 6))))
    assert np.isfinite(gaussian.distance(np.zeros((1, 6)))).all()
