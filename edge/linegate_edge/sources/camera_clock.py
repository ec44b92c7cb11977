"""When a frame was taken, in aware UTC, by the clock that the settings name.

Rules kept here: pure, for both times are told by the caller; a frame is never taken later than it arrived; a camera's clock
that drifts, is reset or makes no sense is never worse than the time of arrival, and so is a host whose clock is set. How the
two times are got is left to the drivers.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, Literal

_SECOND: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WINDOW_NS: Final = 30 * _SECOND
_LATENCY_NS: Final = 2 * _SECOND
"""No frame takes longer from the sensor to the host: an older one shows that the clocks have parted."""
_TAI_NS: Final = 37 * _SECOND
"""PTP counts TAI, which has been 37 s ahead of UTC since 2017; a grandmaster of one's own may count UTC."""


class CameraClock:
    """The time of frames by `timestamps`: `"host"`, `"camera"` (laid over the host's clock) or `"ptp"`."""

    def __init__(self, timestamps: Literal["host", "camera", "ptp"]) -> None:
        self._timestamps = timestamps
        self._window_start_ns = 0
        self._smallest: tuple[int | None, int | None] = None, None  # of the window before, and of this one

    def moment(self, camera_ns: int | None, host_ns: int) -> datetime:
        """Return when a frame was taken that the camera stamped `camera_ns`, None where it did not, and came at `host_ns`.

        `host_ns` is nanoseconds since 1970 in UTC; `camera_ns` counts nanoseconds from anywhere.
        """
        taken_ns = host_ns if not camera_ns or self._timestamps == "host" else self._taken_ns(camera_ns, host_ns)
        return _EPOCH + timedelta(microseconds=taken_ns // 1000)

    def _taken_ns(self, camera_ns: int, host_ns: int) -> int:
        if self._timestamps == "ptp":
            for ahead_ns in (0, _TAI_NS):
                # A clock that is not in step yet is laid over the host's like any other.
                if abs(camera_ns - ahead_ns - host_ns) < _LATENCY_NS:
                    return min(camera_ns - ahead_ns, host_ns)
        return self._laid_over(camera_ns, host_ns)

    def _laid_over(self, camera_ns: int, host_ns: int) -> int:
        """Return the camera's time plus the smallest offset seen of late: that frame was least delayed."""
        offset = host_ns - camera_ns
        before, current = self._smallest
        if not 0 <= camera_ns - self._window_start_ns < _WINDOW_NS:
            before, current, self._window_start_ns = current, None, camera_ns
        current = offset if current is None else min(current, offset)
        smallest = current if before is None else min(before, current)
        if offset - smallest > _LATENCY_NS:
            before, current, smallest = None, offset, offset
        self._smallest = before, current
        return camera_ns + smallest
