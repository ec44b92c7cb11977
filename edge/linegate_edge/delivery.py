"""Which verdicts of the outbox go next over a connection, and which are done.

Rules kept here: newer verdicts go in sequence order; what is replayed, or was not confirmed in time, goes beside them, in
order as well, so that neither waits for the other; an acknowledgement counts once the connection has outlived it for a
while, or where the MES confirms, by its confirmation alone. Sending, and what the broker answers, is left to
`mqtt_connection`; deleting to the writer.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from linegate_edge.commands import Confirmed
from linegate_edge.confirmation import MOST_UNCONFIRMED, Unconfirmed
from linegate_edge.settings import MqttSection
from linegate_edge.store import StoreReader

log = logging.getLogger("linegate.publish")
_ACKNOWLEDGED_KEPT: Final = 4096
_FEWEST_ROWS: Final = 64
_OVERDUE_EVERY_S: Final = 1.0

Row = tuple[int, str]
"""A sequence number and its message."""


@dataclass(slots=True)
class Kept:
    """What outlives a connection: `acknowledged` may still stand in the outbox, for the writer deletes with its next commit.

    `replays` are spans (first, last) that are, or will be, put back into the outbox; any thread may add to them.
    """

    acknowledged: set[int] = field(default_factory=set)
    replays: deque[tuple[int, int]] = field(default_factory=deque)


class Delivery:
    """The outbox as one connection sees it; all methods belong to the connection's thread."""

    def __init__(
        self, settings: MqttSection, kept: Kept, reader: StoreReader, acknowledge: Callable[[Sequence[int]], None]
    ) -> None:
        self._settings, self._kept, self._reader, self._acknowledge = settings, kept, reader, acknowledge
        self._cursor = 0
        self._again: int | None = None  # where the pass over what is to be sent again stands
        self._settling: dict[int, float] = {}  # sequence: when it was acknowledged
        self.confirming = settings.confirm == "mes"
        self._unconfirmed = Unconfirmed(settings.confirm_timeout_s)
        self._next_overdue = 0.0
        self._told_overdue = False

    @property
    def unconfirmed(self) -> int:
        """How many verdicts the broker has and the MES has not confirmed."""
        return len(self._unconfirmed)

    def rewind(self) -> None:
        """Begin again from the head of the outbox."""
        self._cursor, self._again = 0, None

    def due(self, room: int, inflight: Collection[int], now: float) -> list[Row]:
        """Return up to `room` rows to send now; `inflight` are those sent and not acknowledged."""
        self.heed_replays()
        self._look_for_overdue(now)
        rows: list[Row] = []
        if self._again is not None:
            until = self._cursor
            self._again, rows = self._next(self._again, until, max(1, room // 2), inflight, now)
            if self._again >= until:
                self._again = None
        unburied = MOST_UNCONFIRMED - len(self._unconfirmed) - len(inflight)
        underway = {*inflight, *(sequence for sequence, _ in rows)}
        self._cursor, newer = self._next(self._cursor, None, min(room - len(rows), unburied), underway, now)
        rows += newer
        for sequence, _ in rows:
            self._unconfirmed.sending(sequence)
        return rows

    def _next(self, after: int, until: int | None, room: int, underway: Collection[int], now: float) -> tuple[int, list[Row]]:
        """Return up to `room` rows after a sequence number, up to `until`, and the number reached."""
        found: list[Row] = []
        limit = room  # a longer look only where rows had to be passed over
        while len(found) < room:
            rows = self._reader.outbox_after(after, limit)
            for sequence, text in rows:
                if len(found) == room:
                    return after, found
                if until is not None and sequence > until:
                    return until, found
                after = sequence
                if sequence not in underway and not self._needs_none(sequence, now):
                    found.append((sequence, text))
            if len(rows) < limit:
                return (after if until is None else until), found
            limit = max(room - len(found), _FEWEST_ROWS)
        return after, found

    def _needs_none(self, sequence: int, now: float) -> bool:
        """Say whether a row needs no sending: it is acknowledged, and the writer, time or the MES will take it out."""
        kept = self._kept.acknowledged
        return sequence in kept or sequence in self._settling or self._unconfirmed.waits(sequence, now)

    def _look_for_overdue(self, now: float) -> None:
        if now < self._next_overdue or not self._unconfirmed.overdue(now):
            return
        self._again, self._next_overdue = 0, now + _OVERDUE_EVERY_S
        if not self._told_overdue:
            text = "check the MES, or [mqtt] confirm; what it has not confirmed is sent again"
            log.warning("the MES has not confirmed a verdict for %g s: %s", self._settings.confirm_timeout_s, text)
        self._told_overdue = True

    # -- what came back ---------------------------------------------------------------------------------------------

    def acknowledged(self, sequence: int, now: float) -> None:
        """Take note that the broker has a verdict."""
        if not self.confirming:
            self._settling[sequence] = now
        elif self._unconfirmed.acknowledged(sequence, now):
            self._take_out([sequence])

    def confirm(self, confirmed: Confirmed, inflight: Collection[int]) -> None:
        """Take note that the MES has verdicts; those that this connection has not sent are not heeded."""
        spans = [(span.first, span.last) for span in confirmed.sequences]
        spans += [(number, number) for number in self._reader.sequences_of(confirmed.verdict_ids)]
        done = [number for first, last in spans for number in self._unconfirmed.confirm(first, last, inflight)]
        if done:
            self._told_overdue = False
            self._take_out(done)

    def heed_replays(self) -> None:
        """Forget that what is replayed was acknowledged, and go over the outbox again."""
        while self._kept.replays:
            first, last = self._kept.replays.popleft()
            acknowledged = self._kept.acknowledged
            self._kept.acknowledged = {number for number in acknowledged if not first <= number <= last}
            self._settling = {number: at for number, at in self._settling.items() if not first <= number <= last}
            self._unconfirmed.forget(first, last)
            self._again = 0

    def settle(self, until: float) -> None:
        """Have those taken out of the outbox that were acknowledged before `until`, on this very connection.

        A broker that crashes may have acknowledged what it had neither passed on nor written down. So an acknowledgement
        counts once the connection has outlived it for a while; what had no time to settle is sent again by the next one.
        """
        self.heed_replays()  # first, or what is to be replayed would be taken out for an older acknowledgement
        in_order = self._settling.items()  # as they were acknowledged, so the first that is too young ends it
        settled = [sequence for sequence, _ in itertools.takewhile(lambda entry: entry[1] <= until, in_order)]
        for sequence in settled:
            del self._settling[sequence]
        if settled:
            self._take_out(settled)

    def _take_out(self, sequences: Sequence[int]) -> None:
        self._kept.acknowledged.update(sequences)
        self._acknowledge(sequences)
        if len(self._kept.acknowledged) > _ACKNOWLEDGED_KEPT:
            head = self._reader.outbox_after(0, 1)
            first = head[0][0] if head else self._cursor + 1
            self._kept.acknowledged = {number for number in self._kept.acknowledged if number >= first}
