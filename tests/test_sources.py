"""Cameras of every technology: each picture is judged once, and a missing camera is told and looked for again."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import cv2
import pytest

from conftest import MakeStation, Mosquitto, encode, free_port, spot_picture, wait_until
from linegate.errors import LinegateError, StoreError
from linegate_edge.station import Station
from linegate_edge.store import DATABASE_FILE, StoreReader
from simulators.network_camera import NetworkCamera

NO_BROKER = 9
LIMITS = "[evidence]\nmin_free_mib = 0\n"


def folder_source(path: Path, settings: str = "settle_ms = 50") -> str:
    return f'{LIMITS}[[source]]\nkind = "folder"\npath = "{path}"\ncamera = "top"\n{settings}\n'


def put(folder: Path, name: str, *, defect: bool = False, seed: int = 0) -> None:
    """Write a picture as a careful program does: elsewhere first, then by rename."""
    hidden = folder / f".{name}.part"
    hidden.write_bytes(encode(spot_picture(defect=defect, seed=seed)))
    hidden.rename(folder / name)


def serials(station: Station) -> list[str]:
    reader = StoreReader(station.settings.station.store / DATABASE_FILE)
    return [json.loads(text)["part"]["serial"] for _, text in reader.outbox_after(0, 10_000)]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    return folder


def test_an_empty_folder_gives_no_parts_and_no_trouble(frames: Path, make_station: MakeStation) -> None:
    station = make_station(NO_BROKER, more=folder_source(frames, "watch = false"))
    station.cameras[0].join(10)
    assert serials(station) == []
    assert station.not_ready() is None


def test_files_are_judged_in_the_order_of_their_names_and_new_ones_as_they_come(
    frames: Path, make_station: MakeStation
) -> None:
    for name in ("b.png", "a.png", "notes.txt"):
        put(frames, name)
    station = make_station(NO_BROKER, more=folder_source(frames))
    wait_until(lambda: len(serials(station)) == 2)
    put(frames, "c.jpg", defect=True)
    wait_until(lambda: station.live.snapshot()["parts"] == 3)
    assert sorted(serials(station)) == ["a", "b", "c"]
    assert station.live.snapshot()["failed"] == 1


def test_a_file_is_judged_once_over_restarts_and_again_when_it_changes(frames: Path, make_station: MakeStation) -> None:
    for number in range(5):
        put(frames, f"p{number}.png", seed=number)
    for _ in range(3):
        station = make_station(NO_BROKER, more=folder_source(frames, "watch = false"))
        station.cameras[0].join(20)
        station.stop()
    put(frames, "p3.png", defect=True)
    station = make_station(NO_BROKER, more=folder_source(frames, "watch = false"))
    station.cameras[0].join(20)
    wait_until(lambda: len(serials(station)) == 6)
    assert serials(station)[-1] == "p3"


def test_a_file_overwritten_in_place_is_a_new_part(frames: Path, make_station: MakeStation) -> None:
    station = make_station(NO_BROKER, more=folder_source(frames))
    for number in range(3):
        (frames / "latest.png").write_bytes(encode(spot_picture(defect=False, seed=number, size_wh=(64, 64 + number))))
        wait_until(lambda number=number: len(serials(station)) == number + 1)
    assert serials(station) == ["latest"] * 3


def test_a_file_that_is_still_being_written_is_waited_for(frames: Path, make_station: MakeStation) -> None:
    station = make_station(NO_BROKER, more=folder_source(frames, "settle_ms = 400"))
    data = encode(spot_picture(defect=False))
    with (frames / "slow.png").open("wb") as file:
        for start in range(0, len(data), len(data) // 6):
            file.write(data[start : start + len(data) // 6])
            file.flush()
            os.fsync(file.fileno())
            station.cameras[0].stopping.wait(0.15)
    wait_until(lambda: station.live.snapshot()["parts"] == 1)
    assert station.live.snapshot()["passed"] == 1, "a torn read would have been undecided"


def test_a_torn_file_is_undecided_and_the_next_is_judged(frames: Path, make_station: MakeStation) -> None:
    (frames / "a.png").write_bytes(encode(spot_picture(defect=False))[:500])
    (frames / "b.png").write_bytes(b"")
    put(frames, "c.png")
    station = make_station(NO_BROKER, more=folder_source(frames))
    wait_until(lambda: station.live.snapshot()["parts"] == 3)
    shown = station.live.snapshot()
    assert (shown["passed"], shown["undecided"]) == (1, 2)


def test_a_file_name_that_is_no_utf_8_is_judged_and_readable(frames: Path, make_station: MakeStation) -> None:
    (Path(os.fsdecode(os.fsencode(frames) + b"/teil-\xe4-7.png"))).write_bytes(encode(spot_picture(defect=False)))
    station = make_station(NO_BROKER, more=folder_source(frames))
    wait_until(lambda: station.live.snapshot()["parts"] == 1)
    assert serials(station) == ["teil-\\udce4-7"]


def test_a_link_that_leads_nowhere_does_not_blind_the_camera(frames: Path, make_station: MakeStation) -> None:
    (frames / "loop.png").symlink_to("loop.png")
    (frames / "dangling.png").symlink_to("nowhere.png")
    put(frames, "a.png")
    station = make_station(NO_BROKER, more=folder_source(frames))
    wait_until(lambda: station.live.snapshot()["parts"] == 1)
    assert station.not_ready() is None


def test_a_file_that_could_not_be_handed_over_is_found_again(
    frames: Path, make_station: MakeStation, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = iter([True])

    def recorded(self: StoreReader, origin: str) -> None:
        if next(broken, False):
            raise StoreError("the store cannot be read: busy")

    monkeypatch.setattr(StoreReader, "recorded", recorded)
    put(frames, "a.png")
    station = make_station(NO_BROKER, more=folder_source(frames))
    wait_until(lambda: station.live.snapshot()["parts"] == 1)


def test_a_missing_folder_is_told_looked_for_and_found(tmp_path: Path, make_station: MakeStation) -> None:
    folder = tmp_path / "later"
    station = make_station(NO_BROKER, more=folder_source(folder))
    wait_until(lambda: station.not_ready() is not None)
    assert station.not_ready() == (
        f"camera top: folder {folder} cannot be read (No such file or directory): check [[source]] path"
    )
    assert station.metrics.registry.get_sample_value("linegate_source_up", {"camera": "top"}) == 0
    folder.mkdir()
    put(folder, "a.png")
    wait_until(lambda: len(serials(station)) == 1)
    assert station.not_ready() is None


def write_video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 64))
    for number in range(frames):
        writer.write(cv2.cvtColor(spot_picture(defect=number % 4 == 0, seed=number), cv2.COLOR_GRAY2BGR))
    writer.release()


def test_every_frame_of_a_video_file_is_a_part_once_over_restarts(tmp_path: Path, make_station: MakeStation) -> None:
    write_video(tmp_path / "line.avi", 12)
    more = f'{LIMITS}[[source]]\nkind = "opencv"\naddress = "{tmp_path}/line.avi"\n'
    for _ in range(2):
        station = make_station(NO_BROKER, more=more)
        station.cameras[0].join(30)
        station.stop()
    # Workers decide side by side, so the sequence is that of the decisions.
    assert sorted(serials(station)) == [f"line-{number:06d}" for number in range(1, 13)]
    station = make_station(NO_BROKER, more=more)
    reader = StoreReader(station.settings.station.store / DATABASE_FILE)
    messages = [text for _, text in reader.outbox_after(0, 100)]
    assert sum('"decision":"fail","reason":"above_threshold","reason_text"' in text for text in messages) == 3


def test_a_network_camera_that_is_unplugged_comes_back(make_station: MakeStation, mosquitto: Mosquitto) -> None:
    numbers = itertools.count()
    camera = NetworkCamera(lambda: encode(spot_picture(defect=False, seed=next(numbers)), "JPEG"), free_port())
    camera.plug_in()
    more = f'{LIMITS}[[source]]\nkind = "opencv"\naddress = "{camera.address}"\ncamera = "top"\nreconnect_s = 0.2\n'
    station = make_station(mosquitto.port, more=more)
    wait_until(lambda: station.live.snapshot()["parts"] > 5, 30)
    camera.unplug()
    wait_until(lambda: station.not_ready() is not None, 30, "the camera to be missed")
    assert "camera top" in str(station.not_ready())
    before = station.live.snapshot()["parts"]
    camera.plug_in()
    wait_until(lambda: station.live.snapshot()["parts"] > before + 5, 30, "the camera to come back")
    camera.unplug()
    serial = station.live.snapshot()["last"]["part"]["serial"]
    assert serial.startswith(f"top-{station.boot_id[:8]}-")


@pytest.mark.parametrize("address", ["/dev/video97", "97", "nowhere.mp4", "rtsp://127.0.0.1:9/stream"])
def test_a_missing_camera_is_told_in_one_line_and_the_station_goes_on(make_station: MakeStation, address: str) -> None:
    more = f'{LIMITS}[[source]]\nkind = "opencv"\naddress = "{address}"\ncamera = "top"\nreconnect_s = 0.2\n'
    station = make_station(NO_BROKER, more=more)
    wait_until(lambda: station.not_ready() is not None, 30)
    assert f"{address}: cannot be opened" in str(station.not_ready())
    assert "\n" not in str(station.not_ready())
    assert station.line.alive


def test_a_station_without_a_model_package_says_so_before_it_starts(make_station: MakeStation, tmp_path: Path) -> None:
    with pytest.raises(LinegateError, match="no such model package"):
        make_station(NO_BROKER, package=tmp_path / "none")


def test_a_camera_that_is_faster_than_asked_for_is_judged_by_its_newest_frame(
    make_station: MakeStation,
) -> None:
    numbers = itertools.count()
    camera = NetworkCamera(lambda: encode(spot_picture(defect=False, seed=next(numbers)), "JPEG"), free_port())
    camera.plug_in()
    source = f'[[source]]\nkind = "opencv"\naddress = "{camera.address}"\ncamera = "top"\nmax_frames_per_second = 4.0\n'
    station = make_station(NO_BROKER, more=LIMITS + source)
    value = station.metrics.registry.get_sample_value
    wait_until(lambda: station.live.snapshot()["parts"] >= 4, 30)
    camera.unplug()
    assert (value("linegate_frames_skipped_total", {"camera": "top"}) or 0) > 0
