"""The broker, as a station would meet it: is it there, does it take the login, and may the station speak and listen?

Rules kept here: a station that runs is not disturbed, for the client has a name of its own, and then publishes nothing. MQTT
has no way to ask for the right to publish but to publish: where no station runs, what the state topic holds already is
said once more, without being retained, and so nothing changes.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from linegate.errors import SettingsError
from linegate_edge.findings import Finding, fail, ok, warn
from linegate_edge.message import topics
from linegate_edge.publish import credentials
from linegate_edge.settings import MqttSection
from linegate_edge.tls import explain, make_context, words_for, words_for_refusal

_RETAINED_S: Final = 0.3


def broker_findings(settings: MqttSection, station_topic: str, *, running: bool) -> Iterator[Finding]:
    """Yield what was found of a station's broker."""
    where = f"{settings.host}:{settings.port}"
    try:
        socket.create_connection((settings.host, settings.port), settings.connect_timeout_s).close()
    except OSError as error:
        reason = error.strerror or str(error)
        yield fail("broker", f"{where} cannot be reached: {reason}", "check [mqtt] host and port, the broker and the firewall")
        return
    try:
        username, password = credentials(settings)
        context = make_context(settings)
    except SettingsError as error:
        yield fail("broker", str(error), "mend the file, or name another")
        return
    visit = _Visit(settings, username, password, station_topic)
    if context is not None:
        visit.client.tls_set_context(context)
    refusal = visit.connect()
    if refusal is not None:
        yield fail("broker", f"{where} refuses: {refusal}", "check [mqtt] username and password_file, and the broker's log")
        return
    yield ok("broker", f"{where} takes the login")
    role = visit.topics
    if not visit.listen():
        mend = f"allow this user to read {role['command']} in the broker's ACL: commands would not be heard"
        yield warn("broker", "refuses to be listened to for commands", mend)
    if running:
        yield ok("broker", "whether verdicts may be published, the running station knows: see its page")
    else:
        yield _judge_right(visit.publish(), role, is_v5=settings.protocol == "5")
    visit.leave()


def _judge_right(code: ReasonCode | None, role: dict[str, str], *, is_v5: bool) -> Finding:
    mend = f"allow this user to write {role['verdict']}, {role['state']} and {role['answer']} in the broker's ACL"
    if code is None:
        return fail("broker", "acknowledges no message", "see the broker's log")
    if code.is_failure:
        return fail("broker", f"refuses what is published ({code})", mend)
    if not is_v5:
        return ok("broker", "acknowledges messages; whether it passes them on, MQTT 3.1.1 does not say")
    return ok("broker", "lets the station publish")


class _Visit:
    """One connection to the broker, under a name that no station has."""

    def __init__(self, settings: MqttSection, username: str | None, password: str | None, station_topic: str) -> None:
        self.topics = topics(station_topic)
        self._settings, self._is_v5 = settings, settings.protocol == "5"
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"linegate-doctor-{uuid4().hex[:8]}",
            protocol=mqtt.MQTTv5 if self._is_v5 else mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        self.client.connect_timeout = settings.connect_timeout_s
        if username is not None:
            self.client.username_pw_set(username, password)
        self._heard: dict[str, ReasonCode] = {}
        self._state = b""
        self.client.on_connect = lambda _client, _data, _flags, code, _properties: self._hear("connect", code)
        self.client.on_subscribe = lambda _client, _data, _mid, codes, _properties: self._hear("subscribe", codes[0])
        self.client.on_publish = lambda _client, _data, _mid, code, _properties: self._hear("publish", code)
        self.client.on_disconnect = lambda _client, _data, _flags, code, _properties: self._hear("disconnect", code)
        self.client.on_message = self._on_message

    def connect(self) -> str | None:
        """Connect and return why the broker refused, or None."""
        clean: dict[str, Any] = {"clean_start": True} if self._is_v5 else {}
        try:
            self.client.connect(self._settings.host, self._settings.port, keepalive=self._settings.keepalive_s, **clean)
        except ssl.SSLCertVerificationError as error:
            return words_for_refusal(error, self._settings.host)
        except OSError as error:
            return words_for(str(error)) or error.strerror or str(error)
        code = self._wait_for("connect")
        if code is None:
            if (words := explain(self._settings)) is not None:
                return words
            code = self._heard.get("disconnect")
            return f"it said nothing for {self._settings.connect_timeout_s:g} s" if code is None else str(code)
        return str(code) if code.is_failure else None

    def listen(self) -> bool:
        """Subscribe to commands, and say whether that is allowed."""
        self.client.subscribe([(self.topics["command"], 1), (self.topics["state"], 1)])
        code = self._wait_for("subscribe")
        return code is not None and not code.is_failure

    def publish(self) -> ReasonCode | None:
        """Say what the state topic holds once more, and return the broker's answer, or None where there was none."""
        until = time.monotonic() + _RETAINED_S
        while not self._state and time.monotonic() < until:
            self.client.loop(timeout=0.05)
        self.client.publish(self.topics["state"], self._state, qos=1, retain=False)
        return self._wait_for("publish")

    def leave(self) -> None:
        """Disconnect."""
        self.client.disconnect()

    def _wait_for(self, what: str) -> ReasonCode | None:
        deadline = time.monotonic() + self._settings.connect_timeout_s
        while what not in self._heard and "disconnect" not in self._heard and time.monotonic() < deadline:
            self.client.loop(timeout=0.1)
        return self._heard.get(what)

    def _hear(self, what: str, code: ReasonCode) -> None:
        self._heard.setdefault(what, code)

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic == self.topics["state"] and message.retain:
            self._state = bytes(message.payload)
