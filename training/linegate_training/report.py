"""What was measured → one HTML page for people: `report.html` of a training run.

Rules kept here: the page is whole in one file and asks no network for anything, which its own policy forbids; no script;
the first sentence says what the model is worth; a number comes with its interval and the count it is from. The page holds
photographs of the data set, so it lies in the run's folder, never in the package.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from linegate.errors import DataError
from linegate.package import CARD_FILE, SPLIT_FILE, ModelPackage
from linegate.stages import Decision
from linegate_training import metrics, report_figures
from linegate_training.evaluate import Measured, MeasuredPart, box_precisions, is_typed, summarise
from linegate_training.pod import equivalent_diameter, probability_of_detection
from linegate_training.report_pictures import gallery
from linegate_training.report_summary import head, threads
from linegate_training.report_text import (
    count,
    details,
    escape,
    flatten,
    markdown,
    number,
    paragraph,
    percent,
    share,
    table,
)

Floats = NDArray[np.float64]

POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
WORST: Final = 6
UNIT: Final = "px"
_BAND: Final = (
    "The grey band holds, at every threshold, the two true rates together with 95 % confidence (exact, from the counts); "
    "dotted: a model that guesses."
)

_LEGEND: Final = (
    "Left: the photograph, the true defect outlined in blue where it is known. Right: what the model saw, the brighter the "
    "more, with its regions in orange and the decision's colour as the frame."
)


def write_report(
    path: Path,
    measured: Measured,
    package: ModelPackage | None = None,
    history: Sequence[Mapping[str, object]] | None = None,
    sections: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the report of `measured` to `path`, replacing an older one as a whole.

    `package` is the measured one as it was written in the end, with its card; by default as it was measured. `history` has
    one mapping for each epoch: `epoch` and the numbers to draw. `sections` are further pairs of heading and
    Markdown.

    Raises:
        DataError: the page cannot be written, or an image of the data set is no longer there.
    """
    if package is not None:
        measured = replace(measured, package=package)
    page = render(measured, history, sections).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            written = Path(folder) / "report.html"
            written.write_bytes(page)
            written.replace(path)
    except OSError as error:
        raise DataError(f"{path}: the report cannot be written ({error.strerror}): name another place") from error


def render(
    measured: Measured,
    history: Sequence[Mapping[str, object]] | None = None,
    sections: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the report as one HTML page."""
    values = summarise(measured)
    manifest = measured.package.manifest
    body = [
        ("Data and split", _data(measured)),
        ("How well it tells good from defective", _curves(measured, values)),
        ("Scores and operating point", _scores(measured)),
        ("Decisions by class", _decisions(values)),
        ("Worst escapes", _worst_escapes(measured)),
        ("Worst false rejects", _worst_rejects(measured)),
        ("Detection against defect size", _sizes(measured)),
        ("Where the map points", _maps(values)),
        ("Defect classes", _classes(measured, values)),
        ("Training", _training(history, manifest.training.model_dump(mode="json"))),
        ("Speed", _speed(measured, values)),
        ("Parity", _parity(measured)),
        *((heading, markdown(text)) for heading, text in sections),
        ("Card", f'<div class="card">{markdown(measured.package.files[CARD_FILE].decode("utf-8", "replace"))}</div>'),
    ]
    kept = [(f"s{index}", heading, content) for index, (heading, content) in enumerate(body, 1) if content]
    links = "".join(f'<li><a href="#{anchor}">{escape(heading)}</a></li>' for anchor, heading, _ in kept)
    content = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}h"><h2 id="{anchor}h">{escape(heading)}</h2>{html}</section>'
        for anchor, heading, html in kept
    )
    title = f"{manifest.name} {manifest.version} on {measured.data_set}"
    style = (files("linegate_training") / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} – Linegate model report</title><style>{style}</style></head><body>"
        f'{head(measured, values)}<main><nav aria-label="Contents"><ul>{links}</ul></nav>{content}</main>'
        "<footer><p>Made by Linegate. This page holds photographs of the data set and is bound to its licence "
        f"({escape(manifest.dataset.licence)}): mind it before you pass the page on.</p></footer></body></html>\n"
    )


def _data(measured: Measured) -> str:
    dataset = measured.package.manifest.dataset
    rows = [
        ["learned from", escape(dataset.name)],
        ["source", escape(dataset.source)],
        ["licence", escape(dataset.licence)],
        ["digest", f"<code>{dataset.digest}</code>"],
    ]
    # Counts are told in the table below.
    told = {key: value for key, value in dataset.split.items() if not isinstance(value, int)}
    rows += [[f"split: {escape(key.replace('_', ' '))}", escape(value)] for key, value in flatten(told)]
    rows.append(["measured on", f"{escape(measured.data_set)}, {len(measured.parts)} test parts"])
    said = {None: "the package does not list what it learned from", 0: "none (compared byte for byte)"}
    rows.append(["test images seen in training", escape(said.get(measured.seen, measured.seen))])
    return table(["", ""], rows, numeric_from=9) + _subsets(measured)


def _subsets(measured: Measured) -> str:
    """Return the table of how many images of each label lie in each subset, as `split.csv` lists them."""
    listed = measured.package.files.get(SPLIT_FILE)
    if listed is None:
        return ""
    rows = list(csv.DictReader(io.StringIO(listed.decode("utf-8", "replace"), newline="")))
    counts = Counter((row.get("label") or "", row.get("subset") or "") for row in rows)
    subsets = sorted(
        {subset for _, subset in counts}, key=lambda one: ({"train": 0, "calibration": 1, "test": 3}.get(one, 2), one)
    )
    labels = sorted({label for label, _ in counts}, key=lambda one: (one != "good", one))
    body = [[escape(label), *(str(counts[label, subset] or "–") for subset in subsets)] for label in labels]
    return table(["label", *subsets], body, "Images of the training data set, as split.csv lists them")


def _curves(measured: Measured, values: dict[str, Any]) -> str:
    curve = metrics.operating_curve(measured.scores, measured.defective)
    if curve is None:
        return paragraph("Both good and defective test parts are needed for a curve; one kind is missing here.")
    at = (
        values["false_reject_rate"],
        1.0 - float((~measured.decided(Decision.FAIL) & measured.defective).sum()) / values["defective"],
    )
    failed = at[0] * values["good"] + at[1] * values["defective"]
    point = (at[1], at[1] * values["defective"] / failed) if failed else None
    area = share(values["image_auroc"], values["image_auroc_ci95"], of_one=True)
    auroc = f"ROC. Area {area}, 95 % by Newcombe's score method."
    ap = f"Precision-recall. Average precision {values['image_ap']:.3f}. Precision is the share of the rejected that is truly "
    ap += f"defective, where {percent(curve.prevalence)} of all parts are, as here; on the line fewer are, and it is lower."
    left = report_figures.figure(report_figures.roc(curve, at), auroc)
    right = report_figures.figure(report_figures.precision_recall(curve, point), ap)
    return f'<div class="charts">{left}{right}</div>{paragraph(_BAND, "meta")}'


def _scores(measured: Measured) -> str:
    thresholds = measured.package.manifest.thresholds
    scores, defective = measured.scores, measured.defective
    drawing = report_figures.histogram(scores, defective, thresholds.score, thresholds.undecided_below)
    band = (
        f"; from {number(thresholds.score - thresholds.undecided_below)} on it is undecided"
        if thresholds.undecided_below
        else ""
    )
    caption = f"A part fails at a score of {number(thresholds.score, 4)} or more{band}. Set by {thresholds.set_by}, "
    caption += f"{thresholds.set_at:%Y-%m-%d}, version {thresholds.version}."
    parts = [report_figures.figure(drawing, caption, wide=True)]
    if defective.any() and not defective.all():
        parts.append(_other_thresholds(scores[~defective], scores[defective]))
    return "".join([*parts, details("How the threshold was calibrated", thresholds.calibration)])


def _other_thresholds(goods: Floats, defects: Floats) -> str:
    # Just above each of these good parts; where several score the same, all of them pass.
    ordered = np.sort(goods)[::-1]
    limits = dict.fromkeys(float(ordered[int(rate * len(goods) + 1e-9)]) for rate in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2))
    rows = []
    for limit in limits:
        rejected, missed = int((goods > limit).sum()), int((defects <= limit).sum())
        interval = metrics.clopper_pearson(missed, len(defects))
        first = f"{rejected} of {len(goods)} ({percent(rejected / len(goods))})"
        rows.append([first, number(limit, 4), share(missed / len(defects), interval)])
    caption = "What other thresholds would do on these test parts: to weigh costs by, not to set one"
    return table(["good parts rejected", "threshold just above", "defective parts not rejected (95 %)"], rows, caption)


def _decisions(values: dict[str, Any]) -> str:
    rows = []
    for label, counts in values["decisions_by_class"].items():
        total = sum(counts.values())
        right = counts["pass" if label == "good" else "fail"]
        interval = metrics.clopper_pearson(right, total)
        meter = f'<span class="meter" aria-hidden="true"><i style="width:{100 * right / total:.1f}%"></i></span>'
        cells = [str(counts["pass"]), str(counts["undecided"]), str(counts["fail"]), str(total)]
        rows.append([escape(label), *cells, share(right / total, interval) + meter])
    caption = "Rows: the truth. Right is a good part that passes and a defective part that fails."
    return table(["class", "pass", "undecided", "fail", "parts", "right (95 %)"], rows, caption)


def _worst_escapes(measured: Measured) -> str:
    escaped = [part for part in measured.parts if part.sample.defective and part.decision is Decision.PASS]
    if not measured.defective.any():
        return paragraph("There were no defective test parts.")
    if not escaped:
        return paragraph("No defective test part passed.")
    worst = sorted(escaped, key=lambda part: part.score)[:WORST]
    said = f"{count(len(escaped), 'defective part', 'defective parts')} passed{_shown(len(escaped), 'lowest')}. {_LEGEND}"
    return paragraph(said) + _gallery(measured, worst)


def _worst_rejects(measured: Measured) -> str:
    goods = sorted((part for part in measured.parts if not part.sample.defective), key=lambda part: -part.score)
    if not goods:
        return paragraph("There were no good test parts.")
    rejected = [part for part in goods if part.decision is Decision.FAIL]
    said = f"{count(len(rejected), 'good part', 'good parts')} failed{_shown(len(rejected), 'highest')}."
    if not rejected:
        said = "No good test part failed; these came nearest to it."
    return paragraph(f"{said} {_LEGEND}") + _gallery(measured, (rejected or goods)[:WORST])


def _shown(found: int, end: str) -> str:
    return f"; these {WORST} have the {end} scores" if found > WORST else ""


def _gallery(measured: Measured, parts: list[MeasuredPart]) -> str:
    thresholds = measured.package.manifest.thresholds
    return gallery(parts, thresholds.score, thresholds.map)


def _sizes(measured: Measured) -> str:
    sized = [part for part in measured.parts if part.sample.defective and part.defect_px is not None]
    if not sized:
        return ""
    sizes = [equivalent_diameter(float(part.defect_px or 0)) for part in sized]
    pod = probability_of_detection(sizes, [part.decision is Decision.FAIL for part in sized], UNIT)
    if pod.curve is None:
        return paragraph(pod.words)
    caption = (
        "One stroke for each defective part with a mask: above found (it failed), below missed. Size is the diameter of the "
        "circle with the area of the part's largest defect region, in pixels of the image. Line: logistic regression on the "
        "logarithm of size (MIL-HDBK-1823A, hit/miss); dashed: its one-sided 95 % lower bound by likelihood ratio."
    )
    drawing = report_figures.detection_by_size(pod, pod.curve, UNIT)
    return paragraph(pod.words) + report_figures.figure(drawing, caption, wide=True)


def _maps(values: dict[str, Any]) -> str:
    if values["pixel_auroc"] is None:
        return ""
    rows = [
        ["pixel AUROC, all test parts", share(values["pixel_auroc"], of_one=True)],
        ["pixel AUROC, defective parts alone", share(values["pixel_auroc_defective"], of_one=True)],
        ["AUPRO, to 30 % false positives", share(values["aupro"], of_one=True)],
        ["pixel IoU at the map threshold, pooled", share(values["pixel_iou"], of_one=True)],
        ["pixel IoU, mean over defective parts", share(values["pixel_iou_mean"], of_one=True)],
    ]
    return table(["measure", "value"], rows)


def _classes(measured: Measured, values: dict[str, Any]) -> str:
    parts = []
    if is_typed(measured):
        named = [part for part in measured.parts if part.sample.defective]
        predictions = list(measured.package.manifest.labels[1:])
        truths = sorted({part.sample.label for part in named})
        counts = Counter((part.sample.label, part.predicted) for part in named)
        rows = []
        for label in truths:
            total = sum(counts[label, one] for one in predictions)
            cells = [
                f"<strong>{counts[label, one]}</strong>" if one == label else str(counts[label, one] or "·")
                for one in predictions
            ]
            rows.append([escape(label), *cells, share(counts[label, label] / total if total else None)])
        if rows:
            caption = f"Rows: the true class. Columns: the class named. Right in {share(values['class_accuracy'])} of parts."
            parts.append(table(["class", *predictions, "right"], rows, caption))
    precisions = box_precisions(measured)
    if precisions:
        rows = [[escape(label), f"{value:.3f}"] for label, value in precisions.items()]
        caption = f"Average precision of boxes at an overlap (IoU) of 0.5; mean (mAP50) {values['map50']:.3f}"
        parts.append(table(["class", "AP50"], rows, caption))
    return "".join(parts)


def _training(history: Sequence[Mapping[str, object]] | None, training: dict[str, Any]) -> str:
    drawings = report_figures.histories(history or [])
    charts = "".join(report_figures.figure(drawing, "") for drawing in drawings)
    return (f'<div class="charts">{charts}</div>' if charts else "") + details("Settings, seed and libraries", training)


def _speed(measured: Measured, values: dict[str, Any]) -> str:
    steps = list(measured.parts[0].durations_ms)
    medians = [(name, float(np.median([part.durations_ms.get(name, 0.0) for part in measured.parts]))) for name in steps]
    rows = [
        ["an image, median", f"{number(values['ms_per_image'])} ms"],
        ["an image, 95 of 100 take no longer", f"{number(float(np.quantile([part.ms for part in measured.parts], 0.95)))} ms"],
        *([f"of which {escape(name)}, median", f"{number(value)} ms"] for name, value in medians),
        ["images a second, one after the other", number(1e3 / max(values["ms_per_image"], 1e-9))],
    ]
    where = (
        f"The whole of the line's own inspection with {measured.provider}, {threads(measured)}, on the machine that measured."
    )
    return table(["", "time"], rows, where)


def _parity(measured: Measured) -> str:
    manifest = measured.package.manifest
    proof = manifest.metrics.get("parity")
    rows = [
        ["replayed here: greatest difference of score", number(measured.parity_difference, 2)],
        ["tolerated", number(manifest.parity.score_tolerance, 2)],
    ]
    text = "The package carries frames with the outputs they must give; the line replays them before it uses the model."
    if isinstance(proof, Mapping) and {"score", "map", "parts"} <= proof.keys():
        rows.append([f"torch against onnxruntime at export, {proof['parts']} real parts: score", number(proof["score"], 2)])
        rows.append(["the same: map", number(proof["map"], 2)])
    return paragraph(text) + table(["", "difference"], rows)
