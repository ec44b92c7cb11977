"""Hours, shifts and days on the plant's clocks, as moments in UTC.

Rules kept here: pure; a day begins with its first shift, so that a night shift is not torn in two; where the clock is put
forward or back, a shift begins at the first moment at which it shows the shift's time or later, and may be shorter or longer.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Length = Literal["hour", "shift", "day"]
_QUARTER: Final = timedelta(minutes=15)
_LOCAL: Final = Path("/etc/localtime")


@dataclass(frozen=True, slots=True)
class Period:
    """A span from `begin` to before `end`, both UTC; `shift` is the time at which its shift begins, `"06:00"`."""

    begin: datetime
    end: datetime
    shift: str


def system_zone() -> ZoneInfo:
    """Return the time zone of this machine, by `TZ` or /etc/localtime; UTC where it says none."""
    name = os.environ.get("TZ", "").removeprefix(":")
    try:
        if name:
            return ZoneInfo(name)
        target = _LOCAL.resolve().as_posix()
        if "/zoneinfo/" in target:
            return ZoneInfo(target.partition("/zoneinfo/")[2])
        with _LOCAL.open("rb") as file:
            return ZoneInfo.from_file(file, key="local")
    except (ZoneInfoNotFoundError, OSError, ValueError):
        return ZoneInfo("UTC")


def periods(since: datetime, until: datetime, length: Length, shifts: Sequence[str], zone: ZoneInfo) -> list[Period]:
    """Return the periods that lie whole or in part between two moments, without a gap, in their order."""
    begins = _shift_begins(since, until, shifts, zone)
    spans = [Period(begin, end, name) for (begin, name), (end, _) in itertools.pairwise(begins) if begin < end]
    if length == "hour":
        spans = [part for span in spans for part in _hours(span, zone)]
    elif length == "day":
        firsts = [begin for begin, name in begins if name == shifts[0]]
        spans = [Period(begin, end, shifts[0]) for begin, end in itertools.pairwise(firsts)]
    return [span for span in spans if span.begin < until and span.end > since]


def day_begin(moment: datetime, shifts: Sequence[str], zone: ZoneInfo, *, days_before: int = 0) -> datetime:
    """Return when the plant's day of a moment began, or one so many days before it."""
    day = moment.astimezone(zone).date()
    if _moment_of(day, shifts[0], zone) > moment:
        day -= timedelta(days=1)
    return _moment_of(day - timedelta(days=days_before), shifts[0], zone)


def _shift_begins(since: datetime, until: datetime, shifts: Sequence[str], zone: ZoneInfo) -> list[tuple[datetime, str]]:
    day = since.astimezone(zone).date() - timedelta(days=2)
    last = until.astimezone(zone).date() + timedelta(days=2)
    begins: list[tuple[datetime, str]] = []
    while day <= last:
        for name in shifts:
            # In the hour that a clock skips several begin at once, and all but the last are empty.
            begins.append((_moment_of(day, name, zone), name))
        day += timedelta(days=1)
    return begins


def _moment_of(day: date, clock: str, zone: ZoneInfo) -> datetime:
    wall = datetime.combine(day, time.fromisoformat(clock))
    # The earlier of the two readings of a time that the clock shows twice; of one that it skips, one before the jump.
    moment = min(wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    while moment.astimezone(zone).replace(tzinfo=None) < wall:
        moment += _QUARTER
    return moment


def _hours(span: Period, zone: ZoneInfo) -> list[Period]:
    hours, begin = [], span.begin
    while begin < span.end:
        end = min(span.end, begin + timedelta(minutes=60 - begin.astimezone(zone).minute))
        hours.append(Period(begin, end, span.shift))
        begin = end
    return hours
