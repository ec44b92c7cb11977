"""What can be set in a training of a net, with its limits.

Rules kept here: frozen, closed to unknown keys, no torch; what decides the numbers is told apart from what does not, for
a checkpoint may only be resumed under settings that give the same numbers.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from linegate.settings import Settings

MAY_CHANGE: Final = frozenset({"device", "workers", "threads", "checkpoint_every_s", "log"})
"""Settings that may differ when a training is resumed: where and how it runs, not what it computes."""


class FitSettings(Settings):
    """Settings of one training of a net by gradient descent."""

    epochs: int = Field(default=40, ge=1, le=100_000)
    batch: int = Field(default=16, ge=1, le=65_536)
    """Images a step, over all processes: two processes with 16 take 8 each."""
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    weight_decay: float = Field(default=1e-2, ge=0, le=10)
    warmup_epochs: float = Field(default=1.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    gradient_clip: float = Field(default=1.0, ge=0)
    """Greatest norm of all gradients together; 0: none."""
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the exponential moving average of weights, which is what is validated and kept; 0: the weights themselves."""
    validate_every: int = Field(default=1, ge=1)
    patience: int = Field(default=0, ge=0)
    """Stop after this many epochs without a better validation; 0: never."""
    keep: Literal["best", "last"] = "best"
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: fp32 on the CPU; on a GPU bf16 where it can, else fp16."""
    workers: int = Field(default=0, ge=0, le=256)
    """Processes that load images, for each process that trains; 0: it loads them itself."""
    threads: int = Field(default=2, ge=1, le=256)
    checkpoint_every_s: float = Field(default=30.0, ge=0)
    """At an epoch's end a checkpoint is written if the last is older than this; 0: at every one."""
    log: Literal["none", "tensorboard", "mlflow"] = "none"

    @model_validator(mode="after")
    def _fits_together(self) -> FitSettings:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} is more than epochs {self.epochs}")
        return self
