"""The gate before every route: who asks, and whether the one table lets them.

Rules kept here: what is not in `policy.ROUTES` does not exist; a request that changes something by a cookie carries its
session's `X-CSRF-Token`; a session that ends takes its event streams with it; a page without a login leads to the login page,
everything else gets one line. `request.state.actor` says who asks, `request.state.session` by which session, if any.

It is plain ASGI, since a middleware that buffers would hold back the event stream. The store is asked only for requests that
carry something to look up, frames of this machine pass without; and on a thread, but for the one row of a session in use.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import quote

from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linegate.errors import AccessError, StoreError
from linegate_edge.review.access.access import Access
from linegate_edge.review.access.client import COOKIE, Client, cookies_of, read_client
from linegate_edge.review.access.policy import Asked, find, is_page
from linegate_edge.review.access.roles import LOOPBACK, NOBODY, ROLES, Permission
from linegate_edge.review.access.sessions import Session
from linegate_edge.review.access.small_page import small_page
from linegate_edge.review.audit import NOBODY as NOBODY_AT_ALL
from linegate_edge.review.audit import Actor

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_SMALL_BODY, _LARGE_BODY = 64 * 1024, 16 * 2**20
_BODIES_OF_THEIR_OWN: Final = frozenset({Permission.FRAMES, Permission.COMMANDS})
_CHECK_STREAMS_EVERY_S: Final = 10.0
LOCAL: Final = Actor("this machine", "loopback")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they may do; `session` only where a cookie says so, `secret` is what was shown."""

    actor: Actor
    permissions: frozenset[Permission]
    session: Session | None = None
    secret: str | None = None


async def actor_of(request: Request) -> Actor:
    """Return who asks, as the gate has found; `async`, for FastAPI takes another turn on a thread for what is not."""
    actor: Actor = request.state.actor
    return actor


Who = Annotated[Actor, Depends(actor_of)]
"""The parameter of a route that wants to know who asks."""


class Gate:
    """The middleware that keeps these rules."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path, headers = scope["method"], scope["path"], Headers(scope=scope)
        client = read_client(scope, headers, self._access.trusted)
        asked = find(method, path)
        if asked is None:
            await _answer(send, 404, f"nothing here at {path[:128]}: see /openapi.json")
            return
        if asked.permission is None:
            text = f"{method[:16]} is not possible at {path[:128]}: see /openapi.json"
            await _answer(send, 405, text, {"allow": ", ".join(asked.methods)})
            return
        try:
            caller = await self._caller(headers, client, asked)
            await self._check(method, path, headers, client, asked, caller)
        except AccessError as error:
            if error.status == 401 and is_page(asked.address):
                await _to_login(send, scope)
            elif error.status == 403 and is_page(asked.address):
                await _answer_page(send, error.status, str(error))
            else:
                await _answer(send, error.status, str(error), _after(error, headers))
            return
        except StoreError as error:
            await _answer(send, 503, str(error))
            return
        state = scope.setdefault("state", {})
        state["actor"], state["session"], state["client"], state["caller"] = caller.actor, caller.session, client, caller
        receive = self._bounded(receive, headers, asked, caller, client)
        if caller.session is None:
            await self._app(scope, receive, send)
        else:
            await self._while_logged_in(scope, receive, send, headers, client, caller)

    async def _caller(self, headers: Headers, client: Client, asked: Asked) -> Caller:
        """Return who asks.

        Raises:
            AccessError: a token is not good, or a session was stolen.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            known = await run_in_threadpool(self._access.tokens.find, token.strip())
            if known is None:
                text = "the bearer token is unknown, revoked or over"
                await run_in_threadpool(self._access.note, NOBODY_AT_ALL, "token.refused", asked.address, client.address, text)
                raise AccessError(f"{text}: have an admin make a new one", 401)
            granted = ROLES.get(known.role, NOBODY) - {Permission.SELF}  # a token has no password and no session
            return Caller(Actor(f"token {known.name}", known.role), granted | _granted(client))
        agent = headers.get("user-agent", "")
        for secret in cookies_of(headers, COOKIE)[:4]:
            # A turn on a thread costs more than the question itself: only where something is to be written, or refused.
            session = self._access.sessions.peek(secret, agent)
            if session is None:
                session = await run_in_threadpool(self._access.sessions.find, secret, agent, address=client.address)
            if session is not None:
                return Caller(session.actor, session.permissions | _granted(client), session, secret)
        return Caller(LOCAL if client.local else NOBODY_AT_ALL, _granted(client))

    async def _check(self, method: str, path: str, headers: Headers, client: Client, asked: Asked, caller: Caller) -> None:
        """Raise AccessError where the caller may not."""
        assert asked.permission is not None
        if asked.permission not in caller.permissions:
            if caller.actor in (LOCAL, NOBODY_AT_ALL):
                raise AccessError("log in first: this needs a user of this station, or a bearer token", 401)
            if caller.session is not None and caller.session.must_change:
                if is_page(asked.address):
                    raise AccessError("choose a new password first", 401)
                raise AccessError("choose a new password first: POST /api/v1/password", 403)
            text = f"the role '{caller.actor.role}' may not {method} {asked.address}: it needs '{asked.permission}'"
            await run_in_threadpool(self._access.note, caller.actor, "refused", f"{method} {path}", client.address, text)
            raise AccessError(text, 403)
        if method in _SAFE_METHODS or caller.session is None:
            return
        if asked.address == "/api/v1/login":
            return  # a login makes a new session; that it is no page of another site, `guard` has seen
        if not hmac.compare_digest(headers.get("x-csrf-token", "").encode(), caller.session.csrf.encode()):
            text = "the X-CSRF-Token is missing or another one: GET /api/v1/session has that of this session"
            await run_in_threadpool(self._access.note, caller.actor, "csrf.refused", f"{method} {path}", client.address, text)
            raise AccessError(text, 403)

    def _bounded(self, receive: Receive, headers: Headers, asked: Asked, caller: Caller, client: Client) -> Receive:
        """Return `receive` with an end: no body may be longer than what its route could want."""
        if asked.permission in _BODIES_OF_THEIR_OWN:
            return receive
        limit = _SMALL_BODY if asked.permission in (Permission.PUBLIC, Permission.SELF) else _LARGE_BODY
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                text = f"the body has more than {limit} bytes"
                await run_in_threadpool(self._access.note, caller.actor, "body.refused", asked.address, client.address, text)
                raise HTTPException(413, text, {"Connection": "close"})
            return message

        return receive_bounded

    async def _while_logged_in(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers, client: Client, caller: Caller
    ) -> None:
        """Serve a request of a session; a stream is cut off soon after the session has ended."""
        agent, checked_at, ended = headers.get("user-agent", ""), time.monotonic(), False

        async def send_checked(message: Message) -> None:
            nonlocal checked_at, ended
            if message.get("more_body") and time.monotonic() - checked_at > _CHECK_STREAMS_EVERY_S:
                checked_at = time.monotonic()
                if await self._has_ended(caller, agent, client):
                    ended = True
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    raise OSError("the session has ended")  # what an application hears when its reader has gone
            await send(message)

        try:
            await self._app(scope, receive, send_checked)
        except Exception:
            if not ended:
                raise

    async def _has_ended(self, caller: Caller, agent: str, client: Client) -> bool:
        try:
            # A page that only listens is no sign of somebody before it; but it is all that an operator's display does.
            find_session, displays = self._access.sessions.find, caller.actor.role == "operator"
            session = await run_in_threadpool(find_session, caller.secret or "", agent, address=client.address, touch=displays)
        except AccessError:
            return True
        except StoreError:
            return False  # the disk is the trouble, and the stream is what tells of it
        return session is None


def _granted(client: Client) -> frozenset[Permission]:
    return LOOPBACK if client.local else NOBODY


async def _to_login(send: Send, scope: Scope) -> None:
    query = scope.get("query_string", b"").decode("latin-1")
    wanted = scope["path"] + (f"?{query}" if query else "")
    location = "/login" if wanted == "/" else f"/login?next={quote(wanted, safe='/')}"
    headers = [(b"location", location.encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _after(error: AccessError, headers: Headers) -> dict[str, str]:
    if error.status != 401:
        return {}
    forget = {"set-cookie": f"{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"} if cookies_of(headers, COOKIE) else {}
    return {"www-authenticate": "Bearer", **forget}


async def _answer_page(send: Send, status: int, text: str) -> None:
    body = small_page(text, {"/": "Live page", "/login": "Log in as somebody else"}).encode()
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _answer(send: Send, status: int, text: str, more: Mapping[str, str] | None = None) -> None:
    body = json.dumps({"error": text}, ensure_ascii=False).encode()
    message: Message = {"type": "http.response.start", "status": status, "headers": []}
    headers = MutableHeaders(scope=message)
    headers["content-type"], headers["content-length"] = "application/json", str(len(body))
    for name, value in (more or {}).items():
        headers[name] = value
    await send(message)
    await send({"type": "http.response.body", "body": body})
