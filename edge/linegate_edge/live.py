"""What the station shows of itself this moment: counters, the last part, the broker.

Rules kept here: nothing is decided here; a look costs the line a lock for microseconds; the overlay of the last part is
drawn only when somebody asks for it.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Final

from linegate.stages import Decision
from linegate_edge.records import Judged, Recorded

_WINDOW: Final = 500
_RECENT: Final = 12


@dataclass(frozen=True, slots=True)
class Broker:
    """What the publisher knows: `text` is one line for people."""

    connected: bool
    text: str
    no_subscriber: bool = False


class Live:
    """Counters since the station's start, and its last part; all methods may be called from any thread."""

    def __init__(self, station: str, boot_id: str, package: str, provider: str, note: str = "") -> None:
        self.station, self.boot_id, self.package, self.provider, self.note = station, boot_id, package, provider, note
        self._lock = threading.Lock()
        self._version = 0
        self._counts = dict.fromkeys(Decision, 0)
        self._latency_ms: deque[float] = deque(maxlen=_WINDOW)
        self._last: tuple[Judged, Recorded] | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._broker = Broker(False, "not connected yet")
        self._line_stops: dict[str, str] = {}
        self._published = 0
        self._triggers = 0

    def use_package(self, package: str, provider: str) -> None:
        """Take note of what judges from now on."""
        with self._lock:
            self.package, self.provider = package, provider
            self._version += 1

    def opened(self) -> None:
        """Take note of a trigger, or of a frame that came of itself: it must get a verdict."""
        with self._lock:
            self._triggers += 1

    def repeated(self) -> None:
        """Take note that what was opened had its verdict already, and gets no second one."""
        with self._lock:
            self._triggers -= 1

    @property
    def triggers_and_verdicts(self) -> tuple[int, int]:
        """How many parts began since the start, and how many of them have their verdict in the store."""
        with self._lock:
            return self._triggers, sum(self._counts.values())

    def recorded(self, judged: Judged, recorded: Recorded) -> None:
        """Take note of a part that was committed."""
        with self._lock:
            self._counts[judged.verdict.decision] += 1
            self._latency_ms.append(judged.latency_ms["total"])
            self._last = judged, recorded
            self._recent.append(
                {
                    "sequence": recorded.sequence,
                    "verdict_id": recorded.verdict_id,
                    "serial": judged.part.serial,
                    "decision": judged.verdict.decision,
                }
            )
            self._version += 1

    def published(self, count: int) -> None:
        """Take note of verdicts that the broker acknowledged."""
        with self._lock:
            self._published += count
            self._version += 1

    def set_broker(self, connected: bool, text: str) -> None:
        """Take note of the broker's state."""
        with self._lock:
            self._broker = Broker(connected, text, self._broker.no_subscriber and connected)
            self._version += 1

    def set_no_subscriber(self, nobody: bool) -> None:
        """Take note of whether somebody hears the verdicts."""
        with self._lock:
            if self._broker.no_subscriber is not nobody:
                self._broker = replace(self._broker, no_subscriber=nobody)
                self._version += 1

    def set_line_stop(self, cause: str, text: str | None) -> None:
        """Take note of why the line must stop, one text a cause; None: for this cause it may run."""
        with self._lock:
            if self._line_stops.get(cause) != text:
                self._line_stops = {**self._line_stops, cause: text} if text else self._without(cause)
                self._version += 1

    def _without(self, cause: str) -> dict[str, str]:
        return {name: text for name, text in self._line_stops.items() if name != cause}

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        return self._version

    @property
    def published_count(self) -> int:
        """How many verdicts the broker has acknowledged since the start."""
        return self._published

    @property
    def broker(self) -> Broker:
        """The broker's state."""
        return self._broker

    @property
    def line_stop(self) -> str | None:
        """Why the line must stop, or None."""
        return "; ".join(self._line_stops.values()) or None

    @property
    def last(self) -> tuple[Judged, Recorded] | None:
        """The last part, with its frame and prediction."""
        return self._last

    def snapshot(self) -> dict[str, Any]:
        """Return all that the page shows, as a JSON object."""
        with self._lock:
            counts, latency, last = dict(self._counts), list(self._latency_ms), self._last
            recent = list(self._recent)
            broker, line_stop, published, version = self._broker, self.line_stop, self._published, self._version
        total = sum(counts.values())
        percentiles = statistics.quantiles(latency, n=100, method="inclusive") if len(latency) > 1 else latency * 99
        return {
            "version": version,
            "station": self.station,
            "boot_id": self.boot_id,
            "package": self.package,
            "provider": self.provider,
            "note": self.note,
            "parts": total,
            "passed": counts[Decision.PASS],
            "failed": counts[Decision.FAIL],
            "undecided": counts[Decision.UNDECIDED],
            "first_pass_yield": counts[Decision.PASS] / total if total else None,
            "latency_ms": {"p50": percentiles[49], "p99": percentiles[98]} if percentiles else None,
            "published": published,
            "broker": {"connected": broker.connected, "text": broker.text, "no_subscriber": broker.no_subscriber},
            "line_stop": line_stop,
            "recent": recent,
            "last": None if last is None else last[1].message,
        }
