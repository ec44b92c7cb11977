"""What `/api/v1/quality` asks and answers, as types: the source of its OpenAPI.

Rules kept here: a number that is not known is null, never 0 and never left out; moments are UTC; a share is from 0 to 1.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from linegate_edge.review.quality.control import Signal
from linegate_edge.review.quality.drift import Level
from linegate_edge.review.quality.periods import Length

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Dimension = Literal["defect_class", "station", "shift", "batch", "supplier_lot", "recipe", "package"]


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("no such moment in UTC") from None


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SpanQuery(_Model):
    """Which parts; what is left out does not choose."""

    days: int = Field(7, ge=1, le=3660, description="So many days of the plant, the day of `until` included")
    until: Annotated[AwareDatetime, AfterValidator(_utc)] | None = Field(
        None, ge=datetime(2000, 1, 1, tzinfo=UTC), le=datetime(2200, 1, 1, tzinfo=UTC),
        description="Decided before this moment, RFC 3339 with its zone; now, where left out",
    )  # fmt: skip
    recipe: str | None = Field(None, min_length=1, max_length=128, description="Of this recipe")
    package: str | None = Field(None, min_length=1, max_length=256, description="Judged by this package, name@version")


class ParetoQuery(SpanQuery):
    """Which parts, and by what they are counted."""

    by: Dimension = Field("defect_class", description="`defect_class` is the reason, where no class was found")
    limit: int = Field(20, ge=1, le=200, description="So many groups, the rest as one")


class ChartQuery(SpanQuery):
    """Which parts, and the length of a period."""

    period: Length = Field("shift", description="A point is an hour, a shift or a day")


class ReviewsQuery(SpanQuery):
    """Which parts, and the length of a period."""

    period: Literal["shift", "day"] = Field("day", description="A row of `by_period` is a shift or a day")


class DriftQuery(_Model):
    """Which scores are compared."""

    days: int = Field(7, ge=1, le=3660, description="Scores of the last so many days of the plant")
    until: Annotated[AwareDatetime, AfterValidator(_utc)] | None = Field(
        None, ge=datetime(2000, 1, 1, tzinfo=UTC), le=datetime(2200, 1, 1, tzinfo=UTC),
        description="Decided before this moment, RFC 3339 with its zone; now, where left out",
    )  # fmt: skip
    last: int = Field(500, ge=50, le=5000, description="At most so many, the newest, of each package")


class ThresholdQuery(_Model):
    """Which reviewed parts."""

    package: str | None = Field(None, min_length=1, max_length=256, description="name@version; the newest, where left out")
    last: int = Field(500, ge=1, le=5000, description="So many, those reviewed last")


class SpanAnswer(_Model):
    """The span that was looked at, and the plant's time zone."""

    since: datetime
    until: datetime
    time_zone: str


class IntervalAnswer(_Model):
    """`count` of `total`: their share, null where total is 0, with its Clopper–Pearson interval of 95 %."""

    count: Count
    total: Count
    share: Share | None
    low: Share
    high: Share


class TotalsAnswer(_Model):
    """Parts at their first inspection; `first_pass_yield` is null where there were none."""

    parts: Count
    passed: Count
    failed: Count
    undecided: Count
    first_pass_yield: Share | None


class YieldAnswer(_Model):
    """First-pass yield of the span, and of the span of the same length before it."""

    span: SpanAnswer
    now: TotalsAnswer
    before: TotalsAnswer
    packages: tuple[str, ...]


class ParetoBar(_Model):
    """A group: its rejects, their share of all rejects, and that share with all greater groups; `name` is null for unknown."""

    name: str | None
    failed: Count
    undecided: Count
    rejects: Count
    share: Share
    cumulative: Share
    parts: Count | None
    reject_rate: Share | None


class ParetoAnswer(_Model):
    """Groups by their rejects, the greatest first; `rest` are the rejects of groups beyond `limit`."""

    span: SpanAnswer
    by: Dimension
    rejects: Count
    bars: tuple[ParetoBar, ...]
    rest: Count
    rest_groups: Count


class ChartPoint(_Model):
    """A period with parts; `signals` name the rules that it breaks."""

    begin: datetime
    end: datetime
    shift: str
    parts: Count
    rejects: Count
    share: Share
    low: Share
    high: Share
    signals: tuple[Signal, ...]


class ChartAnswer(_Model):
    """The control chart of the share of parts that did not pass; `centre` is null where there were no parts.

    `sigma_z` is Laney's; `preliminary` says that there are too few points for limits to last.
    """

    span: SpanAnswer
    period: Length
    kind: Literal["p", "p_prime"]
    why: str
    centre: Share | None
    sigma_z: float | None
    dispersion: float | None
    p_value: Share | None
    preliminary: bool
    points: tuple[ChartPoint, ...]


class ReviewRow(_Model):
    """Reviewed parts of a class, or of a period that begins at `name`, by what people said."""

    name: str
    reviewed: Count
    confirmed: Count
    false_rejects: Count
    escapes: Count
    limit_samples: Count


class PackageAudit(_Model):
    """The audit sample of one package."""

    package: str
    escapes: IntervalAnswer


class ReviewsAnswer(_Model):
    """What reviews say.

    `false_rejects` of the reviewed parts that did not pass; `audit` are escapes of the random sample of passed parts, which
    says how many of them escape; `close` are escapes of passed parts near the threshold, which are looked at for that and are
    no random sample. Limit samples are in none of the three. `audit_waiting` are parts of the sample that nobody has looked at.
    """

    span: SpanAnswer
    confidence: Share
    audit_share: Share
    false_rejects: IntervalAnswer
    audit: IntervalAnswer
    close: IntervalAnswer
    audit_waiting: Count
    audit_by_package: tuple[PackageAudit, ...]
    by_class: tuple[ReviewRow, ...]
    by_period: tuple[ReviewRow, ...]


class DriftRow(_Model):
    """A package: `distance` and `p_value` of the test, `adjusted_p` for the number of packages, `psi`; null: too few scores.

    `reference` says what the scores are compared with, `note` why they are not.
    """

    package: str
    reference: str
    reference_parts: Count
    parts: Count
    reference_median: float | None
    median: float | None
    distance: float | None
    p_value: Share | None
    adjusted_p: Share | None
    psi: float | None
    level: Level | None
    note: str | None


class DriftAnswer(_Model):
    """Drift of scores by package; `test` and `adjustment` name the methods."""

    span: SpanAnswer
    test: str
    adjustment: str
    packages: tuple[DriftRow, ...]


class Breakpoint(_Model):
    """The counts at this threshold, and at any down to the one before; null is above all scores: everything passes."""

    threshold: float | None
    escapes: Count
    false_rejects: Count
    confirmed: Count
    passes: Count


class ThresholdAnswer(_Model):
    """What other thresholds would have made of the parts reviewed last; ascending.

    A threshold t gives the counts of the first breakpoint at or above t. `current` is the threshold of the package's last part.
    """

    package: str | None
    packages: tuple[str, ...]
    reviewed: Count
    limit_samples: Count
    current: float | None
    breakpoints: tuple[Breakpoint, ...]
    note: str
