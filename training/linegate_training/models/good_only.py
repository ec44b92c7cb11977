"""The good-only head: how far is this part from the good ones, as a whole and place by place.

Two Gaussians stand on the same backbone. The global one sees mean, deviation and maximum of every channel over the whole
image; the local one sees the channels at each place of a grid of 16-pixel cells, after subtracting what good parts have
at that place. The score is in units of the calibration parts: 0 is a typical good part, 1 the distance that one good
part in ten exceeds. Thresholds are not here: they lie in the package, outside the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
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
TOP_SHARE = 0.05
"""The local score is the mean over this share of the cells, the most anomalous ones."""
PART_WEIGHT = 0.5
"""How much a place's part in the global distance counts in the map beside its local distance."""
MAP_SCALE = 4


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


@dataclass(frozen=True, slots=True)
class Units:
    """The units of the score's two summands and of the map's two."""

    whole: Unit = Unit()
    peak: Unit = Unit()
    local: Unit = Unit()
    part: Unit = Unit()


@dataclass(frozen=True, slots=True, eq=False)
class HeadFit:
    """What is learned from good parts: two Gaussians and the mean features of each place, float32 (C, g, g)."""

    whole: Gaussian
    local: Gaussian
    place_mean: NDArray[np.float32]


class FeatureNet(nn.Module):
    """uint8 pixels (B, H, W, 3) → image statistics (B, 3 ΣC) and local features (B, ΣC, H/16, W/16)."""

    def __init__(self, size_px: int) -> None:
        super().__init__()
        self.backbone = LiteBackbone()
        self.grid = size_px // CELL_PX

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        statistics, places = [], []
        for x in self.backbone(pixels):  # (B, C, h, w)
            mean = x.mean((2, 3))
            deviation = (x - mean[:, :, None, None]).square().mean((2, 3)).sqrt()
            statistics += [mean, deviation, x.amax((2, 3))]
            side = int(x.shape[-1])
            if side > self.grid:
                x = functional.avg_pool2d(x, side // self.grid)
            elif side < self.grid:
                x = functional.interpolate(x, scale_factor=float(self.grid // side), mode="bilinear")
            places.append(x)
        return torch.cat(statistics, 1), torch.cat(places, 1)


def fit_head(statistics: Floats, places: NDArray[np.float16], shrinkage: float, settings: TrainSettings) -> HeadFit:
    """Fit both Gaussians to statistics (N, D) and local features (M, C, g, g) of good parts.

    `shrinkage` is the global Gaussian's. Distances of unseen parts grow as it falls, so models whose distances are to be
    compared, as in cross-fitting, need one and the same.
    """
    whole = fit_gaussian(statistics, settings.global_rank, shrinkage)
    count, channels, grid, _ = places.shape
    place_mean = np.zeros(places.shape[1:], np.float64)
    for one in places:
        place_mean += one
    place_mean /= count
    each = max(1, min(grid * grid, -(-settings.patches // count)))
    random = np.random.default_rng(settings.seed)
    chosen = np.empty((count * each, channels), np.float64)
    for index, one in enumerate(places):
        cells = random.permutation(grid * grid)[:each]
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


class GoodOnlyNet(nn.Module):
    """uint8 pixels (B, H, W, 3) → score (B,) and anomaly map (B, 4g, 4g)."""

    def __init__(self, features: FeatureNet, fit: HeadFit, units: Units, local_weight: float) -> None:
        super().__init__()
        self.features = features
        self.place_mean = _parameter(fit.place_mean[np.newaxis])
        self.whole = _Distance(fit.whole)
        self.local = _Distance(fit.local)
        # From a place's standardised deviation to its part in the standardised deviation of the image's mean.
        offsets, start = [], 0
        for width in CHANNELS:
            offsets += list(range(3 * start, 3 * start + width))
            start += width
        self.register_buffer("mean_columns", torch.tensor(offsets), persistent=False)
        self.share = _parameter(fit.local.scale / fit.whole.scale[offsets])
        self.units = units
        self.local_weight = local_weight
        round_to_half(self)
        self.eval()

    def distances(self, statistics: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return global distance (B,), local distances (B, g, g) and each place's part in the global one (B, g, g)."""
        # Plain numbers, so that the exported graph holds no shape arithmetic.
        channels, grid = int(places.shape[1]), int(places.shape[2])
        z, y, squared = self.whole(statistics)
        rows = (places - self.place_mean).permute(0, 2, 3, 1).reshape(-1, channels)
        z_local, _, squared_local = self.local(rows)
        # Half the gradient of the squared distance with respect to z: how hard each statistic pulls.
        coordinates = y * (self.whole.weights - self.whole.floor)
        # The axes stand on the left, or the exporter would store their transpose as a second copy.
        pull = self.whole.floor * z + (self.whole.axes @ coordinates.T).T
        pull_mean = pull[:, cast(Tensor, self.mean_columns)] * self.share * (1.0 / self.whole.width)
        part = (z_local.reshape(-1, grid * grid, channels) * pull_mean[:, None]).sum(2)
        return squared.sqrt(), squared_local.sqrt().reshape(-1, grid, grid), part.reshape(-1, grid, grid)

    def outputs(self, statistics: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return score (B,) and map (B, 4g, 4g) of features."""
        whole, local, part = self.distances(statistics, places)
        units = self.units
        score = _in(units.whole, whole) + self.local_weight * _in(units.peak, local_peak(local))
        coarse = self.coarse_map(local, part)
        fine = functional.interpolate(coarse[:, None], scale_factor=float(MAP_SCALE), mode="bilinear")
        return score, fine[:, 0]

    def coarse_map(self, local: Tensor, part: Tensor) -> Tensor:
        """Return the map (B, g, g) of local distances and places' parts, in standard deviations of good cells."""
        return _in(self.units.local, local) + PART_WEIGHT * _in(self.units.part, part)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.outputs(*self.features(pixels))


def _in(unit: Unit, values: Tensor) -> Tensor:
    return (values - unit.centre) * (1.0 / unit.spread)


def local_peak(local: Tensor) -> Tensor:
    """Return the mean (B,) over the most anomalous cells of local distances (B, g, g)."""
    count = int(local.shape[1]) * int(local.shape[2])
    return local.reshape(-1, count).topk(max(1, round(TOP_SHARE * count)), 1).values.mean(1)


def _parameter(values: Floats | NDArray[np.float32]) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(values, np.float32)), requires_grad=False)
