"""What people said → a data set version: by the API and by the command, with every disposition, and what is left out."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from conftest import MakeStation, free_port, signed_in, submit
from linegate import cli
from linegate.dataset_version import Version, VersionItem
from linegate_edge.review.audit import verify
from linegate_edge.station import Station

ALL = "[evidence]\nmin_free_mib = 0\npassed_share = 1.0\n"


@pytest.fixture
def station(make_station: MakeStation) -> Station:
    """A station that judged 30 parts, of which 0, 10 and 20 fail."""
    made = make_station(free_port(), more=ALL)
    for number in range(30):
        submit(made, 1, start=number)[0].result(30)
    made.reviews.index.catch_up()
    return made


def part_of(client: httpx.Client, number: int) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/api/v1/parts", params={"serial": f"part-{number:05d}"}).json()["items"][0]
    return found


def say(client: httpx.Client, number: int, disposition: str, **more: Any) -> int:
    part = part_of(client, number)
    body = {"disposition": disposition, "follows": part["decision_number"], **more}
    answer = client.post(f"/api/v1/parts/{part['verdict_id']}/decision", json=body)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["number"])


def freeze(station: Station, **wanted: Any) -> dict[str, Any]:
    with signed_in(station, "max", "ml") as client:
        answer = client.post("/api/v1/datasets", json=wanted)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def items(station: Station, made: dict[str, Any]) -> dict[str, VersionItem]:
    version = Version.load(station.settings.datasets_folder / made["folder"])
    return {item.group: item for item in version.record.items}


def test_nothing_reviewed_makes_no_version(station: Station) -> None:
    with signed_in(station, "max", "ml") as client:
        answer = client.post("/api/v1/datasets", json={})
    assert answer.status_code == 409
    assert "review" in answer.json()["error"]
    assert not list(station.settings.datasets_folder.glob("*-v*"))


def test_each_disposition_says_what_a_photograph_shows(station: Station) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[4:9, 5:12] = 255
    png = base64.b64encode(cv2.imencode(".png", mask)[1].tobytes()).decode()
    with signed_in(station) as client:
        say(client, 0, "confirmed", defect_class="crack", masks=[{"view": "main", "png": png}])
        say(client, 10, "false_reject")
        say(client, 20, "confirmed", regions=[{"view": "main", "defect_class": "dent", "box_xyxy": [1, 2, 9, 8]}])
        say(client, 1, "confirmed")
        say(client, 2, "escape", defect_class="crack")
        say(client, 3, "limit_sample")
    made = freeze(station)
    found = items(station, made)
    labels = {group: item.label for group, item in found.items()}
    assert labels == {
        "part-00000": "crack",
        "part-00010": "good",
        "part-00020": "dent",
        "part-00001": "good",
        "part-00002": "crack",
    }
    assert [(box.label, box.xyxy) for box in found["part-00020"].boxes] == [("dent", (1, 2, 9, 8))]
    assert found["part-00000"].mask is not None
    kept = station.settings.datasets_folder / made["folder"] / found["part-00000"].mask
    assert np.array_equal(cv2.imread(str(kept), cv2.IMREAD_UNCHANGED), mask)
    assert made["left_out"] == ["1 limit samples are not learned from"]
    assert verify(station.settings.station.store).problem is None
    assert [line.subject for line in station.reviews.trail.lines() if line.action == "dataset.make"] == [made["folder"]]


def test_what_was_taken_back_is_nobodys_word(station: Station) -> None:
    with signed_in(station) as client:
        say(client, 0, "confirmed")
        number = say(client, 10, "confirmed")
        part = part_of(client, 10)
        client.post(f"/api/v1/parts/{part['verdict_id']}/undo", json={"follows": number})
    assert set(items(station, freeze(station))) == {"part-00000"}


def test_two_people_who_differ_are_a_conflict_until_they_agree(station: Station) -> None:
    with signed_in(station) as anna, signed_in(station, "bert") as bert:
        say(anna, 0, "confirmed", defect_class="crack")
        say(anna, 10, "confirmed", defect_class="crack")
        say(bert, 10, "false_reject")
        made = freeze(station)
        assert set(items(station, made)) == {"part-00000"}
        assert [conflict["kind"] for conflict in made["conflicts"]] == ["people"]
        say(bert, 10, "confirmed", defect_class="crack")
        again = freeze(station)
    assert (again["number"], again["conflicts"]) == (2, [])
    assert set(items(station, again)) == {"part-00000", "part-00010"}


def test_pictures_that_are_gone_are_counted_and_the_others_kept(station: Station) -> None:
    with signed_in(station) as client:
        say(client, 0, "confirmed")
        say(client, 10, "confirmed")
        uri = client.get(f"/api/v1/parts/{part_of(client, 10)['verdict_id']}").json()["message"]["views"][0]["image_uri"]
    name = uri.rsplit("/", 1)[-1]
    (station.settings.station.store / "evidence" / name[:2] / name).unlink()
    made = freeze(station)
    assert made["left_out"] == ["1 pictures have been pruned, or were never kept"]
    assert set(items(station, made)) == {"part-00000"}


def test_the_same_reviews_are_the_same_version_and_the_test_set_stays(station: Station) -> None:
    with signed_in(station) as client:
        for number in range(10):
            say(client, number, "confirmed")
        first = freeze(station)
        assert freeze(station)["new"] is False
        for number in range(10, 30):
            say(client, number, "confirmed")
    before, after = items(station, first), items(station, freeze(station))
    assert {group: after[group].split for group in before} == {group: item.split for group, item in before.items()}
    assert len(after) == 30


def test_the_command_makes_it_beside_a_running_station(
    station: Station, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with signed_in(station) as client:
        say(client, 0, "confirmed", defect_class="crack")
    command = ["dataset", "from-reviews", str(tmp_path / "STATION.toml"), "--json", "--note", "by hand"]
    assert cli.main(command) == 0
    made = json.loads(capsys.readouterr().out)
    record = Version.load(Path(made["folder"])).record
    assert (record.note, [item.label for item in record.items]) == ("by hand", ["crack"])
    with signed_in(station, "bert") as client:
        say(client, 0, "false_reject")
    assert cli.main(command) == 1, "there is a conflict to settle"
    capsys.readouterr()
    assert cli.main(["dataset", "from-reviews", str(tmp_path / "nowhere.toml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
