"""The good-only head: how far is this part from the good ones, as a whole and place by place.

Two Gaussians stand on the same backbone. The global one sees mean, deviation and maximum of every channel over the whole
image; the local one sees the channels at each place of a grid of 16-pixel cells, after subtracting what good parts have
at that place. The score is in units of the calibration parts: 0 is a typical good part, 1 the distance that one good
part in ten exceeds. Thresholds are not here: they lie in the package, outside the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from linegate_training.models.backbone import CHANNELS, LiteBackbone, round_to_half
from linegate_training.models.gaussian import Floats, Gaussian, fit_gaussian
from linegate_training.settings import TrainSettings

CELL_PX = 16
FIRST_STAGE = 1
"""The backbone's features from here on are used: strides 8 to 32."""
TOP_SHARE = 0.01
"""The local evidence is the mean over this share of the cells, the most anomalous ones."""
PART_WEIGHT = 0.1
"""How much a place's part in the global distance counts in the map beside its local distance."""
MAP_SCALE = 4
MAP_FLOOR = 2.0
"""Added to the map's local evidence, so that typical places have a share in it too."""
PLACE_PARTS = 20
"""With so many good parts, what is known of one place counts as much as what is known of all places."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Where a quantity's zero lies and how long its one is, measured over calibration parts."""

    centre: float = 0.0
    spread: float = 1.0

    @staticmethod
    def of_scores(values: Floats) -> Unit:
        """Zero at the median, one at the 90th percentile; it never collapses, even where all values are one."""
        centre = float(np.median(values))
        spread = float(np.percentile(values, 90)) - centre
        return Unit(centre, max(spread, 1e-2 * abs(centre), 1e-6))

    @staticmethod
    def of_cells(values: Floats) -> Unit:
        """Zero at the mean, one a standard deviation away."""
        centre = float(values.mean())
        return Unit(centre, max(float(values.std()), 1e-2 * abs(centre), 1e-6))


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """What local distances good parts have at each place: mean and deviation (h, w), shrunk towards those of all places."""

    centre: Floats = field(default_factory=lambda: np.zeros((1, 1)))
    spread: Floats = field(default_factory=lambda: np.ones((1, 1)))

    @staticmethod
    def of_distances(local: Floats) -> Places:
        """Measure distances (n, h, w); a place counts the more against all places, the more parts there are."""
        share = len(local) / (len(local) + PLACE_PARTS)
        variance = share * local.var(0) + (1.0 - share) * local.var()
        smallest = max(1e-2 * abs(float(local.mean())), 1e-6)
        centre = share * local.mean(0) + (1.0 - share) * local.mean()
        return Places(centre, np.maximum(np.sqrt(variance), smallest))


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """The units of the score's two kinds of evidence and of the map's two; `places` come before `peak`."""

    whole: Unit = Unit()
    peak: Unit = Unit()
    local: Unit = Unit()
    part: Unit = Unit()
    places: Places = field(default_factory=Places)

    @staticmethod
    def of_good_parts(whole: Floats, local: Floats, part: Floats) -> Units:
        """Measure the distances of parts that the Gaussians have not seen: (n,), (m, h, w) and (m, h, w)."""
        places = Places.of_distances(local)
        peaks = top_mean(torch.from_numpy((local - places.centre) / places.spread)).numpy()
        return Units(Unit.of_scores(whole), Unit.of_scores(peaks), Unit.of_cells(local), Unit.of_cells(part), places)


@dataclass(frozen=True, slots=True, eq=False)
class HeadFit:
    """What is learned from good parts: two Gaussians and the mean features of each place, float32 (C, h, w)."""

    whole: Gaussian
    local: Gaussian
    place_mean: NDArray[np.float32]


def describe_features(features: list[Tensor], grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return image statistics (B, 3 ΣC) and local features (B, ΣC, h, w) of the backbone's six features."""
    statistics, places = [], []
    for x in features[FIRST_STAGE:]:  # (B, C, h, w)
        mean = x.mean((2, 3))
        deviation = (x - mean[:, :, None, None]).square().mean((2, 3)).sqrt()
        statistics += [mean, deviation, x.amax((2, 3))]
        side = int(x.shape[2])
        if side > grid_hw[0]:
            x = functional.avg_pool2d(x, side // grid_hw[0])
        elif side < grid_hw[0]:
            x = functional.interpolate(x, scale_factor=float(grid_hw[0] // side), mode="bilinear")
        places.append(x)
    return torch.cat(statistics, 1), torch.cat(places, 1)


class FeatureNet(nn.Module):
    """uint8 pixels (B, H, W, 3) → image statistics (B, 3 ΣC) and local features (B, ΣC, H/16, W/16)."""

    def __init__(
        self, size_wh: tuple[int, int], keep: NDArray[np.bool_] | None = None, backbone: LiteBackbone | None = None
    ) -> None:
        """`keep` (H, W) says which pixels are looked at; the others are made grey before anything sees them.

        `backbone` is one that has learned; without it the pretrained one serves.
        """
        super().__init__()
        self.backbone = LiteBackbone() if backbone is None else backbone
        self.size_wh = size_wh
        self.grid_hw = (size_wh[1] // CELL_PX, size_wh[0] // CELL_PX)
        self.mask = IgnoreMask(keep) if keep is not None else None

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if self.mask is not None:
            pixels = self.mask(pixels)
        return describe_features(self.backbone(pixels), self.grid_hw)


class IgnoreMask(nn.Module):
    """Makes the pixels that are not looked at mid-grey, in the graph itself, so that line and training agree."""

    def __init__(self, keep: NDArray[np.bool_]) -> None:
        super().__init__()
        self.register_buffer("keep", torch.from_numpy(np.ascontiguousarray(keep))[None, :, :, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.where(cast(Tensor, self.keep), pixels, torch.full_like(pixels, 127))


def fit_head(statistics: Floats, places: NDArray[np.float16], shrinkage: float, settings: TrainSettings) -> HeadFit:
    """Fit both Gaussians to statistics (N, D) and local features (M, C, h, w) of good parts.

    `shrinkage` is the global Gaussian's. Distances of unseen parts grow as it falls, so models whose distances are to be
    compared, as in cross-fitting, need one and the same.
    """
    whole = fit_gaussian(statistics, settings.global_rank, shrinkage)
    count, channels, height, width = places.shape
    place_mean = np.zeros(places.shape[1:], np.float64)
    for one in places:
        place_mean += one
    place_mean /= count
    each = max(1, min(height * width, -(-settings.patches // count)))
    random = np.random.default_rng(settings.seed)
    chosen = np.empty((count * each, channels), np.float64)
    for index, one in enumerate(places):
        cells = random.permutation(height * width)[:each]
        chosen[index * each : (index + 1) * each] = (one - place_mean).reshape(channels, -1)[:, cells].T
    local = fit_gaussian(chosen, settings.local_rank, settings.local_shrinkage)
    return HeadFit(whole, local, place_mean.astype(np.float32))


class _Distance(nn.Module):
    """A `Gaussian` in torch: rows (N, D) → standardised z (N, D), coordinates y (N, R), squared distance (N,)."""

    def __init__(self, gaussian: Gaussian) -> None:
        super().__init__()
        self.mean = _parameter(gaussian.mean)
        self.rate = _parameter(1.0 / gaussian.scale)
        self.axes = _parameter(gaussian.axes)
        self.weights = _parameter(gaussian.weights)
        self.floor = gaussian.floor
        self.width = len(gaussian.mean)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = (rows - self.mean) * self.rate
        y = z @ self.axes
        squared = self.floor * ((z * z).sum(1) - (y * y).sum(1)) + (y * y * self.weights).sum(1)
        return z, y, squared.clamp_min(0.0) * (1.0 / self.width)


class GoodOnlyHead(nn.Module):
    """Statistics (B, D) and local features (B, C, h, w) → score (B,) and anomaly map (B, 4h, 4w)."""

    def __init__(self, fit: HeadFit, units: Units, local_weight: float) -> None:
        super().__init__()
        self.fit = fit
        self.place_mean = _parameter(fit.place_mean[np.newaxis])
        self.whole = _Distance(fit.whole)
        self.local = _Distance(fit.local)
        # From a place's standardised deviation to its part in the standardised deviation of the image's mean.
        offsets, start = [], 0
        for width in CHANNELS[FIRST_STAGE:]:
            offsets += list(range(3 * start, 3 * start + width))
            start += width
        self.register_buffer("mean_columns", torch.tensor(offsets), persistent=False)
        self.share = _parameter(fit.local.scale / fit.whole.scale[offsets])
        self.units = units
        self.place_centre = _parameter(units.places.centre[np.newaxis])
        self.place_rate = _parameter(1.0 / units.places.spread[np.newaxis])
        self.local_weight = local_weight
        side = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("smooth", (side[:, None] * side)[None, None], persistent=False)
        round_to_half(self)
        self.eval()

    def distances(self, statistics: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return global distance (B,), local distances (B, h, w) and each place's part in the global one (B, h, w)."""
        # Plain numbers, so that the exported graph holds no shape arithmetic.
        channels, height, width = (int(size) for size in places.shape[1:])
        z, y, squared = self.whole(statistics)
        rows = (places - self.place_mean).permute(0, 2, 3, 1).reshape(-1, channels)
        z_local, _, squared_local = self.local(rows)
        # Half the gradient of the squared distance with respect to z: how hard each statistic pulls.
        coordinates = y * (self.whole.weights - self.whole.floor)
        # The axes stand on the left, or the exporter would store their transpose as a second copy.
        pull = self.whole.floor * z + (self.whole.axes @ coordinates.T).T
        pull_mean = pull[:, cast(Tensor, self.mean_columns)] * self.share * (1.0 / self.whole.width)
        part = (z_local.reshape(-1, height * width, channels) * pull_mean[:, None]).sum(2)
        return squared.sqrt(), squared_local.sqrt().reshape(-1, height, width), part.reshape(-1, height, width)

    def judge(self, whole: Tensor, local: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
        """Return score (B,) and map (B, h, w) of the three kinds of distance.

        The score is the stronger of global and local evidence: a fault of the whole part and a small one in a part that is
        otherwise typical are both faults. The map shares out the cube root of the score: its highest cells have about that
        value, the others less in proportion, so that a faint fault over half a part is seen beside a small glaring one.
        """
        units = self.units
        peak = top_mean((local - self.place_centre) * self.place_rate)
        score = torch.maximum(_in(units.whole, whole), self.local_weight * _in(units.peak, peak))
        evidence = _in(units.local, local) + PART_WEIGHT * _in(units.part, part)
        padded = functional.pad(evidence[:, None], (1, 1, 1, 1), mode="replicate")
        evidence = functional.conv2d(padded, cast(Tensor, self.smooth))[:, 0] + MAP_FLOOR
        highest = top_mean(evidence).clamp_min(0.5)
        level = score.clamp_min(0.05).pow(1.0 / 3.0)
        return score, evidence * (level / highest)[:, None, None]

    def forward(self, statistics: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        score, coarse = self.judge(*self.distances(statistics, places))
        fine = functional.interpolate(coarse[:, None], scale_factor=float(MAP_SCALE), mode="bilinear")
        return score, fine[:, 0]


class GoodOnlyNet(nn.Module):
    """uint8 pixels (B, H, W, 3) → score (B,) and anomaly map (B, H/4, W/4)."""

    def __init__(self, features: FeatureNet, head: GoodOnlyHead) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        score, anomaly_map = self.head(*self.features(pixels))
        return score, anomaly_map


def _in(unit: Unit, values: Tensor) -> Tensor:
    return (values - unit.centre) * (1.0 / unit.spread)


def top_mean(cells: Tensor) -> Tensor:
    """Return the mean (B,) over the highest cells of (B, h, w)."""
    count = int(cells.shape[1]) * int(cells.shape[2])
    return cells.reshape(-1, count).topk(max(1, round(TOP_SHARE * count)), 1).values.mean(1)


def _parameter(values: Floats | NDArray[np.float32]) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(values, np.float32)), requires_grad=False)
