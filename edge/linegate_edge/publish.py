"""The outbox → MQTT, for as long as it takes: one loop that connects again and again, and a watchdog over it.

Rules kept here: a broker that is away is waited for, with a random wait that grows; every connection is made anew, so that
no state of a broken one survives; a loop that dies or hangs is given up and another takes its place. How verdicts are sent
and acknowledged is left to `mqtt_connection`, storing to `line`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from linegate.errors import LinegateError, SettingsError
from linegate_edge.commands import Confirmed
from linegate_edge.live import Live
from linegate_edge.message import StateMessage
from linegate_edge.metrics import Metrics
from linegate_edge.mqtt_commands import CommandBox, TakeCommand
from linegate_edge.mqtt_connection import FAREWELL_S, TICK_S, Connection, DisconnectedError, Link, LoopState
from linegate_edge.settings import MqttSection
from linegate_edge.store import StoreReader
from linegate_edge.tls import make_context

log = logging.getLogger("linegate.publish")
_BACKOFF_FIRST_S: Final = 0.5
_HANG_MARGIN_S: Final = 15.0
_USERNAME: Final = "LINEGATE_MQTT_USERNAME"
_PASSWORD: Final = "LINEGATE_MQTT_PASSWORD"


class Publisher:
    """Sends a station's verdicts and state to its broker; `wake`, `replayed` and `confirm` may be called from any thread.

    Raises:
        SettingsError: the password file cannot be read.
    """

    def __init__(
        self,
        settings: MqttSection,
        station_topic: str,
        store_path: Path,
        *,
        acknowledge: Callable[[Sequence[int]], None],
        state: Callable[[Literal["online", "stopped", "lost"]], StateMessage],
        live: Live,
        metrics: Metrics,
        take_command: TakeCommand,
    ) -> None:
        self.on_puback: Callable[[int], None] = _ignore
        """Told the sequence number of each verdict that the broker has acknowledged, from the loop's thread."""
        # Files that cannot be used are told before anything starts; each connection then reads them anew.
        make_context(settings)
        credentials(settings)
        self._box = CommandBox(take_command, self.wake)
        self._link = Link(
            settings, station_topic, lambda: credentials(settings), acknowledge, self._puback, state, live, metrics, self._box
        )
        self._store_path = store_path
        self._stopping = threading.Event()
        self._loop = self._make_loop()
        self._watchdog = threading.Thread(target=self._watch, name="publisher-watchdog", daemon=True)

    def start(self) -> None:
        """Start to send; a broker that is not there yet is waited for."""
        self._loop.start()
        self._watchdog.start()

    def wake(self) -> None:
        """Tell the loop that the outbox has grown."""
        self._loop.wake()

    def replayed(self, first: int, last: int) -> None:
        """Tell the loop that verdicts are, or will be, put back into the outbox: an older acknowledgement counts no more."""
        self._loop.state.kept.replays.append((first, last))
        self._loop.wake()

    def confirm(self, confirmed: Confirmed) -> int | None:
        """Heed what the MES confirms and return how many verdicts it names; None where its confirmation is not asked for."""
        if self._link.settings.confirm != "mes":
            return None
        self._box.confirm(confirmed)
        return len(confirmed.verdict_ids) + sum(span.last - span.first + 1 for span in confirmed.sequences)

    def stop(self) -> None:
        """Send what the broker still takes within a few seconds, say goodbye, and end; the rest stays in the outbox."""
        self._stopping.set()
        self._loop.wake()
        self._watchdog.join()
        self._loop.join(FAREWELL_S + 3.0)

    def _puback(self, sequence: int) -> None:
        self.on_puback(sequence)

    def _make_loop(self) -> _Loop:
        return _Loop(self._link, self._store_path, self._stopping)

    def _watch(self) -> None:
        longest_s = 2 * self._link.settings.connect_timeout_s + _HANG_MARGIN_S  # once for TCP, once for TLS
        while not self._stopping.wait(TICK_S):
            silent_s = time.monotonic() - self._loop.state.heartbeat
            if self._loop.is_alive() and silent_s < longest_s:
                continue
            what = f"hangs since {silent_s:.0f} s" if self._loop.is_alive() else "died"
            log.error("the MQTT loop %s; building a new one", what)
            self._link.live.set_broker(False, "the MQTT loop had to be rebuilt")
            self._loop.abandon()
            self._loop = self._make_loop()
            self._loop.start()


class _Loop(threading.Thread):
    """One life of the sending loop: connects, sends, and connects again until stopped or abandoned."""

    def __init__(self, link: Link, store_path: Path, stopping: threading.Event) -> None:
        super().__init__(name="publisher", daemon=True)
        self._link, self._store_path = link, store_path
        wake_reader, self._wake_writer = socket.socketpair()
        wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self.state = LoopState(stopping, wake_reader)
        self._reported: str | None = None

    def wake(self) -> None:
        """Interrupt the loop's wait; a full pipe wakes as well, and a loop that has ended needs no waking."""
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"w")

    def abandon(self) -> None:
        """Give this loop up: whatever it still does has no effect, and its socket is closed under it."""
        self.state.abandoned.set()
        connection = self.state.socket
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        failures = 0
        try:
            while not self.state.ending:
                try:
                    with contextlib.closing(StoreReader(self._store_path)) as reader:
                        connection = Connection(self._link, self.state, reader)
                        try:
                            connection.open()
                            failures, self._reported = 0, None
                            connection.serve()
                        finally:
                            connection.close()
                except (DisconnectedError, LinegateError, OSError, ValueError) as error:
                    self._report(str(error) or type(error).__name__)
                if not self.state.ending:
                    # Full jitter (Brooker, "Exponential Backoff and Jitter", 2015): stations do not come back in step.
                    limit_s = min(self._link.settings.backoff_max_s, _BACKOFF_FIRST_S * 2**failures)
                    failures = min(failures + 1, 16)
                    self._rest(random.uniform(0.1, limit_s))
        finally:
            self.state.wake_reader.close()
            self._wake_writer.close()

    def _rest(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.state.ending and (rest_s := deadline - time.monotonic()) > 0:
            self.state.heartbeat = time.monotonic()
            self.state.stopping.wait(min(TICK_S, rest_s))

    def _report(self, text: str) -> None:
        if self.state.ending:
            return
        where = f"{self._link.settings.host}:{self._link.settings.port}"
        if text != self._reported:  # one line a change, not one a try
            log.warning("broker %s: %s; verdicts wait in the outbox", where, text)
            self._reported = text
        self._link.live.set_broker(False, f"{where}: {text}")
        self._link.metrics.broker_connected.set(0)


def _ignore(_: int) -> None: ...


def credentials(settings: MqttSection) -> tuple[str | None, str | None]:
    """Return user name and password: from the settings, or from the environment where they name none.

    Raises:
        SettingsError: the password file cannot be read.
    """
    username = settings.username or os.environ.get(_USERNAME) or None
    if settings.password_file is None:
        return username, os.environ.get(_PASSWORD) or None
    try:
        return username, settings.password_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"[mqtt] password_file {settings.password_file}: cannot be read: {error.strerror}") from error
