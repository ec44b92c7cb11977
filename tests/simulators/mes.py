"""An MES that commands a station and confirms its verdicts: at once, late, or never."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


class CommandingMes:
    """An MES on a real broker, over MQTT 5; `confirm_after_s` is how long it takes to confirm, None: it never does.

    `by_id` confirms by verdict id, else by spans of sequence numbers. All that came is kept, in the order it came.
    """

    def __init__(self, port: int, topic: str, *, confirm_after_s: float | None = None, by_id: bool = False) -> None:
        self.confirm_after_s, self._by_id = confirm_after_s, by_id
        self._base = f"{topic}/vision/v1"
        self._lock = threading.Lock()
        self._verdicts: list[dict[str, Any]] = []
        self._states: list[dict[str, Any]] = []
        self._others: list[tuple[str, dict[str, Any], Any]] = []
        self._confirming: list[tuple[float, dict[str, Any]]] = []
        self._leaving, self._ready = threading.Event(), threading.Event()
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=f"commanding-{uuid4()}"[:23], protocol=mqtt.MQTTv5
        )
        self._client.on_connect = lambda client, *_: client.subscribe(f"{topic}/#", qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._confirmer = threading.Thread(target=self._confirm, daemon=True)
        self._confirmer.start()
        assert self._ready.wait(10), "the broker took no subscription"

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic == f"{self._base}/cmd":
            return
        try:
            body = json.loads(message.payload)
        except ValueError:  # what a test has said itself
            return
        with self._lock:
            if message.topic == f"{self._base}/verdict":
                self._verdicts.append(body)
                if self.confirm_after_s is not None:
                    self._confirming.append((time.monotonic() + self.confirm_after_s, body))
            elif message.topic == f"{self._base}/state":
                self._states.append(body)
            elif isinstance(body, dict) and "ok" in body:
                self._others.append((message.topic, body, message.properties))

    def _confirm(self) -> None:
        while not self._leaving.wait(0.01):
            now = time.monotonic()
            with self._lock:
                due = [body for at, body in self._confirming if at <= now]
                self._confirming = [entry for entry in self._confirming if entry[0] > now]
            for start in range(0, len(due), 200):
                self.confirm(due[start : start + 200])

    def confirm(self, verdicts: list[dict[str, Any]]) -> None:
        """Confirm these verdicts."""
        if self._by_id:
            what: dict[str, Any] = {"verdict_ids": [verdict["verdict_id"] for verdict in verdicts]}
        else:
            what = {"sequences": [{"first": verdict["sequence"], "last": verdict["sequence"]} for verdict in verdicts]}
        self.say("ack", {"schema_version": "1.0", "confirm": what})

    def say(self, role: str, message: dict[str, Any] | bytes, *, retain: bool = False, **properties: Any) -> None:
        """Publish on `cmd` or `ack`, with MQTT 5 properties by paho's names."""
        packet = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(packet, name, value)
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        self._client.publish(f"{self._base}/{role}", payload, qos=1, retain=retain, properties=packet).wait_for_publish(10)

    def command(self, command: str, command_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """Send a command and return its answer."""
        command_id = command_id or str(uuid4())
        count = len(self.answers_to(command_id))
        self.say("cmd", {"schema_version": "1.0", "command": command, "command_id": command_id, **fields})
        return self.wait(lambda: self.answers_to(command_id)[count:])[0]

    def wait(self, look: Callable[[], list[Any]], timeout_s: float = 20.0) -> list[Any]:
        """Return what `look` finds as soon as it finds anything."""
        deadline = time.monotonic() + timeout_s
        while not (found := look()):
            assert time.monotonic() < deadline, f"nothing came within {timeout_s} s"
            time.sleep(0.01)
        return found

    def answers_to(self, command_id: str | None) -> list[dict[str, Any]]:
        """The answers to a command so far."""
        return [body for _, body, _ in self.answers if body["command_id"] == command_id]

    @property
    def answers(self) -> list[tuple[str, dict[str, Any], Any]]:
        """All answers so far: topic, message, properties."""
        with self._lock:
            return list(self._others)

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """All verdicts so far, with repeats."""
        with self._lock:
            return list(self._verdicts)

    @property
    def states(self) -> list[dict[str, Any]]:
        """All state messages so far."""
        with self._lock:
            return list(self._states)

    @property
    def sequences(self) -> list[int]:
        """The sequence numbers of all verdicts so far, with repeats."""
        return [verdict["sequence"] for verdict in self.verdicts]

    def close(self) -> None:
        """Leave."""
        self._leaving.set()
        self._confirmer.join()
        self._client.disconnect()
        self._client.loop_stop()
