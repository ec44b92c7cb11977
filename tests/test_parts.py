"""Parts of several views: joined by key, judged by their recipe, concluded once, by the deadline."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from conftest import TOPIC, spot_picture, wait_until, write_spot_package
from linegate.errors import SettingsError, StationError
from linegate.infer import Inspector
from linegate.stages import Frame, FrameFault, Part, PixelFormat, Prediction, Reason
from linegate_edge.records import Capture, Trigger
from linegate_edge.settings import load_station
from linegate_edge.station import Station
from linegate_edge.store import DATABASE_FILE, StoreReader

TWO_VIEWS = """
[recipes.flange]
part_types = ["FL-A"]
default = true
[recipes.flange.views.top]
package = "strict"
[recipes.flange.views.side]
package = "strict"
[recipes.cover]
part_types = ["CO-1"]
[recipes.cover.views.top]
package = "lax"
threshold = 1000.0
"""

MakeParts = Callable[..., Station]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeParts]:
    """Make stations with two views and two recipes, without a broker; `more` adds to the settings."""
    write_spot_package(tmp_path / "strict")
    write_spot_package(tmp_path / "lax", name="lax")
    stations: list[Station] = []

    def make(more: str = "", recipes: str = TWO_VIEWS, deadline_ms: int = 20_000) -> Station:
        path = tmp_path / "STATION.toml"
        path.write_text(
            f'[station]\ntopic = "{TOPIC}"\ndeadline_ms = {deadline_ms}\n[mqtt]\nport = 9\n[http]\nport = 0\n'
            f"[evidence]\nmin_free_mib = 0\n{recipes}{more}"
        )
        station = Station(load_station(path))
        station.start()
        stations.append(station)
        return station

    yield make
    for station in stations:
        station.stop()


def look(
    view: str, *, serial: str = "A-1", defect: bool = False, key: str | None = None, part_type: str | None = None, seed: int = 0
) -> Capture:
    picture = spot_picture(defect=defect, seed=seed)
    frame = Frame(picture, PixelFormat.MONO8, f"{serial}-{view}-{seed}", f"cam-{view}", view, seed, datetime.now(UTC))
    return Capture(Part(serial, "test", part_type), frame, key=key)


def trigger(
    serial: str = "A-1", *, origin: str | None = None, encoder: int | None = None, part_type: str | None = None
) -> Trigger:
    return Trigger(Part(serial, "test", part_type), datetime.now(UTC), origin, encoder)


COMMAND = '[trigger]\nkind = "command"\n'


def test_views_of_one_serial_become_one_part_whose_verdict_is_the_worst_of_them(make: MakeParts) -> None:
    station = make()
    first = station.line.submit(look("top"))
    second = station.line.submit(look("side", defect=True))
    assert second is first, "both views wait for the verdict of their part"
    message = first.result(30).message
    assert message["decision"] == "fail"
    assert {view["view"]: view["decision"] for view in message["views"]} == {"top": "pass", "side": "fail"}
    assert station.live.triggers_and_verdicts == (1, 1)


def test_interleaved_parts_are_joined_by_serial_not_by_arrival(make: MakeParts) -> None:
    station = make()
    futures = [station.line.submit(look("top", serial=f"P-{number}", defect=number == 2)) for number in range(5)]
    for number in reversed(range(5)):
        station.line.submit(look("side", serial=f"P-{number}"))
    messages = [future.result(30).message for future in futures]
    assert [message["decision"] for message in messages] == ["pass", "pass", "fail", "pass", "pass"]
    for number, message in enumerate(messages):
        assert {view["frame_id"] for view in message["views"]} == {f"P-{number}-top-0", f"P-{number}-side-0"}


def test_a_view_missing_at_the_deadline_makes_the_part_undecided_then_and_what_comes_later_is_late(make: MakeParts) -> None:
    station = make(deadline_ms=200)
    started = time.monotonic()
    message = station.line.submit(look("top")).result(30).message
    assert time.monotonic() - started >= 0.2
    assert (message["decision"], message["reason"]) == ("undecided", Reason.NO_VIEW)
    late = station.line.submit(look("side"))
    assert late.result(30).verdict_id == message["verdict_id"], "the late frame is told the verdict that stands"
    reader = StoreReader(station.settings.station.store / DATABASE_FILE)
    wait_until(lambda: reader.late_frames(message["verdict_id"]), what="the late frame in the store")
    assert reader.late_frames(message["verdict_id"])[0].view == "side"
    assert reader.verdict_count() == 1


def test_a_defect_seen_in_one_view_fails_the_part_even_where_the_other_never_came(make: MakeParts) -> None:
    message = make(deadline_ms=200).line.submit(look("top", defect=True)).result(30).message
    assert (message["decision"], message["reason"]) == ("fail", Reason.ABOVE_THRESHOLD)


def test_a_part_fails_only_from_as_many_failing_views_as_the_recipe_asks_for(make: MakeParts) -> None:
    station = make(recipes=TWO_VIEWS.replace("default = true", "default = true\nmin_failing_views = 2"))
    station.line.submit(look("top", defect=True))
    one = station.line.submit(look("side")).result(30).message
    assert (one["decision"], one["reason"]) == ("undecided", Reason.TOO_FEW_VIEWS_FAIL)
    station.line.submit(look("top", serial="B", defect=True))
    assert station.line.submit(look("side", serial="B", defect=True)).result(30).message["decision"] == "fail"


def test_frames_join_their_trigger_by_number_by_encoder_and_by_serial(make: MakeParts) -> None:
    station = make(COMMAND)
    by_number = station.line.trigger(trigger("N"))
    by_encoder = station.line.trigger(trigger("E", encoder=4711))
    by_serial = station.line.trigger(trigger("S"))
    for view in ("top", "side"):
        station.line.submit(look(view, serial="unknown", key="trigger:1"))
        station.line.submit(look(view, serial="unknown", key="encoder:4711"))
        station.line.submit(look(view, serial="S"))
    serials = [future.result(30).message["part"]["serial"] for future in (by_number, by_encoder, by_serial)]
    assert serials == ["N", "E", "S"]


def test_a_frame_that_overtakes_its_trigger_waits_for_it(make: MakeParts) -> None:
    station = make(COMMAND)
    early = station.line.submit(look("top", serial="?", key="trigger:1"))
    assert station.live.triggers_and_verdicts == (0, 0)
    done = station.line.trigger(trigger("A"))
    station.line.submit(look("side", serial="?", key="trigger:1"))
    assert early.result(30).verdict_id == done.result(30).verdict_id


def test_a_frame_that_no_trigger_asked_for_is_no_part_and_is_recorded(
    make: MakeParts, caplog: pytest.LogCaptureFixture
) -> None:
    station = make(COMMAND, deadline_ms=100)
    with caplog.at_level(logging.WARNING, "linegate.line"), pytest.raises(StationError, match="no trigger came"):
        station.line.submit(look("top", key="trigger:9")).result(30)
    assert station.live.triggers_and_verdicts == (0, 0)
    assert "no trigger came" in caplog.text


def test_a_second_frame_of_a_view_never_replaces_the_first(make: MakeParts) -> None:
    station = make()
    done = station.line.submit(look("top", defect=True))
    station.line.submit(look("top", seed=1))
    station.line.submit(look("side"))
    message = done.result(30).message
    assert message["decision"] == "fail"
    reader = StoreReader(station.settings.station.store / DATABASE_FILE)
    wait_until(lambda: [row.frame_id for row in reader.late_frames(message["verdict_id"])] == ["A-1-top-1"])


def test_a_part_type_chooses_its_recipe_and_an_unknown_one_is_undecided(make: MakeParts) -> None:
    station = make()
    cover = station.line.submit(look("top", serial="C", defect=True, part_type="CO-1")).result(30).message
    assert (cover["decision"], cover["provenance"]["recipe"], cover["provenance"]["package"]) == ("pass", "cover", "lax")
    unknown = station.line.submit(look("top", serial="U", part_type="XX")).result(30).message
    assert (unknown["decision"], unknown["reason"]) == ("undecided", Reason.NO_RECIPE)
    assert "only CO-1, FL-A" in unknown["reason_text"]


def test_a_change_over_holds_from_the_next_part_and_outlives_a_restart(make: MakeParts) -> None:
    station = make()
    before = station.line.submit(look("top", serial="old"))
    digest = station.operate.choose_recipe("cover")
    after = station.line.submit(look("top", serial="new")).result(30).message
    station.line.submit(look("side", serial="old", part_type="FL-A"))
    assert before.result(30).message["provenance"]["recipe"] == "flange", "a part in hand keeps its recipe"
    assert (after["provenance"]["recipe"], after["provenance"]["recipe_digest"]) == ("cover", digest)
    with pytest.raises(StationError, match="no recipe 'lid': this station has cover, flange"):
        station.operate.choose_recipe("lid")
    station.stop()
    assert make().book.active.name == "cover"


def test_the_digest_of_a_recipe_changes_with_its_threshold_alone(make: MakeParts) -> None:
    station = make()
    digests = station.operate.recipes()
    station.stop()
    changed = make(recipes=TWO_VIEWS.replace("1000.0", "999.0")).operate.recipes()
    assert changed["flange"] == digests["flange"]
    assert changed["cover"] != digests["cover"]


def test_a_repeated_trigger_gets_the_first_verdict(make: MakeParts) -> None:
    station = make(COMMAND, deadline_ms=100)
    accepted: list[str] = []
    first = station.line.trigger(trigger(origin="mes:1"))
    again = station.line.trigger(Trigger(Part("A-1", "test"), datetime.now(UTC), "mes:1", on_accepted=accepted.append))
    assert first.result(30).verdict_id == again.result(30).verdict_id
    later = station.line.trigger(trigger(origin="mes:1")).result(30)
    assert (later.sequence, later.repeated) == (1, True)
    wait_until(lambda: accepted == [later.verdict_id])


def test_a_trigger_that_was_accepted_gets_its_verdict_even_if_the_station_dies_first(make: MakeParts, tmp_path: Path) -> None:
    station = make(COMMAND, deadline_ms=60_000)
    accepted: list[str] = []
    part = Part("doomed", "test", order="O-7")
    station.line.trigger(Trigger(part, datetime.now(UTC), "mes:9", on_accepted=accepted.append))
    wait_until(lambda: accepted, what="the trigger in the journal")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (tmp_path / "var").glob(f"{DATABASE_FILE}*"):  # what a power cut would leave
        (copy / file.name).write_bytes(file.read_bytes())
    station.stop()
    for file in (tmp_path / "var").glob(f"{DATABASE_FILE}*"):
        file.unlink()
    for file in copy.iterdir():
        (tmp_path / "var" / file.name).write_bytes(file.read_bytes())
    restarted = make(COMMAND)
    wait_until(lambda: restarted.live.triggers_and_verdicts == (1, 1), what="the verdict of the trigger that was left")
    reader = StoreReader(tmp_path / "var" / DATABASE_FILE)
    message = reader.verdict(accepted[0])
    assert message is not None
    assert (message["decision"], message["reason"]) == ("undecided", Reason.STATION_RESTARTED)
    assert (message["part"]["serial"], message["part"]["order"]) == ("doomed", "O-7")
    assert restarted.line.trigger(trigger(origin="mes:9")).result(30).verdict_id == accepted[0]
    restarted.stop()
    assert make(COMMAND).live.triggers_and_verdicts == (0, 0), "the journal is empty again"


def test_a_model_that_hangs_is_given_up_and_the_line_goes_on(make: MakeParts, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    predict = Inspector.predict

    def predict_or_hang(self: Inspector, frame: Frame, *more: object) -> Prediction:
        if frame.frame_id.startswith("hangs"):
            release.wait(60)
        return predict(self, frame)

    monkeypatch.setattr(Inspector, "predict", predict_or_hang)
    station = make("[model]\nworkers = 1\ntimeout_ms = 200\n")
    try:
        hung = [station.line.submit(look("top", serial=f"hangs-{number}", part_type="CO-1")) for number in range(2)]
        fine = station.line.submit(look("top", serial="fine", part_type="CO-1")).result(30).message
        assert fine["decision"] == "pass", "the worker was replaced"
        for done in hung:
            message = done.result(30).message
            assert (message["decision"], message["reason"]) == ("undecided", Reason.MODEL_TIMEOUT)
        assert station.line.alive
    finally:
        release.set()


def test_a_part_is_undecided_at_its_deadline_while_the_model_still_works(
    make: MakeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    predict = Inspector.predict

    def predict_when_released(self: Inspector, frame: Frame, *more: object) -> Prediction:
        release.wait(60)
        return predict(self, frame)

    monkeypatch.setattr(Inspector, "predict", predict_when_released)
    station = make(deadline_ms=150)
    message = station.line.submit(look("top", part_type="CO-1")).result(30).message
    assert (message["decision"], message["reason"]) == ("undecided", Reason.DEADLINE_MISSED)
    assert message["views"][0]["image_sha256"], "the frame is evidence all the same"
    release.set()
    reader = StoreReader(station.settings.station.store / DATABASE_FILE)
    wait_until(lambda: reader.late_frames(message["verdict_id"]), what="the late judgement")
    assert "with the score" in reader.late_frames(message["verdict_id"])[0].detail


def test_a_wall_clock_that_is_set_back_moves_no_deadline_and_no_latency(
    make: MakeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = make(deadline_ms=300)
    done = station.line.submit(look("top"))
    real = datetime.now(UTC)
    monkeypatch.setattr("linegate_edge.line.utc_now", lambda: real.replace(year=real.year - 1))
    message = done.result(30).message
    assert message["reason"] == Reason.NO_VIEW
    assert 300 <= message["latency_ms"]["total"] < 20_000
    later = station.line.submit(look("top", serial="B", part_type="CO-1")).result(30).message
    assert (later["decision"], later["sequence"]) == ("pass", 2)
    assert 0 <= later["latency_ms"]["total"] < 20_000


def test_a_stopped_station_refuses_frames_and_leaves_no_trigger_without_a_verdict(make: MakeParts) -> None:
    station = make(COMMAND)
    station.operate.stop()
    with pytest.raises(StationError, match="stopped by command"):
        station.line.submit(look("top"))
    with pytest.raises(StationError, match="start it first"):
        station.operate.trigger(trigger())
    message = station.line.trigger(trigger()).result(30).message
    assert (message["decision"], message["reason"]) == ("undecided", Reason.STOPPED)
    station.operate.start()
    done = station.line.trigger(trigger("B", part_type="CO-1"))
    station.line.submit(look("top", serial="B"))
    assert done.result(30).message["decision"] == "pass"


def test_the_mode_marks_verdicts_from_the_next_part_on(make: MakeParts) -> None:
    station = make()
    station.operate.set_mode("challenge")
    assert station.line.submit(look("top", part_type="CO-1")).result(30).message["mode"] == "challenge"
    station.operate.set_mode("production")
    assert station.line.submit(look("top", serial="B", part_type="CO-1")).result(30).message["mode"] == "production"


def test_a_faulty_view_is_told_in_the_verdict_of_its_part(make: MakeParts) -> None:
    station = make()
    torn = FrameFault(Reason.IMAGE_TRUNCATED, "torn", "f", "cam-side", "side", 1, datetime.now(UTC))
    station.line.submit(look("top"))
    message = station.line.submit(Capture(Part("A-1", "test"), torn)).result(30).message
    assert (message["decision"], message["reason"]) == ("undecided", Reason.IMAGE_TRUNCATED)


def test_replay_puts_verdicts_back_into_the_outbox(make: MakeParts) -> None:
    station = make()
    for number in range(4):
        station.line.submit(look("top", serial=f"R-{number}", part_type="CO-1")).result(30)
    station.line.writer.acknowledge([1, 2, 3, 4])
    wait_until(lambda: station.outbox_pending() == 0)
    assert station.operate.replay(2, None) == 3
    wait_until(lambda: station.outbox_pending() == 3)
    with pytest.raises(StationError, match="has 1 to 4"):
        station.operate.replay(5, None)


def test_stopping_gives_the_parts_in_hand_their_verdict(make: MakeParts) -> None:
    station = make(COMMAND, deadline_ms=60_000)
    waiting = [station.line.trigger(trigger(f"S-{number}")) for number in range(3)]
    assert station.stop() == 0
    assert {done.result(1).message["reason"] for done in waiting} == {Reason.STOPPED}
    assert station.live.triggers_and_verdicts == (3, 3)


@pytest.mark.parametrize(
    ("recipes", "words"),
    [
        ("", "no model package is named"),
        (TWO_VIEWS + '[model]\npackage = "x"\n', "exclude each other"),
        (TWO_VIEWS.replace("CO-1", "FL-A"), "a part type belongs to one recipe, in several there: FL-A"),
        (TWO_VIEWS.replace("[recipes.cover]", "[recipes.cover]\ndefault = true"), "only one recipe can be the default"),
        (TWO_VIEWS.replace("threshold = 1000.0", "roi_xyxy = [0.5, 0, 0.2, 1]"), "left < right"),
        ("[recipes.flange]\nviews = {}\n", "recipes.flange.views"),
        (TWO_VIEWS.replace("threshold =", "treshold ="), "did you mean 'threshold'"),
    ],
)
def test_a_mistake_in_recipes_is_named_before_anything_starts(make: MakeParts, recipes: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make(recipes=recipes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_failing_views_than_there_are_views_is_a_mistake(make: MakeParts) -> None:
    with pytest.raises(SettingsError, match="recipe 'flange': min_failing_views must be from 1 to 2, got 3"):
        make(recipes=TWO_VIEWS.replace("default = true", "default = true\nmin_failing_views = 3"))


def test_a_frame_taken_after_the_next_trigger_is_never_judged_as_the_part_before(make: MakeParts) -> None:
    station = make(COMMAND + '[recipe]\nname = "one"\n', recipes='[model]\npackage = "strict"\n')
    first = station.line.trigger(trigger("first"))
    station.line.trigger(trigger("second"))
    picture = spot_picture(defect=False, seed=1)
    taken = Frame(picture, PixelFormat.MONO8, "f2", "wired", "main", 1, datetime.now(UTC))  # in truth the second's
    station.line.submit(Capture(Part("?", "counter"), taken, key="pulse:1"))
    message = first.result(30).message
    assert (message["decision"], message["reason"]) == ("undecided", Reason.FRAME_OF_ANOTHER_PART)


def test_a_frame_of_a_burst_that_was_taken_in_time_is_judged(make: MakeParts) -> None:
    station = make(COMMAND, recipes='[model]\npackage = "strict"\n')
    first = station.line.trigger(trigger("first"))
    taken = Frame(spot_picture(defect=False), PixelFormat.MONO8, "f1", "wired", "main", 1, datetime.now(UTC))
    station.line.trigger(trigger("second"))
    station.line.submit(Capture(Part("?", "counter"), taken, key="pulse:1"))
    assert first.result(30).message["decision"] == "pass"
