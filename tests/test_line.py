"""Every capture gets exactly one verdict, whatever the model, the queue or the disk do; and the station goes on."""

from __future__ import annotations

import errno
import logging
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from conftest import BAD_PICTURES, MakeStation, Mes, Mosquitto, free_port, spot_picture, station_toml, submit, wait_until
from linegate.errors import StationError
from linegate.infer import Inspector
from linegate.stages import Decision, Frame, FrameFault, Part, PixelFormat, Prediction
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.records import Capture, Recorded
from linegate_edge.settings import load_station
from linegate_edge.sources.encoded import capture_from_bytes
from linegate_edge.station import Station
from linegate_edge.store import DATABASE_FILE, StoreReader

NO_BROKER = 9  # the discard port: nobody listens there


def capture(number: int, *, defect: bool = False, view: str = "main") -> Capture:
    picture = spot_picture(defect=defect, seed=number)
    frame = Frame(picture, PixelFormat.MONO8, f"f{number}", "camera", view, number, datetime.now(UTC))
    return Capture(Part(f"part-{number}", "test"), frame)


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_undecided_with_its_reason_published_and_the_station_goes_on(
    name: str, mosquitto: Mosquitto, mes: Mes, make_station: MakeStation
) -> None:
    data, reason = BAD_PICTURES[name]
    station = make_station(mosquitto.port)
    bad = capture_from_bytes(
        data,
        part=Part("bad", "test"),
        camera="camera",
        view="main",
        sequence=1,
        captured_at=datetime.now(UTC),
        max_pixels=64_000_000,
    )
    station.line.submit(bad).result(30)
    submit(station, 1, start=1)[0].result(30)
    wait_until(lambda: len(mes.verdicts) == 2)
    undecided, after = sorted(mes.verdicts, key=lambda verdict: verdict["sequence"])
    assert (undecided["decision"], undecided["reason"]) == ("undecided", reason)
    assert undecided["reason_text"]
    assert "\n" not in undecided["reason_text"]
    assert after["decision"] == "pass"
    image = undecided["views"][0]["image_uri"]
    if data:
        kept = station.settings.station.store / "evidence" / image.split("/")[2][:2] / image.split("/")[2]
        assert kept.read_bytes() == data, "the very bytes are evidence"


def test_a_model_that_breaks_makes_the_part_undecided_and_serves_the_next(
    make_station: MakeStation, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = make_station(NO_BROKER)
    predict = Inspector.predict

    def predict_or_break(self: Inspector, frame: Frame, *_: object) -> Prediction:
        if frame.frame_id == "f1":
            raise RuntimeError("the provider is gone")
        return predict(self, frame)

    monkeypatch.setattr(Inspector, "predict", predict_or_break)
    results = [station.line.submit(capture(number)).result(30).message for number in range(3)]
    assert [message["decision"] for message in results] == ["pass", "undecided", "pass"]
    assert results[1]["reason"] == "model_fault"
    assert "the provider is gone" in results[1]["reason_text"]


def test_a_view_that_the_recipe_does_not_know_is_undecided(make_station: MakeStation) -> None:
    station = make_station(NO_BROKER)
    message = station.line.submit(capture(1, view="side")).result(30).message
    assert (message["decision"], message["reason"]) == ("undecided", "no_view")


class Brake:
    """Holds the model until released, so that the queue fills for certain."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release = threading.Event()
        predict = Inspector.predict

        def predict_when_released(inspector: Inspector, frame: Frame, *_: object) -> Prediction:
            self.release.wait(60)
            return predict(inspector, frame)

        monkeypatch.setattr(Inspector, "predict", predict_when_released)


@pytest.fixture
def brake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Brake]:
    held = Brake(monkeypatch)
    yield held
    held.release.set()


def test_a_frame_that_finds_the_queue_full_is_undecided_at_once(make_station: MakeStation, brake: Brake) -> None:
    more = "[evidence]\nmin_free_mib = 0\n[limits]\nqueue_frames = 2\n"
    station = make_station(NO_BROKER, more=more)
    futures = [station.line.submit(capture(number), wait=False) for number in range(12)]
    wait_until(lambda: any(future.done() for future in futures))
    brake.release.set()
    messages = [future.result(30).message for future in futures]
    full = [message for message in messages if message["reason"] == "queue_full"]
    assert full, "twelve frames do not fit a queue of two"
    assert all(message["decision"] == "undecided" and message["views"][0]["image_sha256"] for message in full)
    assert len({message["sequence"] for message in messages}) == 12, "triggers in = verdicts out"


def test_a_source_that_can_wait_is_held_back_and_loses_nothing(make_station: MakeStation, brake: Brake) -> None:
    station = make_station(NO_BROKER, more="[evidence]\nmin_free_mib = 0\n[limits]\nqueue_frames = 1\n")
    futures: list[Future[Recorded]] = []
    feeder = threading.Thread(target=lambda: futures.extend(submit(station, 30)))
    feeder.start()
    brake.release.set()
    feeder.join(30)
    assert {future.result(30).message["reason"] for future in futures} <= {"below_threshold", "above_threshold"}


def test_evidence_of_a_full_disk_is_missed_and_the_verdict_is_not(
    make_station: MakeStation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    station = make_station(NO_BROKER)

    def refuse(self: EvidenceFolder, item: Frame | FrameFault) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EvidenceFolder, "save", refuse)
    with caplog.at_level(logging.ERROR, "linegate.line"):
        message = station.line.submit(capture(1, defect=True)).result(30).message
    assert message["decision"] == "fail"
    assert message["views"][0]["image_uri"] is None
    assert "No space left on device" in caplog.text
    assert station.metrics.registry.get_sample_value("linegate_evidence_failures_total") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, or a skip where this user may not mount one."""
    place = tmp_path / "small-disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small tmpfs needs the right to mount: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_stops_the_line_says_so_and_loses_nothing(
    mosquitto: Mosquitto, mes: Mes, make_station: MakeStation, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = "[evidence]\nmin_free_mib = 0\n"
    station = make_station(mosquitto.port, more=more, store=small_disk / "store")
    submit(station, 5)[-1].result(30)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    futures: list[Future[Recorded]] = []
    feeder = threading.Thread(target=lambda: futures.extend(submit(station, 600, start=5)), daemon=True)
    feeder.start()
    wait_until(lambda: station.live.line_stop is not None, 60, "the line to stop")
    assert "free some disk space" in str(station.live.line_stop)
    assert "line stop" in str(station.not_ready())
    wait_until(lambda: any(state["line_stop"] for state in mes.states), what="the state message to tell the MES")
    stored_when_full = StoreReader(small_disk / "store" / DATABASE_FILE).verdict_count()
    assert stored_when_full < 605
    filler.unlink()
    feeder.join(60)
    assert all(future.result(60).sequence for future in futures)
    wait_until(lambda: mes.sequences == set(range(1, 606)), 60, "every verdict, once there is room again")
    assert station.live.line_stop is None
    assert station.not_ready() is None


def test_a_store_that_is_deleted_under_the_station_stops_the_line(make_station: MakeStation, tmp_path: Path) -> None:
    station = make_station(NO_BROKER, more="[evidence]\nmin_free_mib = 0\n[limits]\nstop_timeout_s = 1\n")
    for future in submit(station, 3):
        future.result(30)
    shutil.rmtree(station.settings.station.store)
    late = submit(station, 1, start=3)[0]
    wait_until(lambda: station.live.line_stop is not None)
    assert "removed or replaced under the running station" in str(station.not_ready())
    assert not late.done(), "no pass is told that would be gone after a restart"
    assert b"linegate_disk_free_bytes" in station.metrics.exposition()
    assert station.stop() == 1


def test_a_stopping_station_takes_no_more_parts(make_station: MakeStation) -> None:
    station = make_station(NO_BROKER)
    done = submit(station, 20)
    assert station.stop() == 0
    assert all(future.done() for future in done)
    with pytest.raises(StationError, match="is stopping"):
        submit(station, 1)


def test_a_station_stops_twice_and_without_a_start(make_station: MakeStation, tmp_path: Path, spot_package: Path) -> None:
    station = make_station(NO_BROKER)
    assert (station.stop(), station.stop()) == (0, 0)
    path = station_toml(tmp_path, spot_package, broker_port=NO_BROKER)
    Station(load_station(path)).stop()
    make_station(NO_BROKER)


def test_a_part_cannot_be_cancelled(make_station: MakeStation) -> None:
    station = make_station(NO_BROKER)
    future = station.line.submit(capture(1))
    assert not future.cancel()
    assert future.result(30).sequence == 1


def test_a_repeated_origin_is_judged_once_and_leaves_no_stray_evidence(make_station: MakeStation) -> None:
    station = make_station(NO_BROKER)
    for number in (1, 2, 1):
        item = capture(number, defect=True)
        recorded = station.line.submit(Capture(item.part, item.item, "http:key-1")).result(30)
        assert recorded.sequence == 1
    assert station.live.snapshot()["parts"] == 1
    kept = [path for path in (station.settings.station.store / "evidence").rglob("*") if path.is_file()]
    assert [path.name for path in kept] == [recorded.message["views"][0]["image_uri"].split("/")[2]]


def test_two_stations_over_one_store_are_refused(make_station: MakeStation) -> None:
    make_station(NO_BROKER)
    with pytest.raises(StationError, match="the store is in use by process"):
        make_station(NO_BROKER)


def test_a_taken_port_is_refused_and_the_store_is_let_go(tmp_path: Path, make_station: MakeStation) -> None:
    first = make_station(NO_BROKER)
    more = "[evidence]\nmin_free_mib = 0\n"
    with pytest.raises(StationError, match="port"):
        make_station(NO_BROKER, more=more, store=tmp_path / "other", http_port=first.http_port)
    make_station(NO_BROKER, more=more, store=tmp_path / "other", http_port=free_port())


def test_a_threshold_of_the_station_replaces_the_package_s_and_is_named(make_station: MakeStation) -> None:
    station = make_station(NO_BROKER, more="[evidence]\nmin_free_mib = 0\n[recipe]\nname = 'strict'\nthreshold = 0.1\n")
    message = station.line.submit(capture(1)).result(30).message
    assert (message["decision"], message["views"][0]["threshold"]) == ("fail", 0.1)
    assert message["provenance"]["recipe"] == "strict"
    assert message["provenance"]["threshold_version"].startswith("station:")


def test_the_counters_agree_with_the_store(make_station: MakeStation) -> None:
    station = make_station(NO_BROKER)
    for future in submit(station, 50, defect_every=5):
        future.result(30)
    wait_until(lambda: station.live.snapshot()["parts"] == 50)
    shown = station.live.snapshot()
    assert (shown["passed"], shown["failed"], shown["undecided"], shown["first_pass_yield"]) == (40, 10, 0, 0.8)
    value = station.metrics.registry.get_sample_value
    assert value("linegate_parts_total", {"decision": Decision.PASS}) == 40
    assert StoreReader(station.settings.station.store / DATABASE_FILE).verdict_count() == 50


def test_a_frame_is_not_changed_by_judging_it(make_station: MakeStation) -> None:
    station = make_station(NO_BROKER)
    item = capture(1)
    assert isinstance(item.item, Frame)
    before = item.item.image.copy()
    station.line.submit(item).result(30)
    np.testing.assert_array_equal(item.item.image, before)
