"""How far a retraining is, as JSON lines that the line's web view follows; and its end by SIGTERM.

Rules kept here: a line is `{"at", "step", "share", "text"}`, written at once and flushed; steps come in their order and the
share of the whole never falls; the last line says how it ended: done, failed (and why) or cancelled. A progress file that
cannot be written stops nothing once the run has begun.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Final, Literal

from linegate.errors import SettingsError

Step = Literal["data", "train", "export", "compare", "done", "failed", "cancelled"]

CANCELLED: Final = 143
"""Exit status of a process that SIGTERM ended, as shells give it: 128 + 15."""
LATE_S: Final = 5.0
"""A run that has not unwound after so long is ended where it is."""
LINE_EVERY_S: Final = 1.0
_BEGINS: Final[dict[Step, float]] = {"data": 0.0, "train": 0.05, "export": 0.75, "compare": 0.85, "done": 1.0}
"""Share of the whole at which a step begins, about: what a retraining of a few hundred parts takes."""


class Cancelled(BaseException):
    """SIGTERM came; no `except Exception` on the way may keep it."""


class StepFile:
    """The progress of one run, appended to a file; None writes nothing.

    Raises:
        SettingsError: the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._step: Step = "data"
        self._share = 0.0
        self._written_at = -LINE_EVERY_S
        self._closed = False
        self._lock = threading.Lock()
        if path is not None:
            try:
                path.absolute().parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8"):
                    pass
            except OSError as error:
                raise SettingsError(f"--progress {path}: cannot be written ({error.strerror}): name another file") from error

    def begin(self, step: Step, text: str) -> None:
        """Write that a step begins."""
        self._step = step
        self._write(_BEGINS[step], text)

    def within(self, share: float, text: str) -> None:
        """Write how far the present step is, 0 to 1, though not more often than once a second."""
        now = time.monotonic()
        if now - self._written_at < LINE_EVERY_S:
            return
        order = list(_BEGINS)
        begins = _BEGINS[self._step]
        ends = _BEGINS[order[min(order.index(self._step) + 1, len(order) - 1)]]
        self._write(begins + min(max(share, 0.0), 1.0) * (ends - begins), text)

    def end(self, step: Literal["done", "failed", "cancelled"], text: str) -> None:
        """Write the last line; what comes after it is not written."""
        self._step = step
        self._write(1.0 if step == "done" else self._share, text)
        self._closed = True

    def _write(self, share: float, text: str) -> None:
        with self._lock:
            if self._path is None or self._closed:
                return
            self._written_at = time.monotonic()
            self._share = max(self._share, round(share, 4))
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps(
                {"at": at, "step": self._step, "share": self._share, "text": " ".join(text.split())}, ensure_ascii=False
            )
            # A full disk must not end a training that has room where it writes.
            with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")


@contextmanager
def cancellable(steps: StepFile) -> Iterator[None]:
    """Let SIGTERM raise `Cancelled` here, and end the process within seconds whatever holds it up.

    Only the main thread hears signals; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timers: list[threading.Timer] = []

    def late() -> None:
        steps.end("cancelled", "cancelled; it was ended where it was")
        os._exit(CANCELLED)

    def stop(number: int, frame: FrameType | None) -> None:
        if timers:
            return  # it is unwinding already
        timers.append(threading.Timer(LATE_S, late))
        timers[0].daemon = True
        timers[0].start()
        raise Cancelled

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGTERM, before)
