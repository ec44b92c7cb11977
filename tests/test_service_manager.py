"""The service manager: told when the station is ready, and no longer fed when it hangs; the unit file is sound."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import free_port, require, station_toml, wait_until
from linegate_edge.service_manager import ServiceManager

UNIT = Path(__file__).parents[1] / "edge" / "deploy" / "linegate@.service"


class Listener:
    """systemd's end of the notification socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.messages: list[str] = []

    def hear(self) -> list[str]:
        """Return all messages so far."""
        while True:
            try:
                self.messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return self.messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    address = str(tmp_path / "notify") if request.param == "file" else f"@linegate-test-{os.getpid()}"
    made = Listener(address)
    yield made
    made.close()


def test_without_a_service_manager_nothing_happens() -> None:
    manager = ServiceManager({})
    manager.ready()
    manager.feed(True, 1)
    manager.stopping()
    manager.close()


def test_messages_arrive_as_the_protocol_wants_them(listener: Listener) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": listener.address})
    manager.show("ready,\nlast verdict 7")
    manager.show("ready,\nlast verdict 7")
    manager.ready()
    manager.reloading()
    manager.stopping()
    status, ready, reloading, stopping = listener.hear()
    assert (status, ready, stopping) == ("STATUS=ready, last verdict 7", "READY=1", "STOPPING=1")
    first, second = reloading.splitlines()
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0
    manager.close()


def test_the_watchdog_is_fed_only_while_there_is_progress(listener: Listener) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "4"})  # due again after a microsecond
    manager.feed(True, 1)
    assert listener.hear() == ["WATCHDOG=1"]
    manager.feed(True, 1)  # the writer hangs
    manager.feed(False, 2)  # a thread has ended
    assert listener.hear() == ["WATCHDOG=1"]
    manager.feed(True, 3)
    assert listener.hear() == ["WATCHDOG=1"] * 2
    manager.close()


def test_a_watchdog_is_not_fed_more_often_than_it_needs(listener: Listener) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "60000000"})
    for progress in range(10):
        manager.feed(True, progress)
    assert listener.hear() == ["WATCHDOG=1"]
    manager.close()


@pytest.mark.parametrize("watchdog", [{}, {"WATCHDOG_USEC": "4", "WATCHDOG_PID": str(os.getppid())}, {"WATCHDOG_USEC": "soon"}])
def test_a_watchdog_that_is_not_ours_is_not_fed(listener: Listener, watchdog: dict[str, str]) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": listener.address} | watchdog)
    manager.feed(True, 1)
    assert listener.hear() == []
    manager.close()


def test_a_service_manager_that_has_gone_holds_nobody_up(listener: Listener, tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    manager.ready()
    manager.close()


def test_a_station_tells_its_life_from_start_to_end(tmp_path: Path, spot_package: Path) -> None:
    listener = Listener(str(tmp_path / "notify"))
    path = station_toml(tmp_path, spot_package, broker_port=9, http_port=free_port(), more="[evidence]\nmin_free_mib = 0\n")
    environment = os.environ | {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "200000"}
    process = subprocess.Popen(
        [sys.executable, "-m", "linegate.cli", "run", str(path)], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: listener.hear().count("WATCHDOG=1") >= 2, what="the watchdog is fed")
        assert listener.messages[0] == "READY=1"
        assert "STATUS=ready, last verdict 0" in listener.messages
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: listener.hear().count("READY=1") == 2, what="reloaded")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert listener.hear()[-1] == "STOPPING=1"
    finally:
        process.kill()
        process.wait()
        listener.close()


def verify(unit: Path) -> subprocess.CompletedProcess[str]:
    command = [require("systemd-analyze"), "verify", str(unit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/linegate/bin/linegate", sys.executable)
    unit = tmp_path / "linegate@station7.service"
    unit.write_text(text)
    done = verify(unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    unit.write_text(text.replace("WatchdogSec", "WatchdogSecs"))
    assert "WatchdogSecs" in verify(unit).stderr, "the check above would not notice a wrong key"


def test_the_unit_gives_a_stop_more_time_than_a_station_takes_by_default() -> None:
    from linegate_edge.settings import LimitsSection

    lines = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#"))
    assert float(lines["TimeoutStopSec"]) > LimitsSection().stop_timeout_s
    assert lines["Type"] == "notify"
    assert lines["ExecReload"] == "/bin/kill -HUP $MAINPID"
