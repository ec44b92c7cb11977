"""Heads that learn from defects, real or made: where (map), how surely (score), which class, and in which box.

They stand on the same backbone as the Gaussians. A neck joins strides 4 to 32 (Lin et al., "Feature Pyramid Networks for
Object Detection", 2017) with depthwise separable convolutions; no layer depends on the batch, so torch and the exported
graph run the same arithmetic. Where a defect is and which one it is are told apart: one map says where, K maps say which,
so that a rare class shares what the others taught. What is learned, and from which labels, is left to `losses`; what the
line gets of it to `learned_net`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from linegate_training.models.backbone import CHANNELS

NECK_STAGES = (0, 1, 3, 5)
"""Of the backbone's six features those that the neck joins, at strides 4, 8, 16 and 32."""
STRIDES = (4, 8, 16, 32)
BOX_LEVELS = (1, 2, 3)
"""Levels of the neck that detections come from: strides 8, 16 and 32."""
TOP_SHARES = (0.005, 0.001)
"""The local evidence is the mean over these shares of the map, its highest values: a defect is small against its part."""
NORM_GROUPS = 8
RARE = -4.0
"""Logit that maps begin at: defects are rare."""


class SeparableConv(nn.Module):
    """Depthwise 3 × 3, pointwise, ReLU6: (B, C, h, w) → (B, D, h, w).

    With `normed`, groups of channels are normalised over one image before the ReLU6 (Wu and He, "Group Normalization", 2018):
    boxes are found better so, masks are not.
    """

    def __init__(self, channels: int, out: int, normed: bool = False) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, out, 1)
        self.norm = nn.GroupNorm(NORM_GROUPS, out) if normed else nn.Identity()
        self.activation = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.activation(self.norm(self.pointwise(self.depthwise(x)))))


class Neck(nn.Module):
    """Six backbone features → four maps of `width` channels at strides 4, 8, 16 and 32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(CHANNELS[stage], width, 1) for stage in NECK_STAGES)
        self.smooth = nn.ModuleList(SeparableConv(width, width, level in BOX_LEVELS) for level in range(len(NECK_STAGES)))

    @torch.no_grad()
    def standardise(self, means: list[Tensor], deviations: list[Tensor]) -> None:
        """Fold each channel's mean and deviation (C,) into the laterals: what they see then has mean 0, deviation 1."""
        for lateral, mean, deviation in zip(self.laterals, means, deviations, strict=True):
            conv = cast(nn.Conv2d, lateral)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
            conv.weight /= deviation.clamp_min(0.1 * float(deviation.median()))[None, :, None, None]
            assert conv.bias is not None
            conv.bias.copy_(-(conv.weight[:, :, 0, 0] @ mean))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        levels: list[Tensor] = []
        above: Tensor | None = None
        for index in reversed(range(len(NECK_STAGES))):
            x = self.laterals[index](features[NECK_STAGES[index]])
            if above is not None:
                x = x + functional.interpolate(above, scale_factor=2.0, mode="nearest")
            above = x
            levels.insert(0, self.smooth[index](x))
        return levels


class LearnedHeads(nn.Module):
    """Six backbone features → the outputs of `forward`, for `classes` defect classes.

    `boxes` adds the detection head (Tian et al., "FCOS", 2019, without centre-ness). Without `located` no label says where
    defects are and no good part says where none is: the map is then that of the class evidence.
    """

    def __init__(self, classes: int, width: int = 64, boxes: bool = False, located: bool = True) -> None:
        super().__init__()
        self.classes, self.width, self.boxes, self.located = classes, width, boxes, located
        self.neck = Neck(width)
        self.pixel = nn.Sequential(SeparableConv(width, width), SeparableConv(width, width))
        self.where = nn.Conv2d(width, 1, 1)
        self.which = nn.Conv2d(width, classes, 1) if classes > 1 else None
        pooled = 2 * (CHANNELS[4] + CHANNELS[5])
        self.register_buffer("pooled_mean", torch.zeros(pooled))
        self.register_buffer("pooled_rate", torch.ones(pooled))
        self.drop = nn.Dropout(0.3)
        self.whole = nn.Linear(pooled, 1 + classes)
        self.local_gain = nn.Parameter(torch.tensor([0.5, 0.5]))
        self.local_bias = nn.Parameter(torch.zeros(1))
        if boxes:
            self.class_tower = nn.Sequential(SeparableConv(width, width, True), SeparableConv(width, width, True))
            self.side_tower = nn.Sequential(SeparableConv(width, width, True), SeparableConv(width, width, True))
            self.box_class = nn.Conv2d(width, classes, 1)
            self.box_sides = nn.Conv2d(width, 4, 1)
            self.box_scale = nn.Parameter(torch.ones(len(BOX_LEVELS)))
            nn.init.constant_(cast(Tensor, self.box_class.bias), RARE)
            nn.init.constant_(cast(Tensor, self.box_sides.bias), 1.0)
        nn.init.constant_(cast(Tensor, self.where.bias), RARE)
        nn.init.normal_(self.whole.weight, std=0.01)
        nn.init.zeros_(self.whole.bias)

    @torch.no_grad()
    def standardise(self, batches: list[list[Tensor]]) -> None:
        """Set what is fixed from data: the scale of each backbone channel, from the features of some batches."""
        means, deviations = [], []
        for stage in NECK_STAGES:
            # Of all pixels together: means of means are exact, for batches are alike.
            first = torch.stack([features[stage].mean((0, 2, 3)) for features in batches]).mean(0)
            second = torch.stack([features[stage].square().mean((0, 2, 3)) for features in batches]).mean(0)
            means.append(first)
            deviations.append((second - first.square()).clamp_min(1e-12).sqrt())
        self.neck.standardise(means, deviations)
        pooled = torch.cat([pool(features) for features in batches])
        deviation = pooled.std(0) if len(pooled) > 1 else torch.ones(pooled.shape[1])
        cast(Tensor, self.pooled_mean).copy_(pooled.mean(0))
        cast(Tensor, self.pooled_rate).copy_(1.0 / deviation.clamp_min(0.1 * float(deviation.median()) + 1e-6))

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Return logits by name.

        `pixel` (B, h, w) at stride 4, `defect` (B,) and what it is the sum of, `local` and `whole`; with several classes
        `class` (B, K) and `pixel_class` (B, K, h, w); with boxes `box_class` (B, N, K) and `box_sides` (B, N, 4), the
        distances to left, top, right and bottom in pixels from the points of `anchors`.
        """
        levels = self.neck(features)
        x = self.pixel(levels[0])
        pixel = self.where(x)[:, 0]
        mean, rate = cast(Tensor, self.pooled_mean), cast(Tensor, self.pooled_rate)
        whole = self.whole(self.drop((pool(features) - mean) * rate))
        outputs = {"pixel": pixel, "whole": whole[:, 0]}
        if self.which is not None:
            outputs["pixel_class"] = which = self.which(x)
            flat = pixel.flatten(1)
            if self.located:
                # Looked at where a defect is likeliest; what is learned of classes does not move the map.
                weight = torch.softmax(flat.detach(), 1)
            else:
                weight = torch.full_like(flat, 1.0 / flat.shape[1])
                outputs["pixel"] = pixel = which.amax(1)
            outputs["class"] = whole[:, 1:] + (which.flatten(2) * weight[:, None]).sum(2)
        flat = pixel.flatten(1)
        count = int(flat.shape[1])
        # The gradient through the highest pixels lets image labels teach the map where no mask was drawn.
        tops = flat.topk(max(1, round(TOP_SHARES[0] * count)), 1).values
        top = torch.stack([tops.mean(1), tops[:, : max(1, round(TOP_SHARES[1] * count))].mean(1)], 1)
        outputs["local"] = (top * self.local_gain).sum(1) + self.local_bias
        outputs["defect"] = outputs["local"] + outputs["whole"]
        if self.boxes:
            classes, sides = [], []
            for index, level in enumerate(BOX_LEVELS):
                classes.append(self.box_class(self.class_tower(levels[level])).flatten(2).transpose(1, 2))
                raw = self.box_sides(self.side_tower(levels[level])).flatten(2).transpose(1, 2)
                sides.append(functional.softplus(raw * self.box_scale[index]) * float(STRIDES[level]))
            outputs["box_class"], outputs["box_sides"] = torch.cat(classes, 1), torch.cat(sides, 1)
        return outputs


def pool(features: list[Tensor]) -> Tensor:
    """Return means and maxima over the frame of the two deepest features (B, P)."""
    return torch.cat([pooled for x in features[4:] for pooled in (x.mean((2, 3)), x.amax((2, 3)))], 1)


def anchors(height: int, width: int) -> Tensor:
    """Return the points (N, 2) x, y in pixels that detections start from in an input of that size."""
    points = []
    for level in BOX_LEVELS:
        stride = STRIDES[level]
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        points.append((torch.stack([x, y], 2).reshape(-1, 2).float() + 0.5) * stride)
    return torch.cat(points)


def to_boxes(points: Tensor, sides: Tensor) -> Tensor:
    """Return boxes xyxy (B, N, 4) of points (N, 2) and distances (B, N, 4)."""
    return torch.cat([points - sides[..., :2], points + sides[..., 2:]], -1)
