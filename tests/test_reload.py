"""Settings read again: what can change does, from the next part on; a bad file changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from conftest import MakeStation, encode, free_port, spot_picture, station_toml, submit, wait_until
from linegate_edge.reload import LIVE, Reloadable, plan, reload_station
from linegate_edge.settings import StationSettings, load_station

NO_BROKER = 9
LIMITS = "[evidence]\nmin_free_mib = 0\n"


def settings(folder: Path, more: str, model: str = "package") -> StationSettings:
    return load_station(station_toml(folder, folder / model, broker_port=NO_BROKER, more=more))


def test_the_same_file_changes_nothing(tmp_path: Path) -> None:
    same = settings(tmp_path, LIMITS)
    planned = plan(same, settings(tmp_path, LIMITS))
    assert (planned.settings, planned.changed, planned.restart) == (same, (), ())


def test_thresholds_and_evidence_change_at_once(tmp_path: Path) -> None:
    old = settings(tmp_path, LIMITS)
    new = settings(tmp_path, "[evidence]\nmin_free_mib = 7\n[recipe]\nthreshold = 0.5\n")
    planned = plan(old, new)
    assert planned.changed == ("[evidence] min_free_mib", "[recipe] threshold")
    assert planned.restart == ()
    assert planned.settings == new


def test_what_needs_a_restart_is_named_and_stays_as_it_was(tmp_path: Path) -> None:
    old = settings(tmp_path, LIMITS)
    sources = f'[[source]]\nkind = "folder"\npath = "{tmp_path}"\n'
    new = settings(tmp_path, f"keepalive_s = 20\n{LIMITS}[recipe]\nthreshold = 0.5\n{sources}", model="another")
    planned = plan(old, new)
    assert planned.changed == ("[recipe] threshold",)
    assert planned.restart == ("[model] package", "[mqtt] keepalive_s", "[[source]]")
    assert planned.settings == old.model_copy(update={"recipe": new.recipe})


def test_another_kind_of_trigger_needs_a_restart(tmp_path: Path) -> None:
    plc = '[trigger]\nkind = "modbus"\nhost = "plc"\ncounter_register = 0\nresult_register = 100\n'
    planned = plan(settings(tmp_path, LIMITS), settings(tmp_path, LIMITS + plc))
    assert (planned.changed, planned.restart) == ((), ("[trigger]",))


def test_a_station_that_was_reloaded_judges_the_next_part_by_the_new_threshold(
    tmp_path: Path, make_station: MakeStation
) -> None:
    station: Reloadable = (started := make_station(NO_BROKER))
    before = submit(started, 1)[0].result(20).message
    path = station_toml(
        tmp_path, started.settings.model.package, broker_port=NO_BROKER, more=f"{LIMITS}[recipe]\nthreshold = 2.0\n"
    )
    reload_station(path, station)
    after = submit(started, 1)[0].result(20).message
    assert (before["decision"], before["views"][0]["threshold"]) == ("fail", 0.8)
    assert (after["decision"], after["views"][0]["threshold"]) == ("pass", 2.0)
    assert after["provenance"]["threshold_version"] == "station:2/0"


@pytest.mark.parametrize("damage", ["[nonsense]\n", "[recipe]\nthreshold = 'high'\n", "[["])
def test_a_file_that_cannot_be_used_is_told_in_one_line_and_changes_nothing(
    tmp_path: Path, make_station: MakeStation, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    station = make_station(NO_BROKER)
    before = station.settings
    path = tmp_path / "STATION.toml"
    path.write_text(path.read_text() + damage)
    reload_station(path, station)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].startswith("reload refused, the station goes on as before: ")
    assert "\n" not in errors[0]
    assert station.settings is before
    assert submit(station, 1)[0].result(20).message["decision"] == "fail"


@pytest.fixture
def address(tmp_path: Path, spot_package: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """A station as the service manager starts it: its address, process and settings."""
    port = free_port()
    path = station_toml(tmp_path, spot_package, broker_port=NO_BROKER, http_port=port, more=LIMITS)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "linegate.cli", "run", str(path)], stderr=log, env=os.environ)
    wait_until(lambda: "after the process started" in (tmp_path / "log").read_text(), what="ready")
    yield f"http://127.0.0.1:{port}", process, path
    process.kill()
    process.wait()


def test_no_part_is_lost_while_sighup_changes_the_threshold(
    address: tuple[str, subprocess.Popen[bytes], Path], tmp_path: Path
) -> None:
    url, process, path = address
    picture = encode(spot_picture(defect=True))
    text, log, sequences, thresholds = path.read_text(), tmp_path / "log", [], []
    with httpx.Client(base_url=url, headers={"Content-Type": "image/png"}) as client:
        for turn in range(1, 4):
            path.write_text(f"{text}[recipe]\nthreshold = {turn}.0\n")
            process.send_signal(signal.SIGHUP)
            while log.read_text().count("reloaded: changed [recipe] threshold") < turn:
                verdict = client.post("/frames", content=picture).raise_for_status().json()
                sequences.append(verdict["sequence"])
                thresholds.append(verdict["threshold"])
        path.write_text("[[")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload refused" in log.read_text())
        last = client.post("/frames", content=picture).raise_for_status().json()
        message = client.get(f"/verdicts/{last['verdict_id']}").raise_for_status().json()
    assert sequences == list(range(1, len(sequences) + 1))
    assert thresholds == sorted(thresholds)
    assert (last["sequence"], last["threshold"]) == (len(sequences) + 1, 3.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert message["provenance"]["threshold_version"] == "station:3/0"


def test_what_can_change_is_a_section_or_its_key() -> None:
    assert {"recipe", "evidence"} <= LIVE
    assert not LIVE & {"station", "mqtt", "http", "source", "trigger", "limits"}
