"""`linegate bench store`: what it fills a store with is what the station would, and it says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from linegate.cli import main
from linegate_edge import bench_store
from linegate_edge.message import VerdictMessage
from linegate_edge.selection import Selection
from linegate_edge.store import Store, StoreReader


def test_each_step_is_measured_and_the_folder_left_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_store, "_FIRST_STEP", 500)
    assert main(["bench", "store", "--rows", "1500", "--folder", str(tmp_path), "--json"]) == 0
    steps = json.loads(capsys.readouterr().out.splitlines()[-1])["steps"]
    assert [step["rows"] for step in steps] == [500, 1500]
    for step in steps:
        assert set(step["milliseconds"]) == {"serial", "newest", "oldest", "rejects", "hour", "commit"}
        assert all(0 < taken["p50"] <= taken["p99"] for taken in step["milliseconds"].values())
    assert steps[1]["size_mib"] > steps[0]["size_mib"] > 0
    assert list(tmp_path.iterdir()) == []


def test_what_it_fills_in_are_verdict_messages(tmp_path: Path) -> None:
    bench_store._fill(tmp_path, 0, 40)
    reader = StoreReader(Store(tmp_path, bench_store._TOPIC).path)
    rows = reader.page(Selection(), newest_first=False, after=None, limit=100)
    messages = [VerdictMessage.model_validate_json(text) for _, text in rows]
    assert [message.sequence for message in messages] == list(range(1, 41))
    assert len({message.verdict_id for message in messages}) == len({message.part.serial for message in messages}) == 40
    assert [message.decision for message in messages].count("fail") == 2
    for number, message in enumerate(messages):
        (found,) = reader.page(Selection(serial=bench_store.serial_of(number)), newest_first=True, after=None, limit=9)
        assert json.loads(found[1])["verdict_id"] == message.verdict_id
    assert reader.outbox_count() == 0, "all of it has been acknowledged"


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "store", "--rows", "10", "--folder", str(tmp_path / "none")]) == 2
    assert "no store can be made here: No such file or directory" in capsys.readouterr().err
