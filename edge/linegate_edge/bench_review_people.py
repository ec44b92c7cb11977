"""People at a station as its benchmark needs them: logged in, on one connection that stays open.

Rules kept here: they come in as everybody does, by a session and its `X-CSRF-Token`, through every check of the station; plain
`http.client`, so that what they cost themselves is little and the same each time. What they do is left to who measures.
"""

from __future__ import annotations

import http.client
import json
import secrets
from dataclasses import dataclass
from typing import Any, Final

from linegate.errors import StationError
from linegate_edge.review.access.client import COOKIE
from linegate_edge.review.audit import SYSTEM
from linegate_edge.station import Station

AGENT: Final = "linegate-bench"
_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Login:
    """What a browser has after a login."""

    port: int
    secret: str
    csrf: str


def log_in(station: Station, name: str) -> Login:
    """Add somebody of quality and log them in."""
    users = station.access.users
    first, own = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
    users.add(SYSTEM, name, "quality", first)
    users.change_password(SYSTEM, name, own, first)
    user = users.find(name)
    assert user is not None
    secret, session = station.access.sessions.open(user, AGENT, address="127.0.0.1", how="benchmark")
    return Login(station.http_port, secret, session.csrf)


class Person:
    """Asks a station over one connection."""

    def __init__(self, login: Login) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", login.port, timeout=_TIMEOUT_S)
        self._headers = {"User-Agent": AGENT, "Cookie": f"{COOKIE}={login.secret}", "X-CSRF-Token": login.csrf}

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Return status and body of the answer."""
        data = None if body is None else json.dumps(body)
        headers = self._headers if data is None else {**self._headers, "Content-Type": "application/json"}
        self._connection.request(method, path, data, headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def get(self, method: str, path: str, body: object = None) -> Any:
        """Return the JSON of an answer.

        Raises:
            StationError: the station refuses.
        """
        status, answer = self.ask(method, path, body)
        if status != 200:
            raise StationError(f"the benchmark's {method} {path} was answered {status}: {answer[:200]!r}")
        return json.loads(answer)

    def close(self) -> None:
        """Leave."""
        self._connection.close()
