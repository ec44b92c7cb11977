"""What can be set in a training, with its limits.

Rules kept here: read once, frozen, passed down; unknown keys are refused; the defaults are meant for parts that nobody
here has seen. Where settings come from (the command line) is left to `cli`.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from linegate.settings import Settings

STRIDE_PX = 32
"""The backbone halves the image five times, so sides are multiples of 32."""


class TrainSettings(Settings):
    """Settings of one good-only training."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    size_px: int = Field(default=256, ge=128, le=1024)
    false_reject_rate: float = Field(default=0.01, gt=0, le=0.5)
    calibration_share: float = Field(default=0.2, gt=0, lt=1)
    cross_fit_below: int = Field(default=2000, ge=0)
    """Under this many good images all of them are fitted and all calibrate, by cross-fitting; from there on a hold-out."""
    cross_fit_folds: int = Field(default=10, ge=2, le=20)
    global_rank: int = Field(default=256, ge=1, le=1024)
    local_rank: int = Field(default=128, ge=1, le=512)
    local_weight: float = Field(default=0.25, ge=0, le=10)
    local_shrinkage: float = Field(default=0.01, gt=0, le=1)
    min_region_share: float = Field(default=0.0005, ge=0, lt=1)
    patch_images: int = Field(default=1500, ge=100)
    """At most this many images give patches, which bounds memory at about 0.4 MB each."""
    patches: int = Field(default=40_000, ge=1000)
    batch: int = Field(default=16, ge=1, le=512)
    threads: int = Field(default=2, ge=1, le=256)

    @field_validator("size_px")
    @classmethod
    def _multiple(cls, size_px: int) -> int:
        if size_px % STRIDE_PX:
            raise ValueError(f"must be a multiple of {STRIDE_PX}")
        return size_px
