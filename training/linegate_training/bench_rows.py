"""The rows of `linegate bench accuracy`: what is trained, how, what is measured, and what is asked of it.

Rules kept here: a row is data, so that another one is a few lines; its options are those of `linegate train`, as a user
types them; floors and goals are the project's own. Running is left to `bench_accuracy`, writing to `bench_table`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

SECONDS_TO_PACKAGE: Final = "seconds_to_package"
PACKAGE_MIB: Final = "package_mib"
MS_AT_256: Final = "ms_at_256"
MIRRORED: Final = ("--augment", "mirrored")
"""Of parts whose mirror images are as good: a photographer's judgement of the part, not of the numbers."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a row: `key` is its name among the values of a case, `elsewhere` what others published or measured."""

    key: str
    words: str
    floor: float
    goal: float
    elsewhere: str = "–"
    digits: int = 3
    lowest_is_best: bool = False

    def reached(self, value: float, limit: float) -> bool:
        """Say whether the value is as good as the limit; a value that is no number is not."""
        return not math.isnan(value) and (value <= limit if self.lowest_is_best else value >= limit)

    def over(self, values: Sequence[float], worst: bool) -> float:
        """Return the mean of the cases' values, or the worst of them."""
        if worst:
            return max(values) if self.lowest_is_best else min(values)
        return math.fsum(values) / len(values)


@dataclass(frozen=True, slots=True)
class Row:
    """One training and what is measured on its package; without `data` the shipped packages are measured instead.

    `cases` are the folds or seeds that `case_option` names one by one, none for a single training; the value of a row is
    their mean, of packages the worst. `train_options` go to `linegate train` alone.
    """

    name: str
    data: str | None
    regime: str
    measures: tuple[Measure, ...]
    train_options: tuple[str, ...] = ()
    supervised: bool = False
    precision: Literal["fp32", "int8", "fp16"] | None = None
    cases: tuple[int, ...] = ()
    case_option: Literal["--fold", "--seed"] = "--fold"

    def options(self, case: int | None) -> tuple[list[str], list[str]]:
        """Return the options of `linegate train` and of `linegate evaluate` for a case, less places."""
        both = ["--supervised"] if self.supervised else []
        train = [*both, *self.train_options, *(["--precision", self.precision] if self.precision else [])]
        chosen = [] if case is None else [self.case_option, str(case)]
        return [*train, *chosen], [*both, *(chosen if self.case_option == "--fold" else [])]

    def label(self, case: int | None) -> str:
        """Return what people call a case, as fold 1."""
        return "" if case is None else f"{self.case_option.removeprefix('--')} {case}"

    def values(self, cases: Sequence[dict[str, Any]], measure: Measure) -> list[float]:
        """Return a measure's value in each case."""
        return [float(case["values"][measure.key]) for case in cases]

    def value(self, cases: Sequence[dict[str, Any]], measure: Measure) -> float:
        """Return a measure's value over the cases."""
        return measure.over(self.values(cases, measure), worst=self.data is None)


ROWS: Final = (
    Row(
        "magnetic-tile-good-only", "magnetic_tile", "good-only",
        (
            Measure("image_auroc", "image AUROC", 0.96, 0.985, "PatchCore WideResNet-50 0.979; anomalib PatchCore lite0 0.897"),
            Measure("pixel_auroc_defective", "pixel AUROC over defect images", 0.80, 0.90),
        ),
    ),
    Row(
        "magnetic-tile-supervised", "magnetic_tile", "supervised",
        (
            Measure("image_ap", "image AP", 0.99, 0.997),
            Measure("pixel_iou", "pixel IoU", 0.70, 0.80),
        ),
        MIRRORED, supervised=True, cases=(0, 1, 2, 3, 4),
    ),
    Row(
        "kolektor-good-only", "kolektor_sdd", "good-only",
        (Measure("image_auroc", "image AUROC", 0.93, 0.98, "image-level Mahalanobis, quick try 0.902"),),
        cases=(0, 1, 2),
    ),
    Row(
        "kolektor-supervised", "kolektor_sdd", "supervised",
        (Measure("image_ap", "image AP", 0.98, 1.0, "1.00; linear probe 0.918"),),
        MIRRORED, supervised=True, cases=(0, 1, 2),
    ),
    Row(
        "neu-det-typed", "neu_det", "typed",
        (
            Measure("class_accuracy", "image class accuracy", 0.997, 1.0, "linear probe on frozen Lite0 1.000"),
            Measure("map50", "mAP50", 0.72, 0.80, "0.75–0.80"),
        ),
        ("--augment", "texture"),
        supervised=True,
    ),
    Row(
        "elpv-supervised", "elpv", "supervised, 75/25, label ≥ 0.5 is defective",
        (Measure("accuracy", "accuracy at the threshold", 0.885, 0.93, "CNN 0.884; linear probe 0.870"),),
        ("--operating-point", "accuracy", *MIRRORED), supervised=True,
    ),
    Row(
        "magnetic-tile-instant", "magnetic_tile", "instant, 30 good images drawn by seed",
        (
            Measure("image_auroc", "image AUROC", 0.90, 0.95),
            Measure(SECONDS_TO_PACKAGE, "seconds to the package", 90, 45, digits=0, lowest_is_best=True),
        ),
        ("--instant", "--limit-goods", "30", *MIRRORED), cases=(0, 1, 2), case_option="--seed",
    ),
    Row(
        "int8-packages", None, "shipped int8 packages, the worst of them",
        (
            Measure(MS_AT_256, "ms a frame at 256², one thread", 10, 6, "lite0 features alone 4.5", 1, lowest_is_best=True),
            Measure(PACKAGE_MIB, "MiB", 8, 6, digits=1, lowest_is_best=True),
        ),
    ),
)  # fmt: skip
