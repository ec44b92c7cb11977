"""The outbox → MQTT, at QoS 1, in order, for as long as it takes.

Rules kept here: one loop sends in sequence order, and a row leaves the outbox only on a PUBACK whose reason code is
success; "no matching subscribers" is no success, for nobody heard it; every connection is made by a new client, so that
no state of a broken one survives, and what was not acknowledged is sent again with the same verdict id; a loop that dies
or hangs is given up and built anew. Storing is left to `line`, the texts to `message`.

The loop is ours and not paho's, for one thread then reads, writes and hears callbacks: no lock is held across a call, and
the watchdog can tell a loop that hangs from one that has nothing to do.
"""

from __future__ import annotations

import contextlib
import logging
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from linegate.errors import SettingsError, StoreError
from linegate_edge.live import Live
from linegate_edge.message import SCHEMA_VERSION, StateMessage, topics, utc_now, with_published
from linegate_edge.metrics import Metrics
from linegate_edge.settings import MqttSection
from linegate_edge.store import StoreReader

log = logging.getLogger("linegate.publish")
_BACKOFF_FIRST_S: Final = 0.5
_TICK_S: Final = 0.5
_STATE_EVERY_S: Final = 10.0
_PROBE_EVERY_S: Final = 2.0
_HANG_MARGIN_S: Final = 15.0
_ACKNOWLEDGED_KEPT: Final = 4096


class Publisher:
    """Sends a station's verdicts and state to its broker; `wake` may be called from any thread.

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
    ) -> None:
        self._settings, self._topics, self._store_path = settings, topics(station_topic), store_path
        self._client_id = "linegate-" + station_topic.replace("/", "-")
        self._acknowledge, self._state, self._live, self._metrics = acknowledge, state, live, metrics
        self._password = _read_password(settings)
        self._stopping = threading.Event()
        self._stop_deadline = 0.0
        self._loop = _Loop(self)
        self._watchdog = threading.Thread(target=self._watch, name="publisher-watchdog", daemon=True)

    def start(self) -> None:
        """Start to send; a broker that is not there yet is waited for."""
        self._loop.start()
        self._watchdog.start()

    def wake(self) -> None:
        """Tell the loop that the outbox has grown."""
        self._loop.wake()

    def stop(self, timeout_s: float) -> None:
        """Send what the broker still takes within `timeout_s`, say goodbye, and end; the rest stays in the outbox."""
        self._stop_deadline = time.monotonic() + timeout_s
        self._stopping.set()
        self._loop.wake()
        self._watchdog.join()
        self._loop.join(timeout_s + 2.0)

    def _watch(self) -> None:
        longest_s = self._settings.connect_timeout_s + _HANG_MARGIN_S
        while not self._stopping.wait(_TICK_S):
            silent_s = time.monotonic() - self._loop.heartbeat
            if self._loop.is_alive() and silent_s < longest_s:
                continue
            log.error(
                "the MQTT loop %s; building a new one", f"hangs since {silent_s:.0f} s" if self._loop.is_alive() else "died"
            )
            self._live.set_broker(False, "the MQTT loop had to be rebuilt")
            self._loop.abandon()
            self._loop = _Loop(self)
            self._loop.start()


class _DisconnectedError(Exception):
    """The connection is over; the text says why."""


class _Loop(threading.Thread):
    """One life of the sending loop: connects, sends, and connects again until stopped or abandoned."""

    def __init__(self, publisher: Publisher) -> None:
        super().__init__(name="publisher", daemon=True)
        self._p = publisher
        self.heartbeat = time.monotonic()
        self._abandoned = threading.Event()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._socket: Any = None  # paho's socket, where there is one
        # Acknowledged, but perhaps not yet out of the outbox: the writer deletes with its next commit.
        self._acknowledged: set[int] = set()
        self._reported: str | None = None

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # a full pipe wakes as well
            self._wake_writer.send(b"w")

    def abandon(self) -> None:
        """Give this loop up: whatever it still does has no effect, and its socket is closed under it."""
        self._abandoned.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    @property
    def _ending(self) -> bool:
        return self._abandoned.is_set() or self._p._stopping.is_set()

    def run(self) -> None:
        failures = 0
        try:
            while not self._ending:
                try:
                    with contextlib.closing(StoreReader(self._p._store_path)) as reader:
                        connection = _Connection(self, reader)
                        try:
                            connection.open()
                            failures = 0
                            connection.serve()
                        finally:
                            connection.close()
                except (_DisconnectedError, StoreError, OSError, ValueError) as error:
                    self._report(str(error) or type(error).__name__)
                if not self._ending:
                    # Full jitter (Brooker, "Exponential Backoff and Jitter", 2015): stations do not come back in step.
                    limit = min(self._p._settings.backoff_max_s, _BACKOFF_FIRST_S * 2**failures)
                    failures = min(failures + 1, 16)
                    self._rest(random.uniform(0.1, limit))
        finally:
            self._wake_reader.close()
            self._wake_writer.close()

    def _rest(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._ending and time.monotonic() < deadline:
            self.heartbeat = time.monotonic()
            self._p._stopping.wait(min(_TICK_S, seconds))

    def _report(self, text: str) -> None:
        if self._abandoned.is_set():
            return
        where = f"{self._p._settings.host}:{self._p._settings.port}"
        if text != self._reported:  # one line a change, not one a try
            log.warning("broker %s: %s; verdicts wait in the outbox", where, text)
            self._reported = text
        self._p._live.set_broker(False, f"{where}: {text}")
        self._p._metrics.broker_connected.set(0)


class _Connection:
    """One connection to the broker, from CONNECT to its end."""

    def __init__(self, loop: _Loop, reader: StoreReader) -> None:
        self._loop, self._p, self._reader = loop, loop._p, reader
        self._settings = self._p._settings
        self._is_v5 = self._settings.protocol == "5"
        self._window = self._settings.max_inflight
        self._inflight: dict[int, tuple[int, float]] = {}  # message id: sequence, when sent
        self._oldest_sent = 0.0
        self._cursor = 0
        self._held_until = 0.0
        self._held = False
        self._ended: str | None = None
        self._accepted = False
        self._state_sent_at = 0.0
        self._state_key: object = None
        self._done: list[int] = []
        self._client = self._make_client()
        self._properties = _publish_properties() if self._is_v5 else None

    def _make_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._p._client_id,
            protocol=mqtt.MQTTv5 if self._is_v5 else mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = self._settings.connect_timeout_s
        client.max_inflight_messages_set(self._window + 8)  # 8 for state messages; before connecting, or it is not heeded
        if self._settings.username is not None:
            client.username_pw_set(self._settings.username, self._p._password)
        lost = self._p._state("lost").model_dump_json()
        client.will_set(self._p._topics["state"], lost, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        return client

    # -- life ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, and wait for the broker's answer.

        Raises:
            _DisconnectedError: it refuses, or does not answer in time.
            OSError: it cannot be reached.
        """
        settings = self._settings
        clean: dict[str, Any] = {"clean_start": True} if self._is_v5 else {}
        try:
            self._client.connect(settings.host, settings.port, keepalive=settings.keepalive_s, **clean)
        except OSError as error:
            raise _DisconnectedError(f"cannot be reached ({error.strerror or error}): check [mqtt] host and port") from error
        self._loop._socket = self._client.socket()
        deadline = time.monotonic() + settings.connect_timeout_s
        while not self._accepted:
            if self._ended is not None or self._loop._ending:
                raise _DisconnectedError(self._ended or "the station stops")
            if time.monotonic() > deadline:
                raise _DisconnectedError(f"took the connection and said nothing for {settings.connect_timeout_s:g} s")
            self._exchange(0.1)
        self._p._metrics.broker_connections.inc()
        self._p._metrics.broker_connected.set(1)
        self._p._live.set_broker(True, f"{settings.host}:{settings.port}")
        self._loop._reported = None
        log.info("broker %s:%d: connected", settings.host, settings.port)

    def serve(self) -> None:
        """Send what the outbox holds, and the state, until the connection ends.

        Raises:
            _DisconnectedError: it has ended.
        """
        while not self._loop._abandoned.is_set():
            now = time.monotonic()
            self._fill(now)
            self._send_state_when_due(now)
            if self._p._stopping.is_set() and (not self._inflight or now > self._p._stop_deadline):
                return
            if self._inflight and now - self._oldest_sent > self._settings.ack_timeout_s:
                raise _DisconnectedError(f"acknowledged nothing for {self._settings.ack_timeout_s:g} s")
            self._exchange(0.05 if self._p._stopping.is_set() else _TICK_S)
            if self._ended is not None:
                raise _DisconnectedError(self._ended)

    def close(self) -> None:
        """Say goodbye where the station stops, and let the connection go."""
        if self._accepted and self._ended is None and self._p._stopping.is_set() and not self._loop._abandoned.is_set():
            message = self._p._state("stopped").model_dump_json()
            info = self._client.publish(self._p._topics["state"], message, qos=1, retain=True, properties=self._properties)
            deadline = time.monotonic() + 2.0
            with contextlib.suppress(OSError, ValueError, _DisconnectedError):
                while not info.is_published() and self._ended is None and time.monotonic() < deadline:
                    self._exchange(0.05)
            self._client.disconnect()
            self._p._live.set_broker(False, "the station has stopped")
        self._hand_over()
        self._loop._socket = None
        connection = self._client.socket()
        if connection is not None:
            connection.close()

    # -- sending ---------------------------------------------------------------------------------------------------

    def _fill(self, now: float) -> None:
        if self._held:
            if self._inflight or now < self._held_until:
                return
            self._cursor = 0  # from the head of the outbox again, one row as a probe
        room = (1 if self._held else self._window) - len(self._inflight)
        # Half a window at a time: a query a row would cost more than the row.
        if room <= 0 or (not self._held and room < self._window // 2 and self._inflight):
            return
        for sequence, text in self._reader.outbox_after(
            self._cursor, room + (len(self._loop._acknowledged) if self._held else 0)
        ):
            self._cursor = sequence
            if sequence in self._loop._acknowledged:
                continue
            if not self._inflight:
                self._oldest_sent = now
            payload = with_published(text, utc_now())
            info = self._client.publish(self._p._topics["verdict"], payload, qos=1, properties=self._properties)
            if info.rc not in (mqtt.MQTT_ERR_SUCCESS, mqtt.MQTT_ERR_NO_CONN):
                raise _DisconnectedError(f"took no message: {mqtt.error_string(info.rc)}")
            self._inflight[info.mid] = sequence, time.monotonic()
            if len(self._inflight) >= (1 if self._held else self._window):
                break
        if self._held and not self._inflight:
            self._release()

    def _send_state_when_due(self, now: float) -> None:
        live = self._p._live
        key = (live.line_stop, live.broker.no_subscriber)
        if key == self._state_key and now - self._state_sent_at < _STATE_EVERY_S:
            return
        message = self._p._state("online").model_dump_json()
        self._client.publish(self._p._topics["state"], message, qos=1, retain=True, properties=self._properties)
        self._state_key, self._state_sent_at = key, now

    def _exchange(self, timeout_s: float) -> None:
        """Read and write what the socket has and takes, for at most `timeout_s` while there is nothing."""
        self._loop.heartbeat = time.monotonic()
        connection = self._client.socket()
        if connection is None:
            self._ended = self._ended or "closed the connection"
            return
        poll = select.poll()
        poll.register(connection, select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
        poll.register(self._loop._wake_reader, select.POLLIN)
        events = dict(poll.poll(timeout_s * 1e3))
        if self._loop._wake_reader.fileno() in events:
            with contextlib.suppress(BlockingIOError):
                self._loop._wake_reader.recv(4096)
        event = events.get(connection.fileno(), 0)
        if event & (select.POLLIN | select.POLLERR | select.POLLHUP):
            self._client.loop_read()
        if event & select.POLLOUT:
            self._client.loop_write()
        self._client.loop_misc()
        self._hand_over()

    def _hand_over(self) -> None:
        """Hand the acknowledged sequence numbers to the store's writer."""
        if not self._done or self._loop._abandoned.is_set():
            return
        done, self._done = self._done, []
        self._loop._acknowledged.update(done)
        self._p._acknowledge(done)
        self._p._metrics.published.inc(len(done))
        self._p._live.published(len(done))
        if len(self._loop._acknowledged) > _ACKNOWLEDGED_KEPT:
            head = self._reader.outbox_after(0, 1)
            first = head[0][0] if head else self._cursor + 1
            self._loop._acknowledged = {number for number in self._loop._acknowledged if number >= first}

    def _release(self) -> None:
        self._held = False
        self._p._live.set_broker(True, f"{self._settings.host}:{self._settings.port}")
        self._p._live.set_no_subscriber(False)
        self._p._metrics.no_subscriber.set(0)

    # -- paho's callbacks, all in the loop's thread ----------------------------------------------------------------

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, properties: Properties | None) -> None:
        if code.is_failure:
            mend = "check [mqtt] username and password_file" if "uthori" in str(code) or "user name" in str(code) else "ask IT"
            self._ended = f"refuses the login ({code}): {mend}"
            return
        # MQTT 5, 3.2.2.3.3: the broker says how many unacknowledged messages it takes.
        self._window = max(1, min(self._window, getattr(properties, "ReceiveMaximum", 65_535) - 1))
        self._accepted = True

    def _on_publish(self, _client: Any, _data: Any, mid: int, code: ReasonCode, _properties: Any) -> None:
        entry = self._inflight.pop(mid, None)
        if entry is None:  # a state message
            return
        sequence, sent_at = entry
        self._oldest_sent = time.monotonic()
        if code.value == 0:
            self._done.append(sequence)
            self._p._metrics.stage_seconds.labels("publish").observe(self._oldest_sent - sent_at)
            if self._held and not self._inflight:
                self._release()
            return
        self._held, self._held_until = True, time.monotonic() + _PROBE_EVERY_S
        if code.value == 0x10:  # MQTT 5, 3.4.2.1: no matching subscribers
            if not self._p._live.broker.no_subscriber:
                log.warning("nobody subscribes to %s; verdicts wait in the outbox", self._p._topics["verdict"])
            self._p._live.set_no_subscriber(True)
            self._p._metrics.no_subscriber.set(1)
        else:
            text = f"refused a verdict ({code}): check the broker's access rules"
            log.warning("broker: %s", text)
            self._p._live.set_broker(True, text)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        self._ended = self._ended or f"the connection is lost ({code})"


def _publish_properties() -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.PayloadFormatIndicator = 1
    properties.ContentType = "application/json"
    properties.UserProperty = ("schema_version", SCHEMA_VERSION)
    return properties


def _read_password(settings: MqttSection) -> str | None:
    if settings.password_file is None:
        return None
    try:
        return settings.password_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"[mqtt] password_file {settings.password_file}: cannot be read: {error.strerror}") from error
