"""Which verdicts the broker has and the MES has not confirmed yet: pure, with the time told from outside.

Rules kept here: a confirmation counts only for what this connection has sent, so that a wrong span of numbers cannot take
unsent verdicts out of the outbox; what is not confirmed in time is to be sent again, and until then not. One connection has
one; the next sends again what was not confirmed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MOST_UNCONFIRMED: Final = 4096
"""With so many unconfirmed no further verdict is sent: an MES that is behind is not buried."""


class Unconfirmed:
    """Sequence numbers by the time of the broker's acknowledgement; `timeout_s` is how long the MES may take."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since: dict[int, float] = {}  # in the order of time
        self._early: set[int] = set()

    def __len__(self) -> int:
        return len(self._since)

    def acknowledged(self, sequence: int, now: float) -> bool:
        """Take note that the broker has it; say whether the MES, which may be faster, has confirmed it already."""
        self._since.pop(sequence, None)
        if sequence in self._early:
            self._early.discard(sequence)
            return True
        self._since[sequence] = now
        return False

    def confirm(self, first: int, last: int, inflight: Iterable[int]) -> list[int]:
        """Return which of `first` to `last` are done by this confirmation; of those in flight it is remembered."""
        done = [first] if first == last else [number for number in self._since if first <= number <= last]
        done = [number for number in done if self._since.pop(number, None) is not None]
        self._early.update(number for number in inflight if first <= number <= last)
        return done

    def sending(self, sequence: int) -> None:
        """Take note that it is sent, for the first time or again."""
        self._since.pop(sequence, None)
        self._early.discard(sequence)

    def forget(self, first: int, last: int) -> None:
        """Take note that these are to be sent again at once."""
        for number in [number for number in self._since if first <= number <= last]:
            del self._since[number]

    def waits(self, sequence: int, now: float) -> bool:
        """Say whether it must not be sent now, for the MES still has time to confirm it."""
        since = self._since.get(sequence)
        return since is not None and now - since < self._timeout_s

    def overdue(self, now: float) -> bool:
        """Say whether anything is to be sent again."""
        oldest = next(iter(self._since.values()), now)
        return now - oldest >= self._timeout_s
