"""What can be set in a training, with its limits.

Rules kept here: read once, frozen, passed down; unknown keys are refused; the defaults are meant for parts that nobody
here has seen. Where settings come from (the command line) is left to `cli`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from linegate.settings import Settings
from linegate_training.learn_settings import LearnSettings

STRIDE_PX = 32
"""The backbone halves the image five times, so sides are multiples of 32."""


class TrainSettings(Settings):
    """Settings of one training; `learn` serves where there are defects to learn from."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    size_px: int | None = Field(default=None, ge=128, le=1024)
    """The shorter side of the model's input; the longer one follows the aspect of the photographs. None: 256, or more where
    the masks and boxes to learn from show defects that would be lost."""
    roi_xyxy: tuple[float, float, float, float] | None = None
    """The region of interest, in shares of the frame."""
    precision: Literal["fp32", "int8", "fp16"] = "fp32"
    false_reject_rate: float = Field(default=0.01, gt=0, le=0.5)
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """With which the false-reject rate is promised, where there are parts enough."""
    operating_point: Literal["false-rejects", "accuracy"] = "false-rejects"
    """What the threshold is set for where defects are known too: the stated rate, or the fewest errors."""
    instant: bool = False
    """Learn from good parts alone, even where there are defects."""
    limit_goods: int | None = Field(default=None, ge=1)
    validation_share: float = Field(default=0.1, gt=0, le=0.3)
    """Share of the parts to learn from that chooses the weights; as many again calibrate, where there are defects."""
    learn: LearnSettings = LearnSettings()
    calibration_share: float = Field(default=0.2, gt=0, lt=1)
    cross_fit_below: int = Field(default=2000, ge=0)
    """Under this many good images all of them are fitted and all calibrate, by cross-fitting; from there on a hold-out."""
    cross_fit_folds: int = Field(default=10, ge=2, le=20)
    global_rank: int = Field(default=256, ge=1, le=1024)
    local_rank: int = Field(default=128, ge=1, le=512)
    local_weight: float = Field(default=0.7, ge=0, le=10)
    local_shrinkage: float = Field(default=0.01, gt=0, le=1)
    min_region_share: float = Field(default=0.0005, ge=0, lt=1)
    patch_images: int = Field(default=1500, ge=50)
    """At most this many images give patches, which bounds memory at about 0.4 MB each at 256 × 256."""
    vary_below: int = Field(default=60, ge=0)
    """With fewer good images, `variants` of each are fitted too, as the line itself varies."""
    variants: int = Field(default=6, ge=0, le=50)
    augment: str | dict[str, Any] = "fixed"
    """The recipe by which images are varied: fixed, texture, none, or a table."""
    patches: int = Field(default=40_000, ge=1000)
    batch: int = Field(default=16, ge=1, le=512)
    threads: int = Field(default=2, ge=1, le=256)

    @field_validator("size_px")
    @classmethod
    def _multiple(cls, size_px: int | None) -> int | None:
        if size_px is not None and size_px % STRIDE_PX:
            raise ValueError(f"must be a multiple of {STRIDE_PX}")
        return size_px
