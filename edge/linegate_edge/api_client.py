"""A person or program that talks to a station's API, for benchmarks: logs in, keeps its cookie, sends the CSRF token.

Rules kept here: standard library alone; a refusal is an error with the station's own words.
"""

from __future__ import annotations

import http.cookiejar
import json
import urllib.error
import urllib.request
from typing import Any, Final

from linegate.errors import StationError

_TIMEOUT_S: Final = 600.0
_PASSWORD: Final = "a password that only a benchmark has"


class ApiClient:
    """One who is logged in at the station at `address`.

    Raises:
        StationError: the station refuses, or does not answer; so does each of its methods.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._opener = urllib.request.build_opener(*handlers)
        self._csrf: str | None = None

    @classmethod
    def signed_in(cls, address: str, name: str, password: str) -> ApiClient:
        """Return a client that has logged in, and has chosen a password of its own where it had to."""
        client = cls(address)
        client.post("/api/v1/login", {"name": name, "password": password})
        session = client.get("/api/v1/session")
        client._csrf = session["csrf"]
        if session["must_change"]:
            client.post("/api/v1/password", {"current": password, "new": _PASSWORD})
            client._csrf = client.get("/api/v1/session")["csrf"]
        return client

    def get(self, path: str) -> Any:
        """Return the JSON at a path."""
        return json.loads(self.read(path))

    def read(self, path: str) -> bytes:
        """Return the bytes at a path."""
        return self._send(urllib.request.Request(f"{self._address}{path}"))

    def post(self, path: str, body: Any) -> Any:
        """Send JSON and return the JSON answer, None where it has none."""
        headers = {"Content-Type": "application/json"}
        if self._csrf is not None:
            headers["X-CSRF-Token"] = self._csrf
        request = urllib.request.Request(f"{self._address}{path}", json.dumps(body).encode(), headers, method="POST")
        text = self._send(request)
        return json.loads(text) if text else None

    def _send(self, request: urllib.request.Request) -> bytes:
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as response:
                data: bytes = response.read()
                return data
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise StationError(f"{request.get_method()} {request.selector}: {error.code}: {text[:500]}") from error
        except OSError as error:
            raise StationError(f"{request.get_method()} {request.selector}: the station does not answer: {error}") from error
