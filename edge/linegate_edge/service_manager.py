"""What the service manager is told: ready, reloading, stopping, still alive (systemd's sd_notify protocol).

Rules kept here: without a service manager every call does nothing; a service manager that does not listen never holds the
station up; the watchdog is fed only while the station makes progress, so that a station that hangs is started anew. The
protocol is a datagram of `KEY=value` lines (sd_notify(3)); whether there is progress is left to the caller to say.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

log = logging.getLogger("linegate.service")
_FEEDS_PER_TIMEOUT: Final = 4


class ServiceManager:
    """The service manager that started this process, as its environment names it; for one thread."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL of the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._feed_s = _watchdog_s(environment) / _FEEDS_PER_TIMEOUT
        self._fed_at = float("-inf")
        self._progress: float | None = None
        self._status = ""

    def ready(self) -> None:
        """Say that the station judges parts."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that settings are read again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the station finishes its parts and ends."""
        self._send("STOPPING=1")

    def show(self, status: str) -> None:
        """Show a line of text in `systemctl status`."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={' '.join(status.split())}")

    def feed(self, alive: bool, progress: float) -> None:
        """Feed the watchdog if the station is alive and `progress` is another number than when it was last fed."""
        now = time.monotonic()
        if self._feed_s > 0 and alive and progress != self._progress and now - self._fed_at >= self._feed_s:
            self._progress, self._fed_at = progress, now
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Let the socket go."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if self._socket is not None:
            # A full or vanished socket costs one message, not a part.
            with contextlib.suppress(OSError):
                self._socket.sendto(text.encode(), self._address)


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Return the watchdog's timeout, or 0 where there is none, or it is meant for another process."""
    try:
        meant_for = int(environment.get("WATCHDOG_PID") or os.getpid())
        timeout_s = int(environment.get("WATCHDOG_USEC") or 0) / 1e6
    except ValueError:
        log.warning("WATCHDOG_PID and WATCHDOG_USEC must be whole numbers: the watchdog is not fed")
        return 0.0
    return timeout_s if meant_for == os.getpid() else 0.0
