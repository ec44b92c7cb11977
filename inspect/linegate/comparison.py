"""Two packages on one frozen test set: `comparison.json`, which training writes and the line's web view reads.

Rules kept here: a rate comes with the counts that it is from and its 95 % interval; undefined is None; what could not be
measured is None and the gate says why. How numbers are computed, and what the gate asks, is left to training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from linegate.errors import DataError
from linegate.settings import describe
from linegate.stages import Decision

COMPARISON_FILE: Final = "comparison.json"
COMPARISON_PAGE: Final = "comparison.html"
DIFFERENCES: Final = "differences"

Interval = tuple[float, float]
Outcome = Literal["new escape", "new false reject", "new undecided", "escape caught", "false reject mended", "other"]


class _Model(BaseModel):
    """Base of the parts of `comparison.json`: frozen and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rate(_Model):
    """`events` of `trials`, with the 95 % interval of Clopper and Pearson; None without trials."""

    events: int = Field(ge=0)
    trials: int = Field(ge=0)
    rate: float | None
    ci95: Interval | None


class PackageFacts(_Model):
    """Which package was measured, and how many of the test images it had learned from or was calibrated on.

    `seen_in_training` is None where the package does not say what it learned from.
    """

    name: str
    version: str
    digest: str
    threshold: float
    undecided_below: float
    seen_in_training: int | None


class PackageNumbers(_Model):
    """What one package does with one set, at its own thresholds.

    An escape is a defective part that passes, a false reject a good one that fails; an undecided part is neither.
    """

    escapes: Rate
    false_rejects: Rate
    undecided_defective: Rate
    undecided_good: Rate
    escapes_by_class: dict[str, Rate]
    auroc: float | None
    auroc_ci95: Interval | None


class PairedErrors(_Model):
    """The errors of two packages on the same images: of both, of one alone; `p` is McNemar's exact two-sided one."""

    both: int
    champion_only: int
    candidate_only: int
    p: float


class AurocDifference(_Model):
    """Candidate's AUROC less the champion's, by paired bootstrap: 95 % interval and two-sided p over `draws`."""

    difference: float
    ci95: Interval
    p: float
    draws: int


class SetNumbers(_Model):
    """Both packages on one set of images; `auroc_difference` is None where good or defective ones are missing."""

    good: int
    defective: int
    champion: PackageNumbers
    candidate: PackageNumbers
    escapes: PairedErrors
    false_rejects: PairedErrors
    auroc_difference: AurocDifference | None


class Speed(_Model):
    """Median milliseconds of one image, both packages timed by turns in one run; `ratio` is candidate over champion."""

    champion_ms: float
    candidate_ms: float
    ratio: float
    pairs: int
    provider: str
    threads: int


class Said(_Model):
    """What one package said of one image."""

    decision: Decision
    score: float
    threshold: float
    predicted: str | None


class Difference(_Model):
    """An image of which the two packages say different things; `picture` lies beside comparison.json."""

    image: str
    sha256: str
    group: str
    view: str
    label: str
    verdict_id: str | None
    reviewed_at: AwareDatetime | None
    recent: bool
    outcome: Outcome
    champion: Said
    candidate: Said
    picture: str | None


class Rule(_Model):
    """One rule of the gate: what it asks, whether it is met, and why in one line."""

    name: str
    met: bool
    reason: str


class GateVerdict(_Model):
    """Go only where every rule is met; `settings` are those that were asked for."""

    go: bool
    rules: tuple[Rule, ...]
    settings: dict[str, float | int | bool]


class ComparedVersion(_Model):
    """The data set version whose frozen test set was used."""

    name: str
    number: int
    digest: str


class Comparison(_Model):
    """`comparison.json`.

    `frozen` is the whole test set, `recent` the images of it that were reviewed last, `recent_reviews` of all reviews. Both are
    None, as are `candidate` and `speed`, where the candidate could not be measured.
    """

    schema_version: Literal[1] = 1
    created_at: AwareDatetime
    version: ComparedVersion
    champion: PackageFacts
    candidate: PackageFacts | None
    frozen: SetNumbers | None
    recent: SetNumbers | None
    recent_reviews: int
    speed: Speed | None
    differences: tuple[Difference, ...]
    gate: GateVerdict


def load_comparison(path: Path) -> Comparison:
    """Return the comparison in the file at `path`.

    Raises:
        DataError: it is missing, or no comparison that this Linegate reads.
    """
    try:
        return Comparison.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): compare the packages again") from error
    except ValidationError as error:
        raise DataError(f"{path}: {describe(error, Comparison)}: compare the packages again") from error
