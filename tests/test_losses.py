"""What the learned heads are taught: each label teaches what it tells, and nothing that it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from linegate_training.models.learned import anchors, to_boxes
from linegate_training.models.losses import (
    CANDIDATES,
    assign,
    detection_losses,
    generalised_iou,
    losses,
    pixel_class_loss,
    pixel_loss,
)

SIDE = 64
EVERY = torch.ones(2, dtype=torch.bool)


def square_mask(parts: int = 2) -> Tensor:
    """Masks of which the first marks a square, and the others nothing."""
    mask = torch.zeros((parts, SIDE, SIDE), dtype=torch.uint8)
    mask[0, 16:32, 16:32] = 1
    return mask


def logits_like(mask: Tensor, stride: int = 4, sure: float = 8.0) -> Tensor:
    return (mask[:, ::stride, ::stride].float() * 2 - 1) * sure


def outputs(parts: int = 2, classes: int = 1) -> dict[str, Tensor]:
    found = {"pixel": torch.full((parts, 16, 16), -4.0), "local": torch.zeros(parts), "whole": torch.zeros(parts)}
    found["defect"] = found["local"] + found["whole"]
    if classes > 1:
        found |= {"class": torch.zeros(parts, classes), "pixel_class": torch.zeros(parts, classes, 16, 16)}
    return {name: value.requires_grad_() for name, value in found.items()}


def batch(**changed: Any) -> dict[str, Any]:
    return {
        "pixels": torch.zeros((2, SIDE, SIDE, 3), dtype=torch.uint8), "label": torch.tensor([1, 0]), "mask": square_mask(),
        "mask_known": EVERY, "boxes": torch.zeros((0, 6)), "boxes_known": EVERY, **changed,
    }  # fmt: skip


def test_without_any_known_mask_the_map_is_not_taught() -> None:
    pixel = torch.randn((2, 16, 16), requires_grad=True)
    found = pixel_loss(pixel, square_mask(), ~EVERY, torch.tensor([True, False]))
    found.backward()
    assert found.item() == 0.0
    assert pixel.grad is not None
    assert not pixel.grad.any()


def test_a_map_that_fits_its_mask_costs_less_than_an_empty_and_a_full_one() -> None:
    mask, defective = square_mask(), torch.tensor([True, False])
    fits, empty, full = (
        float(pixel_loss(pixel, mask, EVERY, defective))
        for pixel in (logits_like(mask), torch.full((2, 16, 16), -8.0), torch.full((2, 16, 16), 8.0))
    )
    assert fits < 0.3 * empty < full


def test_a_part_without_mask_counts_for_nothing_beside_one_with_a_mask() -> None:
    known, defective = torch.tensor([True, False]), torch.tensor([True, True])
    pixel = torch.randn((2, 16, 16), requires_grad=True)
    pixel_loss(pixel, square_mask(), known, defective).backward()
    assert pixel.grad is not None
    assert pixel.grad[0].any()
    assert not pixel.grad[1].any()


def test_image_labels_alone_teach_the_score() -> None:
    found = outputs()
    made = losses(found, batch(mask=torch.zeros((2, SIDE, SIDE), dtype=torch.uint8), mask_known=~EVERY), goods=True)
    made["loss"].backward()
    gradient = found["defect"].grad
    assert gradient is not None
    assert gradient[0] < 0 < gradient[1]
    assert set(made) == {"pixel", "defect", "local", "whole", "loss"}


def test_without_good_parts_the_score_is_not_taught_and_the_class_is() -> None:
    found = outputs(classes=3)
    made = losses(found, batch(label=torch.tensor([1, 3])), goods=False)
    made["loss"].backward()
    assert found["defect"].grad is None
    gradient = found["class"].grad
    assert gradient is not None
    assert gradient.argmin(1).tolist() == [0, 2]


def test_classes_are_taught_where_a_mask_marks_them_alone() -> None:
    which = torch.zeros((2, 3, 16, 16), requires_grad=True)
    pixel_class_loss(which, torch.tensor([2, 0]), square_mask(), EVERY).backward()
    assert which.grad is not None
    assert which.grad[0, 1, 4:8, 4:8].max() < 0
    assert not which.grad[0, :, 9:, 9:].any()
    assert not which.grad[1].any()


def test_a_batch_of_good_parts_only_gives_finite_losses() -> None:
    found = outputs(classes=2)
    made = losses(found, batch(label=torch.tensor([0, 0]), mask=torch.zeros((2, SIDE, SIDE), dtype=torch.uint8)), goods=True)
    assert all(torch.isfinite(value) for value in made.values())


def test_generalised_iou_is_1_for_the_same_box_and_below_0_for_far_ones() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert float(generalised_iou(box, box)) == pytest.approx(1.0)
    # No overlap, and the box around both is four times both together: 0 - (400 - 200) / 400.
    assert float(generalised_iou(box, box + 10.0)) == pytest.approx(-0.5)


def test_a_box_is_learned_by_anchors_inside_it_and_the_best_is_worth_its_overlap() -> None:
    points = anchors(SIDE, SIDE)
    truth = torch.tensor([[8.0, 8.0, 40.0, 40.0, 1.0]])
    found = to_boxes(points, torch.full((1, len(points), 4), 12.0))[0]
    chosen, owner, worth = assign(points, torch.zeros((len(points), 2)), found, truth)
    inside = points[chosen]
    assert 0 < len(chosen) <= CANDIDATES
    assert (owner == 0).all()
    assert ((inside > 8) & (inside < 40)).all()
    assert float(worth.max()) == pytest.approx(24 * 24 / (32 * 32), abs=0.01)


def test_a_box_smaller_than_the_finest_stride_still_has_an_anchor() -> None:
    points = anchors(SIDE, SIDE)
    truth = torch.tensor([[9.0, 9.0, 11.0, 11.0, 0.0]])
    found = to_boxes(points, torch.full((1, len(points), 4), 4.0))[0]
    chosen, _, worth = assign(points, torch.zeros((len(points), 1)), found, truth)
    assert len(chosen) == 1
    assert float(worth) > 0


def test_unknown_boxes_teach_no_absence() -> None:
    count = len(anchors(SIDE, SIDE))
    found = {"box_class": torch.zeros((2, count, 1), requires_grad=True), "box_sides": torch.ones((2, count, 4))}
    score, _ = detection_losses(found, torch.zeros((0, 6)), torch.tensor([False, True]), SIDE, SIDE)
    score.backward()
    gradient = found["box_class"].grad
    assert gradient is not None
    assert not gradient[0].any()
    assert (gradient[1] > 0).all()
