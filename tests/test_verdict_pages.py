"""The read API over verdicts: every verdict once, in order, whatever is chosen and whenever the clock was set back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest

from conftest import TOPIC, MakeStation, free_port, submit
from linegate.stages import Decision
from linegate_edge.changes import Changes, NewVerdict
from linegate_edge.schema import MIGRATIONS, SPAN
from linegate_edge.selection import Selection
from linegate_edge.store import DATABASE_FILE, Store, StoreReader

START = datetime(2026, 3, 1, 6, tzinfo=UTC)
ROWS = 2 * SPAN + 100
CLOCK_SET_BACK_AT = SPAN + 300


def row(number: int) -> dict[str, Any]:
    """Return what the store holds of one verdict: one every second, but that the clock is set back an hour once."""
    back = timedelta(hours=1) if number >= CLOCK_SET_BACK_AT else timedelta()
    decision = "fail" if number % 10 == 0 else "undecided" if number % 10 == 5 else "pass"
    decided = START + timedelta(seconds=number) - back
    return {"sequence": number, "serial": f"S-{number % 40}", "decision": decision, "decided": decided.isoformat()}


ALL = [row(number) for number in range(1, ROWS + 1)]


def new_verdict(item: dict[str, Any]) -> NewVerdict:
    text = json.dumps(item)
    return NewVerdict(f"id-{item['sequence']}", item["serial"], item["decision"], item["decided"], lambda _: text)


def fill(folder: Path) -> Path:
    store = Store(folder, TOPIC)
    store.commit(Changes([new_verdict(item) for item in ALL]))
    store.close()
    return store.path


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreReader]:
    """A reader of a store with the verdicts `ALL`; do not change it."""
    reader = StoreReader(fill(tmp_path_factory.mktemp("pages")))
    yield reader
    reader.close()


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


SELECTIONS = [
    Selection(),
    Selection(serial="S-7"),
    Selection(serial="S-10", decision=Decision.FAIL),
    Selection(serial="nobody"),
    Selection(decision=Decision.PASS),
    Selection(decision=Decision.UNDECIDED),
    Selection(since=at(100), until=at(160)),
    Selection(since=at(-3600)),
    Selection(until=at(-1500)),
    Selection(since=at(ROWS + 1)),
    Selection(decision=Decision.FAIL, since=at(1000), until=at(1400)),
    Selection(serial="S-7", since=at(-3000), until=at(900)),
]


def chosen(selection: Selection) -> list[int]:
    since, until = selection.times
    return [
        item["sequence"]
        for item in ALL
        if selection.serial in (None, item["serial"])
        and selection.decision in (None, item["decision"])
        and (since is None or item["decided"] >= since)
        and (until is None or item["decided"] < until)
    ]


@pytest.mark.parametrize("newest_first", [True, False], ids=["newest first", "oldest first"])
@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_pages_together_are_the_selection_in_order(reader: StoreReader, selection: Selection, newest_first: bool) -> None:
    found: list[int] = []
    while rows := reader.page(selection, newest_first=newest_first, after=found[-1] if found else None, limit=97):
        assert len(rows) <= 97
        assert all(json.loads(text)["sequence"] == sequence for sequence, text in rows)
        found += [sequence for sequence, _ in rows]
    assert found == sorted(chosen(selection), reverse=newest_first)


def test_no_page_sorts_or_goes_through_all_rows(reader: StoreReader, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[str] = []
    ask = reader._rows

    def explain(query: str, *values: Any) -> list[Any]:
        plans.extend(f"{step[3]} | {query}" for step in ask(f"EXPLAIN QUERY PLAN {query}", *values))
        return ask(query, *values)

    monkeypatch.setattr(reader, "_rows", explain)
    for selection in SELECTIONS:
        for newest_first in (True, False):
            reader.page(selection, newest_first=newest_first, after=500, limit=10)
    steps = [plan for plan in plans if "FROM verdict_span" not in plan]
    assert len(steps) >= 2 * (len(SELECTIONS) - 1)
    assert all(plan.startswith("SEARCH verdict USING") and "rowid" in plan.split("|")[0] for plan in steps)


def test_an_older_store_is_brought_up_to_date_with_its_verdicts(tmp_path: Path) -> None:
    db = apsw.Connection(str(tmp_path / DATABASE_FILE))
    for script in MIGRATIONS[:2]:
        db.execute(script)
    db.execute("PRAGMA user_version=2")
    with db:
        for item in ALL:
            values = item["sequence"], f"id-{item['sequence']}", item["serial"], item["decision"], item["decided"]
            db.execute("INSERT INTO verdict VALUES (?, ?, NULL, ?, ?, ?, ?)", (*values, json.dumps(item)))
    db.close()
    store = Store(tmp_path, TOPIC)
    assert store.last_sequence == ROWS
    reader = StoreReader(store.path)
    selection = Selection(decision=Decision.FAIL, since=at(-3000), until=at(1300))
    rows = reader.page(selection, newest_first=False, after=None, limit=ROWS)
    assert [sequence for sequence, _ in rows] == chosen(selection) != []
    reader.close()
    store.close()


@pytest.fixture
def client(tmp_path: Path, make_station: MakeStation) -> Iterator[httpx.Client]:
    """A program that talks to a station whose store holds the verdicts `ALL`."""
    fill(tmp_path / "var")
    with httpx.Client(base_url=make_station(free_port()).address, timeout=30) as client:
        yield client


def walk(client: httpx.Client, **query: str | int) -> tuple[list[int], str | None]:
    """Follow the pages of a query until one is empty or the last; return the sequences and the last cursor."""
    found: list[int] = []
    while True:
        answer = client.get("/verdicts", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += [item["sequence"] for item in page["items"]]
        if page["next"] is None or not page["items"]:
            return found, page["next"]
        query["after"] = page["next"]


def test_newest_first_ends_with_a_page_that_names_no_next(client: httpx.Client) -> None:
    assert walk(client, limit=1000) == (list(range(ROWS, 0, -1)), None)
    assert walk(client, limit=4, serial="S-7", decision="undecided") == ([], None)
    exactly = client.get("/verdicts", params={"serial": "S-7", "limit": len(chosen(Selection("S-7")))}).json()
    assert exactly["next"] is None
    assert client.get("/verdicts").json()["items"] == ALL[:-101:-1]


def test_time_and_decision_choose_over_http(client: httpx.Client) -> None:
    query = {"since": at(100).isoformat(), "until": "2026-03-01T07:02:30+01:00", "decision": "fail"}
    assert walk(client, **query) == ([140, 130, 120, 110, 100], None)


def test_oldest_first_goes_on_with_what_has_come_since(tmp_path: Path, make_station: MakeStation) -> None:
    station = make_station(free_port())
    with httpx.Client(base_url=station.address, timeout=30) as client:
        found, cursor = walk(client, order="oldest")
        assert found == []
        for count in (3, 0, 2):
            done = [future.result(20) for future in submit(station, count, start=10 * count)]
            assert cursor is not None
            fresh, cursor = walk(client, order="oldest", limit=2, after=cursor)
            assert fresh == sorted(recorded.sequence for recorded in done)
        (last,) = client.get("/verdicts", params={"limit": 1}).json()["items"]
        assert last == client.get(f"/verdicts/{last['verdict_id']}").json()


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [
        ({"after": "x"}, 400, "parameter 'after': expected the 'next' of a page"),
        ({"after": "bmV3ZXN0Oi0x"}, 400, "expected the 'next'"),
        ({"after": "bmV3ZXN0Ojc", "order": "oldest"}, 400, "it goes with order=newest"),
        ({"limit": "0"}, 422, "'limit'"),
        ({"limit": "1001"}, 422, "'limit'"),
        ({"decision": "good"}, 422, "'decision'"),
        ({"since": "2026-03-01T06:00:00"}, 422, "'since'"),
        ({"since": "0001-01-01T00:00:00+14:00"}, 422, "no such moment in UTC"),
        ({"seriel": "S-7"}, 422, "unknown parameter 'seriel': known are after, limit, order, serial"),
    ],
)
def test_a_wrong_query_is_told_in_one_line(client: httpx.Client, query: dict[str, str], status: int, told: str) -> None:
    answer = client.get("/verdicts", params=query)
    assert (answer.status_code, told in answer.json()["error"]) == (status, True), answer.text


def test_a_quote_in_a_serial_is_no_sql(client: httpx.Client) -> None:
    assert walk(client, serial="S-7' OR '1'='1") == ([], None)
