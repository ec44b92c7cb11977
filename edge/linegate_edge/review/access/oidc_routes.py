"""Login by the plant's identity provider: away to it, and back.

Rules kept here: the way back is a page of our own, which then goes on by itself: a cookie that is for this site alone does not
travel with a redirect that began at another; what went wrong is told in one line, to a browser as a page.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from linegate.errors import AccessError
from linegate_edge.review.access.access import Access
from linegate_edge.review.access.client import Client, cookies_of
from linegate_edge.review.access.next_path import checked_next
from linegate_edge.review.access.oidc import Provider
from linegate_edge.review.access.routes import first_cookie, set_session_cookie
from linegate_edge.review.access.small_page import small_page
from linegate_edge.review.answers import ERROR_SCHEMA
from linegate_edge.review.audit import NOBODY as NOBODY_AT_ALL

_COOKIE: Final = "linegate_oidc"
_PATH: Final = "/api/v1/oidc"
_Text = Annotated[str | None, Query(max_length=4096)]


def add_oidc(app: FastAPI, access: Access) -> None:
    """Add the two routes; without a provider in the settings they answer 404."""
    # A browser gets a page, a program one line of JSON.
    error = {"text/html": {"schema": {"type": "string"}}, "application/json": {"schema": {"$ref": ERROR_SCHEMA}}}
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": "No login", "content": error} for status in (401, 403, 404, 422, 429, 502, 503)
    }

    @app.get(
        f"{_PATH}/start",
        tags=["access"],
        summary="Log in by the identity provider",
        status_code=303,
        response_class=RedirectResponse,
        responses=errors,
    )
    def get_start(request: Request, next: _Text = None) -> Response:
        """Go to the plant's identity provider, and come back logged in."""
        client: Client = request.state.client
        try:
            next_path = checked_next(next)
            redirect_uri = f"{_scheme(client)}://{request.headers['host']}{_PATH}/callback"
            address, browser = _provider(access).begin(redirect_uri, next_path)
        except AccessError as error:
            return _refuse(request, access, error)
        response = RedirectResponse(address, 303)
        secure = client.https or access.settings.cookie_secure
        # Lax: the way back begins at the provider, and this must travel with it.
        response.set_cookie(_COOKIE, browser, max_age=600, path=_PATH, secure=secure, httponly=True, samesite="lax")
        return response

    @app.get(
        f"{_PATH}/callback",
        tags=["access"],
        summary="The way back from the identity provider",
        response_class=HTMLResponse,
        responses=errors,
    )
    def get_callback(
        request: Request,
        state: _Text = None,
        code: _Text = None,
        error: _Text = None,
        error_description: _Text = None,
    ) -> Response:
        """End the login that `start` began; a page that goes on to where it was asked for."""
        client: Client = request.state.client
        try:
            provider = _provider(access)
            if error is not None:
                raise AccessError(f"the provider refuses: {error[:64]} {(error_description or '')[:128]}".rstrip(), 403)
            if state is None or code is None:
                raise AccessError("this is the way back from the identity provider: begin at /login", 422)
            browser = next(iter(cookies_of(request.headers, _COOKIE)), "")
            identity, next_path = provider.finish(state, code, browser)
            user = access.users.from_provider(identity.issuer, identity.subject, identity.name, identity.role)
            agent = request.headers.get("user-agent", "")
            secret, _ = access.sessions.open(
                user, agent, address=client.address, how=identity.issuer, instead_of=first_cookie(request)
            )
        except AccessError as refusal:
            return _refuse(request, access, refusal)
        response = HTMLResponse(small_page("Logged in", {next_path: "Go on"}, then=next_path))
        set_session_cookie(response, access, client, secret)
        response.delete_cookie(_COOKIE, path=_PATH, httponly=True, samesite="lax")
        return response


def _provider(access: Access) -> Provider:
    if access.provider is None:
        raise AccessError("this station has no identity provider: [access] oidc_issuer", 404)
    return access.provider


def _scheme(client: Client) -> str:
    return "https" if client.https else "http"


def _refuse(request: Request, access: Access, error: AccessError) -> Response:
    access.note(NOBODY_AT_ALL, "login.failed", "identity provider", request.state.client.address, str(error))
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": str(error)}, error.status)
    return HTMLResponse(small_page(str(error), {"/login": "Go on"}), error.status)
