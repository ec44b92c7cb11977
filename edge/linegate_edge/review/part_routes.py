"""The API of parts: search, one part, its pictures, and its download, under `/api/v1/parts`.

Rules kept here: routes, and nothing behind them; who asks is in `request.state.actor`, and was let in by `access`; a name in
an address is only ever looked up. Questions are answered by `parts`; the queue is left to `queue_routes`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import apsw
from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import AwareDatetime

from linegate.errors import ImageError
from linegate.stages import Decision
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.review import parts
from linegate_edge.review.access.gate import Who
from linegate_edge.review.answers import people_errors
from linegate_edge.review.audit import AuditTrail
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.part_answers import LookAnswer, PartAnswer, PartPage, PartRow
from linegate_edge.review.pictures import SHOWN_IN_BROWSER, PictureGoneError, converted, evidence_zip

_FOREVER: Final = {"Cache-Control": "private, max-age=31536000, immutable"}
_MAX_SEQUENCE: Final = 2**62
Text = Annotated[str | None, Query(min_length=1, max_length=256)]


def add_parts(app: FastAPI, database: ReviewDatabase, trail: AuditTrail, evidence: EvidenceFolder, *, max_pixels: int) -> None:
    """Add the routes to an application."""
    _add_search(app, database, evidence)
    _add_pictures(app, database, evidence, max_pixels)
    _add_download(app, database, trail, evidence)


def _add_search(app: FastAPI, database: ReviewDatabase, evidence: EvidenceFolder) -> None:
    @app.get("/api/v1/parts", tags=["parts"], responses=people_errors(), summary="Find parts")
    def search(
        serial: Text = None,
        decision: Decision | None = None,
        defect_class: Text = None,
        recipe: Text = None,
        package: Text = None,
        batch: Text = None,
        disposition: Annotated[
            str | None, Query(pattern="^(confirmed|false_reject|escape|limit_sample|none)$", description="none: not decided")
        ] = None,
        since: AwareDatetime | None = None,
        until: AwareDatetime | None = None,
        before: Annotated[int | None, Query(ge=0, le=_MAX_SEQUENCE)] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> PartPage:
        """Return parts, newest first; a new part is found within a second of its verdict."""
        wanted = parts.PartFilter(
            serial=serial,
            decision=decision,
            defect_class=defect_class,
            recipe=recipe,
            package=package,
            batch=batch,
            disposition=disposition,
            since=_stored(since),
            until=_stored(until),
        )
        with database.look() as db:
            rows = parts.find(db, wanted, before=before, limit=limit + 1)
        more = len(rows) > limit
        rows = rows[:limit]
        return PartPage(items=tuple(PartRow(**row) for row in rows), next=rows[-1]["sequence"] if more else None)

    @app.get(
        "/api/v1/parts/{verdict_id}", tags=["parts"], response_model=PartAnswer, responses=people_errors(404), summary="A part"
    )
    def get_part(verdict_id: str) -> Response:
        """Return all that is known of a part: its message, its looks as a page can show them, every decision and by whom."""
        with database.look() as db:
            made = details(db, verdict_id, evidence, parts.GoodParts(db))
        if made is None:
            raise HTTPException(404, f"this station has no part with the verdict '{verdict_id[:64]}'")
        return JSONResponse(made)


def details(
    db: apsw.Connection, verdict_id: str, evidence: EvidenceFolder, good: parts.GoodParts, heat_maps: bool = False
) -> dict[str, Any] | None:
    """Return all that is known of a part as a `PartAnswer` has it, with its heat maps where they are asked for, or None.

    The message is as it was stored: an older release may have written fewer fields.
    """
    found = parts.one(db, verdict_id)
    if found is None:
        return None
    looks = []
    for view in found["message"]["views"]:
        name = view["view"]
        reference = good.nearest(verdict_id, name) if name in found["looks"] else None
        look = _look(found, view, reference, evidence).model_dump(mode="json")
        if heat_maps and name in found["looks"]:
            heat = parts.heat_map(db, verdict_id, name)
            look["heat_map"] = None if heat is None else base64.b64encode(heat).decode()
        looks.append(look)
    return {"part": found["part"], "message": found["message"], "looks": looks, "decisions": found["decisions"]}


def _stored(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    try:
        return str(moment.astimezone(UTC).isoformat()[:19])
    except OverflowError:
        raise HTTPException(422, "query parameter: no such moment in UTC") from None


def _look(
    found: dict[str, Any], view: dict[str, Any], reference: tuple[str, str] | None, evidence: EvidenceFolder
) -> LookAnswer:
    name, uri = view["view"], view["image_uri"]
    trace = found["looks"].get(name)
    picture, trouble = None, None
    file = None if uri is None else uri.rsplit("/", 1)[-1]
    if file is None:
        trouble = "the picture was not kept" if view["score"] is not None else view["reason_text"]
    elif file not in found["kept"] or not evidence.path_of(file).exists():
        trouble = "the picture has been pruned: its retention time is over"
    else:
        picture = shown_uri(uri)
    verdict_id = found["part"]["verdict_id"]
    return LookAnswer(
        view=name,
        picture_uri=picture,
        evidence_uri=uri if picture is not None else None,
        trouble=trouble,
        size_wh=None if trace is None else trace["size_wh"],
        heat_map_uri=None if trace is None else f"/api/v1/parts/{verdict_id}/heat-map.png?view={name}",
        roi_xyxy=None if trace is None else trace["roi_xyxy"],
        reference_uri=None if reference is None else shown_uri(reference[1]),
        reference_verdict_id=None if reference is None else reference[0],
    )


def shown_uri(uri: str) -> str:
    """Return where a browser finds a picture of evidence in a form that it can draw."""
    name = uri.rsplit("/", 1)[-1]
    return uri if f".{name.rsplit('.', 1)[-1]}" in SHOWN_IN_BROWSER else f"/api/v1/pictures/{name}"


def _add_pictures(app: FastAPI, database: ReviewDatabase, evidence: EvidenceFolder, max_pixels: int) -> None:
    png: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}}

    @app.get(
        "/api/v1/pictures/{name}",
        tags=["parts"],
        response_class=Response,
        responses=png | people_errors(404),
        summary="A picture that browsers do not draw, as PNG",
    )
    def get_picture(name: str) -> Response:
        """Return evidence converted to PNG, without loss."""
        with database.look() as db:
            known = db.execute("SELECT 1 FROM line.evidence WHERE name = ? LIMIT 1", (name,)).fetchone()
        if known is None:
            raise HTTPException(404, f"no evidence '{name[:70]}': it was never kept here, or its retention time is over")
        try:
            return Response(converted(evidence, name, max_pixels), media_type="image/png", headers=_FOREVER)
        except PictureGoneError as error:
            raise HTTPException(404, str(error)) from None
        except ImageError as error:
            raise HTTPException(422, f"the picture cannot be shown: {error}") from None

    @app.get(
        "/api/v1/parts/{verdict_id}/heat-map.png",
        tags=["parts"],
        response_class=Response,
        responses=png | people_errors(404),
        summary="What the model saw",
    )
    def get_heat_map(verdict_id: str, view: Annotated[str, Query(min_length=1, max_length=128)]) -> Response:
        """Return the heat map of a look as the model gave it then: grey, over the look's region of interest.

        0 is half of the map's threshold and less, 85 the threshold, 255 twice the threshold and more.
        """
        with database.look() as db:
            heat = parts.heat_map(db, verdict_id, view)
        if heat is None:
            raise HTTPException(404, f"no heat map of view '{view[:64]}' was kept for this part")
        return Response(heat, media_type="image/png", headers=_FOREVER)

    @app.get(
        "/api/v1/parts/{verdict_id}/mask.png",
        tags=["parts"],
        response_class=Response,
        responses=png | people_errors(404),
        summary="What a person painted",
    )
    def get_mask(
        verdict_id: str,
        view: Annotated[str, Query(min_length=1, max_length=128)],
        decision: Annotated[int, Query(ge=1, le=_MAX_SEQUENCE)],
    ) -> Response:
        """Return the mask that was painted on a look with a decision: grey, 255 where it is defective."""
        with database.look() as db:
            row = db.execute(
                "SELECT m.mask FROM drawing m JOIN decision d ON d.number = m.decision "
                "WHERE d.verdict_id = ? AND m.decision = ? AND m.view = ?",
                (verdict_id, decision, view),
            ).fetchone()
        if row is None:
            raise HTTPException(404, f"decision {decision} has no mask of view '{view[:64]}'")
        return Response(bytes(row[0]), media_type="image/png", headers=_FOREVER)


def _add_download(app: FastAPI, database: ReviewDatabase, trail: AuditTrail, evidence: EvidenceFolder) -> None:
    binary: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
    zipped: dict[int | str, dict[str, Any]] = {200: {"content": {"application/zip": binary}}}

    @app.get(
        "/api/v1/parts/{verdict_id}/evidence.zip",
        tags=["parts"],
        response_class=StreamingResponse,
        responses=zipped | people_errors(404),
        summary="All that is known of a part, to take away",
    )
    def get_zip(who: Who, verdict_id: str) -> StreamingResponse:
        """Return a zip of the part's pictures, heat maps, masks, message, decisions and audit lines, with SHA-256 of each.

        The download itself is a line in the audit trail; the zip names the trail's head after it.
        """
        with database.look() as db:
            found = parts.one(db, verdict_id)
            if found is None:
                raise HTTPException(404, f"this station has no part with the verdict '{verdict_id[:64]}'")
            sequence, serial = found["part"]["sequence"], found["part"]["serial"]
            heat_maps = {
                view: bytes(heat) for view, heat in _blobs(db, "SELECT view, heat FROM line.trace WHERE sequence = ?", sequence)
            }
            drawings = {
                name: bytes(mask)
                for name, mask in _blobs(
                    db,
                    "SELECT d.number || '-' || m.view, m.mask FROM drawing m JOIN decision d ON d.number = m.decision "
                    "WHERE d.sequence = ?",
                    sequence,
                )
            }
        trail.add(who, "download evidence", verdict_id, {"serial": serial})
        lines = [_plain(line) for line in reversed(trail.lines(subject=verdict_id, limit=10_000))]
        pieces = evidence_zip(
            evidence, found["message"], found["decisions"], drawings, heat_maps, lines, trail.head(), by=who.name
        )
        name = f"linegate-{_file_name(serial)}-{verdict_id[:8]}.zip"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(_not_empty(pieces), media_type="application/zip", headers=headers)


def _blobs(db: Any, query: str, sequence: int) -> list[tuple[str, bytes]]:
    return list(db.execute(query, (sequence,)))


def _not_empty(pieces: Iterator[bytes]) -> Iterator[bytes]:
    return (piece for piece in pieces if piece)


def _file_name(serial: str) -> str:
    return "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-_") else "_" for sign in serial)[:64]


def _plain(line: Any) -> dict[str, Any]:
    return {name: getattr(line, name) for name in line.__slots__}
