"""What is known of one training run: its record on disk, its process, its progress and its log.

    <store>/training/<number>/
        run.json         this module's `RunRecord`
        progress.jsonl   a line for each step: at, step, share, text
        log.txt          what the process said
        out/             what it made: package, comparison, pictures

Rules kept here: the record is replaced whole; a process is known by its number and the moment it started, for numbers are given
again; a file that is torn, or written by something else, is read as far as it goes and never breaks the page. Starting and
ending processes is left to `training_runs`.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from linegate.comparison import COMPARISON_FILE, Comparison, load_comparison
from linegate.errors import DataError
from linegate_edge.process_times import process_start

RECORD_FILE: Final = "run.json"
PROGRESS_FILE: Final = "progress.jsonl"
LOG_FILE: Final = "log.txt"
OUT_FOLDER: Final = "out"
_TAIL_BYTES: Final = 64 * 1024

RunState = Literal["running", "done", "failed", "cancelled"]
"""A run that has ended is done, whatever its gate said; failed; or cancelled by a person."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class RunRecord(BaseModel):
    """`run.json`: what was asked for, by whom, which process does it, and how it ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    version: str
    champion: str
    champion_digest: str
    options: dict[str, str | int | bool]
    by: str
    started_at: str
    pid: int
    process_started: int
    cancelled_by: str | None = None
    state: RunState = "running"
    ended_at: str | None = None
    exit_status: int | None = None
    problem: str | None = None


class RunProgress(BaseModel):
    """How far a run is: the last line of its progress file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: str
    step: str
    share: Share
    text: str = ""


def read_record(folder: Path) -> RunRecord | None:
    """Return the record in a run's folder, or None where there is none that can be read."""
    try:
        return RunRecord.model_validate_json((folder / RECORD_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def write_record(folder: Path, record: RunRecord) -> None:
    """Replace the record in a run's folder, durably."""
    temporary = folder / f"{RECORD_FILE}.writing"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / RECORD_FILE)


def is_alive(record: RunRecord) -> bool:
    """Say whether the very process of a run still runs."""
    return process_start(record.pid) == record.process_started


def read_progress(folder: Path) -> RunProgress | None:
    """Return the last whole line of a run's progress file."""
    for line in reversed(_tail(folder / PROGRESS_FILE)):
        try:
            return RunProgress.model_validate_json(line)
        except ValidationError:
            continue  # a line that is being written
    return None


def read_log(folder: Path, lines: int) -> list[str]:
    """Return the last lines of what the process said; of a bar that redraws itself only what was seen last."""
    return [line.rpartition("\r")[2].rstrip() for line in _tail(folder / LOG_FILE)][-lines:]


def read_result(folder: Path) -> Comparison | None:
    """Return the comparison that a run made, or None."""
    path = folder / OUT_FOLDER / COMPARISON_FILE
    try:
        return _read_result(path, path.stat().st_mtime_ns)
    except (DataError, OSError):
        return None


@functools.lru_cache(maxsize=64)
def _read_result(path: Path, _changed_ns: int) -> Comparison:
    return load_comparison(path)  # some have megabytes, and a page asks every second


def has_result(folder: Path) -> bool:
    """Say whether a run came to its end: it wrote the comparison, though perhaps of a candidate that could not be measured."""
    return (folder / OUT_FOLDER / COMPARISON_FILE).is_file()


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    lines = [line for line in text.split("\n") if line.strip()]
    return lines[1:] if size > _TAIL_BYTES else lines
