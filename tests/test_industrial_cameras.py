"""Machine-vision cameras: GigE Vision by a fake camera that loses packets, GenICam by a simulator, and faults on demand."""

from __future__ import annotations

import importlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType

import numpy as np
import pytest

from conftest import TOPIC, Mes, Mosquitto, require, wait_until, write_spot_package
from linegate.errors import SettingsError
from linegate.stages import Frame, FrameFault, Part, PixelFormat, Reason
from linegate_edge.metrics import Metrics
from linegate_edge.records import Capture, Trigger
from linegate_edge.settings import load_station
from linegate_edge.source_settings import AravisSource
from linegate_edge.sources.camera import CameraMissingError
from linegate_edge.sources.industrial import Driver, Grab, IndustrialCamera
from linegate_edge.station import Station
from linegate_edge.store import DATABASE_FILE, StoreReader

NO_BROKER = 9


class ScriptedDriver(Driver):
    """A driver that delivers what a test puts in: grabs, or errors."""

    def __init__(self) -> None:
        self.script: SimpleQueue[Grab | CameraMissingError] = SimpleQueue()
        self.fired = self.closed = 0
        self.grabs = self.grabs_at_fire = 0
        self.settings: list[tuple[float | None, float | None]] = []
        self.refuses_to_fire = False

    def start(self) -> None: ...

    def grab(self, timeout_s: float) -> Grab | None:
        self.grabs += 1
        try:
            item = self.script.get(timeout=0.05)
        except Exception:  # noqa: BLE001 - queue.Empty, under whatever name
            return None
        if isinstance(item, CameraMissingError):
            raise item
        return item

    def fire(self) -> None:
        if self.refuses_to_fire:
            raise CameraMissingError("the cable is out")
        self.fired += 1
        self.grabs_at_fire = self.grabs

    def set(self, exposure_us: float | None, gain_db: float | None) -> None:
        self.settings.append((exposure_us, gain_db))

    def check(self) -> None: ...

    def close(self) -> None:
        self.closed += 1


def picture(number: int | None, *, problem: str | None = None) -> Grab:
    image = None if problem else np.random.default_rng(number or 0).integers(0, 255, (48, 64)).astype(np.uint8)
    return Grab(image, PixelFormat.MONO8, number, datetime.now(UTC), problem)


class Taker:
    """Stands for the line: notes what it is given."""

    def __init__(self) -> None:
        self.captures: list[Capture] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, capture: Capture, *, wait: bool = True) -> object:
        self.gate.wait(30)
        self.captures.append(capture)
        return None

    @property
    def keys(self) -> list[str | None]:
        return [capture.key for capture in self.captures]

    @property
    def reasons(self) -> list[Reason | None]:
        return [capture.item.reason if isinstance(capture.item, FrameFault) else None for capture in self.captures]


MakeCamera = Callable[..., tuple[IndustrialCamera, ScriptedDriver, Taker]]


@pytest.fixture
def make_camera() -> Iterator[MakeCamera]:
    """Make and start cameras over scripted drivers."""
    cameras: list[IndustrialCamera] = []

    def make(next_trigger: int = 1, **settings: object) -> tuple[IndustrialCamera, ScriptedDriver, Taker]:
        driver, taker = ScriptedDriver(), Taker()
        source = AravisSource.model_validate({"kind": "aravis", "reconnect_s": 0.05} | settings)
        camera = IndustrialCamera(
            source,
            taker,  # type: ignore[arg-type]
            Metrics(),
            lambda: driver,
            boot_id="b" * 36,
            next_trigger=lambda: next_trigger,
            max_pixels=10_000,
        )
        camera.start()
        cameras.append(camera)
        wait_until(lambda: driver.settings, what="the camera to be opened")
        return camera, driver, taker

    yield make
    for camera in cameras:
        camera.stop()
        camera.join(10)


def test_a_frame_that_is_lost_leaves_its_trigger_out_and_the_next_part_does_not_get_its_frame(make_camera: MakeCamera) -> None:
    _, driver, taker = make_camera(next_trigger=7, trigger="hardware")
    for number in (100, 101, 104):
        driver.script.put(picture(number))
    wait_until(lambda: len(taker.captures) == 5)
    assert taker.keys == ["pulse:7", "pulse:8", "pulse:9", "pulse:10", "pulse:11"]
    assert taker.reasons == [None, None, Reason.IMAGE_INCOMPLETE, Reason.IMAGE_INCOMPLETE, None]


def test_a_software_trigger_fires_the_camera_and_the_frame_carries_its_key(make_camera: MakeCamera) -> None:
    camera, driver, taker = make_camera(trigger="software")
    wait_until(lambda: camera.problem is None)
    for number in (1, 2, 3):
        camera.trigger(f"trigger:{number}")
        wait_until(lambda number=number: driver.fired == number)
        driver.script.put(picture(number))
        wait_until(lambda number=number: len(taker.captures) == number)
    assert taker.keys == ["trigger:1", "trigger:2", "trigger:3"]
    assert taker.reasons == [None, None, None]


def test_a_trigger_that_the_camera_has_no_time_for_is_refused_and_the_next_part_keeps_its_frame(
    make_camera: MakeCamera,
) -> None:
    camera, driver, taker = make_camera(trigger="software")
    wait_until(lambda: camera.problem is None)
    camera.trigger("trigger:1")
    with pytest.raises(CameraMissingError, match="is busy with trigger:1"):
        camera.trigger("trigger:2")
    driver.script.put(picture(1))
    wait_until(lambda: len(taker.captures) == 1)
    camera.trigger("trigger:3")
    driver.script.put(picture(2))
    wait_until(lambda: len(taker.captures) == 2)
    assert taker.keys == ["trigger:1", "trigger:3"]
    assert driver.fired == 2


def test_a_triggered_frame_that_never_comes_is_answered_and_the_next_part_does_not_answer_for_it(
    make_camera: MakeCamera,
) -> None:
    camera, driver, taker = make_camera(trigger="software", answer_ms=100.0)
    wait_until(lambda: camera.problem is None)
    camera.trigger("trigger:1")  # the very first frame of the connection is lost, so that no number tells of it
    wait_until(lambda: taker.reasons == [Reason.CAMERA_MISSING])
    wait_until(lambda: driver.closed == 1 and camera.problem is None, what="the camera to be opened again")
    wait_until(lambda: len(driver.settings) == 2)
    camera.trigger("trigger:2")
    driver.script.put(picture(2))
    wait_until(lambda: len(taker.captures) == 2)
    assert list(zip(taker.keys, taker.reasons, strict=True)) == [("trigger:1", Reason.CAMERA_MISSING), ("trigger:2", None)]


def test_a_camera_may_take_as_long_as_its_exposure(make_camera: MakeCamera) -> None:
    camera, driver, taker = make_camera(trigger="software", answer_ms=10.0, exposure_us=60_000_000.0)
    wait_until(lambda: camera.problem is None)
    camera.trigger("trigger:1")
    wait_until(lambda: driver.grabs > driver.grabs_at_fire + 5)
    driver.script.put(picture(1))
    wait_until(lambda: len(taker.captures) == 1)
    assert taker.reasons == [None]


def test_a_frame_that_nobody_asked_for_is_given_to_no_trigger(make_camera: MakeCamera) -> None:
    camera, driver, taker = make_camera(trigger="software")
    driver.script.put(picture(1))
    wait_until(lambda: taker.captures)
    camera.trigger("trigger:1")
    driver.script.put(picture(2))
    wait_until(lambda: len(taker.captures) == 2)
    assert taker.keys == ["trigger:0", "trigger:1"]


def test_an_incomplete_frame_is_a_fault_with_its_key_and_never_a_picture(make_camera: MakeCamera) -> None:
    _, driver, taker = make_camera(trigger="hardware")
    driver.script.put(picture(1, problem="the frame is incomplete: packets of it are missing"))
    driver.script.put(picture(2))
    wait_until(lambda: len(taker.captures) == 2)
    assert taker.reasons == [Reason.IMAGE_INCOMPLETE, None]
    assert taker.keys == ["pulse:1", "pulse:2"]


def test_triggers_in_hand_are_answered_when_the_camera_goes_away_and_it_comes_back(make_camera: MakeCamera) -> None:
    camera, driver, taker = make_camera(trigger="software")
    wait_until(lambda: camera.problem is None)
    camera.trigger("trigger:1")
    wait_until(lambda: driver.fired == 1)
    driver.script.put(CameraMissingError("the cable is out"))
    wait_until(lambda: taker.reasons == [Reason.CAMERA_MISSING])
    wait_until(lambda: len(driver.settings) == 2 and camera.problem is None, what="the camera to be opened again")
    camera.trigger("trigger:2")
    driver.script.put(picture(1))
    wait_until(lambda: len(taker.captures) == 2)
    assert taker.keys == ["trigger:1", "trigger:2"]
    assert driver.closed == 1


def test_a_camera_that_refuses_to_fire_is_opened_anew_and_its_trigger_answered(make_camera: MakeCamera) -> None:
    camera, driver, taker = make_camera(trigger="software")
    wait_until(lambda: camera.problem is None)
    driver.refuses_to_fire = True
    camera.trigger("trigger:1")
    wait_until(lambda: taker.reasons == [Reason.CAMERA_MISSING])
    assert taker.keys == ["trigger:1"]


def test_a_camera_that_is_not_there_refuses_a_trigger(make_camera: MakeCamera) -> None:
    camera, _, _ = make_camera(trigger="software")
    camera.stop()
    camera.join(10)
    with pytest.raises(CameraMissingError, match="is not there"):
        camera.trigger("trigger:1")


def test_frames_that_find_the_ring_full_become_faults_and_none_vanishes(make_camera: MakeCamera) -> None:
    _, driver, taker = make_camera(ring_frames=2)
    taker.gate.clear()
    for number in range(1, 9):
        driver.script.put(picture(number))
    wait_until(lambda: driver.script.empty())
    taker.gate.set()
    wait_until(lambda: len(taker.captures) == 8)
    assert taker.reasons.count(Reason.QUEUE_FULL) == 6
    assert [capture.item.sequence for capture in taker.captures] == list(range(1, 9))


def test_a_recipe_s_exposure_is_set_and_without_one_the_camera_s_own_again(
    make_camera: MakeCamera,
) -> None:
    camera, driver, _ = make_camera(exposure_us=500.0)
    wait_until(lambda: camera.problem is None)
    camera.configure(2000.0, 6.0)
    camera.configure(None, None)
    wait_until(lambda: len(driver.settings) == 3)
    assert driver.settings == [(500.0, None), (2000.0, 6.0), (500.0, None)]


def test_a_frame_over_the_limit_is_refused_with_the_mend(make_camera: MakeCamera) -> None:
    _, driver, taker = make_camera()
    driver.script.put(Grab(np.zeros((200, 200), np.uint8), PixelFormat.MONO8, 1, datetime.now(UTC)))
    wait_until(lambda: taker.reasons == [Reason.IMAGE_TOO_LARGE])


# -- a GigE Vision camera on loopback -----------------------------------------------------------------------------------


@pytest.fixture
def gige(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fake GigE Vision camera of Aravis on loopback; the parameter is how many packets of a thousand it loses."""
    program = require("arv-fake-gv-camera-0.8")
    command = [program, "-i", "127.0.0.1", "-s", "LG01", "-r", str(getattr(request, "param", 0))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield "Aravis-LG01"
    finally:
        process.kill()
        process.wait()


def station_with(tmp_path: Path, source: str, *, broker: int = NO_BROKER, more: str = "", deadline_ms: int = 20_000) -> Station:
    write_spot_package(tmp_path / "package", threshold=1000.0)
    path = tmp_path / "STATION.toml"
    path.write_text(
        f'[station]\ntopic = "{TOPIC}"\ndeadline_ms = {deadline_ms}\n[model]\npackage = "package"\n'
        f"[mqtt]\nport = {broker}\n[http]\nport = 0\n"
        f"[evidence]\nmin_free_mib = 0\n{more}\n[[source]]\n{source}"
    )
    station = Station(load_station(path))
    station.start()
    return station


def aravis_source(device: str, **settings: object) -> str:
    lines = {"kind": '"aravis"', "camera": '"gige"', "device": f'"{device}"', "pixel_format": '"Mono8"'} | settings
    return "".join(f"{key} = {value}\n" for key, value in lines.items())


def test_a_gige_vision_camera_is_judged_end_to_end(gige: str, mosquitto: Mosquitto, mes: Mes, tmp_path: Path) -> None:
    station = station_with(tmp_path, aravis_source(gige, frames_per_second=20.0), broker=mosquitto.port)
    try:
        wait_until(lambda: len(mes.sequences) >= 10, 40, "ten parts of the camera")
        assert station.not_ready() is None
    finally:
        station.stop()
    assert {verdict["decision"] for verdict in mes.verdicts} == {"pass"}
    assert {verdict["views"][0]["camera"] for verdict in mes.verdicts} == {"gige"}
    assert station.live.triggers_and_verdicts[0] == station.live.triggers_and_verdicts[1]


@pytest.mark.parametrize("gige", [3], indirect=True)  # of the 190 packets of a frame
def test_lost_packets_make_a_part_undecided_and_never_a_pass(gige: str, mosquitto: Mosquitto, mes: Mes, tmp_path: Path) -> None:
    source = aravis_source(gige, frames_per_second=20.0, packet_resend="false")
    station = station_with(tmp_path, source, broker=mosquitto.port)
    try:
        wait_until(
            lambda: (
                sum(verdict["reason"] == Reason.IMAGE_INCOMPLETE for verdict in mes.verdicts) >= 3
                and any(verdict["decision"] == "pass" for verdict in mes.verdicts)
            ),
            60,
            "whole and torn frames",
        )
    finally:
        station.stop()
    torn = [verdict for verdict in mes.verdicts if verdict["reason"] == Reason.IMAGE_INCOMPLETE]
    assert {verdict["decision"] for verdict in torn} == {"undecided"}
    assert {verdict["views"][0]["score"] for verdict in torn} == {None}
    assert station.live.triggers_and_verdicts[0] == station.live.triggers_and_verdicts[1]


def test_a_software_trigger_takes_one_frame_for_its_part(gige: str, tmp_path: Path) -> None:
    source = aravis_source(gige, trigger='"software"', exposure_us=20_000.0)
    station = station_with(tmp_path, source, more='[trigger]\nkind = "command"\n')
    try:
        wait_until(lambda: station.not_ready() is None, what="the camera")
        for number in range(5):
            done = station.operate.trigger(Trigger(Part(f"S-{number}", "test"), datetime.now(UTC)))
            message = done.result(30).message
            assert (message["part"]["serial"], message["reason"]) == (f"S-{number}", "below_threshold"), message["reason_text"]
            assert message["time"]["triggered"] <= message["time"]["decided"]
        assert station.live.triggers_and_verdicts == (5, 5)
    finally:
        station.stop()


def test_triggers_faster_than_the_camera_leave_parts_undecided_and_give_none_the_frame_of_another(
    gige: str, tmp_path: Path
) -> None:
    source = aravis_source(gige, trigger='"software"', frames_per_second=10.0, timestamps='"camera"')
    station = station_with(tmp_path, source, more='[trigger]\nkind = "command"\n')
    try:
        wait_until(lambda: station.not_ready() is None, what="the camera")
        verdicts = []
        for number in range(4):
            first, second = (
                station.operate.trigger(Trigger(Part(f"S-{number}{which}", "test"), datetime.now(UTC))) for which in "ab"
            )
            verdicts += [first.result(30).message, second.result(30).message]
    finally:
        station.stop()
    assert [verdict["reason"] for verdict in verdicts] == ["below_threshold", "camera_missing"] * 4
    lapses = [
        datetime.fromisoformat(verdict["time"]["captured"]) - datetime.fromisoformat(verdict["time"]["triggered"])
        for verdict in verdicts[::2]
    ]
    assert max(lapses) < timedelta(seconds=0.5), "a part was judged by a frame that was taken for a later one"


def test_a_camera_that_is_unplugged_is_told_and_found_again(tmp_path: Path) -> None:
    program = require("arv-fake-gv-camera-0.8")
    command = [program, "-i", "127.0.0.1", "-s", "LG02"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    station = station_with(tmp_path, aravis_source("Aravis-LG02", reconnect_s=0.2, frames_per_second=20.0))
    second: subprocess.Popen[bytes] | None = None
    try:
        wait_until(lambda: station.live.snapshot()["parts"] >= 3, 40)
        first.kill()
        first.wait()
        wait_until(lambda: station.not_ready() is not None, 40, "the station to notice")
        before = station.live.snapshot()["parts"]
        second = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: station.live.snapshot()["parts"] >= before + 3, 40, "the camera's next parts")
        assert station.not_ready() is None
    finally:
        station.stop()
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()


# -- GenICam --------------------------------------------------------------------------------------------------------


def genicam_package() -> ModuleType:
    """Return the package `genicam`; without it a test skips, and fails when CI is set."""
    if os.environ.get("CI"):
        return importlib.import_module("genicam")
    module: ModuleType = pytest.importorskip("genicam")
    return module


def simulator() -> Path:
    """Return the GenTL producer that the package `genicam` brings: a simulator with three cameras."""
    genicam = genicam_package()
    return Path(str(genicam.__file__)).with_name("viky.cti")


def test_a_genicam_camera_is_judged_end_to_end(mosquitto: Mosquitto, mes: Mes, tmp_path: Path) -> None:
    source = f'kind = "genicam"\ncamera = "viky"\nproducer = "{simulator()}"\ndevice = "1"\npixel_format = "Mono8"\n'
    source += "region_xywh = [0, 0, 320, 240]\nframes_per_second = 20.0\n"
    station = station_with(tmp_path, source, broker=mosquitto.port, more="[health]\nmax_saturated_share = 1.0\n")
    try:
        wait_until(lambda: len(mes.sequences) >= 8, 40, "eight parts of the camera")
        last = station.live.last
        assert last is not None
        shown = last[0].shown
        assert shown is not None
        assert isinstance(shown.item, Frame)
        assert shown.item.size_wh == (320, 240)
        wait_until(lambda: station.not_ready() is None, what="a station that has caught up with the camera")
    finally:
        station.stop()
    assert {verdict["decision"] for verdict in mes.verdicts} <= {"pass", "undecided"}
    assert any(verdict["decision"] == "pass" for verdict in mes.verdicts), [verdict["reason_text"] for verdict in mes.verdicts]
    stored = StoreReader(tmp_path / "var" / DATABASE_FILE).verdict_count()
    assert station.live.triggers_and_verdicts == (stored, stored)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('device = "nobody"\n', "no camera nobody answers, there are: VikyTL_DEV_red"),
        ("exposure_us = 100.0\n", "the camera has no feature ExposureTime"),
        ('trigger = "software"\n', "the camera has no feature TriggerMode"),
        ("region_xywh = [0, 0, 99999, 10]\n", "the camera refuses Width = 99999"),
    ],
)
def test_what_a_genicam_camera_lacks_is_told_in_one_line(tmp_path: Path, line: str, words: str) -> None:
    station = station_with(tmp_path, f'kind = "genicam"\nproducer = "{simulator()}"\n{line}')
    try:
        wait_until(lambda: words in str(station.not_ready()), 20, words)
    finally:
        station.stop()


def test_a_producer_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    genicam_package()
    with pytest.raises(SettingsError, match=r"no such file: give the \.cti file"):
        station_with(tmp_path, 'kind = "genicam"\nproducer = "none.cti"\n')


def test_a_recipe_sets_a_camera_in_free_run_at_the_change_over(gige: str, tmp_path: Path) -> None:
    write_spot_package(tmp_path / "package", threshold=1000.0)
    recipes = "".join(
        f'[recipes.{name}.views.main]\npackage = "package"\nexposure_us = {exposure}\n'
        for name, exposure in (("bright", 20_000.0), ("dark", 100.0))
    )
    path = tmp_path / "STATION.toml"
    path.write_text(
        f'[station]\ntopic = "{TOPIC}"\n[mqtt]\nport = {NO_BROKER}\n[http]\nport = 0\n[evidence]\nmin_free_mib = 0\n{recipes}'
        f"[[source]]\n{aravis_source(gige, frames_per_second=20.0)}"
    )
    station = Station(load_station(path))
    station.start()

    def last_reason() -> str | None:
        last = station.live.snapshot()["last"]
        return None if last is None else str(last["reason"])

    try:
        wait_until(lambda: last_reason() == "below_threshold", 40, "a bright frame")
        station.operate.choose_recipe("dark")
        wait_until(lambda: last_reason() == Reason.FRAME_TOO_DARK, 40, "a dark frame")
    finally:
        station.stop()


def test_exposure_for_a_camera_that_cannot_be_set_is_refused(tmp_path: Path) -> None:
    write_spot_package(tmp_path / "package")
    path = tmp_path / "STATION.toml"
    path.write_text(
        f'[station]\ntopic = "{TOPIC}"\n[recipes.one.views.main]\npackage = "package"\nexposure_us = 100.0\n'
        '[[source]]\nkind = "folder"\npath = "frames"\n'
    )
    with pytest.raises(SettingsError, match="camera folder cannot be set"):
        Station(load_station(path))
