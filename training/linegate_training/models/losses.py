"""What the learned heads are taught, from whichever labels a part has: masks, boxes, or the image's label alone.

Targets of a batch: `pixels` uint8 (B, H, W, 3); `label` (B,) int64, 0 good and 1 … K defect classes; `mask` uint8 (B, H, W),
0 or 1, with `mask_known` (B,); `boxes` (n, 6) image of the batch, x1, y1, x2, y2 in pixels of the input, class from 0, with
`boxes_known` (B,). A good part is known to have none of either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from linegate_training.models.backbone import mend_torchvision
from linegate_training.models.learned import anchors, to_boxes

mend_torchvision()
from torchvision.ops import box_iou  # noqa: E402

CANDIDATES = 13
"""Anchors at most that one box teaches (Feng et al., "TOOD: Task-aligned One-stage Object Detection", 2021)."""
ALIGNMENT = (1.0, 6.0)
"""Powers of score and overlap in how well an anchor suits a box."""
SMOOTHING = 0.05
"""How sure a part's label is taken to be, less than 1 (Szegedy et al., "Rethinking the Inception Architecture", 2016): a few
parts of any data set are labelled wrong, and logits without bound would rank those above all others."""
TARGET_STRIDE = 2
"""Maps are compared with masks averaged over squares of this side: what a thin scratch covers stays, as a share."""


def losses(outputs: dict[str, Tensor], batch: dict[str, Any], goods: bool) -> dict[str, Tensor]:
    """Return each loss that the labels of the batch allow, and their sum under `loss`.

    `goods` says whether there are good parts to learn from: without them, nothing tells a defect from none.
    """
    label = batch["label"]
    defective = label > 0
    result = {"pixel": pixel_loss(outputs["pixel"], batch["mask"], batch["mask_known"], defective)}
    if goods:
        wanted = SMOOTHING + (1.0 - 2.0 * SMOOTHING) * defective.float()
        # Each kind of evidence is taught on its own too, or the one that learns faster would silence the other.
        result["defect"] = functional.binary_cross_entropy_with_logits(outputs["defect"], wanted)
        for name in ("local", "whole"):
            result[name] = 0.5 * functional.binary_cross_entropy_with_logits(outputs[name], wanted)
    if "class" in outputs:
        kinds = outputs["class"][defective]
        result["class"] = functional.cross_entropy(kinds, label[defective] - 1) if len(kinds) else kinds.sum()
        result["pixel_class"] = pixel_class_loss(outputs["pixel_class"], label, batch["mask"], batch["mask_known"])
    if "box_class" in outputs:
        height, width = batch["pixels"].shape[1:3]
        box_class, box_sides = detection_losses(outputs, batch["boxes"], batch["boxes_known"], height, width)
        result["box_class"], result["box_sides"] = box_class, 2.0 * box_sides
    result["loss"] = torch.stack(list(result.values())).sum()
    return result


def pixel_loss(pixel: Tensor, mask: Tensor, known: Tensor, defective: Tensor) -> Tensor:
    """Return cross-entropy over pixels plus Dice over defective parts (Milletari et al., "V-Net", 2016).

    Parts without mask count for neither. The logits (B, h, w) are drawn to the size that the masks are compared in.
    """
    if not bool(known.any()):
        return pixel.sum() * 0.0
    target = functional.avg_pool2d(mask[known][:, None].float(), TARGET_STRIDE)[:, 0]
    logits = functional.interpolate(pixel[known][:, None], size=target.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    cross = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # Defects cover a hundredth of a frame: easy pixels fade (Lin et al., "Focal Loss", 2017) and each side weighs alike.
    share = torch.sigmoid(logits)
    wrong = (share - target).abs()
    focal = (wrong.square() * cross).sum() / target.sum().clamp_min(0.002 * target.numel())
    chosen = defective[known] & (target.flatten(1).sum(1) > 0)
    if not bool(chosen.any()):
        return focal
    overlap = (share * target).flatten(1).sum(1)[chosen]
    total = (share.square() + target.square()).flatten(1).sum(1)[chosen]
    return focal + (1.0 - (2.0 * overlap + 1.0) / (total + 1.0)).mean()


def pixel_class_loss(pixel_class: Tensor, label: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """Return cross-entropy of the class (B, K, h, w) over the marked pixels, each part weighing alike."""
    stride = mask.shape[2] // pixel_class.shape[3]
    marked = functional.avg_pool2d(mask[:, None].float(), stride)[:, 0] * ((label > 0) & known)[:, None, None]
    cross = functional.cross_entropy(
        pixel_class, (label - 1).clamp_min(0)[:, None, None].expand(-1, *pixel_class.shape[2:]), reduction="none"
    )
    each = (cross * marked).flatten(1).sum(1) / marked.flatten(1).sum(1).clamp_min(1.0)
    return 0.5 * each.sum() / float((marked.flatten(1).sum(1) > 0).sum().clamp_min(1))


def detection_losses(
    outputs: dict[str, Tensor], boxes: Tensor, known: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Return quality focal loss (Li et al., "Generalized Focal Loss", 2020) and generalised IoU loss of the detections."""
    points = anchors(height, width).to(outputs["box_class"].device)
    logits, found = outputs["box_class"].float(), to_boxes(points, outputs["box_sides"].float())
    quality = torch.zeros_like(logits)
    distance, weight = logits.new_zeros(()), logits.new_zeros(())
    for index in range(len(logits)):
        truth = boxes[boxes[:, 0] == index, 1:]
        if not len(truth):
            continue
        chosen, owner, worth = assign(points, logits[index].detach(), found[index].detach(), truth)
        quality[index, chosen, truth[owner, 4].long()] = worth
        overlap = generalised_iou(found[index][chosen], truth[owner, :4])
        distance = distance + ((1.0 - overlap) * worth).sum()
        weight = weight + worth.sum()
    weight = weight.clamp_min(1.0)
    error = (torch.sigmoid(logits) - quality).abs().square() * known[:, None, None]
    focal = error * functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return focal.sum() / weight, distance / weight


def generalised_iou(found: Tensor, truth: Tensor) -> Tensor:
    """Return the generalised IoU (M,) of pairs of boxes (M, 4) (Rezatofighi et al., 2019)."""
    low, high = torch.maximum(found[:, :2], truth[:, :2]), torch.minimum(found[:, 2:], truth[:, 2:])
    shared = (high - low).clamp_min(0.0).prod(1)
    either = (found[:, 2:] - found[:, :2]).prod(1) + (truth[:, 2:] - truth[:, :2]).prod(1) - shared
    around = (torch.maximum(found[:, 2:], truth[:, 2:]) - torch.minimum(found[:, :2], truth[:, :2])).prod(1)
    return shared / either.clamp_min(1e-6) - (around - either) / around.clamp_min(1e-6)


def assign(points: Tensor, logits: Tensor, found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the anchors that learn (M,), the box each learns (M,) and its quality (M,), task-aligned as in TOOD.

    An anchor may learn a box that it lies in; of those the ones best in score and overlap do, and each learns one box.
    """
    overlaps = box_iou(truth[:, :4], found)  # (T, N)
    scores = torch.sigmoid(logits)[:, truth[:, 4].long()].T  # (T, N)
    x, y = points[:, 0][None], points[:, 1][None]
    inside = torch.stack([x - truth[:, :1], y - truth[:, 1:2], truth[:, 2:3] - x, truth[:, 3:4] - y]).amin(0) > 0
    # A box smaller than the finest stride may hold no anchor: the nearest one takes it.
    centres = (truth[:, :2] + truth[:, 2:4]) / 2
    nearest = (centres[:, None] - points[None]).square().sum(2).argmin(1)
    inside[torch.arange(len(truth)), nearest] = True
    aligned = scores.clamp_min(1e-4).pow(ALIGNMENT[0]) * overlaps.clamp_min(1e-3).pow(ALIGNMENT[1])
    aligned = torch.where(inside, aligned, torch.zeros_like(aligned))
    best = aligned.topk(min(CANDIDATES, aligned.shape[1]), 1)
    taken = torch.zeros_like(aligned, dtype=torch.bool).scatter_(1, best.indices, best.values > 0)
    # An anchor wanted by several boxes goes to the one it covers best.
    value, owner = torch.where(taken, overlaps, torch.full_like(overlaps, -1.0)).max(0)
    chosen = torch.nonzero(value >= 0).flatten()
    owner = owner[chosen]
    strength = aligned[owner, chosen]
    # The best anchor of a box is worth the best overlap, the others less in proportion.
    strongest = torch.zeros(len(truth), device=points.device).scatter_reduce(0, owner, strength, "amax")
    widest = torch.zeros(len(truth), device=points.device).scatter_reduce(0, owner, overlaps[owner, chosen], "amax")
    return chosen, owner, strength / strongest[owner].clamp_min(1e-9) * widest[owner]
