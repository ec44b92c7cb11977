"""Gaussians of good features: fitted with shrinkage, kept as mean, scale and a few principal axes.

The Mahalanobis distance is computed per standardised channel; its covariance is shrunk towards the identity (Ledoit and
Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004), so that it exists with fewer images
than channels. Of the eigenvectors only the strongest are kept: the others share the weight of the shrunk floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf_shrinkage

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """mean and scale (D,), axes (D, R) orthonormal, weights (R,) along them and `floor`, the weight of all the rest.

    The squared distance of x is, with z = (x − mean) / scale and y = axesᵀ z,
    (floor (|z|² − |y|²) + Σ weights y²) / D, which is about 1 for what the Gaussian was fitted on.
    """

    mean: Floats
    scale: Floats
    axes: Floats
    weights: Floats
    floor: float

    def distance(self, x: Floats) -> Floats:
        """Return the distances (N,) of x (N, D)."""
        z = (x - self.mean) / self.scale
        y = z @ self.axes
        squared = self.floor * ((z * z).sum(1) - (y * y).sum(1)) + (y * y) @ self.weights
        distance: Floats = np.sqrt(np.maximum(squared, 0.0) / x.shape[1])
        return distance


def estimate_shrinkage(x: Floats) -> float:
    """Return the share (0, 1] of the identity in the covariance of x (N, D), by Ledoit and Wolf."""
    mean, scale = _standard(x)
    return min(max(float(ledoit_wolf_shrinkage((x - mean) / scale, assume_centered=True)), 1e-3), 1.0)


def _standard(x: Floats) -> tuple[Floats, Floats]:
    deviation = x.std(0)
    # A channel that never moves on good parts must not make the smallest movement infinite.
    scale: Floats = np.maximum(deviation, 1e-3 * max(float(np.median(deviation)), 1e-6))
    return x.mean(0), scale


def fit_gaussian(x: Floats, rank: int, shrinkage: float) -> Gaussian:
    """Fit to x (N, D), shrunk by the share `shrinkage` (0, 1], and keep at most `rank` axes."""
    count, width = x.shape
    mean, scale = _standard(x)
    z = (x - mean) / scale
    if count < width:
        _, singular, rows = np.linalg.svd(z, full_matrices=False)
        variances, axes = singular**2 / count, rows.T
    else:
        values, vectors = np.linalg.eigh(z.T @ z / count)
        variances, axes = values[::-1], vectors[:, ::-1]
    level = shrinkage * max(float((z * z).sum() / count / width), 1e-6)
    kept = min(rank, len(variances))
    weights = 1.0 / ((1.0 - shrinkage) * np.maximum(variances[:kept], 0.0) + level)
    return Gaussian(mean, scale, np.ascontiguousarray(axes[:, :kept]), weights, 1.0 / level)
