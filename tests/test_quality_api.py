"""`/api/v1/quality` over a filled database: what it counts, what it leaves out, and one clear line for a wrong question."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from linegate_edge.review.app import _add_error_handlers
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.quality.routes import add_quality
from linegate_edge.settings import StationSettings

NOW = datetime(2026, 11, 24, 15, 0, tzinfo=UTC)
UNTIL = {"until": "2026-11-24T15:00:00Z"}
SETTINGS = StationSettings.model_validate(
    {
        "station": {"topic": "acme/graz/press/line-1/tiles"},
        "model": {"package": "unused"},
        "review": {"time_zone": "UTC", "audit_share": 0.01},
    }
)
PACKAGE = "tiles@1.0.0"


class Filled:
    """A review database that a test fills by hand."""

    def __init__(self, folder: Path) -> None:
        self.database = ReviewDatabase(folder)
        self.sequence = 0

    def tally(self, at: datetime, decision: str, count: int, cause: str = "", **more: Any) -> None:
        row = {"recipe": "tiles", "package": PACKAGE, "batch": "", "supplier_lot": "", "mode": "production", "first_pass": 1}
        row |= more
        values = (f"{at:%Y-%m-%dT%H:%M}", *row.values(), decision, cause, count)
        with self.database.change() as db:
            db.execute("INSERT INTO tally VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def parts(self, rows: list[dict[str, Any]]) -> None:
        with self.database.change() as db:
            for row in rows:
                self.sequence += 1
                full = {
                    "sequence": self.sequence, "verdict_id": str(self.sequence), "serial": "S", "decision": "pass",
                    "decided_at": f"{NOW - timedelta(hours=1):%Y-%m-%dT%H:%M:%S.000000Z}", "mode": "production",
                    "recipe": "tiles", "package": PACKAGE, "package_digest": "0" * 64, "reason": "below_threshold",
                    "view": "main", "score": 0.1, "threshold": 0.5, "decision_number": self.sequence,
                } | row  # fmt: skip
                names = ", ".join(full)
                db.execute(f"INSERT INTO part ({names}) VALUES ({', '.join('?' * len(full))})", tuple(full.values()))


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    made = Filled(tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def client(filled: Filled) -> Iterator[TestClient]:
    app = FastAPI()
    _add_error_handlers(app)
    add_quality(app, filled.database, SETTINGS)
    with TestClient(app) as made:
        yield made


def ask(client: TestClient, path: str, **query: Any) -> Any:
    response = client.get(f"/api/v1/quality/{path}", params=UNTIL | query if path != "threshold" else query)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_new_station_answers_everything_with_nothing(client: TestClient) -> None:
    assert ask(client, "yield")["now"] == {"parts": 0, "passed": 0, "failed": 0, "undecided": 0, "first_pass_yield": None}
    assert ask(client, "pareto")["bars"] == []
    chart = ask(client, "chart")
    assert (chart["points"], chart["centre"], chart["why"]) == ([], None, "no parts in this time")
    reviews = ask(client, "reviews")
    assert reviews["audit"] == {"count": 0, "total": 0, "share": None, "low": 0.0, "high": 1.0}
    assert ask(client, "drift")["packages"] == []
    threshold = ask(client, "threshold")
    assert (threshold["package"], threshold["current"]) == (None, None)
    assert [point["threshold"] for point in threshold["breakpoints"]] == [None]


def test_yield_counts_each_production_part_once_at_its_first_inspection(client: TestClient, filled: Filled) -> None:
    filled.tally(NOW - timedelta(hours=2), "pass", 95)
    filled.tally(NOW - timedelta(hours=2), "fail", 4, "crack")
    filled.tally(NOW - timedelta(hours=2), "undecided", 1, "camera_missing")
    filled.tally(NOW - timedelta(hours=2), "pass", 50, first_pass=0)
    filled.tally(NOW - timedelta(hours=2), "fail", 50, "crack", mode="challenge")
    filled.tally(NOW - timedelta(days=1), "pass", 7)
    filled.tally(NOW, "pass", 1000)
    answer = ask(client, "yield", days=1)
    assert answer["now"] == {"parts": 100, "passed": 95, "failed": 4, "undecided": 1, "first_pass_yield": 0.95}
    assert answer["before"]["parts"] == 7
    assert answer["span"] == {"since": "2026-11-24T06:00:00Z", "until": "2026-11-24T15:00:00Z", "time_zone": "UTC"}
    assert answer["packages"] == [PACKAGE]
    assert ask(client, "yield", days=1, package="other@1")["now"]["parts"] == 0


def test_pareto_is_by_class_or_reason_with_cumulative_share(client: TestClient, filled: Filled) -> None:
    at = NOW - timedelta(hours=2)
    filled.tally(at, "pass", 900, batch="B1")
    filled.tally(at, "fail", 60, "crack", batch="B1")
    filled.tally(at, "fail", 30, "hole")
    filled.tally(at, "undecided", 10, "camera_missing", batch="B1")
    bars = ask(client, "pareto")["bars"]
    assert [(bar["name"], bar["rejects"], bar["cumulative"], bar["parts"]) for bar in bars] == [
        ("crack", 60, 0.6, None),
        ("hole", 30, 0.9, None),
        ("camera_missing", 10, 1.0, None),
    ]
    by_batch = ask(client, "pareto", by="batch")["bars"]
    assert [(bar["name"], bar["rejects"], bar["parts"]) for bar in by_batch] == [("B1", 70, 970), (None, 30, 30)]
    limited = ask(client, "pareto", limit=1)
    assert (limited["rejects"], limited["rest"], limited["rest_groups"]) == (100, 40, 2)
    (station,) = ask(client, "pareto", by="station")["bars"]
    assert (station["name"], station["reject_rate"]) == ("acme/graz/press/line-1/tiles", 0.1)
    for dimension in ("recipe", "package", "supplier_lot"):
        assert sum(bar["rejects"] for bar in ask(client, "pareto", by=dimension)["bars"]) == 100


def test_pareto_by_shift_adds_the_same_shift_of_all_days(client: TestClient, filled: Filled) -> None:
    for days in range(3):
        filled.tally(NOW - timedelta(days=days, hours=2), "fail", 5, "crack")  # 13:00
        filled.tally(NOW - timedelta(days=days, hours=14), "fail", 1, "crack")  # 01:00
    bars = ask(client, "pareto", by="shift")["bars"]
    assert [(bar["name"], bar["rejects"]) for bar in bars] == [("06:00–14:00", 15), ("22:00–06:00", 3)]


def test_the_chart_marks_the_shift_that_went_wrong(client: TestClient, filled: Filled) -> None:
    random = np.random.default_rng(1)
    for quarter in range(4 * 24 * 6):
        at = datetime(2026, 11, 18, 6, tzinfo=UTC) + timedelta(minutes=15 * quarter)
        bad = int(random.binomial(200, 0.2 if at.day == 21 and at.hour in range(14, 22) else 0.02))
        filled.tally(at, "pass", 200 - bad)
        if bad:
            filled.tally(at, "fail", bad, "crack")
    chart = ask(client, "chart", period="shift")
    wrong = [point for point in chart["points"] if "above" in point["signals"]]
    assert [(point["begin"], point["shift"]) for point in wrong] == [("2026-11-21T14:00:00Z", "14:00")]
    assert {point["parts"] for point in chart["points"]} == {200 * 32}
    assert len(ask(client, "chart", period="day")["points"]) == 6
    assert len(ask(client, "chart", period="hour")["points"]) == 24 * 6


def test_reviews_tell_false_rejects_and_escapes_apart_from_each_other(client: TestClient, filled: Filled) -> None:
    rejected = {"decision": "fail", "queued": "fail", "defect_class": "crack", "score": 0.9}
    rows = [rejected | {"disposition": "confirmed"} for _ in range(7)]
    rows += [rejected | {"disposition": "false_reject"} for _ in range(2)]
    rows += [rejected | {"disposition": "limit_sample"}]
    rows += [rejected]  # not decided
    rows += [{"queued": "audit", "disposition": "confirmed"} for _ in range(98)]
    rows += [{"queued": "audit", "disposition": "escape", "decided_class": "hole"} for _ in range(2)]
    rows += [{"queued": "close", "disposition": "escape", "decided_class": "hole"}]
    rows += [{"queued": "audit"}]
    rows += [{"disposition": "escape", "decided_at": "2026-10-01T00:00:00.000000Z"}]
    filled.parts(rows)
    answer = ask(client, "reviews")
    assert {key: answer["false_rejects"][key] for key in ("count", "total")} == {"count": 2, "total": 9}
    assert (answer["audit"]["count"], answer["audit"]["total"], answer["audit"]["share"]) == (2, 100, 0.02)
    assert (round(answer["audit"]["low"], 4), round(answer["audit"]["high"], 4)) == (0.0024, 0.0704)
    assert (answer["close"]["count"], answer["close"]["total"]) == (1, 1)
    assert answer["audit_waiting"] == 1
    assert [row["package"] for row in answer["audit_by_package"]] == [PACKAGE]
    classes = {row["name"]: row for row in answer["by_class"]}
    assert (classes["hole"]["escapes"], classes["crack"]["false_rejects"], classes["crack"]["limit_samples"]) == (3, 2, 1)
    assert answer["by_period"] == [
        {
            "name": "2026-11-24T06:00:00Z",
            "reviewed": 111,
            "confirmed": 105,
            "false_rejects": 2,
            "escapes": 3,
            "limit_samples": 1,
        }
    ]


def test_drift_compares_the_last_parts_of_a_package_with_its_first(client: TestClient, filled: Filled) -> None:
    random = np.random.default_rng(2)
    for package, shift in (("moved@1.0.0", 0.5), ("still@1.0.0", 0.0), ("young@1.0.0", None)):
        filled.tally(NOW - timedelta(days=20), "pass", 1, package=package)
        scores = random.normal(0, 1, 500 if shift is not None else 10)
        begin = NOW - timedelta(days=20)
        if shift is not None:
            scores = np.concatenate([scores, random.normal(shift, 1, 400)])
        moments = [begin + timedelta(seconds=20 * place) for place in range(min(500, len(scores)))]
        moments += [NOW - timedelta(hours=1) + timedelta(seconds=place) for place in range(len(scores) - len(moments))]
        filled.parts(
            [
                {"package": package, "score": score, "decided_at": f"{at:%Y-%m-%dT%H:%M:%S.000000Z}"}
                for score, at in zip(scores.tolist(), moments, strict=True)
            ]
        )
    answer = ask(client, "drift")
    assert answer["test"] == "two-sample Kolmogorov–Smirnov, asymptotic"
    rows = {row["package"]: row for row in answer["packages"]}
    assert (rows["moved@1.0.0"]["level"], rows["still@1.0.0"]["level"], rows["young@1.0.0"]["level"]) == (
        "drift",
        "stable",
        None,
    )
    assert (rows["moved@1.0.0"]["reference_parts"], rows["moved@1.0.0"]["parts"]) == (500, 400)
    assert rows["moved@1.0.0"]["adjusted_p"] >= rows["moved@1.0.0"]["p_value"]
    assert rows["young@1.0.0"]["note"] == "a test needs 50 scores on both sides, there are 10 and 0"


def test_the_threshold_slider_has_the_counts_of_every_threshold(client: TestClient, filled: Filled) -> None:
    filled.tally(NOW - timedelta(hours=1), "pass", 1)
    filled.parts(
        [
            {"score": 0.1, "queued": "audit", "disposition": "confirmed"},
            {"score": 0.4, "queued": "close", "disposition": "escape"},
            {"score": 0.6, "decision": "fail", "disposition": "false_reject"},
            {"score": 0.8, "decision": "fail", "disposition": "confirmed"},
            {"score": 0.5, "decision": "fail", "disposition": "limit_sample"},
            {"score": 0.7, "decision": "fail"},
        ]
    )
    answer = ask(client, "threshold")
    assert (answer["package"], answer["reviewed"], answer["limit_samples"], answer["current"]) == (PACKAGE, 4, 1, 0.5)
    counts = [
        (point["threshold"], point["escapes"], point["false_rejects"], point["confirmed"], point["passes"])
        for point in answer["breakpoints"]
    ]
    assert counts == [(0.1, 0, 2, 2, 0), (0.4, 0, 1, 2, 1), (0.6, 1, 1, 1, 1), (0.8, 1, 0, 1, 2), (None, 2, 0, 0, 2)]
    assert ask(client, "threshold", last=1)["reviewed"] == 0, "the limit sample was reviewed last"
    assert ask(client, "threshold", package="nobody@1")["reviewed"] == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("pareto?by=colour", "query parameter 'by': input should be 'defect_class', 'station'"),
        ("chart?period=week", "query parameter 'period': input should be 'hour', 'shift' or 'day', got 'week'"),
        ("chart?days=0", "query parameter 'days': input should be greater than or equal to 1, got '0'"),
        ("yield?dais=1", "unknown parameter 'dais': known are days, until, recipe, package"),
        ("yield?until=2026-11-24T15:00:00", "query parameter 'until': input should have timezone info"),
        ("yield?until=9999-11-24T15:00:00Z", "query parameter 'until': input should be less than or equal to"),
        ("threshold?last=0", "query parameter 'last'"),
        ("drift?package=", "unknown parameter 'package': known are days, until, last"),
    ],
)
def test_a_wrong_question_is_answered_in_one_line(client: TestClient, path: str, words: str) -> None:
    response = client.get(f"/api/v1/quality/{path}")
    assert response.status_code == 422
    assert words in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_the_schema_describes_every_parameter_and_every_answer(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert sorted(paths) == [
        f"/api/v1/quality/{name}" for name in ("chart", "drift", "pareto", "reviews", "threshold", "yield")
    ]
    for path in paths.values():
        operation = path["get"]
        assert operation["summary"]
        assert operation["description"]
        assert {"200", "401", "403", "422", "503"} == operation["responses"].keys()
        assert all(parameter["description"] for parameter in operation["parameters"])


def test_a_million_parts_are_counted_within_fifty_milliseconds(client: TestClient, filled: Filled) -> None:
    begin = NOW - timedelta(days=60)
    rows = []
    for quarter in range(4 * 24 * 60):
        at = f"{begin + timedelta(minutes=15 * quarter):%Y-%m-%dT%H:%M}"
        batch, lot = f"B{quarter // 32}", f"L{quarter // 300}"
        rows.append((at, "tiles", PACKAGE, batch, lot, "production", 1, "pass", "", 170))
        rows += [(at, "tiles", PACKAGE, batch, lot, "production", 1, "fail", name, 1) for name in ("crack", "hole", "stain")]
        rows.append((at, "tiles", PACKAGE, batch, lot, "production", 1, "undecided", "camera_missing", 1))
    with filled.database.change() as db:
        db.executemany("INSERT INTO tally VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    assert ask(client, "yield", days=61)["now"]["parts"] > 1_000_000
    for path, query in (("yield", {}), ("pareto", {}), ("pareto", {"by": "batch"}), ("pareto", {"by": "shift"}), ("chart", {})):
        took = []
        for _ in range(20):
            started = time.perf_counter()
            ask(client, path, days=61, **query)
            took.append(time.perf_counter() - started)
        print(path, query, f"{1000 * sorted(took)[9]:.1f} ms median, {1000 * sorted(took)[18]:.1f} ms p95")
        assert sorted(took)[9] < 0.15, "the promise of 50 ms, and room for a busy machine"
