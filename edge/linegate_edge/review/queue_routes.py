"""The API of the review queue: lend parts, decide them, one or many, and take it back, under `/api/v1`.

Rules kept here: routes, and nothing behind them; what people drew is held against the frame it was drawn on before it is
stored. Decisions are taken by `decisions`, parts found by `parts`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import JSONResponse

from linegate_edge.evidence import EvidenceFolder
from linegate_edge.review import parts
from linegate_edge.review.access.gate import Who
from linegate_edge.review.answers import people_errors
from linegate_edge.review.audit import AuditTrail
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.decisions import DecisionError, DrawnRegion, Lending, NewDecision, decide, undo
from linegate_edge.review.part_answers import (
    BulkAnswer,
    BulkRequest,
    BulkResult,
    ChoicesAnswer,
    Decided,
    DecisionRequest,
    GiveBackRequest,
    LendRequest,
    QueueAnswer,
    UndoRequest,
)
from linegate_edge.review.part_routes import details
from linegate_edge.review.pictures import checked_mask, picture_size


def add_queue(
    app: FastAPI,
    database: ReviewDatabase,
    trail: AuditTrail,
    evidence: EvidenceFolder,
    class_names: Callable[[], list[str]],
) -> None:
    """Add the routes to an application; `class_names` are the classes that the packages in service find."""
    _add_lending(app, database, evidence, Lending(), class_names)
    _add_decisions(app, database, trail, evidence)


def _add_lending(
    app: FastAPI,
    database: ReviewDatabase,
    evidence: EvidenceFolder,
    lending: Lending,
    class_names: Callable[[], list[str]],
) -> None:
    @app.post(
        "/api/v1/queue/lend", tags=["review"], response_model=QueueAnswer, responses=people_errors(), summary="Parts to decide"
    )
    def lend(wanted: LendRequest) -> Response:
        """Return parts that wait for a decision and lend them to this reader for three minutes, so that no other sees them."""
        with database.look() as db:
            rows = parts.waiting(
                db,
                kind=wanted.kind,
                defect_class=wanted.defect_class,
                recipe=wanted.recipe,
                oldest_first=wanted.order == "oldest",
                after=wanted.after,
                without=lending.others(wanted.reader),
                limit=wanted.limit,
            )
            count = parts.waiting_count(db)
        mine = set(lending.take(wanted.reader, [row["verdict_id"] for row in rows]))
        lent = [row for row in rows if row["verdict_id"] in mine]
        following = rows[-1]["sequence"] if len(rows) == wanted.limit else None
        known: list[dict[str, Any]] = []
        if wanted.details:
            with database.look() as db:
                good = parts.GoodParts(db)
                found = [details(db, row["verdict_id"], evidence, good, heat_maps=True) for row in lent]
            known = [one for one in found if one is not None]
        return JSONResponse({"items": lent, "details": known, "waiting": count, "next": following})

    @app.post(
        "/api/v1/queue/give-back", tags=["review"], status_code=204, responses=people_errors(), summary="Parts not needed"
    )
    def give_back(wanted: GiveBackRequest) -> None:
        """Take parts back, so that others see them at once: a page calls it when it is left."""
        lending.give_back(wanted.reader, wanted.verdict_ids)

    @app.get("/api/v1/choices", tags=["parts"], responses=people_errors(), summary="What there is to choose from")
    def choices() -> ChoicesAnswer:
        """Return recipes, packages and defect classes; `class_keys` are the classes of the keys 1 to 9."""
        with database.look() as db:
            known = parts.known_values(db)
        classes = class_names()
        keys = [*classes, *(name for name in known["defect_classes"] if name not in classes)]
        return ChoicesAnswer.model_validate({**known, "class_keys": keys[:9]})


def _add_decisions(app: FastAPI, database: ReviewDatabase, trail: AuditTrail, evidence: EvidenceFolder) -> None:
    @app.post(
        "/api/v1/parts/{verdict_id}/decision",
        tags=["review"],
        response_model=Decided,
        responses=people_errors(404, 409),
        summary="Decide a part",
    )
    def post_decision(who: Who, verdict_id: str, wanted: DecisionRequest) -> Response:
        """Say what a part is: confirmed, a false reject, an escape, or a limit sample; with its class and regions.

        409 where somebody else has decided it since `follows`: nothing was changed.
        """
        new = _new_decision(database, evidence, verdict_id, wanted)
        # A response as it is: to check a model costs another turn on a thread, in which a full line would be.
        return JSONResponse({"number": _taken(lambda: decide(trail, who, verdict_id, new))})

    @app.post("/api/v1/parts/{verdict_id}/undo", tags=["review"], responses=people_errors(404, 409), summary="Take it back")
    def post_undo(who: Who, verdict_id: str, wanted: UndoRequest) -> Decided:
        """Take the last decision on a part back, so that it waits again; both stay in its history."""
        return Decided(number=_taken(lambda: undo(trail, who, verdict_id, wanted.follows)))

    @app.post("/api/v1/queue/decide", tags=["review"], responses=people_errors(), summary="Decide many parts")
    def post_bulk(who: Who, wanted: BulkRequest) -> BulkAnswer:
        """Give many parts the same disposition; each is decided or refused on its own."""
        results = []
        for item in wanted.items:
            new = NewDecision(wanted.disposition, wanted.defect_class, comment=wanted.comment, follows=item.follows)
            number, refused = None, None
            try:
                number = decide(trail, who, item.verdict_id, new)
            except DecisionError as error:
                refused = str(error)
            results.append(BulkResult(verdict_id=item.verdict_id, number=number, error=refused))
        return BulkAnswer(items=tuple(results))


def _taken(step: Callable[[], int]) -> int:
    try:
        return step()
    except DecisionError as error:
        raise HTTPException(error.status, str(error)) from None


def _new_decision(database: ReviewDatabase, evidence: EvidenceFolder, verdict_id: str, wanted: DecisionRequest) -> NewDecision:
    """Return a decision whose regions and masks fit the frames they were drawn on.

    Raises:
        HTTPException: they do not; the text says which, and how large the frame is.
    """
    masks: dict[str, bytes] = {}
    if wanted.regions or wanted.masks:
        sizes = _sizes(database, evidence, verdict_id)
        for region in wanted.regions:
            width, height = _size_of(sizes, region.view)
            if region.box_xyxy[2] > width or region.box_xyxy[3] > height:
                text = f"region {list(region.box_xyxy)} of view '{region.view}' leaves its picture, which is {width} × {height}"
                raise HTTPException(422, f"{text}: draw it inside")
        for drawn in wanted.masks:
            size_wh = _size_of(sizes, drawn.view)
            try:
                data = base64.b64decode(drawn.png, validate=True)
                masks[drawn.view] = checked_mask(data, size_wh, f"mask of view '{drawn.view}'")
            except binascii.Error:
                raise HTTPException(422, f"mask of view '{drawn.view}': no base64: send the PNG's bytes in base64") from None
            except ValueError as error:
                raise HTTPException(422, str(error)) from None
    regions = [DrawnRegion(region.view, region.defect_class, region.box_xyxy) for region in wanted.regions]
    return NewDecision(wanted.disposition, wanted.defect_class, regions, masks, wanted.comment, wanted.follows)


def _sizes(database: ReviewDatabase, evidence: EvidenceFolder, verdict_id: str) -> dict[str, tuple[int, int] | None]:
    """Return the size of each view's frame, None where it is not known any more."""
    with database.look() as db:
        found = parts.one(db, verdict_id)
    if found is None:
        raise HTTPException(404, f"this station has no part with the verdict '{verdict_id[:64]}'")
    sizes: dict[str, tuple[int, int] | None] = {}
    for view in found["message"]["views"]:
        trace = found["looks"].get(view["view"])
        size = None if trace is None else trace["size_wh"]
        if size is None and view["image_uri"] is not None:
            size = picture_size(evidence.path_of(view["image_uri"].rsplit("/", 1)[-1]))
        sizes[view["view"]] = size
    return sizes


def _size_of(sizes: dict[str, tuple[int, int] | None], view: str) -> tuple[int, int]:
    if view not in sizes:
        raise HTTPException(422, f"the part has no view '{view[:64]}', only {', '.join(sizes) or 'none'}")
    size = sizes[view]
    if size is None:
        raise HTTPException(422, f"view '{view}' has no picture any more: decide the part without regions")
    return size
