"""A part passes only if every view was judged and is below its threshold."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linegate.decide import Recipe, ViewRecipe, decide
from linegate.stages import Decision, FrameFault, Prediction, Reason

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RECIPE = Recipe("r", {"top": ViewRecipe(1.0, 0.2)})


def seen(score: float, view: str = "top") -> Prediction:
    return Prediction("f", "c", view, score, np.zeros((1, 1), np.float32), (0, 0, 1, 1), (1, 1), ())


def broken(view: str = "top") -> FrameFault:
    return FrameFault(Reason.IMAGE_TRUNCATED, "torn", "f", "c", view, 1, NOW)


def test_no_view_is_undecided() -> None:
    assert decide([], Recipe("empty", {})).decision is Decision.UNDECIDED
    verdict = decide([], RECIPE)
    assert (verdict.decision, verdict.reason) == (Decision.UNDECIDED, Reason.NO_VIEW)


@pytest.mark.parametrize(
    ("score", "decision", "reason"),
    [
        (0.79, Decision.PASS, Reason.BELOW_THRESHOLD),
        (0.8, Decision.UNDECIDED, Reason.WITHIN_BAND),
        (0.99, Decision.UNDECIDED, Reason.WITHIN_BAND),
        (1.0, Decision.FAIL, Reason.ABOVE_THRESHOLD),
        (math.nan, Decision.UNDECIDED, Reason.SCORE_NOT_FINITE),
        (math.inf, Decision.UNDECIDED, Reason.SCORE_NOT_FINITE),
        (-math.inf, Decision.UNDECIDED, Reason.SCORE_NOT_FINITE),
    ],
)
def test_the_score_decides(score: float, decision: Decision, reason: Reason) -> None:
    verdict = decide([seen(score)], RECIPE)
    assert (verdict.decision, verdict.reason) == (decision, reason)


def test_a_broken_frame_is_undecided_with_its_reason() -> None:
    verdict = decide([broken()], RECIPE)
    assert (verdict.decision, verdict.reason, verdict.reason_text) == (Decision.UNDECIDED, Reason.IMAGE_TRUNCATED, "torn")


def test_a_view_without_a_threshold_is_undecided() -> None:
    assert decide([seen(0.0), seen(0.0, "side")], RECIPE).decision is Decision.UNDECIDED


def test_a_fail_outweighs_an_undecided_view() -> None:
    recipe = Recipe("r", {"top": ViewRecipe(1.0), "side": ViewRecipe(1.0)})
    assert decide([broken(), seen(2.0, "side")], recipe).decision is Decision.FAIL
    assert decide([broken(), seen(0.0, "side")], recipe).decision is Decision.UNDECIDED


@given(st.lists(st.floats(), max_size=4), st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_a_pass_needs_every_score_finite_and_below(scores: list[float], threshold: float, band: float) -> None:
    views = [f"view{index}" for index in range(len(scores))]
    recipe = Recipe("r", dict.fromkeys(views, ViewRecipe(threshold, band)))
    items = [seen(score, view) for score, view in zip(scores, views, strict=True)]
    verdict = decide(items, recipe)
    clear = [math.isfinite(score) and score < threshold - band for score in scores]
    assert (verdict.decision is Decision.PASS) == (bool(scores) and all(clear))
    assert decide(items, recipe) == verdict


@pytest.mark.parametrize("limits", [(math.nan, 0.0), (math.inf, 0.0), (1.0, -0.1), (1.0, math.nan)])
def test_limits_that_decide_nothing_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        ViewRecipe(*limits)
