"""One connection to the broker: CONNECT, verdicts and state out, acknowledgements in, until it ends.

Rules kept here: verdicts go in sequence order, and one is done only by a PUBACK whose reason code is success; "no matching
subscribers" is no success, for nobody heard it, so the head of the outbox is then tried again and again as a probe. A
connection is used once: what was not acknowledged is sent again by the next one, with the same verdict id. Which verdict
goes next, and when one is done, is left to `delivery`; commands and answers to `mqtt_commands`.

The loop is ours and not paho's, for one thread then reads, writes and hears callbacks: no lock is held across a call, and
a watchdog can tell a loop that hangs from one that has nothing to do. When to connect again is left to `publish`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from linegate.errors import SettingsError
from linegate_edge.delivery import Delivery, Kept
from linegate_edge.live import Live
from linegate_edge.message import SCHEMA_VERSION, StateMessage, topics, utc_now, with_published
from linegate_edge.metrics import Metrics
from linegate_edge.mqtt_commands import MOST_ANSWERS_IN_FLIGHT, CommandBox, CommandChannel
from linegate_edge.settings import MqttSection
from linegate_edge.store import StoreReader
from linegate_edge.tls import NO_TLS_HERE, explain, fingerprint, make_context, words_for, words_for_refusal

log = logging.getLogger("linegate.publish")
TICK_S: Final = 0.5
FAREWELL_S: Final = 3.0
"""How long a stopping station waits for the acknowledgements that are due."""
_STATE_EVERY_S: Final = 10.0
_PROBE_EVERY_S: Final = 2.0
_FILES_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """What every connection of a station is made from: where to, as whom, and whom to tell."""

    settings: MqttSection
    station_topic: str
    login: Callable[[], tuple[str | None, str | None]]
    acknowledge: Callable[[Sequence[int]], None]
    puback: Callable[[int], None]
    state: Callable[[Literal["online", "stopped", "lost"]], StateMessage]
    live: Live
    metrics: Metrics
    box: CommandBox


@dataclass(slots=True)
class LoopState:
    """What outlives a connection in the loop that makes them; `heartbeat` is when the loop was last seen to turn."""

    stopping: threading.Event
    wake_reader: socket.socket
    abandoned: threading.Event = field(default_factory=threading.Event)
    heartbeat: float = field(default_factory=time.monotonic)
    socket: Any = None
    kept: Kept = field(default_factory=Kept)

    @property
    def ending(self) -> bool:
        """Say whether no new connection is wanted."""
        return self.abandoned.is_set() or self.stopping.is_set()


def client_id(station_topic: str) -> str:
    """Return a station's MQTT client id: always the same, so that a restart takes the old session's place and its last will.

    23 letters and digits, which every broker must take (MQTT 5, 3.1.3.1), and no two topics share one.
    """
    return "linegate" + hashlib.sha256(station_topic.encode()).hexdigest()[:15]


class DisconnectedError(Exception):
    """The connection is over; the text says why."""


class Connection:
    """One connection to the broker, from CONNECT to its end."""

    def __init__(self, link: Link, loop: LoopState, reader: StoreReader) -> None:
        self._link, self._loop = link, loop
        self._settings = link.settings
        self._topics = topics(link.station_topic)
        self._is_v5 = self._settings.protocol == "5"
        self._window = self._settings.max_inflight
        self._inflight: dict[int, tuple[int, float]] = {}  # message id: sequence, when sent
        self._oldest_sent = 0.0
        self._delivery = Delivery(link.settings, loop.kept, reader, link.acknowledge)
        self._spare = 1
        self._held_until = 0.0
        self._held = False
        self._ended: str | None = None
        self._accepted = False
        self._logged = ""
        self._refused: str | None = None  # some brokers break the connection off soon after
        self._state_sent_at = 0.0
        self._state_key: object = None
        self._files, self._files_looked_at = fingerprint(self._settings), time.monotonic()
        self._renewing = False
        self._client = self._make_client()
        self._commands = CommandChannel(
            self._client,
            link.box,
            self._topics,
            link.station_topic,
            is_v5=self._is_v5,
            confirming=self._delivery.confirming,
        )
        self._properties = _publish_properties() if self._is_v5 else None

    def _make_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id(self._link.station_topic),
            protocol=mqtt.MQTTv5 if self._is_v5 else mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = self._settings.connect_timeout_s
        client.max_inflight_messages_set(self._window + 8)  # 8 for state and answers; before connecting, or it is not heeded
        username, password = self._link.login()  # anew each time: a password may have been changed meanwhile
        if username is not None:
            client.username_pw_set(username, password)
        context = make_context(self._settings)
        if context is not None:
            client.tls_set_context(context)
            client.on_log = self._on_log
        lost = self._link.state("lost").model_dump_json()
        client.will_set(self._topics["state"], lost, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        return client

    # -- life ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, and wait for the broker's answer.

        Raises:
            DisconnectedError: it refuses, or does not answer in time.
            OSError: it cannot be reached.
        """
        settings = self._settings
        clean: dict[str, Any] = {"clean_start": True} if self._is_v5 else {}
        try:
            self._client.connect(settings.host, settings.port, keepalive=settings.keepalive_s, **clean)
        except ssl.SSLCertVerificationError as error:
            raise DisconnectedError(words_for_refusal(error, settings.host)) from error
        except TimeoutError as error:
            tls = ", or did not finish TLS" if settings.tls else ""
            words = f"took no connection in {settings.connect_timeout_s:g} s{tls}"
            raise DisconnectedError(f"{words}: check the network, [mqtt] host and port") from error
        except OSError as error:
            words = words_for(str(error)) or f"cannot be reached ({error.strerror or error}): check [mqtt] host and port"
            if settings.tls and isinstance(error, ssl.SSLEOFError | ConnectionResetError):
                words = NO_TLS_HERE
            raise DisconnectedError(words) from error
        self._loop.socket = self._client.socket()
        deadline = time.monotonic() + settings.connect_timeout_s
        while not self._accepted:
            if self._ended is not None or self._loop.ending:
                known = words_for(self._logged) is not None or self._loop.ending
                raise DisconnectedError((None if known else explain(settings)) or self._ended or "the station stops")
            if time.monotonic() > deadline:
                raise DisconnectedError(f"took the connection and said nothing for {settings.connect_timeout_s:g} s")
            self._exchange(0.1)
        self._commands.begin(max(1, self._spare - 1))
        self._link.metrics.broker_connections.inc()
        self._link.metrics.broker_connected.set(1)
        self._link.live.set_broker(True, f"{settings.host}:{settings.port}")
        log.info("broker %s:%d: connected", settings.host, settings.port)

    def serve(self) -> None:
        """Send what the outbox holds, and the state, until the station stops or has new certificates.

        Raises:
            DisconnectedError: it has ended.
        """
        stop_at = 0.0
        while not self._loop.abandoned.is_set():
            now = time.monotonic()
            self._heed_confirmations()
            if not self._renewing:
                self._fill(now)
            self._send_state_when_due(now)
            self._watch_files(now)
            self._commands.send_due()
            leaving = self._renewing or self._loop.stopping.is_set()
            if leaving:
                stop_at = stop_at or now + FAREWELL_S
                if (not self._inflight and self._commands.idle) or now > stop_at:
                    return
            if self._inflight and now - self._oldest_sent > self._settings.ack_timeout_s:
                self._ended = f"acknowledged nothing for {self._settings.ack_timeout_s:g} s"  # so what it did has not settled
                raise DisconnectedError(self._ended)
            self._exchange(0.05 if leaving else TICK_S)
            if self._ended is not None:
                raise DisconnectedError(self._ended)

    def _watch_files(self, now: float) -> None:
        """Have the connection end in good order when its certificates were replaced by others that can be used."""
        if self._renewing or now - self._files_looked_at < _FILES_EVERY_S:
            return
        self._files_looked_at = now
        files = fingerprint(self._settings)
        if files == self._files:
            return
        self._files = files
        try:
            make_context(self._settings)
        except SettingsError as error:  # half of them may be written by now: look again when the rest has come
            log.warning("new certificates cannot be used, the connection goes on with the old ones: %s", error)
            return
        log.info("broker %s:%d: connecting anew, with the new certificates", self._settings.host, self._settings.port)
        self._renewing = True

    def close(self) -> None:
        """Say goodbye where the station stops or has new certificates, and let the connection go."""
        stopping = self._loop.stopping.is_set()
        in_order = self._accepted and self._ended is None and not self._loop.abandoned.is_set()
        if in_order and stopping:
            message = self._link.state("stopped").model_dump_json()
            info = self._client.publish(self._topics["state"], message, qos=1, retain=True, properties=self._properties)
            deadline = time.monotonic() + 2.0
            with contextlib.suppress(OSError, ValueError, DisconnectedError):
                while not info.is_published() and self._ended is None and time.monotonic() < deadline:
                    self._exchange(0.05)
        if in_order and (stopping or self._renewing):
            self._settle(math.inf)
            # A connection that only breaks off would have the broker publish the last will: `lost`, at each renewal.
            self._client.disconnect()
        if in_order and stopping:
            self._link.live.set_broker(False, "the station has stopped")
        self._loop.socket = None
        self._commands.end()
        connection = self._client.socket()
        if connection is not None:
            connection.close()

    # -- sending ---------------------------------------------------------------------------------------------------

    def _fill(self, now: float) -> None:
        if self._held:
            if self._inflight or now < self._held_until:
                return
            self._delivery.rewind()  # from the head of the outbox again, one row as a probe
        room = (1 if self._held else self._window) - len(self._inflight)
        # Half a window at a time: a query a row would cost more than the row.
        if room <= 0 or (not self._held and room < self._window // 2 and self._inflight):
            return
        for sequence, text in self._delivery.due(room, self._sequences_inflight, now):
            if not self._inflight:
                self._oldest_sent = now
            payload = with_published(text, utc_now())
            info = self._client.publish(self._topics["verdict"], payload, qos=1, properties=self._properties)
            if info.rc not in (mqtt.MQTT_ERR_SUCCESS, mqtt.MQTT_ERR_NO_CONN):
                raise DisconnectedError(f"took no message: {mqtt.error_string(info.rc)}")
            self._inflight[info.mid] = sequence, time.monotonic()
        if self._held and not self._inflight:
            self._release()

    @property
    def _sequences_inflight(self) -> set[int]:
        return {sequence for sequence, _ in self._inflight.values()}

    def _heed_confirmations(self) -> None:
        if self._delivery.confirming:
            while self._link.box.confirmations:
                self._delivery.confirm(self._link.box.confirmations.popleft(), self._sequences_inflight)
            self._link.metrics.unconfirmed.set(self._delivery.unconfirmed)

    def _send_state_when_due(self, now: float) -> None:
        live = self._link.live
        key = (live.line_stop, live.broker.no_subscriber)
        if key == self._state_key and now - self._state_sent_at < _STATE_EVERY_S:
            return
        message = self._link.state("online").model_dump_json()
        self._client.publish(self._topics["state"], message, qos=1, retain=True, properties=self._properties)
        self._state_key, self._state_sent_at = key, now

    def _exchange(self, timeout_s: float) -> None:
        """Read and write what the socket has and takes, for at most `timeout_s` while there is nothing."""
        self._loop.heartbeat = time.monotonic()
        connection = self._client.socket()
        if connection is None:
            self._ended = self._ended or "closed the connection"
            return
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            timeout_s = 0.0  # what TLS has decrypted already, the kernel does not tell of
        poll = select.poll()
        poll.register(connection, select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
        poll.register(self._loop.wake_reader, select.POLLIN)
        events = dict(poll.poll(timeout_s * 1e3))
        if self._loop.wake_reader.fileno() in events:
            with contextlib.suppress(BlockingIOError):
                self._loop.wake_reader.recv(4096)
        event = events.get(connection.fileno(), 0)
        if event & (select.POLLIN | select.POLLERR | select.POLLHUP):
            self._client.loop_read()
        # paho's own types know no TLS socket, so its identity is compared and not narrowed.
        while isinstance(connection, ssl.SSLSocket) and id(self._client.socket()) == id(connection) and connection.pending():
            self._client.loop_read()
        if event & select.POLLOUT:
            self._client.loop_write()
        self._client.loop_misc()
        self._settle(time.monotonic() - self._settings.settle_s)

    def _settle(self, until: float) -> None:
        if not self._loop.abandoned.is_set():
            self._delivery.settle(until)

    def _release(self) -> None:
        self._held = False
        self._link.live.set_broker(True, f"{self._settings.host}:{self._settings.port}")
        self._link.live.set_no_subscriber(False)
        self._link.metrics.no_subscriber.set(0)

    # -- paho's callbacks, all in the loop's thread ----------------------------------------------------------------

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, properties: Properties | None) -> None:
        if code.is_failure:
            mend = "check [mqtt] username and password_file" if "uthori" in str(code) or "user name" in str(code) else "ask IT"
            self._ended = f"refuses the login ({code}): {mend}"
            return
        # MQTT 5, 3.2.2.3.3: the broker says how many unacknowledged messages it takes, state and answers included.
        most = getattr(properties, "ReceiveMaximum", 65_535)
        self._spare = max(1, min(MOST_ANSWERS_IN_FLIGHT + 1, most // 4))
        self._window = max(1, min(self._window, most - self._spare))
        self._accepted = True

    def _on_publish(self, _client: Any, _data: Any, mid: int, code: ReasonCode, _properties: Any) -> None:
        entry = self._inflight.pop(mid, None)
        if entry is None:  # an answer or a state message
            if code.is_failure and code.value != 0x10:
                self._refused = f"refused a state message or an answer ({code}): check the broker's access rules"
            self._commands.published(mid, code)
            return
        sequence, sent_at = entry
        self._oldest_sent = time.monotonic()
        if code.value == 0:
            self._delivery.acknowledged(sequence, self._oldest_sent)
            self._link.metrics.published.inc()
            self._link.live.published(1)
            self._link.puback(sequence)
            self._link.metrics.stage_seconds.labels("publish").observe(self._oldest_sent - sent_at)
            if self._held and not self._inflight:
                self._release()
            return
        self._held, self._held_until = True, time.monotonic() + _PROBE_EVERY_S
        if code.value == 0x10:  # MQTT 5, 3.4.2.1: no matching subscribers
            if not self._link.live.broker.no_subscriber:
                log.warning("nobody subscribes to %s; verdicts wait in the outbox", self._topics["verdict"])
            self._link.live.set_no_subscriber(True)
            self._link.metrics.no_subscriber.set(1)
        else:
            text = f"refused a verdict ({code}): check the broker's access rules"
            self._refused = text
            log.warning("broker: %s", text)
            self._link.live.set_broker(True, text)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        unanswered = "closes the connection without an answer: check [mqtt] port, and tls where the port is one for TLS"
        lost = f"the connection is lost ({code})" if self._accepted else unanswered
        self._ended = self._ended or words_for(self._logged) or self._refused or lost

    def _on_log(self, _client: Any, _data: Any, level: int, text: str) -> None:
        # paho swallows what TLS says of a broken connection; its log has it.
        if level == mqtt.MQTT_LOG_ERR:
            self._logged += f"{text}\n"


def _publish_properties() -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.PayloadFormatIndicator = 1
    properties.ContentType = "application/json"
    properties.UserProperty = ("schema_version", SCHEMA_VERSION)
    return properties
