"""Approval, promotion, roll-back: who may, what judges from the next part on, and that it outlives everything."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import MakeStation, signed_in, station_toml, submit, write_spot_package
from linegate.errors import PackageError, StationError
from linegate_edge.reload import reload_station
from linegate_edge.settings import load_station
from linegate_edge.station import Station
from models_world import ANNA, BEN, LIMITS, MIA, NO_BROKER, PLACE, World, write_run

TWO = "[review]\napprovals = 2\n"


@pytest.fixture
def own_package(tmp_path: Path) -> Path:
    """A champion that the test may change."""
    return write_spot_package(tmp_path / "champion").location


@pytest.fixture
def world(tmp_path: Path, own_package: Path) -> Iterator[World]:
    made = World(tmp_path, own_package)
    yield made
    made.close()


@pytest.fixture
def strict(tmp_path: Path, own_package: Path) -> Iterator[World]:
    """A station that wants two approvals."""
    made = World(tmp_path, own_package, TWO)
    yield made
    made.close()


def promote(world: World, digest: str, reason: str | None = None) -> int:
    done, _ = world.room.promote(ANNA, digest, PLACE, reason)
    return done.number


def test_nothing_is_promoted_at_first(world: World) -> None:
    assert world.room.promotions.listed() == []
    assert world.room.promotions.overrides() == {}


def test_a_candidate_that_nobody_approved_is_refused(world: World) -> None:
    digest, before = world.candidate(), world.champion.digest
    with pytest.raises(StationError, match="needs one person to approve it, and has 0"):
        promote(world, digest)
    assert world.champion.digest == before


def test_an_approved_candidate_judges_and_the_trail_says_who_and_what(world: World) -> None:
    digest, before = world.candidate(), world.champion.digest
    world.room.register.approve(BEN, digest, "looked at all differences")
    promote(world, digest)
    assert world.champion.digest == digest
    assert world.actions() == ["model.import", "model.approve", "model.promote"]
    line = world.reviews.trail.lines()[0]
    assert (line.actor, line.subject) == ("anna", "default/main")
    assert (line.detail["digest"], line.detail["former_digest"]) == (digest, before)
    assert line.detail["approved_by"] == ["ben"]


def test_nobody_approves_twice(world: World) -> None:
    digest = world.candidate()
    world.room.register.approve(BEN, digest, "")
    with pytest.raises(StationError, match="ben has approved"):
        world.room.register.approve(BEN, digest, "")


def test_an_approval_that_was_withdrawn_counts_no_more(world: World) -> None:
    digest = world.candidate()
    world.room.register.approve(BEN, digest, "")
    world.room.register.withdraw(BEN, digest)
    with pytest.raises(StationError, match="has 0"):
        promote(world, digest)
    with pytest.raises(LookupError, match="ben has not approved"):
        world.room.register.withdraw(BEN, digest)


def test_an_approval_of_an_older_comparison_counts_no_more(world: World, tmp_path: Path) -> None:
    digest = world.candidate()
    world.room.register.approve(BEN, digest, "")
    write_run(tmp_path / "run", world.champion, threshold=0.5, go=False)
    world.room.register.bring(MIA, tmp_path / "run")
    with pytest.raises(StationError, match="has 0"):
        promote(world, digest, "a reason")
    world.room.register.approve(BEN, digest, "again")


def test_of_two_people_neither_is_the_one_who_trained_it(strict: World) -> None:
    digest = strict.candidate(trained_by="mia")
    for actor in (ANNA, MIA):
        strict.room.register.approve(actor, digest, "")
    with pytest.raises(StationError, match="needs 2 different people, other than who trained it to approve it, and has 1"):
        promote(strict, digest)
    strict.room.register.approve(BEN, digest, "")
    promote(strict, digest)
    assert strict.champion.digest == digest


@pytest.mark.parametrize("reason", [None, "", "  "])
def test_a_no_go_needs_a_reason(world: World, reason: str | None) -> None:
    digest = world.candidate(go=False)
    world.room.register.approve(BEN, digest, "")
    with pytest.raises(StationError, match="the gate said no-go: more escapes: give an override_reason"):
        promote(world, digest, reason)


def test_a_reason_given_for_a_no_go_stands_in_the_trail(world: World) -> None:
    digest = world.candidate(go=False)
    world.room.register.approve(BEN, digest, "")
    promote(world, digest, "the new batch has other scratches")
    assert world.reviews.trail.lines()[0].detail["override_reason"] == "the new batch has other scratches"


def test_a_package_that_was_never_compared_needs_a_reason_too(world: World, tmp_path: Path) -> None:
    write_spot_package(tmp_path / "bare", threshold=0.4)
    digest = world.room.register.bring(MIA, tmp_path / "bare").digest
    world.room.register.approve(BEN, digest, "")
    with pytest.raises(StationError, match="never compared"):
        promote(world, digest)


def test_a_comparison_with_another_champion_is_no_go(world: World) -> None:
    first, second = world.candidate("a", threshold=0.5), world.candidate("b", threshold=0.4)
    for digest in (first, second):
        world.room.register.approve(BEN, digest, "")
    promote(world, first)
    with pytest.raises(StationError, match="is the champion here"):
        promote(world, second)


def test_unknown_names_are_told(world: World) -> None:
    digest = world.candidate()
    world.room.register.approve(BEN, digest, "")
    with pytest.raises(LookupError, match="this station has default/main"):
        world.room.promote(ANNA, digest, ("default", "side"), None)
    with pytest.raises(LookupError, match="no package"):
        promote(world, "0" * 64)
    with pytest.raises(LookupError, match="no promotion 7"):
        world.room.roll_back(ANNA, 7, "")


def approved(world: World, **options: object) -> str:
    digest = world.candidate(**options)  # type: ignore[arg-type]
    world.room.register.approve(BEN, digest, "")
    return digest


def test_a_package_that_was_changed_on_disk_is_refused_and_the_champion_stays(world: World) -> None:
    digest, before = approved(world), world.champion.digest
    write_spot_package(world.room.shelf.location(digest), threshold=0.9)
    with pytest.raises(PackageError, match="by now"):
        promote(world, digest)
    assert world.champion.digest == before
    assert world.room.promotions.listed() == []


def test_a_package_that_is_gone_is_refused_and_the_champion_stays(world: World) -> None:
    digest, before = approved(world), world.champion.digest
    shutil.rmtree(world.room.shelf.location(digest))
    with pytest.raises(LookupError, match="no package"):
        promote(world, digest)
    assert world.champion.digest == before


def test_a_roll_back_brings_the_former_package_back(world: World) -> None:
    before = world.champion.digest
    number = promote(world, approved(world))
    world.room.roll_back(BEN, number, "too many rejects")
    assert world.champion.digest == before
    assert world.room.promotions.overrides() == {}
    with pytest.raises(StationError, match=r"promotion 1 is not in force: what STATION.toml names is"):
        world.room.roll_back(BEN, number, "")


def test_a_roll_back_brings_the_former_package_back_though_the_one_of_the_settings_was_replaced(
    world: World, own_package: Path
) -> None:
    before = world.champion.digest
    number = promote(world, approved(world))
    write_spot_package(own_package, threshold=0.99)
    world.room.roll_back(BEN, number, "")
    assert world.champion.digest == before
    world.close()
    world.open()
    assert world.champion.digest == before


def test_roll_backs_uncover_one_promotion_after_the_other(world: World) -> None:
    zero = world.champion.digest
    one = approved(world, name="a", threshold=0.5)
    first = promote(world, one)
    two = approved(world, name="b", threshold=0.4)
    second = promote(world, two)
    with pytest.raises(StationError, match="promotion 2 is"):
        world.room.roll_back(ANNA, first, "")
    world.room.roll_back(ANNA, second, "")
    assert world.champion.digest == one
    world.room.roll_back(ANNA, first, "")
    assert world.champion.digest == zero


def test_a_promotion_outlives_the_station(world: World) -> None:
    digest = approved(world)
    promote(world, digest)
    world.close()
    world.open()
    assert world.champion.digest == digest


def test_a_promoted_package_that_was_changed_keeps_the_station_from_starting_with_another(world: World) -> None:
    digest = approved(world)
    promote(world, digest)
    world.close()
    write_spot_package(world.room.shelf.location(digest), threshold=0.9)
    with pytest.raises(PackageError, match="promoted was"):
        world.open()
    shutil.rmtree(world.room.shelf.location(digest))
    with pytest.raises(PackageError, match="no such model package"):
        world.open()
    write_spot_package(world.room.shelf.location(digest), threshold=0.5)
    world.open()


def test_the_settings_that_name_another_package_afterwards_do_not_undo_a_promotion(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = approved(world)
    promote(world, digest)
    world.close()
    other = write_spot_package(tmp_path / "other", threshold=0.7).location
    station_toml(tmp_path, other, broker_port=NO_BROKER, more=LIMITS)
    with caplog.at_level(logging.WARNING):
        world.open()
    assert world.champion.digest == digest
    assert f"STATION.toml names {other}, but the promoted spots 1.0.0 ({digest[:12]}) holds" in caplog.text


def test_thresholds_of_the_settings_are_those_of_the_old_package(tmp_path: Path, own_package: Path) -> None:
    world = World(tmp_path, own_package, "[recipe]\nthreshold = 2.0\n")
    try:
        assert world.book.recipes["default"].recipe.views["main"].threshold == 2.0
        done, note = world.room.promote(ANNA, approved(world), PLACE, None)
        assert world.book.recipes["default"].recipe.views["main"].threshold == 0.5
        assert note is not None
        assert "set aside: the package's own 0.5" in note
        assert world.reviews.trail.lines()[0].detail["station_threshold_set_aside"] == 2.0
        write_spot_package(own_package, threshold=0.99)
        _, note = world.room.roll_back(ANNA, done.number, "")
        assert world.book.recipes["default"].recipe.views["main"].threshold == 2.0
        assert note == "the thresholds of STATION.toml hold again: 2, undecided from 0 below"
    finally:
        world.close()


def bring(station: Station, folder: Path, threshold: float) -> str:
    champion = station.book.recipes["default"].views["main"].inspector.package
    write_run(folder, champion, threshold=threshold)
    digest = station.models.register.bring(MIA, folder).digest
    station.models.register.approve(BEN, digest, "")
    return digest


def test_parts_are_judged_by_the_promoted_package_from_the_next_on_and_a_reload_keeps_it(
    tmp_path: Path, make_station: MakeStation
) -> None:
    station = make_station(NO_BROKER)
    digest = bring(station, tmp_path / "run", 1.5)
    before = submit(station, 1)[0].result(20).message
    with signed_in(station, "root", "admin") as client:
        answer = client.post(f"/api/v1/models/{digest}/promote", json={"recipe": "default", "view": "main"})
        assert answer.status_code == 200, answer.text
        after = submit(station, 1)[0].result(20).message
        path = station_toml(
            tmp_path, station.settings.model.package, broker_port=NO_BROKER, more="[evidence]\nmin_free_mib = 3\n"
        )
        reload_station(path, station)
        reloaded = submit(station, 1)[0].result(20).message
        assert client.get("/live/state").json()["package"] == f"spots 1.0.0 ({digest[:12]})"
        undone = client.post(f"/api/v1/promotions/{answer.json()['number']}/roll-back", json={"reason": "a test"})
        assert undone.status_code == 200, undone.text
    back = submit(station, 1)[0].result(20).message
    assert [message["decision"] for message in (before, after, reloaded, back)] == ["fail", "pass", "pass", "fail"]
    assert [message["provenance"]["package_digest"] == digest for message in (before, after, reloaded, back)] == [
        False,
        True,
        True,
        False,
    ]
    assert back["provenance"] == before["provenance"]


def test_no_part_is_lost_or_judged_by_a_mixture_while_packages_change(tmp_path: Path, make_station: MakeStation) -> None:
    station = make_station(NO_BROKER)
    digest = bring(station, tmp_path / "run", 0.5)
    futures = []
    for turn in range(3):
        futures += submit(station, 40, start=turn * 200)
        done, _ = station.models.promote(ANNA, digest, PLACE, None)
        futures += submit(station, 40, start=turn * 200 + 50)
        station.models.roll_back(ANNA, done.number, "")
    messages = [future.result(30).message for future in futures]
    assert sorted(message["sequence"] for message in messages) == list(range(1, len(messages) + 1))
    for message in messages:
        own = message["provenance"]["package_digest"] == digest
        assert message["views"][0]["threshold"] == (0.5 if own else 0.8)
        assert (message["views"][0]["package_digest"] == digest) is own


def test_a_restarted_station_shows_and_uses_what_was_promoted(tmp_path: Path, make_station: MakeStation) -> None:
    station = make_station(NO_BROKER)
    digest = bring(station, tmp_path / "run", 1.5)
    station.models.promote(ANNA, digest, PLACE, None)
    station.stop()
    again = Station(load_station(tmp_path / "STATION.toml"))
    try:
        again.start()
        assert submit(again, 1)[0].result(20).message["provenance"]["package_digest"] == digest
        assert digest in again.metrics.exposition().decode()
    finally:
        again.stop()


def test_the_api_refuses_in_one_line(tmp_path: Path, make_station: MakeStation) -> None:
    station = make_station(NO_BROKER)
    digest = bring(station, tmp_path / "run", 0.5)
    place = {"recipe": "default", "view": "main"}
    with signed_in(station, "root", "admin") as client:
        missing = client.post(f"/api/v1/models/{'0' * 64}/promote", json=place)
        nowhere = client.post(f"/api/v1/models/{digest}/promote", json={**place, "view": "side"})
        station.models.register.withdraw(BEN, digest)
        refused = client.post(f"/api/v1/models/{digest}/promote", json=place)
        odd = client.get("/api/v1/models/..%2f..%2fetc/card")
    assert [answer.status_code for answer in (missing, nowhere, refused)] == [404, 404, 409]
    assert refused.json() == {"error": f"spots 1.0.0 ({digest[:12]}) needs one person to approve it, and has 0"}
    assert odd.status_code in (404, 422)
