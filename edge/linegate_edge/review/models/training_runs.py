"""Trainings that the station starts: each a process of its own, which outlives the station and cannot hurt the line.

Rules kept here: one at a time; a list of arguments, never a shell; a session of its own and the lowest priority; a run is found
again after a restart of the station, and one that died says so, with its last line; start, cancel and end stand in the trail.
What a training does is left to `linegate retrain`, what becomes of its package to people.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from linegate.errors import StationError
from linegate_edge.message import utc_now
from linegate_edge.process_times import process_start
from linegate_edge.review.audit import SYSTEM, Actor, AuditTrail
from linegate_edge.review.models.run_record import (
    LOG_FILE,
    OUT_FOLDER,
    PROGRESS_FILE,
    RunRecord,
    has_result,
    is_alive,
    read_log,
    read_record,
    write_record,
)

log = logging.getLogger("linegate.models")
RUNS_FOLDER: Final = "training"
RETRAIN: Final = (sys.executable, "-m", "linegate.cli", "retrain")
NOT_INSTALLED: Final = (
    "training is not installed here: install linegate[training], or copy the data set version to a machine that has it, "
    "run `linegate retrain` there, and import the package that it writes"
)
LOWEST_PRIORITY: Final = 19
_GRACE_S: Final = 15.0
_GATE_ANSWERED: Final = (0, 1)
"""Exit status of a training that made a candidate: the gate said go, or no-go."""
_POLL_S: Final = 0.05
_CHECKPOINT: Final = "*checkpoint.pt*"
"""What a training leaves to go on from, some sixty megabytes; the package, the report and the trained net are other files."""
Options = Mapping[str, str | int | bool]


def why_no_training() -> str | None:
    """Return in one line why no training can run on this machine, or None."""
    missing = any(importlib.util.find_spec(name) is None for name in ("linegate_training", "torch"))
    return NOT_INSTALLED if missing else None


class TrainingRuns:
    """The training runs in the folder of a store; `command` begins the line that starts one.

    All methods may be called from any thread.
    """

    def __init__(
        self,
        store: Path,
        trail: AuditTrail,
        *,
        gate: Path | None = None,
        command: Sequence[str] = RETRAIN,
        grace_s: float = _GRACE_S,
    ) -> None:
        self.folder = store / RUNS_FOLDER
        self._trail, self._gate, self._command, self._grace_s = trail, gate, tuple(command), grace_s
        self._lock = threading.RLock()
        self._waited_for: set[int] = set()  # runs whose exit status a thread of ours will have

    def folder_of(self, number: int) -> Path:
        """Return where a run lies, or would lie."""
        return self.folder / f"{number:04d}"

    def listed(self) -> list[RunRecord]:
        """Return all runs, the newest first; one whose process has gone is settled by that."""
        if not self.folder.is_dir():
            return []
        numbers = sorted((int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()), reverse=True)
        found = (self._settled(number) for number in numbers)
        return [record for record in found if record is not None]

    def find(self, number: int) -> RunRecord:
        """Return one run.

        Raises:
            LookupError: there is none of this number.
        """
        record = self._settled(number)
        if record is None:
            raise LookupError(f"no training run {number}: see the list of runs")
        return record

    def start(self, actor: Actor, version: Path, champion: Path, reference: str, digest: str, options: Options) -> RunRecord:
        """Start a training on a data set version, to be compared with a champion (its package, reference and digest).

        `options` are those of `linegate retrain`, by name without the dashes; `True` stands for one without a value.

        Raises:
            StationError: one is running already, training is not installed, or the process cannot be started.
        """
        if self._command == RETRAIN and (why := why_no_training()) is not None:
            raise StationError(why)
        with self._lock:
            runs = self.listed()
            running = next((run for run in runs if run.state == "running"), None)
            if running is not None:
                raise StationError(f"training run {running.number} is at work: wait for its end, or cancel it")
            number = max((run.number for run in runs), default=0) + 1
            detail = {
                "run": number,
                "version": version.name,
                "champion": reference,
                "champion_digest": digest,
                "options": dict(options),
            }
            process = None
            try:
                with self._trail.change(actor, "training.start", f"training/{number}", detail):
                    process = self._open(number, version, champion, options)
                    record = RunRecord(
                        number=number,
                        version=version.name,
                        champion=reference,
                        champion_digest=digest,
                        options=dict(options),
                        by=actor.name,
                        started_at=utc_now().isoformat(),
                        pid=process.pid,
                        process_started=process_start(process.pid) or 0,
                    )
                    write_record(self.folder_of(number), record)
            except OSError as error:
                _kill(process)
                raise StationError(f"{self.folder_of(number)}: the training cannot be started: {error.strerror}") from error
            except BaseException:
                _kill(process)
                raise
            self._waited_for.add(number)
        threading.Thread(target=self._wait, args=(number, process), name=f"training-{number}", daemon=True).start()
        log.info("training run %d on %s was started by %s", number, version.name, actor.name)
        return record

    def cancel(self, actor: Actor, number: int, *, wait: bool = False) -> RunRecord:
        """Have a run end: it is asked to, and after a while made to; with `wait`, return when it has.

        Raises:
            LookupError: there is none of this number.
            StationError: it has ended already.
        """
        with self._lock:
            record = self.find(number)
            if record.state != "running":
                raise StationError(f"training run {number} has ended already: it is {record.state}")
            with self._trail.change(actor, "training.cancel", f"training/{number}", {"run": number}):
                record = record.model_copy(update={"cancelled_by": actor.name})
                write_record(self.folder_of(number), record)
        _signal(record, signal.SIGTERM)
        insist = threading.Timer(self._grace_s, _signal, (record, signal.SIGKILL))
        insist.daemon = True
        insist.start()
        if wait:
            while is_alive(record):
                time.sleep(_POLL_S)
            insist.cancel()
            return self.find(number)
        return record

    def _open(self, number: int, version: Path, champion: Path, options: Options) -> subprocess.Popen[bytes]:
        folder = self.folder_of(number)
        folder.mkdir(parents=True)
        arguments = [*self._command, str(version), "--champion", str(champion), "--out", str(folder / OUT_FOLDER)]
        arguments += ["--progress", str(folder / PROGRESS_FILE), "--nice", "0"]  # it has the lowest priority from the start
        if self._gate is not None:
            arguments += ["--gate", str(self._gate)]
        for name, value in options.items():
            arguments += [f"--{name}"] if value is True else [f"--{name}={value}"]
        with (folder / LOG_FILE).open("wb") as output:
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, start_new_session=True
            )
        # Here and not in the child before exec, which is not safe beside threads.
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST_PRIORITY)
        return process

    def _wait(self, number: int, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        try:
            self._settled(number, status)
        except Exception:
            log.exception("the end of training run %d could not be noted", number)
        self._waited_for.discard(number)

    def _settled(self, number: int, status: int | None = None) -> RunRecord | None:
        """Return a run; where its process has gone, note first what became of it."""
        folder = self.folder_of(number)
        record = read_record(folder)
        if record is None or record.state != "running" or is_alive(record):
            return record
        with self._lock:
            record = read_record(folder)
            if record is None or record.state != "running":
                return record
            if status is None and number in self._waited_for:
                return record  # its waiter knows more, and is about to say so
            ended = record.model_copy(update={**_outcome(folder, record, status), "ended_at": utc_now().isoformat()})
            detail = {"run": number, "state": ended.state, "exit_status": status, "problem": ended.problem}
            with self._trail.change(SYSTEM, "training.end", f"training/{number}", detail):
                write_record(folder, ended)
            # Nothing goes on with a run that has ended, and verdicts may need the room.
            for left in (folder / OUT_FOLDER).glob(_CHECKPOINT):
                try:
                    left.unlink(missing_ok=True)
                except OSError as error:
                    log.warning("training run %d: %s could not be deleted: %s", number, left, error.strerror)
            log.info("training run %d: %s%s", number, ended.state, f": {ended.problem}" if ended.problem else "")
            return ended


def _outcome(folder: Path, record: RunRecord, status: int | None) -> dict[str, object]:
    """Return how a run ended; without a status the station was not there when it did."""
    last = next(iter(read_log(folder, 1)), "it said nothing")
    if record.cancelled_by is not None and not (status in _GATE_ANSWERED and has_result(folder)):
        return {"state": "cancelled", "exit_status": status}
    if status in (None, *_GATE_ANSWERED) and has_result(folder):
        return {"state": "done", "exit_status": status}
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        why = f"ended by {name}{', by a lack of memory perhaps' if name == 'SIGKILL' else ''}"
    elif status is None:
        why = "died while the station was not there"
    else:
        why = f"ended with status {status}"
    return {"state": "failed", "exit_status": status, "problem": f"{why}; its last line: {last}"[:1000]}


def _signal(record: RunRecord, number: signal.Signals) -> None:
    """Send a signal to a run and all that it started, if it is still the very process."""
    if is_alive(record):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(record.pid, number)


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.wait()
