"""Who may talk to the station from a browser, and what a browser may do with the answers.

Who is logged in, and what they may do, is left to `access.gate`. This stands before it, for a login alone keeps no page of
another site out: it may send requests from a browser that is logged in, or from the station's own machine, where programs need
no login. So, on every request:

- The `Host` must be an address, `localhost`, this machine's own name, a name that nobody can register in the public DNS
  (without a dot, `.localhost`, `.local`, `.internal`), or one that the settings list. A page that rebinds its own
  name to loopback still sends its own name, and is refused (421).
- A request that changes something must not come from another site's page: `Sec-Fetch-Site` is `same-origin` or `none`,
  and `Origin` is the address that was asked (403). Programs send neither header, and are served.
- Every answer carries a Content-Security-Policy that loads nothing from elsewhere and runs no inline script or style; that
  of a request on which the station's own code breaks too, which is answered here with one line (500).

It is plain ASGI, since a middleware that buffers would hold back the event stream.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
from collections.abc import Callable, Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("linegate.http")
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_UNREGISTRABLE: Final = (".localhost", ".local", ".internal")
_SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """The middleware that keeps these rules; `host_names` are further names under which the station is reached.

    `on_refusal` is told, on a thread, of a page of another site: the route, the peer's address, and why.
    """

    def __init__(
        self, app: ASGIApp, host_names: Collection[str] = (), on_refusal: Callable[[str, str, str], None] = lambda *_: None
    ) -> None:
        self._app, self._on_refusal = app, on_refusal
        own = {"localhost", socket.gethostname(), *host_names}
        self._host_names = frozenset(name.lower().rstrip(".") for name in own)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        if refusal is not None:
            if refusal[0] == 403:
                peer = str((scope.get("client") or ("unknown", 0))[0])
                route = f"{scope['method']} {scope['path']}"
                await run_in_threadpool(self._on_refusal, route, peer, refusal[1])
            await _answer(send_guarded, *refusal)
            return
        try:
            await self._app(scope, receive, send_guarded)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if started:
                raise
            await _answer(send_guarded, 500, "the station made a mistake; its log says more")

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        name = _host_name(host)
        if name is None or not self._is_ours(name):
            text = f"'{host[:128]}' is no name of this station: use its address, or list the name in [http] names"
            return 421, text
        if method in _SAFE_METHODS:
            return None
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "a page of another site must not send frames: send them from a program, or from this station's page"
        origin = headers.get("origin")
        if origin is not None and _origin_host(origin) != host.lower():
            return 403, f"a page of '{origin[:128]}' must not send frames: send them from a program"
        return None

    def _is_ours(self, name: str) -> bool:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return "." not in name or name.endswith(_UNREGISTRABLE) or name in self._host_names
        return True


def _host_name(host: str) -> str | None:
    """Return the name or address in a Host header, without its port; None where it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # a property that raises on nonsense
    except ValueError:
        return None
    if not parts.hostname or parts.path or parts.query or parts.fragment or parts.username is not None:
        return None
    return parts.hostname.rstrip(".")


def _origin_host(origin: str) -> str:
    scheme, separator, host = origin.lower().partition("://")
    return host if separator and scheme in ("http", "https") else ""


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"error": text}, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
