"""The routes of access under `/api/v1`: login and logout, passwords, users, tokens, the audit trail.

Rules kept here: a login is told apart from none by neither text nor time; a new session has a new secret, whatever the browser
brought; hashing passwords never takes more than a few of the server's threads. Who may call what is left to `gate`.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Annotated, Any, Final

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from linegate.errors import AccessError
from linegate_edge.review.access import answers
from linegate_edge.review.access.access import Access
from linegate_edge.review.access.client import COOKIE, Client, cookies_of
from linegate_edge.review.access.gate import Caller
from linegate_edge.review.access.next_path import checked_next
from linegate_edge.review.access.passwords import is_password
from linegate_edge.review.access.policy import ROUTES
from linegate_edge.review.access.roles import ROLES
from linegate_edge.review.access.sessions import Session
from linegate_edge.review.access.users import plain_name
from linegate_edge.review.answers import errors
from linegate_edge.review.audit import NOBODY as NOBODY_AT_ALL
from linegate_edge.review.audit import Actor, verify
from linegate_edge.review.static import served_pages

_LOGINS_AT_ONCE: Final = 4
_WRONG: Final = "name or password is wrong"


class AuditQuery(BaseModel):
    """Which lines of the audit trail, and which page of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: int | None = Field(None, ge=1, le=2**62, description="`next` of the page before")
    subject: str | None = Field(None, min_length=1, max_length=256, description="Of this subject alone")
    limit: int = Field(100, ge=1, le=500, description="Lines a page")


def add_access(app: FastAPI, access: Access) -> None:
    """Add the routes of access to an application, and its answer to an `AccessError`."""

    async def on_access_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, AccessError)
        return JSONResponse({"error": str(error)}, error.status)

    app.add_exception_handler(AccessError, on_access_error)
    _add_login(app, access)
    _add_users(app, access)
    _add_tokens(app, access)
    _add_audit(app, access)


def set_session_cookie(response: Response, access: Access, client: Client, secret: str) -> None:
    """Give the browser its session; scripts cannot read it, other sites cannot use it."""
    age_s = int(access.sessions.longest.total_seconds())
    secure = client.https or access.settings.cookie_secure
    response.set_cookie(COOKIE, secret, max_age=age_s, path="/", secure=secure, httponly=True, samesite="strict")


def first_cookie(request: Request) -> str | None:
    """Return the session's secret that the browser brought, good or not."""
    return next(iter(cookies_of(request.headers, COOKIE)), None)


def describe_session(access: Access, caller: Caller, *, next_path: str | None = None) -> answers.SessionAnswer:
    """Return what a page has to know of who asks."""
    person = caller.actor if caller.actor.role in ROLES else None
    session, permissions = caller.session, caller.permissions
    must_change = session is not None and session.must_change
    return answers.SessionAnswer(
        name=None if person is None else person.name,
        role=None if person is None else person.role,
        permissions=tuple(sorted(permissions)),
        pages=() if must_change else tuple(name for path, name in served_pages() if ROUTES["GET", path] in permissions),
        csrf=None if session is None else session.csrf,
        must_change=must_change,
        oidc=access.provider is not None,
        next=next_path,
    )


def _add_login(app: FastAPI, access: Access) -> None:
    at_once = threading.BoundedSemaphore(_LOGINS_AT_ONCE)

    @app.post(
        "/api/v1/login",
        tags=["access"],
        summary="Log in",
        responses=errors(401, 403, 413, 429, 422, 503),
    )
    def post_login(request: Request, response: Response, login: answers.LoginRequest) -> answers.SessionAnswer:
        """Log in by name and password; the session is in the cookie `linegate_session`, its `csrf` in the answer.

        Too many attempts are answered 429 with `Retry-After`. With `must_change` all that works is `POST /api/v1/password`.
        """
        client: Client = request.state.client
        try:
            next_path = checked_next(login.next)
        except AccessError as error:
            access.note(NOBODY_AT_ALL, "login.refused", "next", client.address, str(error))
            raise
        name, why = login.name[:64], "no such user"
        try:
            name = plain_name(login.name)
        except AccessError:
            why = "no name for a user"
        _limit(access, name, client)
        if not at_once.acquire(blocking=False):
            raise HTTPException(503, "too many logins at once: try again in a moment", {"Retry-After": "1"})
        try:
            user = access.users.find(name)
            good = is_password(None if user is None else user.password, login.password)
        finally:
            at_once.release()
        if user is None or not good or user.disabled_at is not None:
            if user is not None:
                why = "wrong password" if not good else "the user is disabled"
            actor = NOBODY_AT_ALL if user is None else Actor(user.name, user.role)
            access.trail.add(actor, "login.failed", name, {"address": client.address, "why": why})
            raise AccessError(_WRONG, 401)
        agent = request.headers.get("user-agent", "")
        secret, session = access.sessions.open(
            user, agent, address=client.address, how="password", instead_of=first_cookie(request)
        )
        access.limit.succeeded(name, client.address)
        set_session_cookie(response, access, client, secret)
        return describe_session(access, _caller_of(session), next_path=next_path)

    @app.get("/api/v1/session", tags=["access"], summary="Who is logged in", responses=errors(401, 422, 503))
    def get_session(request: Request) -> answers.SessionAnswer:
        """Return who asks and what they may do; without a login, what this address may do."""
        return describe_session(access, request.state.caller)

    @app.post("/api/v1/logout", tags=["access"], summary="Log out", status_code=204, responses=errors(401, 403, 422, 503))
    def post_logout(request: Request, response: Response) -> None:
        """End this session."""
        access.sessions.end(_session(request), request.state.client.address)
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")

    @app.post(
        "/api/v1/password",
        tags=["access"],
        summary="Change the own password",
        responses=errors(401, 403, 409, 413, 429, 422, 503),
    )
    def post_password(request: Request, response: Response, change: answers.PasswordRequest) -> answers.SessionAnswer:
        """Choose another password; all other sessions end, and this one gets a new cookie and a new `csrf`."""
        session, client = _session(request), request.state.client
        _limit(access, session.user, client)
        if not at_once.acquire(blocking=False):
            raise HTTPException(503, "too many logins at once: try again in a moment", {"Retry-After": "1"})
        try:
            access.users.change_password(session.actor, session.user, change.new, change.current, keep=session.digest)
        except AccessError as error:
            if error.status == 422:  # the current one was right: choosing is no guessing
                access.limit.succeeded(session.user, client.address)
            raise
        finally:
            at_once.release()
        access.limit.succeeded(session.user, client.address)
        secret, renewed = access.sessions.renew(session, client.address)
        set_session_cookie(response, access, client, secret)
        return describe_session(access, _caller_of(renewed))


def _limit(access: Access, name: str, client: Client) -> None:
    wait_s, new = access.limit.attempt(name, client.address)
    if wait_s > 0:
        if new:
            access.trail.add(NOBODY_AT_ALL, "login.limited", name, {"address": client.address, "wait_s": wait_s})
        text = f"too many attempts: try again in {wait_s} s"
        raise HTTPException(429, text, {"Retry-After": str(wait_s)})


def _caller_of(session: Session) -> Caller:
    return Caller(session.actor, session.permissions, session)


def _session(request: Request) -> Session:
    session: Session | None = request.state.session
    if session is None:
        raise AccessError("log in first: this is about the session of a browser", 401)
    return session


def _add_users(app: FastAPI, access: Access) -> None:
    def answer(name: str) -> answers.UserAnswer:
        for user, sessions in access.users.list():
            if user.name == name:
                return _user_answer(dataclasses.asdict(user), sessions)
        raise AccessError(f"there is no user '{name[:64]}'", 404)

    @app.get("/api/v1/users", tags=["users"], summary="All users", responses=errors(401, 403, 422, 503))
    def get_users() -> answers.UserList:
        """Return all users, disabled ones too: the audit trail names them."""
        return answers.UserList(
            items=tuple(_user_answer(dataclasses.asdict(user), sessions) for user, sessions in access.users.list())
        )

    @app.post(
        "/api/v1/users", tags=["users"], summary="Add a user", status_code=201, responses=errors(401, 403, 409, 413, 422, 503)
    )
    def post_user(request: Request, new: answers.NewUser) -> answers.ChangedUser:
        """Add somebody, who has to choose a password of their own at the first login."""
        made = access.users.add(request.state.actor, new.name, new.role, new.password)
        return answers.ChangedUser(user=answer(plain_name(new.name)), one_time_password=made)

    @app.patch(
        "/api/v1/users/{name}", tags=["users"], summary="Change a user", responses=errors(401, 403, 404, 409, 413, 422, 503)
    )
    def patch_user(request: Request, name: str, change: answers.UserChange) -> answers.ChangedUser:
        """Change role, or whether somebody may come in; give a one-time password; end all sessions.

        One of them at a time, so that it is done or not done; each ends the user's sessions. One admin always remains.
        """
        actor, made = request.state.actor, None
        asked = (change.role is not None, change.disabled is not None, change.reset_password, change.end_sessions)
        if sum(asked) != 1:
            raise AccessError(f"one change at a time: role, disabled, reset_password or end_sessions, got {sum(asked)}")
        name = plain_name(name)
        if change.role is not None:
            access.users.change_role(actor, name, change.role)
        if change.disabled is not None:
            access.users.disable(actor, name, change.disabled)
        if change.reset_password:
            made = access.users.reset_password(actor, name)
        if change.end_sessions:
            access.users.end_sessions(actor, name)
        return answers.ChangedUser(user=answer(name), one_time_password=made)


def _user_answer(user: dict[str, Any], sessions: int) -> answers.UserAnswer:
    shown = {name: user[name] for name in answers.UserAnswer.model_fields if name != "sessions"}
    return answers.UserAnswer(**shown, sessions=sessions)


def _add_tokens(app: FastAPI, access: Access) -> None:
    @app.get("/api/v1/tokens", tags=["users"], summary="All tokens", responses=errors(401, 403, 422, 503))
    def get_tokens() -> answers.TokenList:
        """Return all tokens of machines, those that are over or revoked too."""
        return answers.TokenList(items=tuple(_token_answer(token) for token in access.tokens.list()))

    @app.post(
        "/api/v1/tokens",
        tags=["users"],
        summary="Make a token",
        status_code=201,
        responses=errors(401, 403, 409, 413, 422, 503),
    )
    def post_token(request: Request, new: answers.NewToken) -> answers.MadeToken:
        """Make a token for a camera, a gateway, Prometheus; what opens the door is in this answer alone."""
        secret, token = access.tokens.add(request.state.actor, new.name, new.role, new.days)
        return answers.MadeToken(token=_token_answer(token), secret=secret)

    @app.delete(
        "/api/v1/tokens/{name}",
        tags=["users"],
        summary="Revoke a token",
        status_code=204,
        responses=errors(401, 403, 404, 422, 503),
    )
    def delete_token(request: Request, name: str) -> None:
        """End a token; it stays in the list, and its name is not given again."""
        access.tokens.revoke(request.state.actor, plain_name(name))


def _token_answer(token: Any) -> answers.TokenAnswer:
    return answers.TokenAnswer(**dataclasses.asdict(token))


def _add_audit(app: FastAPI, access: Access) -> None:
    @app.get("/api/v1/audit", tags=["audit"], summary="The audit trail, page by page", responses=errors(401, 403, 422, 503))
    def get_audit(query: Annotated[AuditQuery, Query()]) -> answers.AuditPage:
        """Return lines of the trail, newest first, and where the page after it begins."""
        lines = access.trail.lines(before=query.before, subject=query.subject, limit=query.limit + 1)
        more = len(lines) > query.limit
        items = [answers.AuditItem(**{**_fields(line), "detail": dict(line.detail)}) for line in lines[: query.limit]]
        return answers.AuditPage(items=tuple(items), next=items[-1].number if more else None)

    @app.get("/api/v1/audit/head", tags=["audit"], summary="The last line's digest", responses=errors(401, 403, 422, 503))
    def get_head() -> answers.AuditHead:
        """Return what to note elsewhere, so that the trail up to here can be proved later."""
        number, digest = access.trail.head()
        return answers.AuditHead(number=number, digest=digest)

    @app.get("/api/v1/audit/verify", tags=["audit"], summary="Does the trail hold?", responses=errors(401, 403, 422, 503))
    def get_verify(
        noted: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="A digest noted earlier")] = None,
    ) -> answers.AuditVerdict:
        """Go through the trail from the first line to the last, and tell the first thing that is wrong."""
        report = verify(access.database.folder, noted)
        holds = report.problem is None
        return answers.AuditVerdict(holds=holds, lines=report.lines, head=report.head, problem=report.problem)


def _fields(line: Any) -> dict[str, Any]:
    return {name: getattr(line, name) for name in answers.AuditItem.model_fields}
