"""A calibration's record → what it promises, in sentences for people.

Rules kept here: a promise names its rate, its confidence and the number of parts; what is not promised is said first of all
where it was asked for; no number stands here that the record does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from linegate.package import Thresholds


def percent(share: float) -> str:
    """Return a share as people read it, as `1 %` or `0.25 %`."""
    return f"{share * 100:.3g} %"


def words(calibration: Mapping[str, Any], value: float, band: float) -> str:
    """Return the sentences for a record as `calibrate.operating_point` makes it."""
    said = [told(calibration) for told in (_rejects, _escapes, _where, _cost)]
    said.append(_band(calibration, value, band))
    if not calibration["held_out"] and (calibration["score"] or calibration["escape"]):
        said.append(calibration["caveat"] or _CROSS_FITTED)
    return " ".join(sentence for sentence in said if sentence)


def section(thresholds: Thresholds, measured_at: float | None = None) -> str:
    """Return the text under "Operating point" of a package's card, whose numbers were `measured_at` some threshold."""
    band = thresholds.undecided_below
    text = f"A part fails at a score of {thresholds.score:.4g} or more"
    text += f", and is undecided from {thresholds.score - band:.4g}." if band else "."
    calibration = thresholds.calibration
    if calibration.get("words"):
        text += f" {calibration['words']}"
    text += f" Map values of {thresholds.map:.3g} or more form regions."
    text += f"\n\nSet by {thresholds.set_by} on {thresholds.set_at:%Y-%m-%d %H:%M} UTC (version {thresholds.version})"
    if calibration.get("data"):
        text += f", from {calibration['data']['name']}"
    if calibration.get("reason"):
        text += f": {calibration['reason']}"
    text += "" if text.endswith((".", "!", "?")) else "."
    history = calibration.get("history") or []
    if history:
        earlier = ", ".join(f"{entry['score']:.4g} (version {entry['version']}, {entry['set_by']})" for entry in history)
        text += f" Before: {earlier}."
    if measured_at is not None and measured_at != thresholds.score:
        text += f" The rates under Numbers are those at {measured_at:.4g}: measure again with `linegate evaluate`."
    return text


def _rejects(calibration: Mapping[str, Any]) -> str:
    promise, about = calibration["score"], "" if calibration["held_out"] else "about "
    if promise is None:
        return ""
    confidence, parts, rate = percent(calibration["confidence"]), promise["parts"], percent(promise["rate"])
    if promise["kept"]:
        return f"False rejects ≤ {about}{rate} with {confidence} confidence, from {parts} good parts."
    text = f"{parts} good parts are too few to promise false rejects ≤ {rate} with {confidence} confidence: "
    text += f"{promise['parts_needed']} are needed. The promise is ≤ {about}{percent(promise['promised_rate'])}; "
    if promise["method"] == "normal tail":
        return text + f"for {rate} the tail was assumed to be normal."
    if promise["method"] == "stated least":
        return text + "the threshold lies further out, where no defective part of these does."
    return text + "the threshold lies just above them all."


_CROSS_FITTED = (
    "About, for each part was scored by a model that had not seen it, which is not the final one: "
    "calibrate on fresh parts (`linegate calibrate`) for an exact promise."
)


def _escapes(calibration: Mapping[str, Any]) -> str:
    promise, about = calibration["escape"], "" if calibration["held_out"] else "about "
    if promise is None:
        return ""
    confidence, parts, rate = percent(calibration["confidence"]), promise["parts"], percent(promise["rate"])
    kinds = "of defects like these, not of kinds never seen"
    if promise["kept"]:
        return f"Escapes ≤ {about}{rate} with {confidence} confidence, from {parts} defective parts: {kinds}."
    text = f"{parts} defective parts are too few to promise escapes ≤ {rate} with {confidence} confidence: "
    return text + f"{promise['parts_needed']} are needed. The promise is ≤ {about}{percent(promise['promised_rate'])}, {kinds}."


def _where(calibration: Mapping[str, Any]) -> str:
    method, seen = calibration["method"], calibration["seen"]
    counted = []
    if seen["good"]:
        counted.append(f"{seen['false_rejects']} of {seen['good']} good parts fail")
    if seen["defective"]:
        counted.append(f"{seen['escapes']} of {seen['defective']} defective parts pass")
    here = f"Here {' and '.join(counted)}." if counted else ""
    if method == "stated":
        text = f"The threshold was stated, not calculated. {here}"
        if seen["good"]:
            text += f" With 95 % confidence false rejects are ≤ {percent(seen['false_reject_rate_at_most'])}"
            text += f", escapes ≤ {percent(seen['escape_rate_at_most'])}." if seen["defective"] else "."
        return text.strip()
    if method == "both promises, middle":
        low, high = calibration["score"]["value"], calibration["escape"]["value"]
        return f"Both hold from {low:.4g} to {high:.4g}, and the threshold is the middle. {here}"
    return here


def _cost(calibration: Mapping[str, Any]) -> str:
    costs, cost = calibration["costs"], calibration["cost_per_part"]
    if costs is None:
        return ""
    if cost is None:
        return "Costs choose nothing here, for the two promises cross."
    low, high = cost["interval"]
    text = (
        f"At {costs['escape']:g} an escape, {costs['false_reject']:g} a false reject and {percent(costs['defect_share'])} of "
        f"parts defective, a part costs {cost['cost']:.3g} (95 %: {low:.3g} to {high:.3g}; the same parts chose it), "
        f"{cost['pass_all']:.3g} if all pass and {cost['fail_all']:.3g} if all fail."
    )
    if min(cost["pass_all"], cost["fail_all"]) < high:
        cheaper = "passing" if cost["pass_all"] < cost["fail_all"] else "failing"
        text += f" At these costs {cheaper} every part may be cheaper than this inspection."
    return text


def _band(calibration: Mapping[str, Any], value: float, band: float) -> str:
    if not band:
        return ""
    seen, promise = calibration["seen"], calibration["undecided"]
    counted = []
    if seen["good"]:
        counted.append(f"{seen['undecided_good']} of {seen['good']} good")
    if seen["defective"]:
        counted.append(f"{seen['undecided_defective']} of {seen['defective']} defective")
    why = ", for the two promises cross there" if calibration["method"] == "both promises, crossed" else ""
    here = f": {' and '.join(counted)} parts here" if counted else ""
    text = f"Scores from {value - band:.4g} to under {value:.4g} are undecided{why}{here}."
    if promise is not None:
        about = "" if calibration["held_out"] else "about "
        rate, confidence = percent(promise["promised_rate"]), percent(calibration["confidence"])
        text += f" Good parts that do not pass ≤ {about}{rate} with {confidence} confidence."
    return text
