"""The net that learned from defects: uint8 pixels in, the outputs of a package out, from one backbone.

Rules kept here: what a net gives follows from what it could learn (`LearnedShape`); sizes are fixed at the start, so that
the exported graph holds no sums about shapes; thresholds stay outside. How it learns is left to `learn`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from linegate.settings import Settings
from linegate_training.models.backbone import LiteBackbone
from linegate_training.models.good_only import CELL_PX, GoodOnlyHead, describe_features
from linegate_training.models.learned import LearnedHeads, anchors, to_boxes

DETECTIONS = 100
BACKBONE_RATE = 0.1
"""The backbone's share of the learning rate: it knows much already."""

GUARD_WEIGHTS = (1.0, 0.25)
"""Weight of the distance from good parts beside hardly any defects and beside thousands."""
GUARD_DEFECTS = 30
"""So many are half the way between the two."""

Side = Annotated[int, Field(ge=32, le=8192, multiple_of=32)]


class LearnedShape(Settings):
    """What a learned net is built from: plain values, kept beside its weights.

    `goods`, `masks` and `boxes` say what there was to learn from: good parts, masks, boxes.
    """

    size_wh: tuple[Side, Side]
    classes: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=8, le=512, multiple_of=8)] = 64
    goods: bool = True
    masks: bool = False
    boxes: bool = False


class Guard(nn.Module):
    """Backbone features → what is added to the logit (B,): how far a part is from the good ones, times `weight`.

    Heads know the defects that they were shown. The fewer these were, the more counts that a part is unlike the good ones.
    """

    def __init__(self, head: GoodOnlyHead, size_wh: tuple[int, int], weight: float) -> None:
        super().__init__()
        self.head = head
        self.grid_hw = (size_wh[1] // CELL_PX, size_wh[0] // CELL_PX)
        self.weight = weight

    def forward(self, features: list[Tensor]) -> Tensor:
        score, _ = self.head.judge(*self.head.distances(*describe_features(features, self.grid_hw)))
        return score * self.weight


def guard_weight(defects: int) -> float:
    """Return the weight of the distance from good parts beside heads that learned from so many defective ones."""
    return GUARD_WEIGHTS[1] + (GUARD_WEIGHTS[0] - GUARD_WEIGHTS[1]) * GUARD_DEFECTS / (GUARD_DEFECTS + defects)


class LearnedNet(nn.Module):
    """uint8 pixels (B, H, W, 3) RGB → the outputs named in `output_names`, in that order.

    `score` (B,), a logit; `map` (B, H/4, W/4), logits; with several classes `class_scores` (B, K), which sum to 1; with
    several classes and masks `class_map` (B, K, H/4, W/4), 0 … 1; with boxes `detections` (B, N, 6), left, top, right and
    bottom in shares of the input, score 0 … 1 and class, the surest first.

    `guard`, where there is one, adds to the score what it makes of the backbone's features.
    """

    def __init__(self, shape: LearnedShape) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = LiteBackbone()
        located = shape.goods or shape.masks or shape.boxes
        self.heads = LearnedHeads(shape.classes, shape.width, shape.boxes, located)
        self.guard: Guard | None = None
        for module in self.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = True  # nothing else reads what a convolution gives: less memory to fill, step by step
        width, height = shape.size_wh
        self.register_buffer("points", anchors(height, width), persistent=False)
        self.register_buffer("sides", torch.tensor([width, height, width, height], dtype=torch.float32), persistent=False)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, by field of `linegate.package.Outputs`."""
        typed = self.shape.classes > 1
        given = {"score": True, "map": True, "class_scores": typed, "class_map": typed and self.shape.masks,
                 "detections": self.shape.boxes}  # fmt: skip
        return tuple(name for name, wanted in given.items() if wanted)

    def train_from(self, block: int) -> None:
        """Let the heads and the backbone's blocks from this one on learn; 7 and more: no block does."""
        self.requires_grad_(True)
        self.backbone.stem.requires_grad_(block <= 0)
        for index, stage in enumerate(self.backbone.blocks):
            stage.requires_grad_(index >= block)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return what the optimiser moves: the backbone more slowly, and no decay on vectors."""
        groups = []
        for module, rate in ((self.backbone, BACKBONE_RATE * learning_rate), (self.heads, learning_rate)):
            learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
            groups.append({"params": [parameter for parameter in learned if parameter.ndim > 1], "lr": rate})
            vectors = [parameter for parameter in learned if parameter.ndim <= 1]
            groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0})
        return groups

    def logits(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return what `LearnedHeads` gives for pixels."""
        return cast("dict[str, Tensor]", self.heads(self.backbone(pixels)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone(pixels)
        found = self.heads(features)
        outputs = {"map": found["pixel"]}
        if self.shape.classes > 1:
            outputs["class_scores"] = torch.softmax(found["class"], 1)
            where = torch.sigmoid(found["pixel"])[:, None]
            outputs["class_map"] = torch.softmax(found["pixel_class"], 1) * where
        if self.shape.boxes:
            outputs["detections"] = self.detections(found)
        score = self._score(found)
        outputs["score"] = score if self.guard is None else score + self.guard(features)
        return tuple(outputs[name] for name in self.output_names)

    def detections(self, found: Mapping[str, Tensor]) -> Tensor:
        """Return the surest pairs of place and class as rows (B, N, 6); overlapping ones are left to the line."""
        logits = found["box_class"]
        surest, index = logits.flatten(1).topk(min(DETECTIONS, int(logits.shape[1]) * self.shape.classes), 1)
        place = torch.div(index, self.shape.classes, rounding_mode="floor")
        kind = (index - place * self.shape.classes).float()
        boxes = to_boxes(cast(Tensor, self.points), found["box_sides"]) / cast(Tensor, self.sides)
        boxes = boxes.clamp(0.0, 1.0).gather(1, place[:, :, None].expand(-1, -1, 4))
        return torch.cat([boxes, torch.sigmoid(surest)[:, :, None], kind[:, :, None]], 2)

    def _score(self, found: Mapping[str, Tensor]) -> Tensor:
        if self.shape.goods:
            return found["defect"]
        # Nothing has taught how a good part looks: the surest thing seen stands for it.
        if self.shape.boxes:
            return found["box_class"].flatten(1).amax(1)
        return found["pixel"].flatten(1).amax(1)
