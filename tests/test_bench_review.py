"""`linegate bench review`: it asks what it says it asks, and what it needs and does not find is told in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conftest import require
from linegate.cli import main
from linegate_edge import bench_review_line, bench_review_page
from linegate_edge.bench_review_line import measure_line, median_interval


def test_every_question_is_asked_and_answered_with_rows(
    tmp_path: Path, spot_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "review", "--only", "questions", "--parts", "30000", "--model", str(spot_package)]
    assert main([*command, "--folder", str(tmp_path), "--json"]) == 0
    asked = json.loads(capsys.readouterr().out.splitlines()[-1])["questions"]
    assert asked["parts"] == 30_000
    assert asked["waiting"] > 500
    assert len(asked["milliseconds"]) >= 12
    for name, taken in asked["milliseconds"].items():
        assert 0 < taken["p50"] <= taken["p95"] <= taken["p99"], name
        # Of so few parts hardly one an hour has a given class.
        assert taken["rows"] > 0 or name == "search, class and hour"
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_driven_by_keys_until_the_next_picture_is_drawn(
    tmp_path: Path, spot_package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    require("chromium")
    monkeypatch.setattr(bench_review_page, "SIZE_WH", (800, 700))
    monkeypatch.setattr(bench_review_page, "DECISIONS", 4)
    command = ["bench", "review", "--only", "page", "--model", str(spot_package), "--folder", str(tmp_path), "--json"]
    assert main(command) == 0
    page = json.loads(capsys.readouterr().out.splitlines()[-1])["page"]
    assert set(page["milliseconds"]) == {"every 600 ms", "five a second"}
    assert all(0 < taken["p50"] <= taken["max"] for taken in page["milliseconds"].values())


def test_a_browser_that_is_missing_is_told_with_the_mend(
    spot_package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "none"))
    assert main(["bench", "review", "--only", "page", "--model", str(spot_package)]) == 2
    assert "pip install playwright, and apt-get install chromium" in capsys.readouterr().err.splitlines()[-1]


def test_people_review_beside_the_line(spot_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_review_line, "_WAITING_FIRST", 10)
    found = measure_line(spot_package, lambda text: None, pairs=2, period_s=1.5)
    assert found["reviews_per_second"] > 0
    assert found["quiet_per_second"] > 0
    assert found["loss"]["low"] <= found["loss"]["median"] <= found["loss"]["high"]


@pytest.mark.parametrize(("count", "rank"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (10, 1), (12, 2), (20, 5)])
def test_the_interval_of_a_median_is_that_of_the_sign_test(count: int, rank: int) -> None:
    # Ranks from the tables of Conover, Practical Nonparametric Statistics, for 95 %.
    assert median_interval(list(range(count))) == (rank, count - 1 - rank)
