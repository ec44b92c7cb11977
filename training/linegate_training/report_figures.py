"""The charts of the report: ROC, precision-recall, scores, detection against size, training.

Rules kept here: a chart draws what was counted and states how; what is computed lies in `metrics` and `pod`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from linegate_training.metrics import OperatingCurve
from linegate_training.pod import Curve, Pod
from linegate_training.report_charts import Axis, Chart
from linegate_training.report_text import escape, number, percent

Floats = NDArray[np.float64]
_BINS = 48


def figure(drawing: str, caption: str, wide: bool = False) -> str:
    """Return a chart with its caption."""
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{"wide" if wide else "half"}">{drawing}{words}</figure>'


def roc(curve: OperatingCurve, at: tuple[float, float]) -> str:
    """Draw detected against falsely rejected parts, with `at` the point at which the package works (good, defect)."""
    chart = Chart(
        Axis("good parts rejected", 0, 1, percent=True), Axis("defective parts detected", 0, 1, percent=True),
        "ROC curve",
        f"At the threshold {percent(at[0])} of good parts are rejected and {percent(at[1])} of defective ones detected",
    )  # fmt: skip
    # The band ends in the corners, where everything and nothing fails.
    upper = np.concatenate([[0.0], curve.good_low, [1.0]]), np.concatenate([[0.0], curve.defect_high, [1.0]])
    chart.between(upper, (curve.good_high, curve.defect_low), "band")
    chart.line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "chance")
    chart.line(*_stairs(curve.good, curve.defect), "model")
    chart.dot(*at, "operating")
    chart.note(at[0], at[1], "at the threshold", anchor="start", down=18 if at[1] > 0.12 else -10)
    return chart.svg()


def _stairs(xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
    """Keep only points at which a curve of many turns, so that few are drawn."""
    inner = np.flatnonzero((np.diff(xs[:-1]) != np.diff(xs[1:])) | (np.diff(ys[:-1]) != np.diff(ys[1:]))) + 1
    kept = np.concatenate([[0], inner, [len(xs) - 1]])
    return xs[kept], ys[kept]


def precision_recall(curve: OperatingCurve, at: tuple[float, float] | None) -> str:
    """Draw precision against the share of defective parts detected, with `at` the working point (recall, precision)."""
    description = "No part fails at the threshold"
    if at is not None:
        description = f"At the threshold {percent(at[0])} of defective parts are detected with a precision of {percent(at[1])}"
    chart = Chart(
        Axis("recall: defective parts detected", 0, 1, percent=True),
        Axis("precision", 0, 1, percent=True), "Precision-recall curve", description,
    )  # fmt: skip
    best = curve.precision(curve.good_low, curve.defect_high)
    worst = curve.precision(curve.good_high, curve.defect_low)
    upper = np.concatenate([[0.0], curve.defect_high]), np.concatenate([[1.0], best])
    chart.between(upper, (curve.defect_low, worst), "band")
    chart.line(np.array([0.0, 1.0]), np.full(2, curve.prevalence), "chance")
    chart.line(curve.defect, curve.precision(curve.good, curve.defect), "model")
    if at is not None:
        chart.dot(*at, "operating")
        chart.note(at[0], at[1], "at the threshold", anchor="end" if at[0] > 0.5 else "start", down=20)
    return chart.svg()


def histogram(scores: Floats, defective: NDArray[np.bool_], threshold: float, undecided_below: float) -> str:
    """Draw scores of good parts upward and of defective parts downward, each as shares of its kind."""
    reach = max(float(np.quantile(scores, 0.98)), threshold)
    low = min(float(scores.min()), threshold - undecided_below)
    margin = 0.06 * max(reach - low, 1e-6)
    low, high = low - margin, reach + margin
    beyond = int((scores > high).sum())
    edges = np.linspace(low, high, _BINS + 1)
    shares = [
        np.histogram(np.clip(scores[kind], low, high), edges)[0] / max(1, int(kind.sum())) for kind in (~defective, defective)
    ]
    top = max(float(max(one.max() for one in shares)), 1e-6) * 1.12
    chart = Chart(
        Axis("score" + (f" (the last bar holds {beyond} beyond {number(high)})" if beyond else ""), low, high),
        Axis("share of good (up) and defective (down)", -top, top, percent=True, mirrored=True),
        "Scores of good and defective parts", f"The threshold lies at {threshold:.3f}", width=940, height=340,
    )  # fmt: skip
    if undecided_below > 0:
        chart.stripe(threshold - undecided_below, threshold, "undecided")
    chart.bars(edges, shares[0], "good")
    chart.bars(edges, -shares[1], "defect")
    chart.level(0.0, "zero")
    # The text goes where there is more room.
    chart.upright(
        threshold,
        "threshold",
        f"threshold {number(threshold)}: fails from here on",
        left=(threshold - low) > 0.7 * (high - low),
    )
    if undecided_below > 0:
        chart.note(threshold - undecided_below, -top, "undecided", anchor="end", down=-8)
    good_x = high - margin / 4
    if not defective.all():
        chart.note(good_x, top, f"good parts ({int((~defective).sum())})", "good", "end", down=30)
    if defective.any():
        chart.note(good_x, -top, f"defective parts ({int(defective.sum())})", "defect", "end", down=-10)
    return chart.svg()


def detection_by_size(pod: Pod, curve: Curve, unit: str) -> str:
    """Draw the probability of detection against size, with its lower bound, a90 and a90/95."""
    low, high = float(pod.sizes.min()) / 1.15, float(pod.sizes.max()) * 1.15
    sizes = np.geomspace(low, high, 200)
    chart = Chart(
        Axis(f"size of the largest defect region: equivalent diameter, {unit}", low, high, log=True),
        Axis("probability of detection", 0, 1, percent=True), "Probability of detection against defect size", pod.words,
        width=940, height=380,
    )  # fmt: skip
    lower, best = curve.lower(sizes), curve.probability(sizes)
    chart.between((sizes, best), (sizes, lower), "band")
    chart.level(0.9, "target")
    chart.line(sizes, lower, "bound")
    chart.line(sizes, best, "model")
    chart.rug(pod.sizes[pod.found], 1.0, -9, "good")
    chart.rug(pod.sizes[~pod.found], 0.0, 9, "defect")
    chart.note(low, 1.0, f"found ({int(pod.found.sum())})", "good", down=24)
    chart.note(high, 0.0, f"missed ({int((~pod.found).sum())})", "defect", "end", down=-14)
    for row, name, value, turns_at in ((14, "a90", curve.a90, 0.25), (15, "a90/95", curve.a90_95, 0.75)):
        if value is not None and low <= value <= high:
            chart.upright(
                value, "size", f"{name} = {number(value)} {unit}", left=value > low * (high / low) ** turns_at, row=row
            )
    return chart.svg()


def histories(history: Sequence[Mapping[str, object]]) -> list[str]:
    """Draw each number that a training log tells per epoch, in a chart of its own; those told twice or more."""
    drawings = []
    names = dict.fromkeys(name for entry in history for name in entry if name != "epoch")
    for name in names:
        points = [
            (float(epoch), float(value))
            for index, entry in enumerate(history)
            if isinstance(epoch := entry.get("epoch", index), int | float) and isinstance(value := entry.get(name), int | float)
            if np.isfinite(value)
        ]
        if len(points) < 2:
            continue
        epochs, values = np.array(points).T
        room = 0.08 * max(float(np.ptp(values)), 1e-6)
        x, y = Axis("epoch", epochs.min(), epochs.max()), Axis(name.replace("_", " "), values.min() - room, values.max() + room)
        chart = Chart(x, y, f"{name} by epoch", f"from {number(values[0])} to {number(values[-1])}")
        chart.line(epochs, values, "model")
        drawings.append(chart.svg())
    return drawings
