"""Predictions and a recipe → a verdict.

Rules kept here: no clock, no file, no socket; the same input always gives the same verdict; a part passes only if every
view was judged and every score is below its threshold. What cannot be judged is undecided, never pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from linegate.stages import Decision, FrameFault, Prediction, Reason, Verdict, ViewVerdict

_SEVERITY = {Decision.PASS: 0, Decision.UNDECIDED: 1, Decision.FAIL: 2}


@dataclass(frozen=True, slots=True)
class ViewRecipe:
    """Where one view's score becomes a decision.

    A score at or above `threshold` fails. With `undecided_below = d`, a score in [threshold − d, threshold) is
    undecided: too close to call for a machine.

    Raises:
        ValueError: a limit is not finite, or the band is negative.
    """

    threshold: float
    undecided_below: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be finite, got {self.threshold}")
        if not (math.isfinite(self.undecided_below) and self.undecided_below >= 0):
            raise ValueError(f"undecided_below must be finite and not negative, got {self.undecided_below}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which thresholds serve which view; `views` names every view that a part must have.

    A part fails when at least `min_failing_views` of its views fail; when fewer do, it is undecided, never pass.

    Raises:
        ValueError: `min_failing_views` is less than 1 or more than there are views.
    """

    name: str
    views: Mapping[str, ViewRecipe]
    min_failing_views: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min_failing_views <= max(1, len(self.views)):
            raise ValueError(f"min_failing_views must be from 1 to {len(self.views)}, got {self.min_failing_views}")


def decide(judged: Sequence[Prediction | FrameFault], recipe: Recipe) -> Verdict:
    """Return the verdict of a part from its views.

    The part's decision is the worst of its views: fail before undecided before pass, unless fewer views fail than the
    recipe asks for. A view that the recipe names and
    nobody delivered makes the part undecided; so does a view that the recipe does not know, since no threshold is
    approved for it.

    >>> from linegate.stages import *; from datetime import datetime, UTC
    >>> torn = FrameFault(Reason.IMAGE_TRUNCATED, "torn", "f1", "cam", "top", 1, datetime(2026, 1, 1, tzinfo=UTC))
    >>> decide([torn], Recipe("default", {"top": ViewRecipe(1.0)})).decision
    <Decision.UNDECIDED: 'undecided'>
    """
    views = [_decide_view(item, recipe) for item in judged]
    seen = {view.view for view in views}
    views += [
        _undecided("", name, "", Reason.NO_VIEW, f"no frame of view '{name}' arrived")
        for name in recipe.views
        if name not in seen
    ]
    if not views:
        return Verdict(Decision.UNDECIDED, Reason.NO_VIEW, "the part has no view", ())
    worst = max(views, key=lambda view: _SEVERITY[view.decision])
    failing = sum(view.decision is Decision.FAIL for view in views)
    if 0 < failing < recipe.min_failing_views:
        text = f"{failing} of {len(views)} views fail, a part fails from {recipe.min_failing_views} on: {worst.reason_text}"
        return Verdict(Decision.UNDECIDED, Reason.TOO_FEW_VIEWS_FAIL, text, tuple(views))
    return Verdict(worst.decision, worst.reason, worst.reason_text, tuple(views))


def _decide_view(item: Prediction | FrameFault, recipe: Recipe) -> ViewVerdict:
    if isinstance(item, FrameFault):
        return _undecided(item.camera, item.view, item.frame_id, item.reason, item.detail)
    limits = recipe.views.get(item.view)
    if limits is None:
        text = f"recipe '{recipe.name}' has no threshold for view '{item.view}'"
        return _undecided(item.camera, item.view, item.frame_id, Reason.NO_VIEW, text)
    score, threshold = item.score, limits.threshold
    if not math.isfinite(score):
        text = f"the model gave the score {score}"
        return _undecided(item.camera, item.view, item.frame_id, Reason.SCORE_NOT_FINITE, text)
    if score >= threshold:
        decision, reason = Decision.FAIL, Reason.ABOVE_THRESHOLD
        text = f"score {score:.4g} is at or above the threshold {threshold:.4g}"
    elif score >= threshold - limits.undecided_below:
        decision, reason = Decision.UNDECIDED, Reason.WITHIN_BAND
        text = f"score {score:.4g} is within {limits.undecided_below:.4g} of the threshold {threshold:.4g}"
    else:
        decision, reason = Decision.PASS, Reason.BELOW_THRESHOLD
        text = f"score {score:.4g} is below the threshold {threshold:.4g}"
    # Regions of a part that passes stay: a reviewer of a near miss wants to see where the model looked.
    return ViewVerdict(item.camera, item.view, item.frame_id, decision, reason, text, score, threshold, item.regions)


def _undecided(camera: str, view: str, frame_id: str, reason: Reason, text: str) -> ViewVerdict:
    return ViewVerdict(camera, view, frame_id, Decision.UNDECIDED, reason, text, None, None, ())
