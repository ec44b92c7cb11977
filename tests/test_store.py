"""Verdict and outbox are committed together, durably, without a gap, for one station alone."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linegate.errors import StoreError
from linegate_edge.changes import Changes, NewVerdict
from linegate_edge.records import Evidence
from linegate_edge.store import DATABASE_FILE, Store, StoreReader

TOPIC = "a/b/c/d/e"


def verdict(number: int, origin: str | None = None, evidence: Evidence | None = None, decision: str = "pass") -> NewVerdict:
    return NewVerdict(
        f"id-{number}",
        f"serial-{number}",
        decision,
        "2026-01-01T00:00:00+00:00",
        lambda sequence: json.dumps({"sequence": sequence, "number": number}),
        [origin] if origin is not None else [],
        [evidence] if evidence is not None else [],
    )


def test_an_empty_store_has_no_verdicts(tmp_path: Path) -> None:
    store = Store(tmp_path, TOPIC)
    assert store.commit(Changes([])) == []
    reader = StoreReader(store.path)
    assert (store.last_sequence, reader.outbox_after(0, 10), reader.verdict_count()) == (0, [], 0)


def test_sequence_numbers_follow_on_over_restarts(tmp_path: Path) -> None:
    for start in (0, 3):
        store = Store(tmp_path, TOPIC)
        recorded = store.commit(Changes([verdict(start + index) for index in range(3)]))
        assert [entry.sequence for entry in recorded] == [start + 1, start + 2, start + 3]
        assert [entry.message["sequence"] for entry in recorded] == [start + 1, start + 2, start + 3]
        store.close()


def test_a_row_leaves_the_outbox_when_acknowledged_and_its_verdict_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, TOPIC)
    store.commit(Changes([verdict(index) for index in range(4)]))
    store.commit(Changes(acknowledged=[1, 3]))
    reader = StoreReader(store.path)
    assert [sequence for sequence, _ in reader.outbox_after(0, 10)] == [2, 4]
    assert reader.outbox_after(2, 10)[0][0] == 4
    assert (reader.outbox_count(), reader.verdict_count()) == (2, 4)


def test_a_repeated_origin_gives_the_first_verdict_again(tmp_path: Path) -> None:
    store = Store(tmp_path, TOPIC)
    first, again = store.commit(Changes([verdict(1, "folder:a"), verdict(2, "folder:a")]))
    (later,) = store.commit(Changes([verdict(3, "folder:a")]))
    assert (again.verdict_id, again.sequence, again.repeated) == (first.verdict_id, 1, True)
    assert (later.verdict_id, later.repeated) == (first.verdict_id, True)
    assert store.commit(Changes([verdict(4)]))[0].sequence == 2, "a repeat takes no number"


def test_a_commit_that_fails_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, TOPIC)
    store.commit(Changes([verdict(1)]))
    with pytest.raises(StoreError):
        store.commit(Changes([verdict(2), verdict(1)]))  # the second breaks the rule that ids are unique
    reader = StoreReader(store.path)
    assert (store.last_sequence, reader.verdict_count(), reader.outbox_count()) == (1, 1, 1)
    assert store.commit(Changes([verdict(2)]))[0].sequence == 2


def test_a_full_disk_is_told_and_lost_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, TOPIC)
    store.commit(Changes([verdict(1)]))
    pages = next(iter(store._db.execute("PRAGMA page_count")))[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")  # SQLite then answers as on a full disk: SQLITE_FULL
    big = NewVerdict("big", "s", "pass", "t", lambda _: "x" * 200_000)
    with pytest.raises(StoreError, match="free some disk space"):
        store.commit(Changes([big]))
    store._db.execute("PRAGMA max_page_count=1000000")
    assert store.commit(Changes([big]))[0].sequence == 2


def test_two_stations_cannot_share_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path, TOPIC)
    with pytest.raises(StoreError, match=r"is in use by process \d+: stop that station"):
        Store(tmp_path, TOPIC)
    store.close()
    with pytest.raises(StoreError, match="belongs to station 'a/b/c/d/e', not 'x/b/c/d/e'"):
        Store(tmp_path, "x/b/c/d/e")
    Store(tmp_path, TOPIC).close()


def test_a_store_of_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path, TOPIC).close()
    db = apsw.Connection(str(tmp_path / DATABASE_FILE))
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreError, match="update Linegate"):
        Store(tmp_path, TOPIC)


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path, TOPIC)


def test_commits_are_durable_and_written_ahead(tmp_path: Path) -> None:
    store = Store(tmp_path, TOPIC)
    assert next(iter(store._db.execute("PRAGMA journal_mode")))[0] == "wal"
    assert next(iter(store._db.execute("PRAGMA synchronous")))[0] == 2, "FULL"
    assert tuple(int(part) for part in apsw.sqlite_lib_version().split(".")) >= (3, 51, 3), "no WAL reset defect"


def test_no_row_may_name_a_verdict_that_is_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path, TOPIC)
    for query in ("INSERT INTO outbox VALUES (7)", "INSERT INTO frame_origin VALUES ('folder:a', 7)"):
        with pytest.raises(apsw.ConstraintError, match="FOREIGN KEY"):
            store._db.execute(query)


def _commit_and_die(folder: str, count: int) -> None:
    store = Store(Path(folder), TOPIC)
    for number in range(count):
        store.commit(Changes([verdict(number)]))
    multiprocessing.current_process().kill()


def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_commit_and_die, args=(str(tmp_path), 25))
    process.start()
    process.join(60)
    store = Store(tmp_path, TOPIC)
    assert store.last_sequence == 25
    assert [sequence for sequence, _ in StoreReader(store.path).outbox_after(0, 100)] == list(range(1, 26))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=4), max_size=6))
def test_sequences_have_no_gap_whatever_is_repeated(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[str | None]]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"), TOPIC)
    number, fresh = 0, []
    for batch in batches:
        rows = []
        for origin in batch:
            number += 1
            rows.append(verdict(number, origin))
        fresh += [entry.sequence for entry in store.commit(Changes(rows)) if not entry.repeated]
    assert fresh == list(range(1, len(fresh) + 1))
    store.close()
