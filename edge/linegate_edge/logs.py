"""Logs on standard error: a line of text for people, or a JSON object a line for a collector.

Rules kept here: UTC, as in the messages, for a log is read beside them; in JSON one record is one line, whatever its text
holds, and what would print a traceback by itself (a thread's end, a warning) becomes a record too. What libraries in C write to
standard error by themselves is left alone. Rotating and shipping is left to who runs the process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Final

from linegate.errors import SettingsError

FORMATS: Final = ("text", "json")
FORMAT_VARIABLE: Final = "LINEGATE_LOG_FORMAT"
log = logging.getLogger("linegate")


def choose_format(option: str | None) -> str:
    """Return the log format: that of the command line, else of the environment, else text.

    Raises:
        SettingsError: the environment variable names no format.
    """
    chosen = option or os.environ.get(FORMAT_VARIABLE) or FORMATS[0]
    if chosen not in FORMATS:
        raise SettingsError(f"{FORMAT_VARIABLE}: expected one of {', '.join(FORMATS)}, got '{chosen[:40]}'")
    return chosen


def log_to_stderr(level: int, log_format: str = "text", station: str | None = None) -> None:
    """Send all records from `level` on to standard error; `station` stands in each JSON object."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(station) if log_format == "json" else _text_formatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if log_format == "json":
        logging.captureWarnings(True)
        threading.excepthook = _log_thread_end


class JsonFormatter(logging.Formatter):
    """Gives one JSON object a record: time, level, logger, thread, station, message, exception; all are always there."""

    def __init__(self, station: str | None = None) -> None:
        super().__init__()
        self._station = station

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        exception = None
        if record.exc_info is not None and record.exc_info[0] is not None:
            exception = self.formatException(record.exc_info)
        moment = datetime.fromtimestamp(record.created, UTC)
        fields = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "station": self._station,
            "message": record.getMessage(),
            "exception": exception,
        }
        return json.dumps(fields, ensure_ascii=False)


def _text_formatter() -> logging.Formatter:
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    return formatter


def _log_thread_end(end: threading.ExceptHookArgs) -> None:
    if end.exc_type is SystemExit or end.exc_value is None:
        return
    name = end.thread.name if end.thread is not None else "unknown"
    log.critical("thread %s ended", name, exc_info=(end.exc_type, end.exc_value, end.exc_traceback))
