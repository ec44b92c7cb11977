"""What the API says of parts and their review, and what it is told, as types.

Rules kept here: a field that is not known is null, never left out; what people send is bounded before anything is done with it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from linegate.dataset_version import GOOD
from linegate.stages import Decision, Reason
from linegate_edge.message import VerdictMessage
from linegate_edge.review.decisions import Disposition
from linegate_edge.sampling import Asked

MAX_REGIONS = 500


def _is_a_defect(name: str) -> str:
    if name == GOOD:
        raise ValueError(f"'{GOOD}' is no class of defects: say false_reject, or confirm a part that passed")
    return name


ClassName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f/\\]{1,64}$"), AfterValidator(_is_a_defect)]
VerdictId = Annotated[str, Field(min_length=1, max_length=64)]
ViewName = Annotated[str, Field(min_length=1, max_length=128)]
Number = Annotated[int, Field(ge=1, le=2**62)]
Pixel = Annotated[int, Field(ge=0, le=1_000_000)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartRow(_Model):
    """A part in the queue or in a search; `queued` says why people are asked, `decision_number` is its last decision."""

    sequence: int
    verdict_id: str
    serial: str
    decision: Decision
    decided_at: str
    recipe: str
    package: str
    part_type: str | None
    batch: str | None
    supplier_lot: str | None
    defect_class: str | None
    reason: Reason
    view: str | None
    score: float | None
    threshold: float | None
    queued: Asked | None
    disposition: Disposition | None
    decided_class: str | None
    decision_number: int | None


class PartPage(_Model):
    """A page of parts, newest first; `next` is `before` of the page after it, null where there is none."""

    items: tuple[PartRow, ...]
    next: int | None


class LookAnswer(_Model):
    """One view of a part as a page shows it; URIs are null where there is nothing (any more).

    `picture_uri` is what a browser can draw; `trouble` says why there is none. `roi_xyxy` is where the heat map lies.
    `heat_map` is the heat map itself, a PNG in base64, where it was asked for.
    """

    view: str
    picture_uri: str | None
    evidence_uri: str | None
    trouble: str | None
    size_wh: tuple[int, int] | None
    heat_map_uri: str | None
    heat_map: str | None = None
    roi_xyxy: tuple[int, int, int, int] | None
    reference_uri: str | None
    reference_verdict_id: str | None


class DrawnBox(_Model):
    """A region that a person drew, in pixels of the view's frame, right and bottom exclusive."""

    view: ViewName
    defect_class: ClassName
    box_xyxy: tuple[Pixel, Pixel, Pixel, Pixel]

    @model_validator(mode="after")
    def _has_an_area(self) -> DrawnBox:
        left, top, right, bottom = self.box_xyxy
        if not (left < right and top < bottom):
            raise ValueError("expected left < right and top < bottom")
        return self


class DecisionAnswer(_Model):
    """One decision on a part; `disposition` is null where it undid the one before. `masks` are views with a mask."""

    number: int
    disposition: Disposition | None
    defect_class: str | None
    regions: tuple[DrawnBox, ...]
    masks: tuple[str, ...]
    comment: str
    by: str
    at: str
    previous: int | None


class PartAnswer(_Model):
    """All that is known of a part."""

    part: PartRow
    message: VerdictMessage
    looks: tuple[LookAnswer, ...]
    decisions: tuple[DecisionAnswer, ...]


class QueueAnswer(_Model):
    """Parts lent to this reader; `waiting` counts all that wait, up to 10,000; `next` is `after` of the page after it.

    `details` has all that is known of the same parts, with their heat maps, where it was asked for.
    """

    items: tuple[PartRow, ...]
    details: tuple[PartAnswer, ...] = ()
    waiting: int
    next: int | None


class LendRequest(_Model):
    """Which waiting parts a reader wants to see; `reader` is a browser tab's own random name."""

    reader: str = Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")
    limit: int = Field(8, ge=1, le=200)
    kind: Asked | None = None
    defect_class: ClassName | None = None
    recipe: str | None = Field(None, max_length=128)
    order: Literal["newest", "oldest"] = "oldest"
    after: int | None = Field(None, ge=0, le=2**62)
    details: bool = Field(False, description="Send all that is known of each part along: one request instead of many")


class GiveBackRequest(_Model):
    """Parts that a reader does not need any more; null: all that he has."""

    reader: str = Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")
    verdict_ids: tuple[VerdictId, ...] | None = Field(None, max_length=1000)


class DrawnMask(_Model):
    """A mask that a person painted: a PNG in base64, 8-bit grey at the frame's size, not 0 where it is defective."""

    view: ViewName
    png: str = Field(min_length=1, max_length=16_000_000)


class DecisionRequest(_Model):
    """What somebody decides; `follows` is the part's `decision_number` that he saw, null where it had none."""

    disposition: Disposition
    defect_class: ClassName | None = None
    regions: tuple[DrawnBox, ...] = Field((), max_length=MAX_REGIONS)
    masks: tuple[DrawnMask, ...] = Field((), max_length=16)
    comment: str = Field("", max_length=2000)
    follows: Number | None = None


class UndoRequest(_Model):
    """Which decision to take back: the part's last."""

    follows: Number


class Decided(_Model):
    """The number of the decision that was added."""

    number: int


class BulkItem(_Model):
    """One part of a bulk decision."""

    verdict_id: VerdictId
    follows: Number | None = None


class BulkRequest(_Model):
    """One disposition for many parts, each decided or refused on its own."""

    items: tuple[BulkItem, ...] = Field(min_length=1, max_length=200)
    disposition: Disposition
    defect_class: ClassName | None = None
    comment: str = Field("", max_length=2000)


class BulkResult(_Model):
    """What became of one part: the decision's number, or why it was refused."""

    verdict_id: str
    number: int | None
    error: str | None


class BulkAnswer(_Model):
    """What became of each part, in the order they were given."""

    items: tuple[BulkResult, ...]


class ChoicesAnswer(_Model):
    """What there is to choose from in the queue and the search, and the classes for keys 1 to 9."""

    recipes: tuple[str, ...]
    packages: tuple[str, ...]
    defect_classes: tuple[str, ...]
    class_keys: tuple[str, ...]
