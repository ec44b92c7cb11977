"""Candidates in the shadow: what they say is kept and shown, and whatever they do, the line's verdicts stay the same."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from conftest import MakeStation, signed_in, spot_picture, submit, wait_until, write_spot_package
from linegate.decide import ViewRecipe
from linegate.errors import StationError
from linegate.stages import Frame, PixelFormat, Prediction
from linegate_edge.shadow import Shadow, Target
from linegate_edge.station import Station
from models_world import ANNA, BEN, MIA, NO_BROKER, PLACE, World, write_run

GENEROUS = "[evidence]\nmin_free_mib = 0\n[review]\nshadow_share = 1.0\n"


class Fake:
    """A candidate that does as it is told, and says of every frame that it fails."""

    def __init__(self) -> None:
        self.niceness: int | None = None
        self.calls = 0
        self.error: Exception | None = None
        self.delay_s = 0.0
        self.held = threading.Event()
        self.held.set()

    def predict(self, frame: Frame, roi_xyxy: tuple[float, float, float, float] | None = None) -> Prediction:
        self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        self.calls += 1
        self.held.wait()
        time.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        empty = np.zeros((4, 4), np.float32)
        return Prediction(frame.frame_id, frame.camera, frame.view, 1.0, empty, (0, 0, 1, 1), frame.size_wh, ())


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.held.set()


@pytest.fixture
def station(make_station: MakeStation) -> Station:
    return make_station(NO_BROKER, more=GENEROUS)


def bring(station: Station, folder: Path, threshold: float = 0.3) -> str:
    champion = station.book.recipes["default"].views["main"].inspector.package
    write_run(folder, champion, threshold=threshold)
    return station.models.register.bring(MIA, folder).digest


def use(station: Station, fake: Fake, digest: str = "f" * 64) -> None:
    station.models.shadow.use({PLACE: Target(digest, fake, ViewRecipe(0.5))})


def decisions(station: Station, count: int, start: int = 0) -> list[str]:
    futures = submit(station, count, start=start)
    messages = [future.result(30).message for future in futures]
    assert len({message["sequence"] for message in messages}) == count
    return [f"{message['part']['serial']} {message['decision']} {message['views'][0]['score']}" for message in messages]


def rows(station: Station) -> list[tuple[object, ...]]:
    with station.reviews.database.look() as db:
        return list(db.execute("SELECT serial, champion_decision, decision, error FROM shadow ORDER BY number"))


def test_without_a_shadow_nothing_is_kept(station: Station) -> None:
    decisions(station, 5)
    assert rows(station) == []
    assert station.models.shadow.state.dropped == 0


@pytest.mark.parametrize("ill", ["hangs", "raises", "is slow", "is well"])
def test_whatever_a_shadow_does_the_verdicts_are_the_same(station: Station, fake: Fake, ill: str) -> None:
    expected = decisions(station, 60)
    if ill == "hangs":
        fake.held.clear()
    elif ill == "raises":
        fake.error = RuntimeError("no such tensor")
    elif ill == "is slow":
        fake.delay_s = 0.2
    use(station, fake)
    assert decisions(station, 60) == expected
    wait_until(lambda: fake.calls > 0, what="the shadow to be asked")
    assert station.line.alive
    assert fake.niceness == 19
    if ill == "raises":
        wait_until(lambda: any(row[3] == "RuntimeError: no such tensor" for row in rows(station)), what="the error")


def test_a_station_stops_in_time_though_its_shadow_hangs(station: Station, fake: Fake) -> None:
    fake.held.clear()
    use(station, fake)
    decisions(station, 3)
    wait_until(lambda: fake.calls > 0, what="the shadow to be asked")
    began = time.monotonic()
    assert station.stop() == 0
    assert time.monotonic() - began < 10


def test_nothing_of_a_shadow_is_published_or_in_a_verdict(station: Station, fake: Fake) -> None:
    use(station, fake, "f" * 64)
    message = submit(station, 1)[0].result(20)
    wait_until(lambda: rows(station), what="the shadow's verdict")
    assert "f" * 64 not in message.text
    assert message.message["provenance"]["package_digest"] != "f" * 64


def test_a_full_queue_drops_and_counts(station: Station, fake: Fake) -> None:
    fake.held.clear()
    use(station, fake)
    decisions(station, 40)
    assert station.models.shadow.state.dropped >= 20


def test_a_line_that_is_behind_is_left_in_peace(tmp_path: Path, spot_package: Path, make_station: MakeStation) -> None:
    world = World(tmp_path / "other", spot_package) if (tmp_path / "other").mkdir() is None else None
    assert world is not None
    shadow = Shadow(world.reviews.database, 1.0, behind=lambda: True)
    fake = Fake()
    shadow.use({PLACE: Target("f" * 64, fake, ViewRecipe(0.5))})
    station = make_station(NO_BROKER)
    try:
        station.line._judging._shadow = shadow
        decisions(station, 5)
        assert (fake.calls, shadow.state.dropped) == (0, 5)
    finally:
        shadow.stop()
        world.close()


def test_a_shadow_takes_no_more_than_its_share_of_one_core(make_station: MakeStation, fake: Fake) -> None:
    station = make_station(NO_BROKER, more="[evidence]\nmin_free_mib = 0\n[review]\nshadow_share = 0.1\n")
    fake.delay_s = 0.05
    use(station, fake)
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < 3 or (fake.calls < 2 and time.monotonic() - began < 60):
        decisions(station, 5, start=(number := number + 10))
    spent = fake.calls * fake.delay_s / (time.monotonic() - began)
    assert fake.calls >= 2
    assert spent < 0.15
    assert station.models.shadow.state.share < 0.15


def test_what_a_candidate_says_is_shown_beside_the_champion(station: Station, tmp_path: Path) -> None:
    digest = bring(station, tmp_path / "run", threshold=0.1)
    with signed_in(station, "root", "admin") as client:
        place = {"recipe": "default", "view": "main"}
        on = client.post(f"/api/v1/models/{digest}/shadow", json={**place, "on": True})
        assert on.status_code == 200, on.text
        number = 0

        def judged() -> bool:
            nonlocal number
            decisions(station, 1, start=(number := number + 1))
            return bool(client.get(f"/api/v1/models/{digest}/shadow").json()["parts"] >= 3)

        wait_until(judged, what="three parts in the shadow")
        said = client.get(f"/api/v1/models/{digest}/shadow").json()
        assert said["places"] == [place]
        assert ("pass", "fail") in {(cell["champion"], cell["candidate"]) for cell in said["agreement"]}
        part = said["differing"][0]
        assert (part["champion"], part["candidate"], part["threshold"]) == ("pass", "fail", 0.1)
        assert client.get(f"/verdicts/{part['verdict_id']}").json()["part"]["serial"] == part["serial"]
        states = {model["digest"]: model["state"] for model in client.get("/api/v1/models").json()["models"]}
        assert states[digest] == "shadow"
        off = client.post(f"/api/v1/models/{digest}/shadow", json={**place, "on": False})
        assert off.json()["places"] == []
    actions = [line.action for line in station.reviews.trail.lines()]
    assert actions[:2] == ["model.shadow_off", "model.shadow_on"]


@pytest.fixture
def world(tmp_path: Path, spot_package: Path) -> Iterator[World]:
    made = World(tmp_path, spot_package)
    yield made
    made.close()


def test_a_shadow_outlives_the_station(world: World) -> None:
    digest = world.candidate()
    world.room.set_shadow(ANNA, digest, PLACE, True)
    world.close()
    world.open()
    assert world.room.shadow_places() == {PLACE: digest}


def test_a_shadow_that_cannot_be_loaded_does_not_keep_the_station_from_starting(world: World) -> None:
    digest = world.candidate()
    world.room.set_shadow(ANNA, digest, PLACE, True)
    world.close()
    write_spot_package(world.room.shelf.location(digest), threshold=0.9)
    world.open()
    assert world.champion.digest != digest


def test_the_champion_is_no_shadow_of_itself(world: World) -> None:
    digest = world.candidate()
    world.room.register.approve(BEN, digest, "")
    world.room.set_shadow(ANNA, digest, PLACE, True)
    world.room.promote(ANNA, digest, PLACE, None)
    assert world.room.shadow_places() == {}
    with pytest.raises(StationError, match="is the champion"):
        world.room.set_shadow(ANNA, digest, PLACE, True)


def test_rows_that_cannot_be_stored_do_not_grow_without_end(world: World) -> None:
    world.reviews.close()
    kept = world.room.shadow.keep([("row",)] * 5_000)
    assert len(kept) == 1_000
    world.open()


def test_a_frame_is_offered_within_microseconds(world: World, fake: Fake) -> None:
    frame = Frame(spot_picture(defect=False), PixelFormat.MONO8, "f", "c", "main", 1, datetime.now(UTC))
    assert frame.size_wh == (64, 64)
    began = time.perf_counter()
    for _ in range(1000):
        world.room.shadow.offer(None)  # type: ignore[arg-type]  # without targets it is not even looked at
    assert time.perf_counter() - began < 0.1
