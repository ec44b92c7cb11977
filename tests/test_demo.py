"""The demo and the benchmark, as a stranger starts them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from conftest import wait_until
from linegate.errors import StationError
from linegate.package import ModelPackage
from linegate_edge.bench_station import threshold_for
from linegate_edge.demo import demo_package, find_photographs

LINEGATE = [sys.executable, "-m", "linegate.cli"]


def last_json(output: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return values


def test_the_demo_counts_every_part_and_ends_by_itself() -> None:
    command = [*LINEGATE, "demo", "--parts", "60", "--headless", "--json", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result = last_json(done.stdout)
    assert result["parts"] == result["stored"] == result["published"] == result["received"] == 60
    assert result["passed"] + result["failed"] + result["undecided"] == 60
    assert result["duplicates"] == 0
    assert 0 < result["accuracy"] <= 1
    assert result["accuracy"] * 60 == pytest.approx(
        60 - result["escapes"] - result["false_rejects"] - result["undecided"], abs=0.01
    )
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]
    assert result["parts_per_second"] > 0
    assert "CC BY-NC-SA 4.0" in done.stdout


def test_the_demo_without_end_shows_its_page_and_stops_on_ctrl_c() -> None:
    command = [*LINEGATE, "demo", "--port", "0", "--json"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert demo.stdout is not None
    address = ""
    while "station's page" not in address:
        address = demo.stdout.readline()
    page = address.split("page: ")[1].split()[0]

    def received() -> int:
        with urllib.request.urlopen(f"{page}live/state") as answer:
            return int(json.load(answer)["published"])

    wait_until(lambda: received() >= 3)
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does: to the demo and to its broker
    output, _ = demo.communicate(timeout=30)
    result = last_json(output)
    assert demo.returncode == 0
    assert result["parts"] == result["stored"] == result["received"] >= 3


def test_the_demo_s_photographs_were_not_trained_on() -> None:
    package = ModelPackage.load(demo_package())
    photographs = find_photographs(package)
    rows = csv.DictReader(package.files["split.csv"].decode().splitlines())
    trained = {row["name"] for row in rows if row["subset"] in ("train", "calibration")}
    assert trained
    assert not trained & {f"images/{photograph.path.name}" for photograph in photographs}
    good = sum(not photograph.is_defective for photograph in photographs)
    assert good == len(photographs) - good >= 100, "half of them are good"


def test_a_package_for_other_parts_is_refused_for_the_demo(spot_package: Path) -> None:
    with pytest.raises(StationError, match="was trained on 'spots', the demo streams elpv"):
        find_photographs(ModelPackage.load(spot_package))


def test_the_benchmark_prints_one_json_object(spot_package: Path) -> None:
    command = [*LINEGATE, "bench", "line", "--model", str(spot_package), "--parts", "100", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = last_json(done.stdout)
    assert result["bare_per_second"] > result["chain_per_second"] > 0
    assert 0 < result["ratio"] < 1
    assert {"queue", "prepare", "inference", "total", "commit", "publish"} <= result["latency_ms"].keys()
    assert result["peak_rss_mib"] > 10
    assert result["parts"] == 100


def test_the_benchmark_s_threshold_fails_the_share_that_was_asked_for() -> None:
    scores = [float(value) for value in range(40)]
    for share in (0.0, 0.05, 0.5, 1.0):
        threshold = threshold_for(scores, share)
        assert sum(score >= threshold for score in scores) == round(share * 40)
