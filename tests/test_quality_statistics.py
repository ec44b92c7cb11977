"""The formulas of quality: against worked examples that were published, against scipy, and at their edges."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from linegate_edge.review.quality.control import RUN, control_chart
from linegate_edge.review.quality.distributions import beta_cdf, chi_square_tail, clopper_pearson, kolmogorov_tail
from linegate_edge.review.quality.drift import benjamini_hochberg, kolmogorov_smirnov, level, stability_index
from linegate_edge.review.quality.operating import is_defective, operating_curve
from linegate_edge.review.quality.periods import day_begin, periods

SHIFTS = ("06:00", "14:00", "22:00")
BERLIN = ZoneInfo("Europe/Berlin")

# Montgomery, Introduction to Statistical Quality Control, table 7.1 (also NIST/SEMATECH): 30 samples of 50.
MONTGOMERY = np.array(
    [12, 15, 8, 10, 4, 7, 16, 9, 14, 10, 5, 6, 17, 12, 22, 8, 10, 5, 13, 11, 20, 18, 24, 15, 9, 12, 7, 13, 9, 6]
)


# -- distributions ------------------------------------------------------------------------------------------------------


def test_an_interval_of_nothing_is_everything() -> None:
    found = clopper_pearson(0, 0)
    assert (found.share, found.low, found.high) == (None, 0.0, 1.0)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_clopper_pearson_gives_the_intervals_of_newcombe(count: int, total: int, low: float, high: float) -> None:
    found = clopper_pearson(count, total)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@given(st.integers(0, 200_000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.999]))
def test_clopper_pearson_agrees_with_scipy(total: int, part: float, confidence: float) -> None:
    count = int(part * total)
    found = clopper_pearson(count, total, confidence)
    if total == 0:
        return
    expected = stats.binomtest(count, total).proportion_ci(confidence, "exact")
    assert found.low == pytest.approx(expected.low, rel=1e-7, abs=1e-12)
    assert found.high == pytest.approx(expected.high, rel=1e-7, abs=1e-12)


@given(st.floats(0, 1, allow_subnormal=False), st.floats(0.01, 5000), st.floats(0.01, 5000))
def test_the_incomplete_beta_agrees_with_scipy(x: float, a: float, b: float) -> None:
    assert beta_cdf(x, a, b) == pytest.approx(special.betainc(a, b, x), rel=1e-8, abs=1e-10)


@given(st.floats(0, 20_000), st.integers(1, 5000))
def test_the_tail_of_chi_square_agrees_with_scipy(x: float, degrees: int) -> None:
    assert chi_square_tail(x, degrees) == pytest.approx(stats.chi2.sf(x, degrees), rel=1e-8, abs=1e-10)


@given(st.floats(0, 10))
def test_kolmogorovs_tail_agrees_with_scipy(x: float) -> None:
    assert kolmogorov_tail(x) == pytest.approx(special.kolmogorov(x), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("count", "total", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_an_impossible_share_is_refused(count: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected 0 ≤ count ≤ total"):
        clopper_pearson(count, total, confidence)


# -- control charts -----------------------------------------------------------------------------------------------------


def test_no_periods_make_no_chart() -> None:
    assert control_chart(np.array([], np.int64), np.array([], np.int64)) is None


def test_the_p_chart_of_montgomery() -> None:
    chart = control_chart(MONTGOMERY, np.full(30, 50))
    assert chart is not None
    assert round(chart.centre, 4) == 0.2313
    z = (MONTGOMERY / 50 - chart.centre) / np.sqrt(chart.centre * (1 - chart.centre) / 50)
    assert chart.sigma_z == pytest.approx(np.abs(np.diff(z)).mean() / 1.128)
    p_limits = chart.centre + np.array([-3, 3]) * np.sqrt(chart.centre * (1 - chart.centre) / 50)
    assert np.round(p_limits, 4).tolist() == [0.0524, 0.4102], "Montgomery's limits"
    # The shares of this example scatter more than chance, which Montgomery explains by two causes.
    assert chart.kind == "p_prime"
    assert chart.high[0] == pytest.approx(chart.centre + 3 * chart.sigma_z * (p_limits[1] - chart.centre) / 3)


def test_shares_that_only_chance_scatters_get_a_p_chart() -> None:
    random = np.random.default_rng(4)
    parts = random.integers(300, 800, 40)
    chart = control_chart(random.binomial(parts, 0.03), parts)
    assert chart is not None
    assert chart.kind == "p"
    assert "which chance explains" in chart.why
    assert chart.p_value is not None
    half = 3 * np.sqrt(chart.centre * (1 - chart.centre) / parts)
    assert chart.high == pytest.approx(chart.centre + half)
    assert not any("above" in signals for signals in chart.signals)


def test_shares_that_scatter_more_than_chance_get_laneys_wider_limits() -> None:
    random = np.random.default_rng(5)
    parts = np.full(60, 20_000)
    chart = control_chart(random.binomial(parts, random.normal(0.05, 0.01, 60).clip(0.01)), parts)
    assert chart is not None
    assert chart.kind == "p_prime"
    assert chart.sigma_z is not None
    assert chart.sigma_z > 3
    assert "scatter more" in chart.why
    assert sum("above" in signals or "below" in signals for signals in chart.signals) <= 2, "a p chart calls out most of them"


def test_shares_that_scatter_less_than_chance_get_laneys_narrower_limits() -> None:
    chart = control_chart(np.array([50, 51, 49, 50, 52, 50, 49, 51, 50, 50, 49, 50]), np.full(12, 1000))
    assert chart is not None
    assert (chart.kind, "scatter less" in chart.why) == ("p_prime", True)
    assert chart.sigma_z is not None
    assert chart.sigma_z < 1
    assert chart.preliminary


def test_a_point_outside_and_the_eighth_of_a_run_are_signals() -> None:
    rejects = np.array([50, 48, 52, 49, 51, 120, 50, 47, 47, 48, 47, 48, 47, 48, 47])
    chart = control_chart(rejects, np.full(15, 1000))
    assert chart is not None
    assert chart.signals[5] == ("above",)
    assert [place for place, signals in enumerate(chart.signals) if "run_below" in signals] == list(range(6 + RUN - 1, 15))


def test_a_line_without_rejects_has_a_chart_without_signals() -> None:
    chart = control_chart(np.zeros(5, np.int64), np.full(5, 100))
    assert chart is not None
    assert (chart.centre, chart.why) == (0, "p chart: no part was rejected")
    assert chart.signals == ((),) * 5


def test_a_lasting_shift_is_not_hidden_by_laneys_limits() -> None:
    random = np.random.default_rng(6)
    parts = np.full(40, 2000)
    chart = control_chart(random.binomial(parts, np.repeat([0.02, 0.05], 20)), parts)
    assert chart is not None
    assert chart.kind == "p_prime"
    assert sum(bool(signals) for signals in chart.signals) >= 20


def test_more_rejects_than_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="0 ≤ rejects ≤ parts"):
        control_chart(np.array([3]), np.array([2]))


# -- drift --------------------------------------------------------------------------------------------------------------


def test_the_distance_of_two_samples_is_that_of_scipy_and_its_p_value_near() -> None:
    random = np.random.default_rng(7)
    for first, second, shift in ((500, 500, 0.0), (500, 300, 0.12), (60, 80, 0.4), (2000, 500, 0.05)):
        a, b = random.normal(size=first), np.round(random.normal(shift, size=second), 1)
        distance, p_value = kolmogorov_smirnov(a, b)
        expected = stats.ks_2samp(a, b, method="asymp")
        assert distance == pytest.approx(expected.statistic)
        assert p_value == pytest.approx(expected.pvalue, rel=0.05, abs=0.005)


def test_the_same_scores_have_not_drifted() -> None:
    scores = np.linspace(0, 1, 100)
    assert kolmogorov_smirnov(scores, scores) == (0.0, 1.0)
    assert stability_index(scores, scores) == pytest.approx(0, abs=1e-12)
    assert stability_index(np.ones(50), np.ones(50)) == pytest.approx(0, abs=1e-12), "all in one bin"


def test_the_stability_index_of_a_table_worked_by_hand() -> None:
    # Tenths of 1000 parts each against 10 %, …, with half a part added: ln(0.2/0.1) · 0.1 + ln(0.05) … by hand, to 1e-3.
    reference = np.arange(1000.0)
    moved = np.concatenate([np.arange(900.0, 1000.0), np.arange(1000.0)[:900]])
    assert stability_index(reference, moved) == pytest.approx(0, abs=1e-9), "order does not matter"
    doubled = np.concatenate([np.repeat(np.arange(900.0, 1000.0), 2), np.arange(100.0, 900.0)])
    # The first tenth is empty, the last is twice as large: (0.2 − 0.1) ln 2 + (0.0005 − 0.1) ln(0.0005 / 0.1) or nearly.
    expected = 0.1 * np.log(2) + (0.5 / 1005 - 100.5 / 1005) * np.log(0.5 / 100.5)
    assert stability_index(reference, doubled) == pytest.approx(expected, rel=2e-3)


def test_the_example_of_benjamini_and_hochberg() -> None:
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert sum(adjusted < 0.05 for adjusted in benjamini_hochberg(p)) == 4
    assert benjamini_hochberg(p[::-1]) == pytest.approx(stats.false_discovery_control(p[::-1]))
    assert benjamini_hochberg([]) == []


def test_drift_is_a_change_that_is_sure_and_large() -> None:
    assert [level(0.2, 0.5), level(0.001, 0.01), level(0.001, 0.15), level(0.001, 0.3)] == [
        "stable",
        "stable",
        "watch",
        "drift",
    ]


def test_an_empty_sample_is_refused() -> None:
    for test in (kolmogorov_smirnov, stability_index):
        with pytest.raises(ValueError, match="two samples"):
            test(np.array([]), np.array([1.0]))


# -- operating points ---------------------------------------------------------------------------------------------------


def test_without_parts_one_threshold_passes_everything() -> None:
    curve = operating_curve(np.array([]), np.array([], np.bool_))
    assert curve.thresholds.tolist() == [np.inf]
    assert curve.escapes.tolist() == curve.false_rejects.tolist() == [0]


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), st.booleans()), max_size=30), st.floats(-0.1, 0.7))
def test_any_threshold_counts_as_its_breakpoint_says(parts: list[tuple[float, bool]], threshold: float) -> None:
    curve = operating_curve(np.array([score for score, _ in parts]), np.array([bad for _, bad in parts], np.bool_))
    place = int(np.searchsorted(curve.thresholds, threshold))
    assert curve.escapes[place] == sum(bad and score < threshold for score, bad in parts)
    assert curve.false_rejects[place] == sum(not bad and score >= threshold for score, bad in parts)
    assert curve.confirmed[place] == sum(bad and score >= threshold for score, bad in parts)
    assert curve.passes[place] == sum(not bad and score < threshold for score, bad in parts)


def test_a_limit_sample_is_neither_good_nor_defective() -> None:
    assert is_defective("fail", "limit_sample") is None
    assert is_defective("undecided", "confirmed") is True
    assert is_defective("pass", "escape") is True


# -- periods ------------------------------------------------------------------------------------------------------------


def hours(spans: list[timedelta]) -> list[float]:
    return [span.total_seconds() / 3600 for span in spans]


def test_a_night_shift_belongs_to_the_day_in_which_it_begins() -> None:
    at = datetime(2026, 6, 2, 1, 0, tzinfo=UTC)  # 03:00 in Berlin
    assert day_begin(at, SHIFTS, BERLIN) == datetime(2026, 6, 1, 4, 0, tzinfo=UTC)
    assert day_begin(at, SHIFTS, BERLIN, days_before=1) == datetime(2026, 5, 31, 4, 0, tzinfo=UTC)
    (period,) = periods(at, at + timedelta(minutes=1), "shift", SHIFTS, BERLIN)
    assert (period.shift, period.begin) == ("22:00", datetime(2026, 6, 1, 20, 0, tzinfo=UTC))


def test_the_night_in_which_the_clock_changes_is_an_hour_shorter_or_longer() -> None:
    for day, expected in ((datetime(2026, 3, 28, 5, tzinfo=UTC), 7.0), (datetime(2026, 10, 24, 4, tzinfo=UTC), 9.0)):
        spans = periods(day, day + timedelta(hours=18), "shift", SHIFTS, BERLIN)
        assert hours([span.end - span.begin for span in spans]) == [8, 8, expected]
        (whole,) = periods(day, day + timedelta(hours=1), "day", SHIFTS, BERLIN)
        assert hours([whole.end - whole.begin]) == [16 + expected]


def test_shifts_that_begin_in_the_hour_that_is_skipped_begin_when_the_clock_jumps() -> None:
    spans = periods(
        datetime(2026, 3, 28, 23, tzinfo=UTC),
        datetime(2026, 3, 29, 3, tzinfo=UTC),
        "shift",
        ("00:00", "02:30", "03:00"),
        BERLIN,
    )
    assert [(span.shift, span.begin.hour) for span in spans] == [("00:00", 23), ("03:00", 1)]


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.integers(1, 200),
    st.sampled_from(["hour", "shift", "day"]),
    st.sampled_from(["Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"]),
)
def test_periods_follow_without_a_gap_and_cover_all(since: datetime, length: int, kind: str, zone: str) -> None:
    until = since + timedelta(hours=length)
    spans = periods(since, until, kind, SHIFTS, ZoneInfo(zone))  # type: ignore[arg-type]
    assert spans[0].begin <= since
    assert spans[-1].end >= until
    assert all(first.end == second.begin for first, second in itertools.pairwise(spans))
    assert all(span.begin < span.end and span.begin.minute % 15 == 0 for span in spans)
