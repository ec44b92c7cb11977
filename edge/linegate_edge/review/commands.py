"""`POST /commands`: the commands of MQTT over HTTP, with the same JSON and the same answers.

Rules kept here: the answer comes when the command is done, for a trigger when it is durable; after `wait_s` the sender hears
that it is not known yet, and may ask again with the same `command_id`. Doing commands is left to `dispatch`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from fastapi import FastAPI, HTTPException, Request, Response
from starlette.requests import ClientDisconnect

from linegate_edge.commands import COMMANDS, MAX_COMMAND_BYTES, Answer, AnswerReason
from linegate_edge.mqtt_commands import TakeCommand
from linegate_edge.review.answers import ErrorAnswer

_READ_TIMEOUT_S: Final = 10.0
STATUS: Final[Mapping[AnswerReason, int]] = MappingProxyType(
    {
        AnswerReason.ACCEPTED: 200,
        AnswerReason.MALFORMED: 422,
        AnswerReason.VERSION: 422,
        AnswerReason.UNKNOWN_COMMAND: 422,
        AnswerReason.ID_REUSED: 409,
        AnswerReason.UNKNOWN_RECIPE: 404,
        AnswerReason.UNKNOWN_SEQUENCE: 404,
        AnswerReason.NOT_CONFIRMING: 409,
        AnswerReason.STOPPED: 503,
        AnswerReason.BUSY: 503,
        AnswerReason.FAILED: 500,
    }
)
"""The HTTP status of an answer; the body is the answer all the same."""


def add_commands(app: FastAPI, take: TakeCommand, wait_s: float = 10.0) -> None:
    """Add the route to a station's application; `wait_s` is how long a sender waits for its answer."""
    text = {"type": "string", "minLength": 1, "maxLength": 128}
    fields = {"schema_version": {"type": "string"}, "command": {"enum": list(COMMANDS)}, "command_id": text}
    envelope = {
        "type": "object",
        "description": "The envelope; command.schema.json of `linegate station contract` has the fields of each command.",
        "required": list(fields),
        "properties": fields,
    }
    body = {"required": True, "content": {"application/json": {"schema": envelope}}}
    refusals: dict[int | str, dict[str, Any]] = {status: {"model": Answer} for status in sorted({*STATUS.values()} - {200})}

    @app.post(
        "/commands",
        tags=["commands"],
        summary="Command the station",
        responses=refusals | {408: {"model": ErrorAnswer}, 413: {"model": ErrorAnswer}, 415: {"model": ErrorAnswer}},
        openapi_extra={"requestBody": body},
    )
    async def post_command(request: Request, response: Response) -> Answer:
        """Send one command: trigger, recipe, start, stop, mode, replay or confirm."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise HTTPException(415, f"Content-Type '{media_type[:128]}' is not known here: send application/json")
        payload = await _read(request)
        answer = await _ask(take, payload, wait_s)
        response.status_code = STATUS[answer.reason]
        return answer


async def _read(request: Request) -> bytes:
    payload = bytearray()
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            async for chunk in request.stream():
                payload += chunk
                if len(payload) > MAX_COMMAND_BYTES:
                    raise HTTPException(413, f"the command has more than {MAX_COMMAND_BYTES} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the command did not arrive within {_READ_TIMEOUT_S:g} s: send it again") from None
    except ClientDisconnect:
        raise HTTPException(400, "the command ended before it was complete") from None
    return bytes(payload)


async def _ask(take: TakeCommand, payload: bytes, wait_s: float) -> Answer:
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Answer] = loop.create_future()

    def settle(answer: Answer) -> None:
        if not answered.done():
            answered.set_result(answer)

    def reply(answer: Answer) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended meanwhile, and nobody waits any more
            loop.call_soon_threadsafe(settle, answer)

    take(payload, reply)
    try:
        return await asyncio.wait_for(answered, wait_s)
    except TimeoutError:
        text = f"the command was taken and is not answered after {wait_s:g} s: send it again with the same command_id"
        raise HTTPException(503, text) from None
