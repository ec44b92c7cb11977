"""Logs: one JSON object a line, whatever happens; text as before."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from conftest import TOPIC, free_port, station_toml, wait_until
from linegate.errors import SettingsError
from linegate_edge.logs import FORMAT_VARIABLE, JsonFormatter, choose_format

FIELDS = {"time", "level", "logger", "thread", "station", "message", "exception"}


def as_json(record: logging.LogRecord) -> dict[str, Any]:
    text = JsonFormatter(TOPIC).format(record)
    assert "\n" not in text
    fields: dict[str, Any] = json.loads(text)
    assert set(fields) == FIELDS
    return fields


def make_record(message: str, *arguments: object, failed: bool = False) -> logging.LogRecord:
    exc_info = None
    if failed:
        try:
            raise ValueError("line 1\nline 2")
        except ValueError:
            exc_info = sys.exc_info()
    return logging.LogRecord("linegate.line", logging.ERROR, __file__, 1, message, arguments, exc_info)


def test_a_record_is_one_line_of_json() -> None:
    fields = as_json(make_record('part "%s" of 7 × 8 mm\n failed', "A-1"))
    assert fields["message"] == 'part "A-1" of 7 × 8 mm\n failed'
    assert (fields["level"], fields["logger"], fields["station"]) == ("error", "linegate.line", TOPIC)
    assert fields["exception"] is None
    assert datetime.fromisoformat(fields["time"]).utcoffset() is not None


def test_an_exception_stands_in_the_same_line() -> None:
    exception = as_json(make_record("failed", failed=True))["exception"]
    assert exception.startswith("Traceback")
    assert exception.endswith("ValueError: line 1\nline 2")


def test_the_command_line_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    assert choose_format(None) == "text"
    monkeypatch.setenv(FORMAT_VARIABLE, "json")
    assert choose_format(None) == "json"
    assert choose_format("text") == "text"


def test_a_format_that_does_not_exist_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "xml")
    with pytest.raises(SettingsError, match="LINEGATE_LOG_FORMAT: expected one of text, json, got 'xml'"):
        choose_format(None)


def test_warnings_and_threads_that_end_are_records_too() -> None:
    code = (
        "import logging, threading, warnings; from linegate_edge.logs import log_to_stderr; "
        "log_to_stderr(logging.INFO, 'json', 'a/b/c/d/e'); warnings.warn('old'); "
        "thread = threading.Thread(target=lambda: 1 / 0, name='writer'); thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    warning, ended = [json.loads(line) for line in done.stderr.splitlines()]
    assert "old" in warning["message"]
    assert (ended["level"], ended["message"]) == ("critical", "thread writer ended")
    assert "ZeroDivisionError" in ended["exception"]


@pytest.fixture
def running(tmp_path: Path, spot_package: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A station as the service manager starts it, with its log file."""
    path = station_toml(tmp_path, spot_package, broker_port=9, http_port=free_port(), more="[evidence]\nmin_free_mib = 0\n")
    log = tmp_path / "log"
    with log.open("wb") as target:
        process = subprocess.Popen(
            [sys.executable, "-m", "linegate.cli", "run", str(path)],
            stderr=target,
            env=os.environ | {FORMAT_VARIABLE: "json"},
        )
    yield process, log
    process.kill()
    process.wait()


def test_every_line_of_a_running_station_is_json_and_names_it(running: tuple[subprocess.Popen[bytes], Path]) -> None:
    process, log = running
    wait_until(lambda: "after the process started" in log.read_text(), what="ready")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {record["station"] for record in records} == {TOPIC}
    assert all(set(record) == FIELDS for record in records)
    assert "stopped after verdict 0" in records[-1]["message"]


def test_what_keeps_a_station_from_starting_is_json_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "linegate.cli", "run", "--log-format", "json", str(tmp_path / "none.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    record = json.loads(done.stderr)
    assert record["level"] == "critical"
    assert record["message"].endswith("none.toml: no such settings file")
