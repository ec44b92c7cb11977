"""When processes started, as proc(5) tells: a process is known by its number and its start, for numbers come again."""

from __future__ import annotations

import os
import time
from pathlib import Path


def process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None: there is none, or only what is left of one."""
    try:
        # Behind the name, which may hold blanks: state is field 3, the start time field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def process_age_s() -> float:
    """Return how long ago this process started, imports included."""
    started_ticks = process_start(os.getpid())
    assert started_ticks is not None  # it runs this line
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
