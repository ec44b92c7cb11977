"""Which parts people are asked about, and whose pictures are therefore kept: a pure rule over a verdict.

Rules kept here: what did not pass is always looked at; of what passed, what came close to its threshold, and a random share
that says how many defects slip through; chance is the verdict's own random id, so that each process draws the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

Asked = Literal["fail", "undecided", "close", "audit"]
_DRAWS: Final = 2**32


def asks_about(
    decision: str,
    verdict_id: str,
    scores: Iterable[tuple[float | None, float | None]],
    *,
    close_share: float,
    audit_share: float,
) -> Asked | None:
    """Return why a part goes to the review queue, or None; `scores` are (score, threshold) of its views.

    A pass is close where a view's score lies within `close_share` of the threshold's magnitude below it.
    """
    if decision == "fail":
        return "fail"
    if decision != "pass":
        return "undecided"
    for score, threshold in scores:
        if (
            score is not None
            and threshold is not None
            and close_share > 0
            and score >= threshold - close_share * abs(threshold)
        ):
            return "close"
    # Other digits than those that choose whose picture is kept, or the sample would be that share over again.
    return "audit" if int(verdict_id[24:32], 16) < audit_share * _DRAWS else None
