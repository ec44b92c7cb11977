"""`linegate model` and `linegate training`: the same as the page, where no station runs, and in the trail by name."""

from __future__ import annotations

import getpass
import json
import shutil
from pathlib import Path

import pytest

from conftest import MakeStation, submit, write_spot_package
from linegate.cli import main
from linegate.errors import PackageError
from linegate_edge.review.audit import verify
from linegate_edge.station import Station
from models_world import NO_BROKER, World, write_run


@pytest.fixture
def closed(tmp_path: Path) -> World:
    """A station that does not run."""
    made = World(tmp_path, write_spot_package(tmp_path / "champion").location)
    made.close()
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_package_goes_its_whole_way_from_the_command_line(
    closed: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = write_run(tmp_path / "run", closed.champion, threshold=0.5)
    station, digits = closed.path, package.digest[:8]
    assert run(capsys, "model", "import", station, tmp_path / "run")[0] == 0
    status, _, err = run(capsys, "model", "promote", station, digits, "--recipe", "default")
    assert (status, err.count("\n")) == (2, 1)
    assert "needs one person to approve it" in err
    assert run(capsys, "model", "approve", station, digits, "--comment", "fine")[0] == 0
    status, out, _ = run(capsys, "model", "promote", station, digits, "--recipe", "default")
    assert status == 0
    assert out.startswith(f"promotion 1: spots 1.0.0 ({package.digest[:12]}) judges default/main")
    views = json.loads(run(capsys, "model", "list", station, "--json")[1])["views"]
    assert views[0]["digest"] == package.digest
    assert run(capsys, "model", "roll-back", station, 1, "--reason", "a test")[0] == 0
    text = run(capsys, "model", "list", station)[1]
    assert closed.champion.digest[:12] in text.splitlines()[0]
    assert "go     1 of 1" in text
    closed.open()
    try:
        lines = closed.reviews.trail.lines()
        assert [line.action for line in lines] == ["model.roll_back", "model.promote", "model.approve", "model.import"]
        assert {(line.actor, line.role) for line in lines} == {(getpass.getuser(), "console")}
    finally:
        closed.close()
    assert verify(closed.settings.station.store).problem is None


def test_a_promotion_whose_package_is_gone_is_told_and_rolled_back(
    closed: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = write_run(tmp_path / "run", closed.champion, threshold=0.5)
    station, digits = closed.path, package.digest[:8]
    assert run(capsys, "model", "import", station, tmp_path / "run")[0] == 0
    assert run(capsys, "model", "approve", station, digits)[0] == 0
    assert run(capsys, "model", "promote", station, digits, "--recipe", "default")[0] == 0
    shelved = closed.room.shelf.location(package.digest)
    assert f"{package.reference} was promoted, is whole" in run(capsys, "station", "check", station)[1]
    shutil.rmtree(shelved)
    status, out, _ = run(capsys, "station", "check", station)
    assert status == 1
    assert "or undo its promotion: linegate model list, linegate model roll-back" in out

    with pytest.raises(PackageError, match=r"the promoted package is gone: .*; put it back, or undo the promotion"):
        Station(closed.settings)
    status, out, err = run(capsys, "model", "list", station)
    assert (status, err.count("\n")) == (0, 1)
    assert f"spots 1.0.0 ({package.digest[:12]}) of promotion 1 is not in {shelved} any more" in err
    status, _, err = run(capsys, "model", "promote", station, digits, "--recipe", "default")
    assert (status, err.count("\n")) == (2, 1)
    status, out, err = run(capsys, "model", "roll-back", station, 1)
    assert (status, err) == (0, "")
    assert out.startswith(f"promotion 1 is undone: spots 1.0.0 ({closed.champion.digest[:12]}) judges default/main")
    Station(closed.settings).stop()
    assert verify(closed.settings.station.store).problem is None


def test_a_station_that_runs_is_not_changed_behind_its_back(
    tmp_path: Path, make_station: MakeStation, capsys: pytest.CaptureFixture[str]
) -> None:
    station = make_station(NO_BROKER)
    path = tmp_path / "STATION.toml"
    package = write_spot_package(tmp_path / "other", threshold=0.4)
    status, _, err = run(capsys, "model", "import", path, tmp_path / "other")
    assert status == 2
    assert "is changed on its page /models, or by its API" in err
    assert run(capsys, "model", "list", path)[0] == 0
    assert package.digest not in station.models.register.registered()
    assert submit(station, 1)[0].result(20).sequence == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("approve", "STATION", "ffff"), "no package on the shelf with a digest that begins with 'ffff'"),
        (("roll-back", "STATION", "3"), "no promotion 3"),
        (("import", "STATION", "nowhere"), "no such model package"),
        (("list", "nowhere.toml"), "no such settings file"),
    ],
)
def test_a_mistake_is_one_line(
    closed: World, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    status, _, err = run(capsys, "model", *(closed.path if word == "STATION" else word for word in arguments))
    assert (status, err.count("\n")) == (2, 1)
    assert told in err


def test_training_runs_are_looked_at_from_the_command_line(closed: World, capsys: pytest.CaptureFixture[str]) -> None:
    store = closed.settings.station.store
    assert run(capsys, "training", "list", store) == (0, "", "")
    assert "no training run 1" in run(capsys, "training", "show", store, 1)[2]
    assert "no training run 1" in run(capsys, "training", "cancel", store, 1)[2]
    assert "give the folder of a station's store" in run(capsys, "training", "list", closed.folder)[2]
