"""Commands and confirmations from MQTT, and the answers back: what a connection does beside verdicts and state.

Rules kept here: a retained command is not done, for it would be done again at every connection; an answer goes to `ack`, or
to the response topic of its command where that lies below the station's own root, so that nobody can have the station write
elsewhere; an answer that the broker has not acknowledged goes to the next connection. What commands do is left to `dispatch`.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from linegate_edge.commands import Answer, CommandError, Confirmed, parse_ack
from linegate_edge.dispatch import Reply
from linegate_edge.message import SCHEMA_VERSION

log = logging.getLogger("linegate.commands")
MOST_ANSWERS_IN_FLIGHT: Final = 4
_ANSWERS_KEPT: Final = 10_000
_CONFIRMATIONS_KEPT: Final = 1024


class TakeCommand(Protocol):
    """Takes a command as it came, never waits, and tells `reply` the answer."""

    def __call__(self, payload: bytes, reply: Reply) -> None:
        """Take it."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An answer on its way: its topic, its JSON, and the correlation data of its command."""

    topic: str
    text: str
    correlation: bytes | None


class CommandBox:
    """What outlives a connection: answers to publish and confirmations to heed; may be filled from any thread."""

    def __init__(self, take: TakeCommand, wake: Callable[[], None]) -> None:
        self.take, self._wake = take, wake
        self.answers: deque[Outgoing] = deque(maxlen=_ANSWERS_KEPT)
        self.confirmations: deque[Confirmed] = deque(maxlen=_CONFIRMATIONS_KEPT)

    def confirm(self, confirmed: Confirmed) -> None:
        """Have a confirmation heeded by the connection."""
        self.confirmations.append(confirmed)
        self._wake()

    def answer(self, topic: str, correlation: bytes | None, answer: Answer) -> None:
        """Have an answer published."""
        self.answers.append(Outgoing(topic, answer.model_dump_json(), correlation))
        self._wake()


class CommandChannel:
    """The commands' side of one connection; all methods belong to the connection's thread."""

    def __init__(
        self, client: mqtt.Client, box: CommandBox, topics: Mapping[str, str], root: str, *, is_v5: bool, confirming: bool
    ) -> None:
        self._client, self._box, self._topics, self._root, self._is_v5 = client, box, topics, root, is_v5
        self._confirming = confirming
        self._sent: dict[int, Outgoing] = {}
        self._subscribed: dict[int, str] = {}
        self._most = MOST_ANSWERS_IN_FLIGHT
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe

    @property
    def idle(self) -> bool:
        """Say whether all answers are published."""
        return not self._sent and not self._box.answers

    def begin(self, most_in_flight: int) -> None:
        """Subscribe; so many answers may be unacknowledged at once."""
        self._most = most_in_flight
        for topic in [self._topics["command"], *([self._topics["answer"]] if self._confirming else [])]:
            # Without noLocal (3.1.1) the station's own answers come back, and are known by their fields.
            options = SubscribeOptions(qos=1, noLocal=True, retainHandling=2)
            _, mid = self._client.subscribe(topic, options=options) if self._is_v5 else self._client.subscribe(topic, qos=1)
            if mid is not None:
                self._subscribed[mid] = topic

    def send_due(self) -> None:
        """Publish the answers that wait, as far as the broker takes them."""
        while self._box.answers and len(self._sent) < self._most:
            out = self._box.answers.popleft()
            info = self._client.publish(out.topic, out.text, qos=1, properties=_properties(out) if self._is_v5 else None)
            self._sent[info.mid] = out

    def published(self, mid: int, code: ReasonCode) -> bool:
        """Take note of an acknowledgement; say whether it was that of an answer."""
        out = self._sent.pop(mid, None)
        if out is not None and code.value not in (0, 0x10):  # 0x10: nobody subscribes, so nobody waits for it
            log.warning("the broker refused an answer on %s (%s): check the broker's access rules", out.topic, code)
        return out is not None

    def end(self) -> None:
        """Leave the answers that were not acknowledged to the next connection."""
        self._box.answers.extendleft(reversed(self._sent.values()))
        self._sent.clear()

    # -- paho's callbacks -------------------------------------------------------------------------------------------

    def _on_subscribe(self, _client: Any, _data: Any, mid: int, codes: list[ReasonCode], _properties: Any) -> None:
        topic = self._subscribed.pop(mid, None)
        if topic is not None and any(code.is_failure for code in codes):
            text = "check the broker's access rules; verdicts go out all the same"
            log.warning("the broker refused the subscription to %s (%s): %s", topic, codes[0], text)

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        if message.retain:
            log.warning("a retained message on %s is not heeded: publish commands without retain", message.topic)
        elif message.topic == self._topics["command"]:
            topic, correlation = self._address(message)
            self._box.take(bytes(message.payload), functools.partial(self._box.answer, topic, correlation))
        else:
            try:
                confirmation = parse_ack(bytes(message.payload))
            except CommandError as error:
                log.warning("a message on %s is no confirmation and is not heeded: %s", message.topic, error)
                return
            if confirmation is not None:
                self._box.confirm(confirmation.confirm)

    def _address(self, message: mqtt.MQTTMessage) -> tuple[str, bytes | None]:
        """Return where the answer to a command goes, and its correlation data."""
        wanted = getattr(message.properties, "ResponseTopic", None)
        correlation = getattr(message.properties, "CorrelationData", None)
        own = {self._topics["verdict"], self._topics["state"], self._topics["command"]}
        if wanted is None or wanted == self._topics["answer"]:
            return self._topics["answer"], correlation
        if not wanted.startswith(f"{self._root}/") or wanted in own or any(sign in wanted for sign in "+#"):
            log.warning("response topic '%s' lies not below %s/: the answer goes to ack", wanted[:128], self._root)
            return self._topics["answer"], correlation
        return wanted, correlation


def _properties(out: Outgoing) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.PayloadFormatIndicator = 1
    properties.ContentType = "application/json"
    properties.UserProperty = ("schema_version", SCHEMA_VERSION)
    if out.correlation is not None:
        properties.CorrelationData = out.correlation
    return properties
