"""What a check found, and how it is shown: one line each, with the mend.

Rules kept here: a finding is ok, a warning (it works, but not as it should) or a failure (it will not work); the exit status is
1 if anything failed. What is looked at is left to `doctor`, `doctor_station` and `station_check`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `what` was found, and how to mend it where it is not ok."""

    level: Literal["ok", "warn", "fail"]
    check: str
    what: str
    mend: str | None = None

    def __str__(self) -> str:
        mend = f"  — {self.mend}" if self.mend is not None else ""
        return f"{self.level:<5} {self.check:<12} {self.what}{mend}"


def ok(check: str, what: str) -> Finding:
    """Return a finding that needs no mend."""
    return Finding("ok", check, what)


def warn(check: str, what: str, mend: str) -> Finding:
    """Return a finding of something that works, but not as it should."""
    return Finding("warn", check, what, mend)


def fail(check: str, what: str, mend: str) -> Finding:
    """Return a finding of something that will not work."""
    return Finding("fail", check, what, mend)


def show(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print findings, one a line, and return the exit status: 1 if any is a failure."""
    for finding in findings:
        print(json.dumps(dataclasses.asdict(finding), ensure_ascii=False) if as_json else finding, flush=True)
    return int(any(finding.level == "fail" for finding in findings))
