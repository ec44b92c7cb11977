"""What the API of models answers and takes, as types: the source of its part of `/openapi.json`.

Rules kept here: what is not known is null, never left out; a digest is whole, and short only for people.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from linegate.comparison import Comparison, GateVerdict, SetNumbers, Speed
from linegate_edge.review.models.run_record import RunProgress, RunRecord
from linegate_edge.setting_types import Name

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=1000)]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlaceAnswer(_Closed):
    """A recipe and one of its views."""

    recipe: str
    view: str


class ApprovalAnswer(_Closed):
    """Who holds a candidate fit for the line; `counts` is false for who trained it, where two are needed."""

    by: str
    at: str
    comment: str
    counts: bool


class ThresholdsAnswer(_Closed):
    """A package's own thresholds."""

    version: int
    score: float
    undecided_below: float
    set_by: str
    set_at: str


class ComparisonSummary(_Closed):
    """What `comparison` says at length: both packages on the frozen test set and on what was reviewed last, and the gate."""

    created_at: str
    version: str
    champion: str
    champion_digest: str
    candidate_measured: bool
    frozen: SetNumbers | None
    recent: SetNumbers | None
    recent_reviews: int
    speed: Speed | None
    differences: int
    gate: GateVerdict


class ModelAnswer(_Closed):
    """One package: what it is, where it judges, how it compares, and who approved it.

    `state`: champion of at least one view; shadow of at least one; retired, where it was a champion before; else candidate.
    `problem` says in one line why it cannot be used, null where it can.
    """

    digest: str
    reference: str
    name: str
    version: str
    task: str
    labels: tuple[str, ...]
    created_at: str
    dataset: str
    input_wh: tuple[int, int]
    state: Literal["champion", "candidate", "shadow", "retired"]
    on_shelf: bool
    judges: tuple[PlaceAnswer, ...]
    shadows: tuple[PlaceAnswer, ...]
    thresholds: ThresholdsAnswer
    metrics: dict[str, Any]
    card: str
    imported_by: str | None
    imported_at: str | None
    source: str | None
    trained_by: str | None
    comparison: ComparisonSummary | None
    approvals: tuple[ApprovalAnswer, ...]
    problem: str | None


class BrokenModel(_Closed):
    """A package that the register knows and the shelf cannot give any more."""

    digest: str
    name: str
    version: str
    problem: str


class ViewAnswer(_Closed):
    """What judges one view: the package, by which threshold, and the promotion that put it there, if one did."""

    recipe: str
    view: str
    package: str
    digest: str
    threshold: float
    undecided_below: float
    threshold_version: str
    provider: str
    promotion: int | None
    shadow: str | None


class ModelsAnswer(_Closed):
    """All packages, what judges each view, and how many people must approve a promotion."""

    views: tuple[ViewAnswer, ...]
    models: tuple[ModelAnswer, ...]
    broken: tuple[BrokenModel, ...]
    approvals_needed: int


class PromotionAnswer(_Closed):
    """A package put in force for a view; `in_force` says whether it can be rolled back now.

    `note` says in words what changed beside the package.
    """

    number: int
    recipe: str
    view: str
    package: str
    digest: str
    former: str
    former_digest: str
    by: str
    at: str
    override_reason: str | None
    rolls_back: int | None
    in_force: bool
    note: str | None = None


class PromotionsAnswer(_Closed):
    """All promotions and roll-backs, the newest first."""

    items: tuple[PromotionAnswer, ...]


class ImportRequest(_Closed):
    """A finished training run whose package goes on the shelf."""

    run: int = Field(ge=1)


class ApproveRequest(_Closed):
    """An approval, with what its giver has to say."""

    comment: Text = ""


class PromoteRequest(_Closed):
    """Where to put a package; `override_reason` is needed where the gate did not say go."""

    recipe: Name
    view: Name
    override_reason: Text | None = None


class RollBackRequest(_Closed):
    """Why a promotion is undone."""

    reason: Text = ""


class ShadowRequest(_Closed):
    """Whether a candidate judges the frames of a view after the champion."""

    recipe: Name
    view: Name
    on: bool


class ShadowPart(_Closed):
    """A part on which candidate and champion differ."""

    verdict_id: str
    serial: str
    recipe: str
    view: str
    at: str
    champion: str
    champion_score: float | None
    candidate: str
    score: float | None
    threshold: float | None


class AgreementCell(_Closed):
    """How many frames the champion and the candidate judged so."""

    champion: str
    candidate: str
    parts: int


class ShadowAnswer(_Closed):
    """What a candidate said in the shadow, beside the champion.

    Since the start of the station: `dropped` frames were not judged, for there was no time; `share` of one core was used.
    """

    digest: str
    places: tuple[PlaceAnswer, ...]
    parts: int
    failed: int
    agreement: tuple[AgreementCell, ...]
    differing: tuple[ShadowPart, ...]
    median_ms: float | None
    dropped: int
    share: float
    hangs: bool
    last_error: str | None


class TrainingOptions(_Closed):
    """What `linegate retrain` is told beside the version and the champion; null is its own default."""

    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    images_shown: int | None = Field(default=None, ge=100, le=10_000_000)
    threads: int | None = Field(default=None, ge=1, le=256)
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")] | None = None
    false_reject_rate: float | None = Field(default=None, gt=0, lt=1)
    instant: bool = False

    @property
    def given(self) -> dict[str, str | int | bool]:
        """Those that were given, by the names of the command's options."""
        values = {name.replace("_", "-"): value for name, value in self if value is not None and value is not False}
        return {name: str(value) if isinstance(value, float) else value for name, value in values.items()}


class TrainingRequest(_Closed):
    """What to train on, and the champion to compare with, by digest; null: what judges the first view."""

    version: str = Field(min_length=1, max_length=200)
    champion: Digest | None = None
    options: TrainingOptions = TrainingOptions()


class TrainingAnswer(_Closed):
    """One training run; `gate` is what the gate said of what it made, `package_digest` where that is on the shelf."""

    run: RunRecord
    progress: RunProgress | None
    gate: GateVerdict | None
    candidate_digest: str | None
    on_shelf: bool
    log: tuple[str, ...]


class TrainingsAnswer(_Closed):
    """All training runs, the newest first; `why_not` says why none can be started here, null where one can."""

    items: tuple[TrainingAnswer, ...]
    why_not: str | None


class DatasetAnswer(_Closed):
    """One data set version; counts are images by label."""

    folder: str
    name: str
    number: int
    digest: str
    parent: str | None
    created_at: str
    created_by: str
    note: str
    stations: tuple[str, ...]
    train: dict[str, int]
    test: dict[str, int]
    left_out: int
    conflicts: int
    near_duplicates: int


class DatasetsAnswer(_Closed):
    """All data set versions, the newest first; `broken` has a line for each folder that cannot be read."""

    items: tuple[DatasetAnswer, ...]
    broken: tuple[str, ...]


def summary_of(comparison: Comparison) -> ComparisonSummary:
    """Return the part of a comparison that a list shows."""
    version, champion = comparison.version, comparison.champion
    return ComparisonSummary(
        created_at=comparison.created_at.isoformat(),
        version=f"{version.name} v{version.number} ({version.digest[:12]})",
        champion=f"{champion.name} {champion.version} ({champion.digest[:12]})",
        champion_digest=champion.digest,
        candidate_measured=comparison.candidate is not None,
        frozen=comparison.frozen,
        recent=comparison.recent,
        recent_reviews=comparison.recent_reviews,
        speed=comparison.speed,
        differences=len(comparison.differences),
        gate=comparison.gate,
    )
