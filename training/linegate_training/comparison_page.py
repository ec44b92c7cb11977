"""A comparison → files for people: `comparison.json`, `comparison.html`, and pictures of what the packages differ in.

Rules kept here: a file appears whole or not at all; the page loads nothing from anywhere and runs no script; the verdict and
its reasons come first; the worst differences are shown, the others listed.
"""

from __future__ import annotations

import base64
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np

from linegate.comparison import (
    COMPARISON_FILE,
    COMPARISON_PAGE,
    DIFFERENCES,
    Comparison,
    Difference,
    PackageFacts,
    PackageNumbers,
    PairedErrors,
    Rate,
    Said,
    SetNumbers,
)
from linegate.errors import DataError
from linegate.images import encode_jpeg
from linegate.stages import Image, PixelFormat
from linegate_training.compare import Compared, Judge
from linegate_training.data.parts import Sample
from linegate_training.evaluate import frame_of
from linegate_training.report import POLICY
from linegate_training.report_pictures import draw_photograph, draw_seen
from linegate_training.report_text import Interval, details, escape, number, paragraph, percent, share, table

PICTURES: Final = 200
"""So many differences get a picture, the worst; so many files at most."""
SHOWN: Final = 24
"""So many of them are shown in the page itself."""
_GAP_PX: Final = 6


def write_comparison(folder: Path, compared: Compared) -> Comparison:
    """Write comparison.json, comparison.html and differences/*.jpg into `folder`, replacing older ones, and return it.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".comparison-", dir=folder) as name:
            staging = Path(name)
            (staging / DIFFERENCES).mkdir()
            comparison = _with_pictures(staging, compared)
            (staging / COMPARISON_PAGE).write_text(render(comparison, staging), encoding="utf-8")
            text = comparison.model_dump_json(indent=1) + "\n"
            (staging / COMPARISON_FILE).write_text(text, encoding="utf-8")
            remove_comparison(folder)
            # The numbers come last: whoever sees them finds the pictures.
            for written in (DIFFERENCES, COMPARISON_PAGE, COMPARISON_FILE):
                (staging / written).rename(folder / written)
    except OSError as error:
        raise DataError(f"{folder}: the comparison cannot be written ({error.strerror}): make room, or name another") from error
    return comparison


def remove_comparison(folder: Path) -> None:
    """Take away what an earlier comparison left in `folder`, so that nobody takes it for one of what comes now."""
    for written in (COMPARISON_FILE, COMPARISON_PAGE):
        (folder / written).unlink(missing_ok=True)
    shutil.rmtree(folder / DIFFERENCES, ignore_errors=True)


def _with_pictures(folder: Path, compared: Compared) -> Comparison:
    if compared.candidate is None:
        return compared.comparison
    named = []
    for index, (difference, sample) in enumerate(zip(compared.comparison.differences, compared.samples, strict=True)):
        if index < PICTURES:
            picture = f"{DIFFERENCES}/{index:04d}-{difference.sha256[:12]}.jpg"
            drawn = _side_by_side(sample, compared.champion, compared.candidate)
            (folder / picture).write_bytes(encode_jpeg(drawn, PixelFormat.RGB8, 85))
            difference = difference.model_copy(update={"picture": picture})
        named.append(difference)
    return compared.comparison.model_copy(update={"differences": tuple(named)})


def _side_by_side(sample: Sample, champion: Judge, candidate: Judge) -> Image:
    """Return the photograph, what the champion saw and what the candidate saw, RGB (H, W, 3), from left to right."""
    frame = frame_of(sample, 0)
    panels = [draw_photograph(frame, sample)]
    for judge in (champion, candidate):
        prediction = judge.inspector.predict(frame)
        threshold = judge.package.manifest.thresholds.map
        panels += [np.full((panels[0].shape[0], _GAP_PX, 3), 255, np.uint8)]
        panels += [draw_seen(frame, prediction, judge.decide(prediction), threshold)]
    return np.concatenate(panels, axis=1)


def render(comparison: Comparison, folder: Path) -> str:
    """Return the comparison as one HTML page; pictures are taken from `folder`."""
    sections = [("The gate", _gate(comparison))]
    if comparison.frozen is not None:
        sections.append(("The whole frozen test set", _numbers(comparison.frozen)))
    if comparison.recent is not None:
        sections.append((f"Of the newest {comparison.recent_reviews} reviews", _numbers(comparison.recent)))
    elif comparison.frozen is not None:
        said = f"None of the newest {comparison.recent_reviews} reviews is in the test set."
        sections.append(("What was reviewed last", paragraph(said)))
    sections += [("Speed", _speed(comparison)), ("What they differ in", _differences(comparison, folder))]
    sections.append(("Packages and data", _facts(comparison)))
    body = "".join(f"<section><h2>{escape(heading)}</h2>{content}</section>" for heading, content in sections if content)
    version, champion = comparison.version, comparison.champion
    title = f"{champion.name}: champion {champion.version}, candidate {_version_of(comparison.candidate)}"
    style = (files("linegate_training") / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} – Linegate comparison</title><style>{style}{_STYLE}</style></head><body>"
        f'<header><p class="kicker">Linegate comparison</p><h1>{escape(title)}</h1>'
        f'<p class="meta">{comparison.created_at:%Y-%m-%d %H:%M} UTC · data set {escape(version.name)} v{version.number} '
        f"({version.digest[:12]})</p>{paragraph(headline(comparison), 'verdict')}</header><main>{body}</main>"
        "<footer><p>Made by Linegate. This page holds photographs of parts.</p></footer></body></html>\n"
    )


def headline(comparison: Comparison) -> str:
    """Return the verdict in one sentence."""
    if comparison.gate.go:
        return "Go: the candidate keeps to every rule of the gate."
    broken = [rule.reason for rule in comparison.gate.rules if not rule.met]
    return f"No-go: {'; '.join(broken)}."


def _gate(comparison: Comparison) -> str:
    rows = [[escape(rule.name), "met" if rule.met else "<strong>not met</strong>", escape(rule.reason)]
            for rule in comparison.gate.rules]  # fmt: skip
    return table(["rule", "", "reason"], rows, numeric_from=9) + details("What was asked for", comparison.gate.settings)


def _numbers(numbers: SetNumbers) -> str:
    one, other = numbers.champion, numbers.candidate
    rows = [
        ["escapes", _rate(one.escapes), _rate(other.escapes), _paired(numbers.escapes)],
        ["false rejects", _rate(one.false_rejects), _rate(other.false_rejects), _paired(numbers.false_rejects)],
        ["defective, undecided", _rate(one.undecided_defective), _rate(other.undecided_defective), ""],
        ["good, undecided", _rate(one.undecided_good), _rate(other.undecided_good), ""],
        ["image AUROC", _auroc(one), _auroc(other), _auroc_change(numbers)],
    ]
    rows += [
        [f"escapes of {escape(label)}", _rate(rate), _rate(other.escapes_by_class[label]), ""]
        for label, rate in one.escapes_by_class.items()
    ]
    caption = f"{numbers.good} good and {numbers.defective} defective parts; intervals and tests at 95 %."
    return table(["", "champion", "candidate", "difference"], rows, caption, numeric_from=9)


def _rate(rate: Rate) -> str:
    return "–" if rate.rate is None else f"{rate.events} of {rate.trials}: {share(rate.rate, rate.ci95)}"


def _paired(errors: PairedErrors) -> str:
    return (
        f"{errors.champion_only} the champion's alone, {errors.candidate_only} the candidate's alone, {errors.both} of both; "
        f"p = {number(errors.p)} (McNemar, exact)"
    )


def _auroc(numbers: PackageNumbers) -> str:
    return share(numbers.auroc, numbers.auroc_ci95, of_one=True)


def _auroc_change(numbers: SetNumbers) -> str:
    change = numbers.auroc_difference
    if change is None:
        return "–"
    low, high = change.ci95
    return f"{_signed(change.difference)} ({_signed(low)} to {_signed(high)}), p = {number(change.p)} (paired bootstrap)"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _speed(comparison: Comparison) -> str:
    speed = comparison.speed
    if speed is None:
        return ""
    return paragraph(
        f"{number(speed.champion_ms)} ms an image with the champion, {number(speed.candidate_ms)} ms with the candidate, "
        f"{speed.ratio:.2f} times as much: medians over {speed.pairs} frames, taken by turns on {speed.provider}, "
        f"{speed.threads} {'thread' if speed.threads == 1 else 'threads'}."
    )


def _differences(comparison: Comparison, folder: Path) -> str:
    found = comparison.differences
    if comparison.frozen is None:
        return ""
    if not found:
        return paragraph("None: both say the same of every image.")
    said = f"{len(found)} of {comparison.frozen.good + comparison.frozen.defective} images, the worst first."
    words = "Left: the photograph, the true defect in blue. Middle: what the champion saw. Right: what the candidate saw."
    shown = "".join(_case(difference, folder) for difference in found[:SHOWN])
    rows = [[escape(one.group), escape(one.label), escape(one.outcome), _said(one.champion), _said(one.candidate),
             f"<code>{escape(one.picture or one.image)}</code>"] for one in found[SHOWN:]]  # fmt: skip
    head = ["part", "label", "what changed", "champion", "candidate", "picture"]
    more = table(head, rows, "The others.", numeric_from=9) if rows else ""
    return paragraph(said) + paragraph(words) + f'<div class="wide-cases">{shown}</div>' + more


def _case(difference: Difference, folder: Path) -> str:
    if difference.picture is None:
        return ""
    data = base64.b64encode((folder / difference.picture).read_bytes()).decode()
    words = f"{difference.label}: champion {_said(difference.champion)}, candidate {_said(difference.candidate)}"
    words += ", reviewed recently" if difference.recent else ""
    return (
        f'<figure class="case"><img src="data:image/jpeg;base64,{data}" alt="{escape(difference.group)}, {escape(words)}">'
        f"<figcaption><strong>{escape(difference.outcome)}</strong> · {escape(difference.group)}, {escape(difference.view)}"
        f"<br>{escape(words)}</figcaption></figure>"
    )


def _said(said: Said) -> str:
    called = f", called {said.predicted}" if said.predicted is not None else ""
    return escape(f"{said.decision.value} at {number(said.score)} (threshold {number(said.threshold)}{called})")


def _facts(comparison: Comparison) -> str:
    rows = []
    for kind, facts in (("champion", comparison.champion), ("candidate", comparison.candidate)):
        if facts is not None:
            seen = "the package does not say" if facts.seen_in_training is None else str(facts.seen_in_training)
            words = f"{facts.name} {facts.version}"
            rows.append([kind, escape(words), f"<code>{facts.digest}</code>", escape(seen)])
    head = ["", "package", "digest", "test images that it learned from or was calibrated on"]
    return table(head, rows, "Where a package has seen test images, its numbers here flatter it.", numeric_from=9)


def _version_of(facts: PackageFacts | None) -> str:
    return "none" if facts is None else facts.version


def summary(comparison: Comparison) -> str:
    """Return the comparison as lines for a terminal, the verdict last."""
    lines = []
    for name, numbers in (("frozen test set", comparison.frozen), ("reviewed last", comparison.recent)):
        if numbers is None:
            continue
        lines.append(f"{name}: {numbers.good} good, {numbers.defective} defective parts")
        for what, one, other, p in (
            ("escapes", numbers.champion.escapes, numbers.candidate.escapes, numbers.escapes.p),
            ("false rejects", numbers.champion.false_rejects, numbers.candidate.false_rejects, numbers.false_rejects.p),
        ):
            lines.append(f"  {what}: {_plain(one)} -> {_plain(other)}, p = {p:.3g}")
        change = numbers.auroc_difference
        if change is not None:
            low, high = change.ci95
            lines.append(f"  image AUROC: {change.difference:+.3f} ({low:+.3f} to {high:+.3f}), p = {change.p:.3g}")
    lines += [f"{'met    ' if rule.met else 'NOT MET'} {rule.name}: {rule.reason}" for rule in comparison.gate.rules]
    return "\n".join([*lines, "go" if comparison.gate.go else "no-go"])


def _plain(rate: Rate) -> str:
    if rate.rate is None:
        return "none to tell from"
    return f"{rate.events} of {rate.trials} ({percent(rate.rate)}{_between(rate.ci95)})"


def _between(interval: Interval) -> str:
    return "" if interval is None else f", 95 %: {100 * interval[0]:.1f} to {percent(interval[1])}"


_STYLE: Final = (
    ".wide-cases { display: grid; gap: 1rem; } .wide-cases img { width: 100%; height: auto; display: block; }"
    " .verdict { font-weight: 600; }"
)
