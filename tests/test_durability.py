"""Each stored verdict arrives, whoever is killed: no gap in the sequence, and a repeat is the same verdict."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

from conftest import MakeStation, Mes, Mosquitto, encode, free_port, spot_picture, station_toml, submit, wait_until
from linegate_edge.store import DATABASE_FILE, StoreReader

PARTS = 1000


def assert_reconciles(mes: Mes, store: Path, parts: int = PARTS) -> None:
    """Triggers = stored = received: the sequence runs from 1 to `parts`, each number with one verdict id and serial."""
    reader = StoreReader(store)
    assert reader.verdict_count() == parts
    assert mes.sequences == set(range(1, parts + 1))
    by_sequence: defaultdict[int, set[Any]] = defaultdict(set)
    for verdict in mes.verdicts:
        by_sequence[verdict["sequence"]].add((verdict["verdict_id"], verdict["part"]["serial"], verdict["decision"]))
    assert all(len(seen) == 1 for seen in by_sequence.values()), "a repeat carried another verdict"
    assert len({seen for group in by_sequence.values() for seen in group}) == parts


def test_verdicts_survive_three_kills_of_the_broker(mosquitto: Mosquitto, mes: Mes, make_station: MakeStation) -> None:
    station = make_station(mosquitto.port)
    wait_until(lambda: station.live.broker.connected, what="the broker")
    steady = threading.Event()

    def feed() -> None:
        for number in range(PARTS):
            submit(station, 1, number)
            steady.wait(0.004)

    feeder = threading.Thread(target=feed)
    feeder.start()
    for kill in range(1, 4):
        wait_until(lambda kill=kill: len(mes.sequences) >= kill * 220, 60, f"part {kill * 220}")
        mosquitto.kill()
        wait_until(lambda: not station.live.broker.connected, what="the station to notice")
        mosquitto.start()
    feeder.join(60)
    wait_until(lambda: len(mes.sequences) == PARTS, 90, "all verdicts")
    wait_until(lambda: station.outbox_pending() == 0, what="an empty outbox")
    assert_reconciles(mes, station.settings.station.store / DATABASE_FILE)
    assert station.live.line_stop is None


def test_verdicts_survive_ten_kills_of_the_station(mosquitto: Mosquitto, mes: Mes, tmp_path: Path, spot_package: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(PARTS):
        picture = encode(spot_picture(defect=number % 10 == 0, seed=number))
        (frames / f"part-{number:05d}.png").write_bytes(picture)
    more = '[evidence]\nmin_free_mib = 0\n[[source]]\nkind = "folder"\npath = "frames"\nsettle_ms = 0\n'
    toml = station_toml(tmp_path, spot_package, broker_port=mosquitto.port, more=more)
    pace = random.Random(11)
    with (tmp_path / "station.log").open("wb") as log:
        for kill in range(11):
            earlier = {state["boot_id"] for state in mes.states}
            # Its own folder on sys.path would shadow nothing, but the station in service runs without it too.
            station = subprocess.Popen(
                [sys.executable, "-m", "linegate.cli", "run", str(toml)],
                stderr=log,
                env=os.environ | {"PYTHONSAFEPATH": "1"},
            )
            if kill == 10:
                break
            goal = (kill + 1) * PARTS // 12
            wait_until(lambda goal=goal: len(mes.sequences) >= goal, 60, f"{goal} verdicts before kill {kill + 1}")
            time.sleep(pace.uniform(0, 0.05))  # not to wait for something, but to hit another moment each time
            station.kill()
            assert station.wait(10) == -signal.SIGKILL
        wait_until(lambda: len(mes.sequences) == PARTS, 90, "all verdicts")
        wait_until(lambda: mes.states[-1]["boot_id"] not in earlier, what="the last station to be online")
        station.send_signal(signal.SIGTERM)
        assert station.wait(30) == 0
    assert_reconciles(mes, tmp_path / "var" / DATABASE_FILE)
    wait_until(lambda: mes.states[-1]["state"] == "stopped", what="the farewell, which travels by the broker")
    assert "lost" in {state["state"] for state in mes.states}, "the broker told of the kills by the last will"
    assert not list((tmp_path / "var" / "evidence").glob(".writing-*"))


def test_sigterm_finishes_the_parts_in_hand(mosquitto: Mosquitto, mes: Mes, tmp_path: Path, spot_package: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(300):
        (frames / f"part-{number:05d}.png").write_bytes(encode(spot_picture(defect=False, seed=number)))
    more = '[evidence]\nmin_free_mib = 0\n[[source]]\nkind = "folder"\npath = "frames"\nsettle_ms = 0\n'
    toml = station_toml(tmp_path, spot_package, broker_port=mosquitto.port, http_port=free_port(), more=more)
    station = psutil.Popen([sys.executable, "-m", "linegate.cli", "run", str(toml)], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(mes.sequences) >= 20, what="the first verdicts")
    station.send_signal(signal.SIGTERM)
    assert station.wait(30) == 0
    reader = StoreReader(tmp_path / "var" / DATABASE_FILE)
    stored = reader.verdict_count()
    assert reader.outbox_count() == 0, "what was decided was also published"
    wait_until(lambda: mes.sequences == set(range(1, stored + 1)), what="every stored verdict")
    wait_until(lambda: mes.states[-1]["state"] == "stopped", what="the farewell, which travels by the broker")
    assert mes.states[-1]["last_sequence"] == stored
