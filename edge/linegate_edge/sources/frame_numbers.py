"""How many frames were lost before this one, by the numbers that a camera gives its frames.

Rules kept here: pure, no clock; a number that cannot follow the one before it is a counter that begins anew, which is taken
to have lost nothing. What a lost frame means for its part is left to `industrial`.
"""

from __future__ import annotations

from typing import Final

_LAP: Final = 65_535
"""GigE Vision 1 counts from 1 to 65,535 and goes on at 1; 0 marks no frame."""
_NEAR: Final = 1_000
"""So near to its end, on both sides, a 16-bit counter is taken to have gone round."""


class FrameNumbers:
    """The frame numbers of one connection, told one after the other."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._unnumbered = 0

    def missed_before(self, number: int | None) -> int:
        """Take the next frame's number and return how many frames were lost before it.

        Frames without a number (None) are counted, and not taken for lost when the numbers go on.
        """
        if number is None:
            self._unnumbered += 1
            return 0
        last, unnumbered = self._last, self._unnumbered
        self._last, self._unnumbered = number, 0
        if last is None:
            return 0
        went_round = _LAP - _NEAR < last <= _LAP and 0 < number < _NEAR
        step = number - last + (_LAP if went_round else 0)
        return max(0, step - 1 - unnumbered)
