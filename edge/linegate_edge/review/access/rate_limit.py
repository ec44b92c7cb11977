"""How often somebody may try to log in: growing delays for each user name and each address.

Rules kept here: an attempt counts before its password is looked at, so that many at once gain nothing; a login that succeeds
takes back its own attempt; memory is bounded, the oldest are forgotten first; a user's delay stays short, so that nobody can
lock somebody else out for long. Telling of it is left to `routes`.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_KEPT: Final = 4096
_FORGET_S: Final = 900.0


@dataclass(frozen=True, slots=True)
class _Rule:
    free: int
    longest_s: float


_USER, _ADDRESS = _Rule(free=3, longest_s=60), _Rule(free=10, longest_s=600)


@dataclass(slots=True)
class _Tries:
    count: int = 0
    last: float = 0.0
    told: bool = False


class RateLimit:
    """Counts attempts; all methods may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._tries: OrderedDict[tuple[str, str], _Tries] = OrderedDict()

    def attempt(self, user: str, address: str) -> tuple[int, bool]:
        """Count an attempt, or return how many seconds to wait before the next one, and whether that is new.

        0 seconds: go on. What is new is worth a line of the audit trail; the many refusals after it are not.
        """
        keys = ((("user", user), _USER), (("address", address), _ADDRESS))
        with self._lock:
            now = self._clock()
            wait, new = 0.0, False
            for key, rule in keys:
                tries = self._known(key, now)
                if tries is not None and (left := tries.last + _delay(tries.count, rule) - now) > 0:
                    wait, new = max(wait, left), new or not tries.told
                    tries.told = True
            if wait > 0:
                return math.ceil(wait), new
            for key, _ in keys:
                tries = self._known(key, now) or _Tries()
                self._tries[key] = tries
                self._tries.move_to_end(key)
                tries.count, tries.last, tries.told = tries.count + 1, now, False
            while len(self._tries) > _KEPT:
                self._tries.popitem(last=False)
            return 0, False

    def succeeded(self, user: str, address: str) -> None:
        """Take the attempt back: the user's count ends, the address's is one less."""
        with self._lock:
            self._tries.pop(("user", user), None)
            tries = self._tries.get(("address", address))
            # Not to nothing: a login of one's own must not pay for guesses at those of others.
            if tries is not None:
                tries.count = max(0, tries.count - 1)

    def _known(self, key: tuple[str, str], now: float) -> _Tries | None:
        tries = self._tries.get(key)
        if tries is not None and now - tries.last > _FORGET_S:
            del self._tries[key]
            return None
        return tries

    def __len__(self) -> int:
        """Return how many names and addresses are remembered."""
        return len(self._tries)


def _delay(count: int, rule: _Rule) -> float:
    """Return the seconds between attempt number `count` and the next one."""
    return 0.0 if count < rule.free else min(rule.longest_s, 2.0 ** min(count - rule.free, 30))
