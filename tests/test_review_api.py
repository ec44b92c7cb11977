"""Reviewing by the API of a running station: the queue, decisions, regions, search, downloads."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from conftest import MakeStation, free_port, signed_in, submit
from linegate_edge.review.audit import verify
from linegate_edge.station import Station

ALL = "[evidence]\nmin_free_mib = 0\npassed_share = 1.0\n"
TAB = "tab-of-anna-1"


@pytest.fixture
def station(make_station: MakeStation) -> Station:
    """A station that judged 40 parts, every tenth of them with a bright spot that fails."""
    made = make_station(free_port(), more=ALL)
    for number in range(40):  # one after the other: the queue goes by the order of the verdicts
        submit(made, 1, start=number)[0].result(30)
    made.reviews.index.catch_up()
    return made


@pytest.fixture
def client(station: Station) -> Iterator[httpx.Client]:
    with signed_in(station) as made:
        yield made


def lend(client: httpx.Client, **wanted: Any) -> dict[str, Any]:
    response = client.post("/api/v1/queue/lend", json={"reader": TAB, **wanted})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def decide(client: httpx.Client, verdict_id: str, disposition: str = "confirmed", **more: Any) -> httpx.Response:
    return client.post(f"/api/v1/parts/{verdict_id}/decision", json={"disposition": disposition, **more})


def png(image: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(cv2.imencode(".png", image)[1].tobytes()).decode()


def test_the_queue_holds_what_failed_oldest_first(client: httpx.Client) -> None:
    answer = lend(client)
    assert [item["serial"] for item in answer["items"]] == ["part-00000", "part-00010", "part-00020", "part-00030"]
    assert {item["queued"] for item in answer["items"]} == {"fail"}
    assert answer["waiting"] == 4


def test_a_decided_part_waits_no_more_and_its_history_tells_who(client: httpx.Client) -> None:
    first = lend(client)["items"][0]
    response = decide(client, first["verdict_id"], "confirmed", defect_class="scratch", comment="deep")
    assert response.status_code == 200, response.text
    assert first["verdict_id"] not in [item["verdict_id"] for item in lend(client)["items"]]
    part = client.get(f"/api/v1/parts/{first['verdict_id']}").json()
    assert part["part"]["disposition"] == "confirmed"
    assert part["part"]["decided_class"] == "scratch"
    decision = part["decisions"][0]
    assert (decision["comment"], decision["number"]) == ("deep", response.json()["number"])
    assert decision["by"]


def test_an_undone_part_waits_again_and_both_steps_stay(client: httpx.Client) -> None:
    verdict_id = lend(client)["items"][0]["verdict_id"]
    number = decide(client, verdict_id).json()["number"]
    undone = client.post(f"/api/v1/parts/{verdict_id}/undo", json={"follows": number})
    assert undone.status_code == 200, undone.text
    assert verdict_id in [item["verdict_id"] for item in lend(client)["items"]]
    part = client.get(f"/api/v1/parts/{verdict_id}").json()
    assert [step["disposition"] for step in part["decisions"]] == ["confirmed", None]
    again = client.post(f"/api/v1/parts/{verdict_id}/undo", json={"follows": undone.json()["number"]})
    assert (again.status_code, again.json()) == (409, {"error": "there is no decision to undo"})
    assert decide(client, verdict_id, follows=undone.json()["number"]).status_code == 200


def test_two_people_never_have_the_same_part_before_them(client: httpx.Client) -> None:
    mine = lend(client, limit=2)["items"]
    other = client.post("/api/v1/queue/lend", json={"reader": "tab-of-bert", "limit": 10}).json()["items"]
    assert {item["verdict_id"] for item in mine}.isdisjoint(item["verdict_id"] for item in other)
    assert len(mine) + len(other) == 4
    client.post("/api/v1/queue/give-back", json={"reader": TAB})
    freed = client.post("/api/v1/queue/lend", json={"reader": "tab-of-bert", "limit": 10}).json()["items"]
    assert len(freed) == 4


def test_two_who_decide_the_same_part_at_once_give_one_decision(client: httpx.Client, station: Station) -> None:
    verdict_id = lend(client)["items"][0]["verdict_id"]
    answers: list[httpx.Response] = []
    with contextlib.ExitStack() as stack:
        people = [stack.enter_context(signed_in(station, name)) for name in ("bert", "cleo", "dora")]
        threads = [
            threading.Thread(target=lambda own=own, what=what: answers.append(decide(own, verdict_id, what)))  # type: ignore[misc]
            for own in people
            for what in ("confirmed", "false_reject")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409, 409]
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert "has decided this part already" in refused.json()["error"]
    assert len(client.get(f"/api/v1/parts/{verdict_id}").json()["decisions"]) == 1


def test_many_are_decided_at_once_each_on_its_own(client: httpx.Client) -> None:
    waiting = [item["verdict_id"] for item in lend(client)["items"]]
    decide(client, waiting[1])
    items = [{"verdict_id": verdict_id, "follows": None} for verdict_id in waiting] + [{"verdict_id": "nobody"}]
    answer = client.post("/api/v1/queue/decide", json={"items": items, "disposition": "false_reject"}).json()["items"]
    assert [item["error"] is None for item in answer] == [True, False, True, True, False]
    assert lend(client)["waiting"] == 0


def test_a_disposition_must_fit_the_verdict(client: httpx.Client) -> None:
    passed = client.get("/api/v1/parts", params={"decision": "pass", "limit": 1}).json()["items"][0]["verdict_id"]
    failed = client.get("/api/v1/parts", params={"decision": "fail", "limit": 1}).json()["items"][0]["verdict_id"]
    assert decide(client, passed, "false_reject").status_code == 409
    assert decide(client, failed, "escape").status_code == 409
    assert decide(client, passed, "escape", defect_class="crack").status_code == 200


def test_boxes_and_masks_are_kept_as_they_were_drawn(client: httpx.Client) -> None:
    item = lend(client)["items"][0]
    part = client.get(f"/api/v1/parts/{item['verdict_id']}").json()
    look = part["looks"][0]
    width, height = look["size_wh"]
    mask = np.zeros((height, width), np.uint8)
    mask[4:9, 5:12] = 255
    region = {"view": look["view"], "defect_class": "scratch", "box_xyxy": [1, 2, 10, 12]}
    drawn = {"regions": [region], "masks": [{"view": look["view"], "png": png(mask)}]}
    response = decide(client, item["verdict_id"], defect_class="scratch", **drawn)
    assert response.status_code == 200, response.text
    decision = client.get(f"/api/v1/parts/{item['verdict_id']}").json()["decisions"][0]
    assert decision["regions"] == [region]
    assert decision["masks"] == [look["view"]]
    params = {"view": look["view"], "decision": decision["number"]}
    kept = client.get(f"/api/v1/parts/{item['verdict_id']}/mask.png", params=params).content
    assert np.array_equal(cv2.imdecode(np.frombuffer(kept, np.uint8), cv2.IMREAD_UNCHANGED), mask)


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        ({"regions": [{"view": "main", "defect_class": "x", "box_xyxy": [0, 0, 999, 5]}]}, "leaves its picture"),
        ({"regions": [{"view": "main", "defect_class": "x", "box_xyxy": [5, 5, 5, 9]}]}, "expected left < right"),
        ({"regions": [{"view": "side", "defect_class": "x", "box_xyxy": [0, 0, 5, 5]}]}, "has no view 'side', only main"),
        ({"masks": [{"view": "main", "png": "%%%"}]}, "no base64"),
        ({"masks": [{"view": "main", "png": base64.b64encode(b"GIF89a" * 20).decode()}]}, "no PNG"),
        ({"masks": [{"view": "main", "png": png(np.zeros((9, 9), np.uint8))}]}, "draw it at that size"),
        ({"colour": "red"}, "colour"),
        ({"defect_class": "good"}, "is no class of defects"),
    ],
)
def test_what_does_not_fit_the_picture_is_one_clear_line(client: httpx.Client, drawn: dict[str, Any], words: str) -> None:
    verdict_id = lend(client)["items"][0]["verdict_id"]
    response = decide(client, verdict_id, **drawn)
    assert response.status_code == 422
    assert words in response.json()["error"]
    assert client.get(f"/api/v1/parts/{verdict_id}").json()["decisions"] == []


def test_a_payload_of_a_million_points_is_refused_unread(client: httpx.Client) -> None:
    verdict_id = lend(client)["items"][0]["verdict_id"]
    region = {"view": "main", "defect_class": "x", "box_xyxy": [0, 0, 5, 5]}
    response = decide(client, verdict_id, regions=[region] * 300_000)
    assert response.status_code in (413, 422)
    assert len(response.json()["error"]) < 300
    assert client.get(f"/api/v1/parts/{verdict_id}").json()["decisions"] == []


def test_search_by_serial_class_and_disposition(client: httpx.Client) -> None:
    by_serial = client.get("/api/v1/parts", params={"serial": "part-00007"}).json()["items"]
    assert [item["serial"] for item in by_serial] == ["part-00007"]
    verdict_id = lend(client)["items"][0]["verdict_id"]
    decide(client, verdict_id, "limit_sample")
    found = client.get("/api/v1/parts", params={"disposition": "limit_sample"}).json()["items"]
    assert [item["verdict_id"] for item in found] == [verdict_id]
    assert len(client.get("/api/v1/parts", params={"decision": "fail", "disposition": "none"}).json()["items"]) == 3
    assert client.get("/api/v1/parts", params={"since": "2099-01-01T00:00:00Z"}).json()["items"] == []


def test_pages_of_a_search_meet_without_gap_or_double(client: httpx.Client) -> None:
    seen: list[int] = []
    before: int | None = None
    while True:
        page = client.get("/api/v1/parts", params={"limit": 7} | ({} if before is None else {"before": before})).json()
        seen += [item["sequence"] for item in page["items"]]
        before = page["next"]
        if before is None:
            break
    assert seen == list(range(40, 0, -1))


def test_a_part_shows_picture_heat_map_and_a_good_reference(client: httpx.Client) -> None:
    verdict_id = lend(client)["items"][0]["verdict_id"]
    look = client.get(f"/api/v1/parts/{verdict_id}").json()["looks"][0]
    for key in ("picture_uri", "heat_map_uri", "reference_uri"):
        response = client.get(look[key])
        assert response.status_code == 200, (key, response.text)
        assert response.headers["content-type"].startswith("image/")
    reference = client.get(f"/api/v1/parts/{look['reference_verdict_id']}").json()["part"]
    assert reference["decision"] == "pass"


def test_a_pruned_picture_is_said_and_the_part_can_be_decided(client: httpx.Client, station: Station) -> None:
    item = lend(client)["items"][0]
    for file in (station.settings.station.store / "evidence").rglob("*.png"):
        file.unlink()
    look = client.get(f"/api/v1/parts/{item['verdict_id']}").json()["looks"][0]
    assert look["picture_uri"] is None
    assert "pruned" in look["trouble"]
    assert decide(client, item["verdict_id"]).status_code == 200


def test_the_download_holds_pictures_message_and_their_hashes(client: httpx.Client, station: Station) -> None:
    verdict_id = lend(client)["items"][0]["verdict_id"]
    decide(client, verdict_id, comment="seen")
    response = client.get(f"/api/v1/parts/{verdict_id}/evidence.zip")
    assert response.status_code == 200
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    listed = dict(reversed(line.split("  ", 1)) for line in archive.read("SHA256SUMS").decode().splitlines())
    assert set(listed) == set(archive.namelist()) - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256(archive.read(name)).hexdigest() == digest
    message = json.loads(archive.read("message.json"))
    pictures = [name for name in listed if name.startswith("pictures/")]
    assert [listed[name] for name in pictures] == [message["views"][0]["image_sha256"]]
    manifest = json.loads(archive.read("manifest.json"))
    report = verify(station.settings.station.store, manifest["audit_head"]["digest"])
    assert report.problem is None
    assert [line["action"] for line in json.loads(archive.read("audit.json"))] == ["decide", "download evidence"]


def test_a_changed_picture_does_not_pass_for_the_evidence(client: httpx.Client, station: Station) -> None:
    verdict_id = lend(client)["items"][0]["verdict_id"]
    uri = client.get(f"/api/v1/parts/{verdict_id}").json()["message"]["views"][0]["image_uri"]
    name = uri.rsplit("/", 1)[-1]
    path = station.settings.station.store / "evidence" / name[:2] / name
    path.write_bytes(path.read_bytes() + b"\0")
    archive = zipfile.ZipFile(io.BytesIO(client.get(f"/api/v1/parts/{verdict_id}/evidence.zip").content))
    manifest = json.loads(archive.read("manifest.json"))
    assert "was changed" in manifest["missing"][0]["why"]


@pytest.mark.parametrize("name", ["..%2f..%2flinegate.sqlite3", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "..", "a\0b", "%00"])
@pytest.mark.parametrize("where", ["/api/v1/parts/{}", "/api/v1/pictures/{}", "/api/v1/parts/{}/evidence.zip"])
def test_path_tricks_find_nothing(client: httpx.Client, where: str, name: str) -> None:
    response = client.get(where.format(name.replace("\0", "%00")))
    assert response.status_code in (404, 307, 200)
    if response.status_code == 200:
        assert "items" in response.json(), "the address came down to the search"


def test_every_decision_has_its_line_in_the_audit_trail(client: httpx.Client, station: Station) -> None:
    items = lend(client)["items"]
    for item in items:
        decide(client, item["verdict_id"])
    lines = station.reviews.trail.lines()
    assert [line.subject for line in lines if line.action == "decide"] == [item["verdict_id"] for item in reversed(items)]
    assert verify(station.settings.station.store).problem is None


def test_a_full_disk_changes_nothing_and_says_so(client: httpx.Client, station: Station) -> None:
    item = lend(client)["items"][0]
    before = station.reviews.trail.head()
    with station.reviews.database.change() as db:
        pages = next(iter(db.execute("PRAGMA page_count")))[0]
    station.reviews.database._db.execute(f"PRAGMA max_page_count={pages}").fetchall()
    size = client.get(f"/api/v1/parts/{item['verdict_id']}").json()["looks"][0]["size_wh"]
    noise = np.where(np.random.default_rng(0).random((size[1], size[0])) > 0.5, np.uint8(255), np.uint8(0))
    refused = decide(client, item["verdict_id"], masks=[{"view": "main", "png": png(noise)}], comment="x" * 2000)
    assert refused.status_code == 503
    assert "full: nothing was changed; free some disk space" in refused.json()["error"]
    station.reviews.database._db.execute("PRAGMA max_page_count=1073741823").fetchall()
    assert station.reviews.trail.head() == before
    assert decide(client, item["verdict_id"], masks=[{"view": "main", "png": png(noise)}]).status_code == 200


def test_what_judges_is_a_line_of_the_trail_at_each_change(make_station: MakeStation, tmp_path: Path) -> None:
    def lines(station: Station) -> list[Any]:
        return [line for line in station.reviews.trail.lines(limit=1000) if line.action == "recipe.change"]

    first = make_station(free_port(), more=ALL)
    (line,) = lines(first)
    assert (line.actor, line.subject, line.detail["before"]) == ("station", "default", None)
    first.stop()
    again = make_station(free_port(), more=ALL)
    assert len(lines(again)) == 1, "nothing changed over the restart"
    again.stop()
    moved = make_station(free_port(), more=f"{ALL}[recipe]\nthreshold = 0.9\n")
    line = lines(moved)[0]
    assert line.detail["before"]["views"]["main"]["threshold"] != 0.9
    assert line.detail["now"]["views"]["main"]["threshold"] == 0.9
