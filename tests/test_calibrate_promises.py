"""A promised rate is broken no more often than its confidence says, whatever the scores are distributed like.

Each simulation draws 200 times; the number of broken promises is compared with the exact binomial bound that chance alone
exceeds once in a thousand runs (and the draws are seeded).
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from linegate.errors import DataError, SettingsError
from linegate_training.calibrate import Aim, OperatingPoint, operating_point
from linegate_training.risk import (
    Costs,
    allowed_beyond,
    cheapest,
    escape_promise,
    false_reject_promise,
    parts_needed,
    rate_bound,
)

DRAWS = 200
NOTHING = np.empty(0)
DISTRIBUTIONS: dict[str, Any] = {
    "normal": stats.norm(),
    "lognormal": stats.lognorm(1.5),
    "Cauchy": stats.cauchy(),
    "logits": stats.logistic(-5, 2),
    "three values": stats.randint(0, 3),
    "whole numbers": stats.poisson(4),
    "mostly zero": stats.binom(1, 0.004),
}


def broken_at_most(confidence: float) -> int:
    """Return how many of the draws may break a promise but for one run in a thousand."""
    return int(stats.binom.ppf(0.999, DRAWS, 1.0 - confidence))


def share_at_or_above(distribution: Any, threshold: float) -> float:
    """Return the true P(score ≥ threshold), of whole-numbered scores too."""
    discrete = isinstance(distribution.dist, stats.rv_discrete)
    return float(distribution.sf(math.ceil(threshold) - 1 if discrete else threshold))


@pytest.mark.parametrize(
    ("content", "confidence", "parts"),
    [(0.90, 0.90, 22), (0.90, 0.95, 29), (0.90, 0.99, 44), (0.95, 0.90, 45), (0.95, 0.95, 59), (0.95, 0.99, 90),
     (0.99, 0.90, 230), (0.99, 0.95, 299), (0.99, 0.99, 459)],
)  # fmt: skip
def test_parts_needed_are_those_of_the_tables_of_one_sided_tolerance_limits(
    content: float, confidence: float, parts: int
) -> None:
    """Wilks 1941, as tabled in textbooks of distribution-free tolerance limits."""
    assert parts_needed(1 - content, confidence) == parts
    assert allowed_beyond(parts, 1 - content, confidence) == 0
    assert allowed_beyond(parts - 1, 1 - content, confidence) is None


@pytest.mark.parametrize(("parts", "order"), [(59, 1), (93, 2), (124, 3), (153, 4), (181, 5), (208, 6)])
def test_higher_orders_are_those_of_nuclear_safety_practice(parts: int, order: int) -> None:
    """Wilks's sample sizes for 95 % content with 95 % confidence by the order of the statistic, as regulators use them."""
    assert allowed_beyond(parts, 0.05, 0.95) == order - 1
    assert (allowed_beyond(parts - 1, 0.05, 0.95) or 0) < max(order - 1, 1)


@pytest.mark.parametrize(
    ("events", "trials", "bound"), [(81, 263, 0.3676), (15, 148, 0.1617), (0, 20, 0.1684), (1, 29, 0.1776)]
)
def test_bound_is_that_of_newcombe_s_examples(events: int, trials: int, bound: float) -> None:
    """Newcombe, Statistics in Medicine 17, 1998, table I: upper limits of the exact method (Clopper–Pearson), 95 %."""
    assert rate_bound(events, trials, 0.975) == pytest.approx(bound, abs=5e-5)


@pytest.mark.parametrize(
    ("parts", "rate", "confidence", "beyond"), [(400, 0.05, 0.95, 12), (1000, 0.01, 0.95, 4), (300, 0.02, 0.9, 2)]
)
def test_threshold_is_that_of_mapie_s_risk_control(parts: int, rate: float, confidence: float, beyond: int) -> None:
    """MAPIE 1.6.0, BinaryClassificationController of the false-positive rate, fixed sequence, gave these on such scores."""
    scores = np.sort(np.random.default_rng(parts).beta(2, 5, parts))
    promise = false_reject_promise(scores, rate, confidence)
    assert promise.beyond == beyond
    assert scores[-1 - beyond] < promise.value < scores[-1 - beyond] + 2e-4


@given(st.integers(1, 2000), st.floats(0.001, 0.5), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_one_more_part_beyond_would_break_the_promise(parts: int, rate: float, confidence: float) -> None:
    allowed = allowed_beyond(parts, rate, confidence)
    if allowed is None:
        assert parts < parts_needed(rate, confidence)
        assert rate_bound(0, parts, confidence) > rate * (1 - 1e-6)
    else:
        assert rate_bound(allowed, parts, confidence) <= rate * (1 + 1e-6)
        assert rate_bound(allowed + 1, parts, confidence) > rate * (1 - 1e-6)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("parts", "rate", "confidence"), [(299, 0.01, 0.95), (150, 0.05, 0.95), (500, 0.01, 0.9), (60, 0.1, 0.8)]
)
def test_false_rejects_keep_their_promise(name: str, parts: int, rate: float, confidence: float) -> None:
    random = np.random.default_rng(parts)
    distribution = DISTRIBUTIONS[name]
    aim = Aim(rate, confidence=confidence)
    broken = 0
    for _ in range(DRAWS):
        goods = distribution.rvs(size=parts, random_state=random).astype(float)
        point = operating_point(goods, NOTHING, NOTHING, aim)
        assert point.calibration["guaranteed"]
        broken += share_at_or_above(distribution, point.score) > rate
    assert broken <= broken_at_most(confidence)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("parts", "rate", "confidence"), [(59, 0.05, 0.95), (200, 0.05, 0.95), (80, 0.1, 0.9)])
def test_escapes_keep_their_promise(name: str, parts: int, rate: float, confidence: float) -> None:
    random = np.random.default_rng(parts)
    distribution = DISTRIBUTIONS[name]
    aim = Aim(escape_rate=rate, confidence=confidence)
    broken = 0
    for _ in range(DRAWS):
        defects = distribution.rvs(size=parts, random_state=random).astype(float)
        point = operating_point(NOTHING, defects, NOTHING, aim)
        broken += 1 - share_at_or_above(distribution, point.score - point.undecided_below) > rate
    assert broken <= broken_at_most(confidence)


@pytest.mark.parametrize(
    "costs", [None, Costs(100, 1, 0.02), Costs(1, 50, 0.3)], ids=["no costs", "escapes dear", "rejects dear"]
)
@pytest.mark.parametrize("shift", [0.5, 2.0, 14.0], ids=["one heap", "overlapping", "apart"])
def test_both_promises_hold_at_once_with_a_band_where_they_cross(shift: float, costs: Costs | None) -> None:
    random = np.random.default_rng(8)
    good, defect = stats.norm(), stats.t(4, loc=shift)
    aim = Aim(0.02, 0.05, costs=costs)
    rejects, escapes, both, bands = 0, 0, 0, 0
    for _ in range(DRAWS):
        point = operating_point(good.rvs(400, random_state=random), defect.rvs(150, random_state=random), NOTHING, aim)
        too_many_rejects = good.sf(point.score) > 0.02
        too_many_escapes = defect.cdf(point.score - point.undecided_below) > 0.05
        rejects, escapes = rejects + too_many_rejects, escapes + too_many_escapes
        both += too_many_rejects or too_many_escapes
        bands += point.undecided_below > 0
    assert rejects <= broken_at_most(0.95)
    assert escapes <= broken_at_most(0.95)
    assert both <= broken_at_most(0.95**2)
    assert bands == (DRAWS if shift < 4 else 0)


@pytest.mark.parametrize("given_rate", [{"false_reject_rate": 0.02}, {"escape_rate": 0.1}])
def test_costs_within_a_promise_do_not_break_it(given_rate: dict[str, float]) -> None:
    random = np.random.default_rng(4)
    good, defect = stats.norm(), stats.norm(2.0)
    aim = Aim(**given_rate, costs=Costs(10, 1, 0.1))
    rejects, escapes = 0, 0
    for _ in range(DRAWS):
        point = operating_point(good.rvs(300, random_state=random), defect.rvs(100, random_state=random), NOTHING, aim)
        rejects += good.sf(point.score) > given_rate.get("false_reject_rate", 1.0)
        escapes += defect.cdf(point.score) > given_rate.get("escape_rate", 1.0)
    assert max(rejects, escapes) <= broken_at_most(0.95)


def test_undecided_rate_keeps_its_promise_from_good_parts_alone() -> None:
    random = np.random.default_rng(6)
    broken = 0
    for _ in range(DRAWS):
        point = operating_point(random.standard_cauchy(500), NOTHING, NOTHING, Aim(0.01, undecided_rate=0.05))
        assert point.undecided_below > 0
        broken += stats.cauchy.sf(point.score - point.undecided_below) > 0.06
    assert broken <= broken_at_most(0.95)


def test_simulation_can_fail() -> None:
    """A threshold one order statistic too low breaks the promise far more often than the bound allows."""
    random = np.random.default_rng(1)
    broken = sum(float(stats.norm.sf(np.sort(random.normal(size=299))[-2])) > 0.01 for _ in range(DRAWS))
    assert broken > broken_at_most(0.95)


def test_the_promise_is_not_wasteful() -> None:
    """At 299 parts and 1 % it is broken in nearly 5 % of draws: a looser threshold would break it too often."""
    random = np.random.default_rng(2)
    broken = sum(
        float(stats.norm.sf(false_reject_promise(random.normal(size=299), 0.01, 0.95).value)) > 0.01 for _ in range(2000)
    )
    assert stats.binom.ppf(0.001, 2000, 0.045) <= broken <= stats.binom.ppf(0.999, 2000, 0.05)


scores_of_few = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60).map(lambda values: np.array(values))


@given(scores_of_few, st.floats(0.001, 0.04))
def test_with_too_few_good_parts_all_of_them_pass_and_it_is_said(goods: np.ndarray[Any, Any], rate: float) -> None:
    point = operating_point(goods, NOTHING, goods, Aim(rate))
    assert point.score > goods.max()
    assert math.isfinite(point.score)
    assert point.map is not None
    assert not point.calibration["guaranteed"]
    assert f"{len(goods)} good parts are too few to promise" in point.words
    assert f"{parts_needed(rate, 0.95)} are needed" in point.words
    assert point.calibration["score"]["promised_rate"] == pytest.approx(1 - 0.05 ** (1 / len(goods)))


@given(scores_of_few, st.floats(0.001, 0.04))
def test_with_too_few_defects_none_of_them_passes_and_it_is_said(defects: np.ndarray[Any, Any], rate: float) -> None:
    point = operating_point(NOTHING, defects, NOTHING, Aim(escape_rate=rate))
    assert point.score < defects.min()
    assert point.map is None
    assert f"{len(defects)} defective parts are too few to promise" in point.words


@pytest.mark.parametrize("parts", [99, 150, 298])
def test_between_the_rate_on_average_and_the_rate_with_confidence_no_good_part_fails(parts: int) -> None:
    goods = np.random.default_rng(parts).normal(size=parts)
    point = operating_point(goods, NOTHING, goods, Aim(0.01))
    assert goods.max() < point.score < goods.max() + 1e-3
    assert "just above them all" in point.words


def test_words_state_rate_confidence_and_parts() -> None:
    goods = np.random.default_rng(0).normal(size=412)
    point = operating_point(goods, NOTHING, goods, Aim(0.01))
    assert "False rejects ≤ 1 % with 95 % confidence, from 412 good parts." in point.words
    assert point.calibration["guaranteed"]
    crossed = operating_point(goods, NOTHING, goods, Aim(0.01), held_out=False)
    assert "≤ about 1 % with 95 % confidence" in crossed.words
    assert not crossed.calibration["guaranteed"]
    assert crossed.score == point.score


def test_band_is_counted_and_explained() -> None:
    random = np.random.default_rng(0)
    point = operating_point(random.normal(size=400), random.normal(1, 1, 100), NOTHING, Aim(0.01, 0.05))
    seen = point.calibration["seen"]
    assert seen["undecided_good"] + seen["undecided_defective"] > 0
    assert "are undecided, for the two promises cross there: " in point.words
    assert "not of kinds never seen" in point.words
    assert seen["false_rejects"] <= 4
    assert seen["escapes"] <= 2


def brute_force(goods: Any, defects: Any, costs: Costs) -> float:
    """Return the least cost over a fine grid of thresholds that divide both kinds or one of them."""
    grid = np.linspace(min(goods.min(), defects.min()), max(goods.max(), defects.max()), 20_001)[1:]
    grid = grid[(grid > goods.min()) & (grid <= defects.max())]
    return min(costs.per_part(float((defects < t).mean()), float((goods >= t).mean())) for t in grid)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("costs", [Costs(1, 1, 0.5), Costs(200, 1, 0.01), Costs(3, 1, 0.2)])
def test_costs_choose_the_cheapest_threshold(costs: Costs, seed: int) -> None:
    random = np.random.default_rng(seed)
    goods, defects = random.normal(size=60), random.normal(1.5, 1.0, 40)
    point = cheapest(goods, defects, costs)
    assert point.cost == pytest.approx(brute_force(goods, defects, costs))
    assert point.cost == pytest.approx(
        costs.per_part(float((defects < point.value).mean()), float((goods >= point.value).mean()))
    )
    assert point.interval[0] <= point.cost < point.interval[1]


def test_among_equal_costs_the_middle_of_the_widest_gap_is_taken() -> None:
    point = cheapest(np.array([0.0, 1.0, 2.0]), np.array([6.0, 7.0]), Costs(1, 1, 0.5))
    assert point.value == 4.0
    assert point.cost == 0.0
    assert point.interval[1] > 0.05


def test_costs_never_fail_or_pass_every_part_but_say_that_it_would_be_cheaper() -> None:
    random = np.random.default_rng(0)
    goods, defects = random.normal(size=100), random.normal(0.5, 1, 100)
    for costs, word in ((Costs(1e6, 1, 0.5), "failing"), (Costs(1, 1e6, 0.01), "passing")):
        point = operating_point(goods, defects, goods, Aim(costs=costs))
        assert goods.min() < point.score <= defects.max()
        assert f"{word} every part may be cheaper than this inspection" in point.words


def test_costs_do_not_choose_where_every_defect_scores_under_every_good_part() -> None:
    with pytest.raises(DataError, match="check labels"):
        cheapest(np.array([2.0, 3.0]), np.array([0.0, 1.0]), Costs(1, 1, 0.5))


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [math.inf, 1.0]])
def test_promises_need_two_finite_scores(values: list[float]) -> None:
    for promise in (false_reject_promise, escape_promise):
        with pytest.raises(DataError, match="at least 2 finite scores"):
            promise(np.array(values), 0.01, 0.95)
    for aim in (Aim(0.01), Aim(escape_rate=0.01), Aim(costs=Costs(1, 1, 0.5))):
        with pytest.raises(DataError):
            operating_point(np.array(values), np.array(values), NOTHING, aim)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "nothing is asked for"),
        ({"false_reject_rate": 0.0}, "false reject rate 0: must be a share"),
        ({"false_reject_rate": math.nan}, "must be a share"),
        ({"escape_rate": 5.0}, "escape rate 5: must be a share"),
        ({"false_reject_rate": 0.01, "confidence": 1.0}, "confidence 1: must be"),
        ({"threshold": math.inf}, "must be a finite number"),
        ({"threshold": 1.0, "escape_rate": 0.1}, "one or the other"),
        ({"false_reject_rate": 0.01, "undecided_below": -1.0}, "0 or more"),
        ({"false_reject_rate": 0.01, "escape_rate": 0.1, "undecided_below": 1.0}, "leave one out"),
        ({"escape_rate": 0.1, "undecided_rate": 0.1}, "goes with a false-reject rate"),
        ({"costs": Costs(0, 1, 0.1)}, "cost of an escape is 0"),
        ({"costs": Costs(1, math.nan, 0.1)}, "cost of a false reject is nan"),
        ({"costs": Costs(1, 1, 1.0)}, "defect share 1"),
    ],
)
def test_contradictions_are_refused_in_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        Aim(**values)
    assert "\n" not in str(caught.value)


def test_record_is_fit_for_json() -> None:
    random = np.random.default_rng(0)
    aim = Aim(0.01, 0.05, costs=Costs(1, 1, 0.1))
    for defects in (random.normal(8, 1, 100), random.normal(1, 1, 100)):
        point: OperatingPoint = operating_point(random.normal(size=400), defects, random.normal(size=400), aim)
        assert json.loads(json.dumps(point.calibration, allow_nan=False)).keys() == point.calibration.keys()


def test_a_threshold_lies_at_least_where_it_is_asked_for_unless_a_defect_scores_between() -> None:
    goods = np.linspace(-4.0, -3.5, 400)
    lowest = operating_point(goods, np.array([2.0, 3.0]), np.zeros(0), Aim(0.01))
    assert lowest.score < -3.4
    higher = operating_point(goods, np.array([2.0, 3.0]), np.zeros(0), Aim(0.01, at_least=-1.5))
    assert higher.score == -1.5
    assert higher.calibration["score"]["kept"]
    between = operating_point(goods, np.array([-2.0, 3.0]), np.zeros(0), Aim(0.01, at_least=-1.5))
    assert between.score == lowest.score
    few = operating_point(goods[::20], np.array([2.0, 3.0]), np.zeros(0), Aim(0.01, at_least=-1.5))
    assert few.score == -1.5
    assert "further out" in few.words
