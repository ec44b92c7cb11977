"""The first sentence of the report, and the four numbers under it.

Rules kept here: what an engineer loses comes first, defects that pass and good parts that fail; each number comes with its
interval and the count it is from.
"""

from __future__ import annotations

from typing import Any

from linegate_training.evaluate import Measured
from linegate_training.report_text import between, escape, number, paragraph, percent, share


def head(measured: Measured, values: dict[str, Any]) -> str:
    """Return the head of the page: the package, the verdict on it and four numbers."""
    manifest = measured.package.manifest
    interval = values["image_auroc_ci95"]
    area = f"95 %: {between(interval, of_one=True)}" if interval is not None else "not defined here"
    tiles = [
        ("Image AUROC", share(values["image_auroc"], of_one=True), area),
        ("Escapes", share(values["escape_rate"]), _counted(values, "escapes", "defective", "escape_rate_ci95")),
        (
            "False rejects",
            share(values["false_reject_rate"]),
            _counted(values, "false_rejects", "good", "false_reject_rate_ci95"),
        ),
        ("An image", f"{number(values['ms_per_image'])} ms", f"median; {measured.provider}, {threads(measured)}"),
    ]
    boxes = "".join(
        f'<p class="tile"><span>{name}</span><b>{value}</b><small>{note}</small></p>' for name, value, note in tiles
    )
    when = f"{measured.measured_at:%Y-%m-%d %H:%M} UTC"
    warning = ""
    if measured.seen:
        said = f"{measured.seen} of {len(measured.parts)} test images are among those that the package learned from."
        warning = paragraph(f"{said} The numbers flatter: measure on other parts.", "warning")
    return (
        f'<header><p class="kicker">Linegate model report</p><h1>{escape(manifest.name)} {escape(manifest.version)}</h1>'
        f'<p class="meta">measured {when} on {escape(measured.data_set)} · package {measured.package.digest[:12]}</p>'
        f'{paragraph(verdict(values), "verdict")}{warning}<div class="tiles">{boxes}</div></header>'
    )


def verdict(values: dict[str, Any]) -> str:
    """Return what the model is worth in one sentence."""
    said = []
    if values["defective"]:
        rate = f"{percent(values['escape_rate'])}, 95 %: {between(values['escape_rate_ci95'])}"
        said.append(f"lets {values['escapes']} of {values['defective']} defective parts pass ({rate})")
    if values["good"]:
        rate = f"{percent(values['false_reject_rate'])}, 95 %: {between(values['false_reject_rate_ci95'])}"
        said.append(f"rejects {values['false_rejects']} of {values['good']} good ones ({rate})")
    text = f"At its threshold the model {' and '.join(said)}"
    if values["undecided_rate"]:
        text += f", and leaves {percent(values['undecided_rate'])} of all parts undecided"
    if values["image_auroc"] is None:
        missing = "no defective parts" if values["good"] else "no good parts"
        return f"{text}; there were {missing} to tell apart from."
    ranks = f"{percent(values['image_auroc'])} of pairs (95 %: {between(values['image_auroc_ci95'])})"
    return f"{text}; it ranks a defective part above a good one in {ranks}."


def _counted(values: dict[str, Any], events: str, trials: str, interval: str) -> str:
    if not values[trials]:
        return f"no {trials} parts"
    return f"{values[events]} of {values[trials]} parts<br>95 %: {between(values[interval])}"


def threads(measured: Measured) -> str:
    """Return how many threads an image had."""
    return "1 thread" if measured.threads == 1 else f"{measured.threads} threads"
