"""What is measured of each part, and the numbers made of it: against values computed by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import SIZE, encode, spot_picture, write_spot_package
from linegate.package import ModelPackage
from linegate.stages import Decision, Region
from linegate_training.data.parts import Box, PartSet, Sample
from linegate_training.evaluate import Measured, evaluate, measure, summarise
from linegate_training.metrics import average_precisions, best_detection_threshold, box_iou, operating_curve

BLACK, WHITE = np.zeros((SIZE, SIZE), np.uint8), np.full((SIZE, SIZE), 255, np.uint8)
LEFT_HALF = np.repeat(np.arange(SIZE)[np.newaxis] < SIZE // 2, SIZE, axis=0)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_spot_package(tmp_path_factory.mktemp("package") / "spots")


def make_parts(folder: Path, *pictures: tuple[str, NDArray[np.uint8], NDArray[np.bool_] | None]) -> PartSet:
    """Write pictures (label, pixels, mask) and return them as test parts."""
    samples = []
    for index, (label, pixels, mask) in enumerate(pictures):
        path, mask_path = folder / f"{index}.png", folder / f"{index}_mask.png"
        path.write_bytes(encode(pixels))
        if mask is not None:
            mask_path.write_bytes(encode(mask.astype(np.uint8) * 255))
        samples.append(Sample(path.name, path, "test", label, mask_path if mask is not None else None))
    return PartSet("made", tuple(samples), "CC0-1.0", "made up")


def with_labels(package: ModelPackage, *labels: str) -> ModelPackage:
    return dataclasses.replace(package, manifest=package.manifest.model_copy(update={"labels": labels}))


def with_classes(measured: Measured, package: ModelPackage, scores: list[Mapping[str, float] | None]) -> Measured:
    parts = tuple(dataclasses.replace(part, class_scores=one) for part, one in zip(measured.parts, scores, strict=True))
    return dataclasses.replace(measured, package=package, parts=parts)


def test_without_defects_what_needs_them_is_undefined(package: ModelPackage, tmp_path: Path) -> None:
    values = evaluate(package, make_parts(tmp_path, ("good", BLACK, None), ("good", BLACK, None)))
    for key in ("escape_rate", "image_auroc", "pixel_iou", "pixel_auroc", "pixel_auroc_defective", "class_accuracy", "map50"):
        assert values[key] is None
    assert values["decisions_by_class"] == {"good": {"pass": 2, "undecided": 0, "fail": 0}}
    assert values["escapes_by_class"] == {}
    json.dumps(values, allow_nan=False)


def test_without_good_parts_what_needs_them_is_undefined(package: ModelPackage, tmp_path: Path) -> None:
    values = evaluate(package, make_parts(tmp_path, ("spot", WHITE, None)))
    for key in ("false_reject_rate", "image_auroc", "false_reject_rate_at_zero_escapes", "pixel_iou"):
        assert values[key] is None
    assert values["escape_rate"] == 0.0


def test_parts_are_kept_with_what_the_line_would_say_of_them(package: ModelPackage, tmp_path: Path) -> None:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[:10, :20], mask[40:42, 40:42] = True, True
    measured = measure(package, make_parts(tmp_path, ("good", BLACK, None), ("spot", WHITE, mask)))
    good, bad = measured.parts
    assert (good.decision, bad.decision) == (Decision.PASS, Decision.FAIL)
    assert (good.score, bad.score) == (0.0, 1.0)
    assert bad.anomaly_map.dtype == np.float16
    assert bad.anomaly_map.shape == (SIZE // 4, SIZE // 4)
    # The largest region, not all of the mask.
    assert (good.defect_px, bad.defect_px) == (None, 200)
    assert bad.regions[0].box_xyxy == (0, 0, SIZE, SIZE)
    assert bad.predicted is None
    assert bad.ms > sum(bad.durations_ms.values()) * 0.99
    assert measured.parity_difference <= 1e-4


def test_decisions_are_counted_by_class_and_between_the_thresholds(tmp_path: Path) -> None:
    package = write_spot_package(tmp_path / "spots")
    thresholds = package.manifest.thresholds.model_copy(update={"undecided_below": 0.3})
    package = dataclasses.replace(package, manifest=package.manifest.model_copy(update={"thresholds": thresholds}))
    faint = np.full((SIZE, SIZE), 150, np.uint8)
    parts = make_parts(
        tmp_path,
        ("good", BLACK, None),
        ("good", faint, None),
        ("dent", WHITE, None),
        ("dent", BLACK, None),
        ("dent", faint, None),
    )
    values = evaluate(package, parts)
    assert values["decisions_by_class"] == {
        "good": {"pass": 1, "undecided": 1, "fail": 0},
        "dent": {"pass": 1, "undecided": 1, "fail": 1},
    }
    assert values["escapes_by_class"] == {"dent": "1 of 3"}
    assert values["undecided_rate"] == pytest.approx(0.4)


def test_pixel_iou_is_pooled_over_all_parts_and_averaged_over_defective_ones(package: ModelPackage, tmp_path: Path) -> None:
    everything = np.ones((SIZE, SIZE), bool)
    parts = make_parts(
        tmp_path, ("spot", WHITE, LEFT_HALF), ("spot", WHITE, everything), ("good", WHITE, None), ("good", BLACK, None)
    )
    values = evaluate(package, parts)
    # Shared: a half, a whole. Either: three wholes, of which one on a good part.
    assert values["pixel_iou"] == pytest.approx(1.5 / 3)
    assert values["pixel_iou_mean"] == pytest.approx(0.75)


def test_pixel_iou_counts_what_lies_outside_the_region_of_interest_as_not_found(package: ModelPackage, tmp_path: Path) -> None:
    spec = package.manifest.input.model_copy(update={"roi_xyxy": (0.5, 0.0, 1.0, 1.0)})
    half = dataclasses.replace(package, manifest=package.manifest.model_copy(update={"input": spec}))
    assert evaluate(half, make_parts(tmp_path, ("spot", WHITE, np.ones((SIZE, SIZE), bool))))["pixel_iou"] == pytest.approx(0.5)


def test_pixel_auroc_of_defective_parts_leaves_good_ones_out(package: ModelPackage, tmp_path: Path) -> None:
    halves = np.where(LEFT_HALF, 255, 128).astype(np.uint8)
    values = evaluate(package, make_parts(tmp_path, ("spot", halves, LEFT_HALF), ("good", WHITE, None)))
    assert values["pixel_auroc_defective"] > 0.98
    # Half of the defect's pixels are ties with those of the good part, of which there are twice as many as other good ones.
    assert values["pixel_auroc"] == pytest.approx((1 + 2 * 0.5) / 3, abs=0.03)


def test_mask_that_marks_nothing_has_no_size_and_no_share_in_the_mean(package: ModelPackage, tmp_path: Path) -> None:
    parts = make_parts(tmp_path, ("spot", BLACK, np.zeros((SIZE, SIZE), bool)), ("good", BLACK, None))
    measured = measure(package, parts)
    assert measured.parts[0].defect_px is None
    assert (measured.pixels.iou, measured.pixels.iou_mean) == (None, None)


def test_class_accuracy_is_that_of_the_highest_class_score_over_defective_parts(package: ModelPackage, tmp_path: Path) -> None:
    parts = make_parts(tmp_path, *((label, BLACK, None) for label in ("good", "dent", "dent", "crack", "stain")))
    typed = with_labels(package, "good", "crack", "dent")
    crack, dent = {"crack": 0.8, "dent": 0.1}, {"crack": 0.1, "dent": 0.2}
    measured = measure(package, parts)
    values = summarise(with_classes(measured, typed, [crack, dent, crack, crack, dent]))
    # A dent and the crack of four; the package knows no stain.
    assert values["class_accuracy"] == pytest.approx(0.5)
    assert summarise(measured)["class_accuracy"] is None


def region(label: str, score: float, *box: int) -> Region:
    return Region(label, score, (box[0], box[1], box[2], box[3]), 1)


def test_average_precision_without_true_boxes_is_undefined() -> None:
    assert average_precisions([], []) == {}
    assert average_precisions([[region("dent", 0.9, 0, 0, 5, 5)]], [[]]) == {}


def test_average_precision_is_the_one_integrated_by_hand() -> None:
    truths = [[Box("dent", (0, 0, 10, 10))], [Box("dent", (20, 20, 30, 30))]]
    detections = [
        [region("dent", 0.9, 0, 0, 10, 10), region("dent", 0.8, 40, 40, 50, 50)],
        [region("dent", 0.7, 20, 20, 30, 30)],
    ]
    # Precision 1 up to a recall of a half, 2/3 up to 1.
    assert average_precisions(detections, truths) == {"dent": pytest.approx(0.5 + 0.5 * 2 / 3)}


def test_detection_threshold_with_the_best_f1_is_the_one_found_by_hand() -> None:
    truths = [[Box("dent", (0, 0, 10, 10))], [Box("crack", (20, 20, 30, 30))]]
    detections = [
        [region("dent", 0.9, 0, 0, 10, 10), region("dent", 0.3, 40, 40, 50, 50), region("crack", 0.2, 60, 60, 70, 70)],
        [region("crack", 0.6, 20, 20, 30, 30)],
    ]
    # F1 is 2/3 from 0.9 on, 1 from 0.6 on, 4/5 from 0.3 on.
    assert best_detection_threshold(detections, truths) == 0.6
    assert best_detection_threshold([[region("crack", 0.9, 0, 0, 10, 10)], []], truths) is None
    assert best_detection_threshold([], []) is None


def test_average_precision_counts_a_second_box_on_the_same_defect_as_wrong() -> None:
    truths = [[Box("dent", (0, 0, 10, 10)), Box("dent", (50, 50, 60, 60))]]
    twice = [[region("dent", 0.9, 0, 0, 10, 10), region("dent", 0.8, 0, 0, 10, 10), region("dent", 0.7, 50, 50, 60, 60)]]
    assert average_precisions(twice, truths)["dent"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_average_precision_keeps_classes_and_images_apart_and_counts_misses() -> None:
    truths = [[Box("dent", (0, 0, 10, 10))], [Box("crack", (0, 0, 10, 10))]]
    detections = [[region("crack", 0.9, 0, 0, 10, 10)], [region("dent", 0.9, 0, 0, 10, 10)]]
    assert average_precisions(detections, truths) == {"crack": 0.0, "dent": 0.0}
    assert average_precisions([[], []], truths) == {"crack": 0.0, "dent": 0.0}


def test_overlap_of_exactly_a_half_counts_and_one_under_it_does_not() -> None:
    truths = [[Box("dent", (0, 0, 10, 10))]]
    assert average_precisions([[region("dent", 0.5, 0, 0, 10, 5)]], truths)["dent"] == 1.0
    assert average_precisions([[region("dent", 0.5, 0, 0, 10, 4)]], truths)["dent"] == 0.0
    shared = box_iou((0, 0, 10, 10), np.array([[5, 5, 15, 15], [20, 20, 30, 30], [0, 0, 10, 10]], np.float64))
    assert shared == pytest.approx([25 / 175, 0, 1])


def test_boxes_of_a_typed_package_are_measured_by_class(package: ModelPackage, tmp_path: Path) -> None:
    """The spot model finds one region that fills a white picture, and calls it by its last label."""
    parts = make_parts(tmp_path, ("crack", WHITE, None), ("dent", WHITE, None))
    boxes = tuple(dataclasses.replace(sample, boxes=(Box(sample.label, (0, 0, SIZE, SIZE)),)) for sample in parts.samples)
    values = evaluate(with_labels(package, "good", "crack", "dent"), dataclasses.replace(parts, samples=boxes))
    # Both are called dent: for dents one right and one wrong of the same score, the first of them wrong.
    assert values["ap50_by_class"] == {"crack": 0.0, "dent": pytest.approx(0.5)}
    assert values["map50"] == pytest.approx(0.25)
    assert evaluate(package, dataclasses.replace(parts, samples=boxes))["map50"] is None


def test_operating_curve_goes_through_every_threshold() -> None:
    curve = operating_curve(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    assert curve is not None
    assert curve.thresholds.tolist() == [np.inf, 0.8, 0.4, 0.1]
    assert curve.good.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert curve.defect.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert curve.precision(curve.good, curve.defect) == pytest.approx([1.0, 1.0, 2 / 3, 0.5])
    assert operating_curve(np.ones(3), np.ones(3, bool)) is None


def test_band_of_the_curve_has_a_width_where_no_part_errs() -> None:
    curve = operating_curve(np.array([0.0] * 10 + [1.0] * 5), np.array([False] * 10 + [True] * 5))
    assert curve is not None
    assert curve.good_high[1] == pytest.approx(0.36, abs=0.02)
    assert curve.defect_low[1] == pytest.approx(0.42, abs=0.03)


def test_band_of_the_curve_holds_both_true_rates_in_nineteen_of_twenty_draws() -> None:
    from scipy.stats import norm

    random = np.random.default_rng(0)
    defective = np.arange(60) < 25
    inside = 0
    for _ in range(400):
        curve = operating_curve(random.normal(size=60) + 1.5 * defective, defective)
        assert curve is not None
        # A threshold between those seen, so that it is not chosen by the parts.
        row = int((curve.thresholds >= 0.7).sum()) - 1
        good, defect = norm.sf(0.7), norm.sf(0.7 - 1.5)
        inside += (
            curve.good_low[row] <= good <= curve.good_high[row] and curve.defect_low[row] <= defect <= curve.defect_high[row]
        )
    assert inside / 400 >= 0.95


def test_spots_are_told_from_plain_parts(package: ModelPackage, tmp_path: Path) -> None:
    pictures = [("good", spot_picture(defect=False, seed=seed), None) for seed in range(4)]
    pictures += [("spot", spot_picture(defect=True, seed=seed), None) for seed in range(4)]
    values = evaluate(package, make_parts(tmp_path, *pictures))
    assert values["image_auroc"] == 1.0
    assert values["accuracy"] == 1.0
    assert values["ms_per_image"] > 0
