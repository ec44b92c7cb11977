"""What can be set in learning from defects, with its limits; the defaults are meant for parts that nobody here has seen."""

from __future__ import annotations

from typing import Final

from pydantic import Field, field_validator

from linegate.settings import Settings
from linegate_training.augment import PRESETS, AugmentRecipe
from linegate_training.fit_settings import FitSettings

VALIDATIONS = 15
"""Times that a training is validated, about: on small data an epoch is short and a validation is not."""


_FIT: Final = FitSettings(batch=8, learning_rate=2e-3, patience=0, keep="best")


class LearnSettings(Settings):
    """Settings of one training from good and defective parts."""

    images_shown: int = Field(default=10_000, ge=0)
    """Images that the net is shown in all, which is what a training costs; the epochs follow. 0: `fit.epochs` as set."""
    epochs_at_least: int = Field(default=15, ge=1)
    """However many parts there are: of more than a few hundred, this decides what a training costs."""
    train_from_block: int = Field(default=2, ge=0, le=7)
    """The backbone's first block that learns, of 0 to 6; 7: none does."""
    width: int = Field(default=96, ge=8, le=512, multiple_of=8)
    """Channels of the neck and the heads."""
    epoch_defects: int = Field(default=64, ge=1)
    """An epoch shows as many defective parts as there are, at least this many: few are shown several times."""
    cache_mib: int = Field(default=4096, ge=0)
    """Prepared images are kept in memory up to this many MiB, and the others read each time."""
    augment: AugmentRecipe = PRESETS["fixed"]
    """In a training by the command line it is that of the whole training, as are seed and threads."""
    fit: FitSettings = _FIT

    @field_validator("fit", mode="before")
    @classmethod
    def _the_rest_stays(cls, value: object) -> object:
        """A table that names some keys of the loop leaves the others as they are here, not as the loop itself has them."""
        return _FIT.model_dump() | value if isinstance(value, dict) else value

    def fit_settings(self, epoch_images: int) -> FitSettings:
        """Return the settings of the training loop for epochs of so many images."""
        if not self.images_shown:
            return self.fit
        epochs = max(self.epochs_at_least, round(self.images_shown / epoch_images))
        changed = {
            "epochs": epochs,
            "warmup_epochs": min(self.fit.warmup_epochs, 0.1 * epochs),
            "validate_every": max(self.fit.validate_every, round(epochs / VALIDATIONS)),
        }
        return FitSettings.model_validate(self.fit.model_dump() | changed)
