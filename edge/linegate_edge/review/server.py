"""The HTTP server of a station: uvicorn on a thread, on a socket of our own.

Rules kept here: the socket is bound before anything starts, so that a port in use is told in one line; signals are the
station's; stopping lets requests in hand finish and does not wait for pages that follow the event stream.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import threading
from typing import Final

import uvicorn
from fastapi import FastAPI

from linegate.errors import StationError

log = logging.getLogger("linegate.http")
_START_TIMEOUT_S: Final = 30.0
_MAX_CONNECTIONS: Final = 512
_POLL_S: Final = 0.01


class HttpServer:
    """Serves an application made by `create_app`; `port` 0 takes a free one.

    Raises:
        StationError: the port is in use or not allowed, or the host is no address of this machine.
    """

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        self._app, self._socket = app, _bind(host, port)
        self._port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=15,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port that is bound."""
        return self._port

    def start(self) -> None:
        """Start the server and return when it accepts requests.

        Raises:
            StationError: it did not start; the log says why.
        """
        self._thread.start()
        for _ in range(round(_START_TIMEOUT_S / _POLL_S)):
            if self._server.started or not self._thread.is_alive():
                break
            self._thread.join(_POLL_S)
        if not self._server.started:
            raise StationError(f"the HTTP server on port {self.port} did not start: see the log")

    def stop(self, timeout_s: float) -> None:
        """Turn new requests away, finish those in hand, and return after `timeout_s` at the latest."""
        self._app.state.stopping.set()
        self._server.config.timeout_graceful_shutdown = max(1, math.floor(timeout_s))
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout_s + 1)
        self._socket.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except Exception:
            log.exception("the HTTP server broke down")


def _bind(host: str, port: int) -> socket.socket:
    where = f"[http] host = '{host}', port = {port}"
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise StationError(f"{where}: '{host}' is no address of this machine: use 127.0.0.1, or 0.0.0.0 for all") from error
    # The protocol is named because asyncio sets TCP_NODELAY only then; without it each answer takes 40 ms longer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise StationError(f"{where}: {_mend(error, host, port)}") from error
    return listener


def _mend(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use: stop the program that listens there, or choose another port"
        case errno.EACCES:
            return f"port {port} is not allowed for this user: choose one from 1024"
        case errno.EADDRNOTAVAIL:
            return f"'{host}' is no address of this machine: use 127.0.0.1, or 0.0.0.0 for all"
    return f"cannot be bound: {os.strerror(error.errno or 0)}"
