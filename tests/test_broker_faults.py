"""The broker cut off, swallowed by the network, slow, forgetful or locked: triggers = verdicts = received, to the part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import MakeStation, Mes, Mosquitto, submit, wait_until
from linegate_edge.station import Station
from linegate_edge.store import DATABASE_FILE, StoreReader
from simulators.tcp_proxy import TcpProxy

QUICK = "[evidence]\nmin_free_mib = 0\n"
PATIENCE = "ack_timeout_s = 1.0\nconnect_timeout_s = 1.0\nsettle_s = 0.5\n"  # belongs to [mqtt], which the fixture opens


@pytest.fixture
def proxy(mosquitto: Mosquitto) -> Iterator[TcpProxy]:
    between = TcpProxy(mosquitto.port)
    yield between
    between.close()


def assert_reconciles(station: Station, mes: Mes, parts: int) -> None:
    """Triggers = verdicts = stored = received, without a gap, and every repeat is the same verdict."""
    wait_until(lambda: len(mes.sequences) == parts and station.outbox_pending() == 0, 60, "every verdict at the MES")
    reader = StoreReader(station.settings.station.store / DATABASE_FILE)
    stored = {sequence: verdict_id for sequence, verdict_id, _ in reader.verdict_rows()}
    reader.close()
    assert list(stored) == list(range(1, parts + 1))
    assert station.live.triggers_and_verdicts == (parts, parts)
    assert {verdict["sequence"]: verdict["verdict_id"] for verdict in mes.verdicts} == stored


def judge(station: Station, count: int, start: int = 0) -> None:
    for future in submit(station, count, start):
        assert future.result(30).sequence


def test_a_broker_that_is_cut_off_again_and_again_gets_everything(proxy: TcpProxy, mes: Mes, make_station: MakeStation) -> None:
    station = make_station(proxy.port, more=PATIENCE + QUICK)
    for round_ in range(5):
        judge(station, 40, round_ * 40)
        proxy.cut()
    assert_reconciles(station, mes, 200)


def test_a_connection_cut_in_the_middle_of_a_packet_loses_nothing(proxy: TcpProxy, mes: Mes, make_station: MakeStation) -> None:
    proxy.cut_after = 20_000
    station = make_station(proxy.port, more=PATIENCE + QUICK)
    judge(station, 120)
    wait_until(lambda: proxy.cuts == 1, what="the cut")
    assert_reconciles(station, mes, 120)


def test_a_network_that_swallows_everything_is_noticed_and_parts_are_judged_meanwhile(
    proxy: TcpProxy, mes: Mes, make_station: MakeStation
) -> None:
    station = make_station(proxy.port, more=PATIENCE + QUICK)
    judge(station, 20)
    wait_until(lambda: len(mes.sequences) == 20)
    proxy.swallowing = True
    started = time.monotonic()
    judge(station, 100, 20)
    assert time.monotonic() - started < 10, "no part waits for the broker"
    wait_until(lambda: not station.live.broker.connected, what="the station to notice")
    judge(station, 20, 120)
    proxy.swallowing = False
    assert_reconciles(station, mes, 140)


def test_a_slow_network_delays_and_loses_nothing(proxy: TcpProxy, mes: Mes, make_station: MakeStation) -> None:
    proxy.delay_s, proxy.bytes_per_s = 0.02, 400_000.0
    station = make_station(proxy.port, more=QUICK)
    judge(station, 150)
    assert_reconciles(station, mes, 150)


def test_a_broker_that_says_not_authorised_is_told_and_gets_everything_once_it_lets_the_station_in(
    mosquitto: Mosquitto, make_station: MakeStation, tmp_path: Path
) -> None:
    mosquitto.kill()
    locked = Mosquitto(tmp_path / "locked", mosquitto.port, "allow_anonymous false")
    locked.start()
    station = make_station(mosquitto.port, more=QUICK)
    judge(station, 50)
    wait_until(lambda: "Not authorized" in station.live.broker.text, what=station.live.broker.text)
    assert "check [mqtt] username and password_file" in station.live.broker.text
    assert station.outbox_pending() == 50
    locked.kill()
    mosquitto.start()
    mes = Mes(mosquitto.port)
    try:
        assert_reconciles(station, mes, 50)
    finally:
        mes.close()


def test_a_broker_that_comes_back_without_its_memory_gets_everything(
    mosquitto: Mosquitto, mes: Mes, make_station: MakeStation, tmp_path: Path
) -> None:
    station = make_station(mosquitto.port, more=QUICK)
    judge(station, 60)
    wait_until(lambda: len(mes.sequences) == 60)
    mosquitto.kill()
    for kept in (tmp_path / "broker").glob("mosquitto.db*"):
        kept.unlink()
    judge(station, 60, 60)
    mosquitto.start()
    assert_reconciles(station, mes, 120)


def test_a_long_outage_is_delivered_in_order_and_live_parts_do_not_wait_for_it(
    mosquitto: Mosquitto, mes: Mes, make_station: MakeStation
) -> None:
    station = make_station(mosquitto.port, more=QUICK)
    wait_until(lambda: station.live.broker.connected)
    mosquitto.kill()
    backlog = 5_000
    judge(station, backlog)
    assert station.outbox_pending() == backlog
    mosquitto.start()
    live_ms = []
    for number in range(100):
        done = submit(station, 1, backlog + number)[0].result(30)
        live_ms.append(done.message["latency_ms"]["total"])
    assert sorted(live_ms)[90] < 1_000, "a part that is judged while the backlog goes out is not held up by it"
    assert_reconciles(station, mes, backlog + 100)
    first_time = list(dict.fromkeys(verdict["sequence"] for verdict in mes.verdicts))
    assert first_time == sorted(first_time), "in the order of the decisions"
