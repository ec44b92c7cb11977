"""The API of models: packages, approvals, promotions and shadows, under `/api/v1`.

Rules kept here: routes, and nothing behind them; who asks is in `request.state.actor`, and was let in by `access`; a name in an
address is only ever looked up; what is refused is one line: 404 for what is not there, 409 for what must not be, 422 for what
cannot be used. Training runs are left to `training_routes`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from linegate.comparison import Comparison
from linegate.errors import LinegateError, PackageError, ProviderError, StationError, StoreError
from linegate_edge.review.access.gate import Who
from linegate_edge.review.answers import people_errors
from linegate_edge.review.audit import Actor
from linegate_edge.review.models.answers import (
    ApproveRequest,
    Digest,
    ImportRequest,
    ModelAnswer,
    ModelsAnswer,
    PromoteRequest,
    PromotionAnswer,
    PromotionsAnswer,
    RollBackRequest,
    ShadowAnswer,
    ShadowRequest,
)
from linegate_edge.review.models.room import ModelRoom
from linegate_edge.review.models.run_record import OUT_FOLDER
from linegate_edge.review.models.training_routes import add_training
from linegate_edge.review.models.views import model_answer, models_answer, promotion_answer, shadow_answer

_UPLOAD_TIMEOUT_S: Final = 600.0
_MAX_JSON_BYTES: Final = 64 * 1024
_ZIP_TYPES: Final = ("application/zip", "application/x-zip-compressed", "application/octet-stream")
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turn what the modules behind refuse into an HTTP status and one line."""
    try:
        yield
    except LookupError as error:
        raise HTTPException(404, str(error.args[0])) from None
    except StoreError:
        raise  # 503, as everywhere
    except (PackageError, ProviderError) as error:
        raise HTTPException(422, str(error)) from None
    except (StationError, LinegateError) as error:
        raise HTTPException(409, str(error)) from None


def add_models(app: FastAPI, room: ModelRoom) -> None:
    """Add the routes to an application."""
    _add_shelf(app, room)
    _add_comparison(app, room)
    _add_promotions(app, room)
    _add_shadow(app, room)
    add_training(app, room, refusals)


def _add_shelf(app: FastAPI, room: ModelRoom) -> None:
    @app.get("/api/v1/models", tags=["models"], responses=people_errors(), summary="All packages, and what judges each view")
    def get_models() -> ModelsAnswer:
        """Return the packages in service and on the shelf; champions first."""
        return models_answer(room)

    body = {
        "required": True,
        "description": "A training run's number, or a zip of a package or of a run's folder",
        "content": {"application/json": {"schema": ImportRequest.model_json_schema()}, "application/zip": _BINARY},
    }

    @app.post(
        "/api/v1/models",
        tags=["models"],
        status_code=201,
        responses=people_errors(404, 408, 409, 413, 415),
        summary="Bring a package",
        openapi_extra={"requestBody": body},
    )
    async def post_model(request: Request, who: Who) -> ModelAnswer:
        """Put a package on the shelf: whole, of a schema that is read here, and proved on this machine.

        A zip may hold a package alone, or a run's folder with `comparison.json` and `differences/`.
        """
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == "application/json":
            wanted = await _read_request(request)
            return await run_in_threadpool(_import_run, room, who, wanted.run)
        if media_type not in _ZIP_TYPES:
            raise HTTPException(415, f"Content-Type '{media_type[:128]}' is not known here: send application/zip")
        with room.shelf.room_to_receive() as folder:
            path = folder / "upload.zip"
            await _receive(request, path, room.settings.review.max_package_mib * 2**20)
            return await run_in_threadpool(_import_upload, room, who, path)

    @app.get("/api/v1/models/{digest}", tags=["models"], responses=people_errors(404), summary="One package")
    def get_model(digest: Digest) -> ModelAnswer:
        """Return one package with its card, comparison and approvals."""
        with refusals():
            return model_answer(room, digest)

    @app.get(
        "/api/v1/models/{digest}/card",
        tags=["models"],
        response_class=Response,
        responses=people_errors(404) | {200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}},
        summary="Its card",
    )
    def get_card(digest: Digest) -> Response:
        """Return the package's card, Markdown as it was written."""
        with refusals():
            card = model_answer(room, digest).card
        return Response(card, media_type="text/markdown; charset=utf-8")


def _add_comparison(app: FastAPI, room: ModelRoom) -> None:
    @app.get(
        "/api/v1/models/{digest}/comparison",
        tags=["models"],
        response_model=Comparison,
        responses=people_errors(404),
        summary="How it does beside the champion",
    )
    def get_comparison(digest: Digest) -> Response:
        """Return the comparison as training wrote it: every number with its interval, every part that differs."""
        raw = room.shelf.comparison(digest)
        if raw is None:
            raise HTTPException(404, f"package {digest[:12]} was never compared with a champion")
        return Response(raw, media_type="application/json")

    @app.get(
        "/api/v1/models/{digest}/differences/{name}",
        tags=["models"],
        response_class=Response,
        responses=people_errors(404) | {200: {"content": {"image/*": _BINARY}}},
        summary="A part on which they differ",
    )
    def get_picture(digest: Digest, name: str) -> Response:
        """Return the picture of a part on which candidate and champion differ, by its name in the comparison."""
        path = room.shelf.pictures(digest).get(name)
        if path is None:
            raise HTTPException(404, f"package {digest[:12]} has no picture '{name[:100]}'")
        media_type = "image/png" if path.suffix == ".png" else "image/jpeg"
        return Response(path.read_bytes(), media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})


def _add_promotions(app: FastAPI, room: ModelRoom) -> None:
    @app.post(
        "/api/v1/models/{digest}/approve", tags=["models"], responses=people_errors(404, 409), summary="Approve a package"
    )
    def approve(who: Who, digest: Digest, wanted: ApproveRequest) -> ModelAnswer:
        """Say that a package, with the comparison that it has now, is fit for the line."""
        with refusals():
            room.register.approve(who, digest, wanted.comment)
            return model_answer(room, digest)

    @app.post(
        "/api/v1/models/{digest}/withdraw", tags=["models"], responses=people_errors(404), summary="Take an approval back"
    )
    def withdraw(who: Who, digest: Digest) -> ModelAnswer:
        """Take one's own approval back; what was promoted stays."""
        with refusals():
            room.register.withdraw(who, digest)
            return model_answer(room, digest)

    @app.post(
        "/api/v1/models/{digest}/promote", tags=["models"], responses=people_errors(404, 409), summary="Promote a package"
    )
    def promote(who: Who, digest: Digest, wanted: PromoteRequest) -> PromotionAnswer:
        """Have a package judge a view from the next part on, by its own thresholds.

        409 while approvals are missing, or where the gate did not say go and no `override_reason` is given.
        """
        place = wanted.recipe, wanted.view
        with refusals():
            done, note = room.promote(who, digest, place, wanted.override_reason)
            return promotion_answer(room, done, note)

    @app.get("/api/v1/promotions", tags=["models"], responses=people_errors(), summary="All promotions")
    def get_promotions() -> PromotionsAnswer:
        """Return promotions and roll-backs, the newest first."""
        return PromotionsAnswer(items=tuple(promotion_answer(room, row) for row in room.promotions.listed()))

    @app.post(
        "/api/v1/promotions/{number}/roll-back", tags=["models"], responses=people_errors(404, 409), summary="Undo a promotion"
    )
    def roll_back(who: Who, number: int, wanted: RollBackRequest) -> PromotionAnswer:
        """Have the package that judged before a promotion judge again, from the next part on."""
        with refusals():
            done, note = room.roll_back(who, number, wanted.reason)
            return promotion_answer(room, done, note)


def _add_shadow(app: FastAPI, room: ModelRoom) -> None:
    @app.post("/api/v1/models/{digest}/shadow", tags=["models"], responses=people_errors(404, 409), summary="Let it shadow")
    def set_shadow(who: Who, digest: Digest, wanted: ShadowRequest) -> ShadowAnswer:
        """Have a candidate judge a view's frames after the champion, or no more; nothing of it is published."""
        with refusals():
            room.set_shadow(who, digest, (wanted.recipe, wanted.view), wanted.on)
            return shadow_answer(room, digest)

    @app.get("/api/v1/models/{digest}/shadow", tags=["models"], responses=people_errors(404), summary="What it said")
    def get_shadow(digest: Digest) -> ShadowAnswer:
        """Return how a candidate agrees with the champion, and the parts on which they differ."""
        return shadow_answer(room, digest)


def _import_run(room: ModelRoom, who: Actor, number: int) -> ModelAnswer:
    with refusals():
        run = room.runs.find(number)
        if run.state != "done":
            raise StationError(f"training run {number} is {run.state}, and has no package to bring")
        folder = room.runs.folder_of(number) / OUT_FOLDER
        found = room.register.bring(who, folder, called=f"training run {number}", trained_by=run.by)
        return model_answer(room, found.digest)


def _import_upload(room: ModelRoom, who: Actor, path: Path) -> ModelAnswer:
    with refusals():
        # Who uploads a package may have trained it elsewhere, and counts as if they had.
        found = room.register.bring(who, path, called="upload", trained_by=who.name)
        return model_answer(room, found.digest)


async def _read_request(request: Request) -> ImportRequest:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_JSON_BYTES:
            raise HTTPException(413, f"the request has more than {_MAX_JSON_BYTES} bytes")
    try:
        return ImportRequest.model_validate_json(bytes(body))
    except ValidationError:
        raise HTTPException(422, 'expected {"run": number} of a finished training run, or a zip as application/zip') from None


async def _receive(request: Request, path: Path, max_bytes: int) -> None:
    size = 0
    try:
        with path.open("wb") as file:
            async with asyncio.timeout(_UPLOAD_TIMEOUT_S):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > max_bytes:
                        limit = f"{max_bytes // 2**20} MiB: see [review] max_package_mib"
                        raise HTTPException(413, f"the package is larger than {limit}", {"Connection": "close"})
                    await run_in_threadpool(file.write, chunk)
    except TimeoutError:
        raise HTTPException(408, f"the package did not arrive within {_UPLOAD_TIMEOUT_S:g} s: send it again") from None
    except ClientDisconnect:
        raise HTTPException(400, "the package ended before it was complete") from None
    except OSError as error:
        raise HTTPException(503, f"the package cannot be received: {error.strerror}") from None
