"""The handshake with a PLC by counters: which parts are owed an answer. Pure: no clock, no socket.

Rules kept here: the PLC raises its trigger counter and waits until the result counter equals it, so a part is owed an answer
exactly while the two differ; what the station has concluded is remembered in the PLC's own result registers, counter and
epoch together, so that neither a restart of the station nor a broken connection loses or doubles a part. The counter is 16
bits wide and goes from 65,535 to 0; each time it does, and each time it was set back, the epoch changes, so that a count
never names two parts. Registers and sockets are left to `plc`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

_COUNTERS = 1 << 16
_EPOCHS = 1 << 32


class Count(NamedTuple):
    """One trigger of a PLC: its counter, and the epoch that makes it unique; epoch 0 is a PLC that knows none."""

    epoch: int
    counter: int

    @property
    def following(self) -> Count:
        """The next count; after 65,535 comes 0 of the next epoch."""
        if self.counter + 1 < _COUNTERS:
            return Count(self.epoch, self.counter + 1)
        return Count((self.epoch + 1) % _EPOCHS or 1, 0)

    def until(self, counter: int, at_most: int) -> list[Count] | None:
        """Return the counts after this one up to `counter`; None where that would be more than `at_most`: it was set back."""
        steps = (counter - self.counter) % _COUNTERS
        if steps > at_most:
            return None
        counts = []
        count = self
        for _ in range(steps):
            count = count.following
            counts.append(count)
        return counts

    @classmethod
    def in_new_epoch(cls, counter: int) -> Self:
        """Return a count in an epoch that no part was ever counted in."""
        # Random, not from the clock, which may be set back, nor from the store, which may be another one tomorrow.
        return cls(secrets.randbelow(_EPOCHS - 1) + 1, counter)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where station and PLC stand: the last count concluded, those owed an answer, and whether the epoch is a new one."""

    concluded: Count
    owed: tuple[Count, ...]
    restarted: bool


def compare(counter: int, concluded: Count, at_most: int, is_known: Callable[[Count], bool]) -> Standing:
    """Return who stands where, from the trigger counter and what the PLC's result registers remember.

    `is_known` says whether a part with this count has its verdict already. A new epoch begins where the PLC remembers none
    (it is new, or lost its memory), where its counter was set back, and where it remembers less than the station does (an
    old memory was restored): then only the present count is owed an answer, and 0 counts as "no part yet".
    """
    if concluded.epoch != 0:
        owed = concluded.until(counter, at_most)
        if owed is not None and not is_known((owed[-1] if owed else concluded).following):
            return Standing(concluded, tuple(owed), restarted=False)
    if counter in (0, concluded.counter):
        return Standing(Count.in_new_epoch(counter), (), restarted=True)
    before = Count.in_new_epoch(counter - 1)
    return Standing(before, (before.following,), restarted=True)
