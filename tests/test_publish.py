"""The publisher against a real Mosquitto: order, proof of hearing, refusals, hangs."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import TOPIC, MakeStation, Mes, Mosquitto, free_port, require, submit, wait_until
from linegate.errors import SettingsError
from linegate_edge import mqtt_connection, publish
from linegate_edge.message import StateMessage, VerdictMessage
from linegate_edge.store import DATABASE_FILE, StoreReader


def test_verdicts_arrive_in_order_with_their_properties_and_not_retained(
    mosquitto: Mosquitto, mes: Mes, make_station: MakeStation
) -> None:
    station = make_station(mosquitto.port)
    for future in submit(station, 200):
        future.result(30)
    wait_until(lambda: len(mes.verdicts) >= 200)
    assert [verdict["sequence"] for verdict in mes.verdicts] == list(range(1, 201))
    assert not any(mes.retained)
    properties = mes.properties[0]
    assert properties.ContentType == "application/json"
    assert ("schema_version", "1.0") in properties.UserProperty
    for verdict in mes.verdicts:
        message = VerdictMessage.model_validate_json(json.dumps(verdict))
        assert message.time.published is not None
        assert message.time.captured <= message.time.decided <= message.time.published
    assert {verdict["decision"] for verdict in mes.verdicts} == {"pass", "fail"}


def test_the_state_is_retained_and_the_will_tells_of_a_death(mosquitto: Mosquitto, make_station: MakeStation) -> None:
    station = make_station(mosquitto.port)
    wait_until(lambda: station.live.broker.connected)
    submit(station, 1)[0].result(30)
    late = Mes(mosquitto.port, TOPIC)  # comes after the state was sent, and has it all the same
    wait_until(lambda: late.states)
    state = StateMessage.model_validate_json(json.dumps(late.states[0]))
    assert (state.state, state.station, state.boot_id) == ("online", TOPIC, station.boot_id)
    station.stop()
    wait_until(lambda: late.states[-1]["state"] == "stopped")
    late.close()


def test_nobody_hears_is_said_and_nothing_is_lost(mosquitto: Mosquitto, make_station: MakeStation) -> None:
    station = make_station(mosquitto.port)
    wait_until(lambda: station.live.broker.connected)
    for future in submit(station, 5):
        future.result(30)
    wait_until(lambda: station.live.broker.no_subscriber, what="the station to see that nobody subscribes")
    assert station.outbox_pending() == 5
    mes = Mes(mosquitto.port)
    wait_until(lambda: mes.sequences == {1, 2, 3, 4, 5}, what="the verdicts, once somebody subscribes")
    wait_until(lambda: station.outbox_pending() == 0)
    wait_until(lambda: not station.live.broker.no_subscriber)
    assert any(state["no_subscriber"] for state in mes.states) or mes.states[-1]["no_subscriber"] is False
    mes.close()


def test_a_broker_that_is_not_there_at_start_is_waited_for(
    tmp_path: Path, make_station: MakeStation, caplog: pytest.LogCaptureFixture
) -> None:
    require("mosquitto")
    port = free_port()
    with caplog.at_level(logging.WARNING, "linegate.publish"):
        station = make_station(port)
        for future in submit(station, 10):
            assert future.result(30).sequence > 0, "the line runs without a broker"
        wait_until(lambda: "cannot be reached" in station.live.broker.text)
    lines = [record.getMessage() for record in caplog.records if record.name == "linegate.publish"]
    assert len(lines) == 1, "one line a change, not one a try"
    assert "check [mqtt] host and port" in lines[0]
    broker = Mosquitto(tmp_path / "late", port)
    broker.start()
    mes = Mes(port)
    wait_until(lambda: mes.sequences == set(range(1, 11)), 30)
    mes.close()
    broker.kill()


def test_a_refused_login_is_told_in_one_line_and_mended_without_a_restart(tmp_path: Path, make_station: MakeStation) -> None:
    require("mosquitto")
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    subprocess.run([require("mosquitto_passwd"), "-b", str(passwords), "station", "right"], check=True)
    subprocess.run([require("mosquitto_passwd"), "-b", str(passwords), "mes", "mes"], check=True)
    broker = Mosquitto(tmp_path / "broker", free_port(), f"allow_anonymous false\npassword_file {passwords}")
    broker.start()
    mes = Mes(broker.port, username="mes", password="mes")
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    login = f'username = "station"\npassword_file = "{secret}"\n[evidence]\nmin_free_mib = 0\n'
    station = make_station(broker.port, more=login)
    for future in submit(station, 3):
        future.result(30)
    wait_until(lambda: "refuses the login" in station.live.broker.text)
    assert "check [mqtt] username and password_file" in station.live.broker.text
    secret.write_text("right\n")
    wait_until(lambda: mes.sequences == {1, 2, 3})
    mes.close()
    broker.kill()


def test_a_missing_password_file_is_named(make_station: MakeStation) -> None:
    with pytest.raises(SettingsError, match=r"password_file .*gone: cannot be read"):
        make_station(1883, more='username = "station"\npassword_file = "gone"\n')


def test_a_broker_that_takes_connections_and_says_nothing_is_left(make_station: MakeStation, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        more = "connect_timeout_s = 0.3\n[evidence]\nmin_free_mib = 0\n"
        station = make_station(mute.getsockname()[1], more=more)
        wait_until(lambda: "said nothing" in station.live.broker.text)
        assert submit(station, 1)[0].result(30).sequence == 1


def test_a_loop_that_died_is_built_anew(
    mosquitto: Mosquitto, mes: Mes, make_station: MakeStation, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = make_station(mosquitto.port)
    wait_until(lambda: station.live.broker.connected)
    first = station.publisher._loop
    breaking = threading.Event()
    fill = mqtt_connection.Connection._fill

    def fill_once_broken(self: mqtt_connection.Connection, now: float) -> None:
        if not breaking.is_set():
            breaking.set()
            raise MemoryError("a defect that nobody foresaw")
        fill(self, now)

    with monkeypatch.context() as patch:
        patch.setattr(mqtt_connection.Connection, "_fill", fill_once_broken)
        patch.setattr(threading, "excepthook", lambda _: None)
        submit(station, 5)
        wait_until(lambda: station.publisher._loop is not first, what="the watchdog")
        wait_until(lambda: mes.sequences == {1, 2, 3, 4, 5}, what="the verdicts from the new loop")


def test_a_loop_that_hangs_is_given_up_and_nothing_is_lost(
    mosquitto: Mosquitto, mes: Mes, make_station: MakeStation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "_HANG_MARGIN_S", 0.5)
    station = make_station(mosquitto.port, more="connect_timeout_s = 0.5\n[evidence]\nmin_free_mib = 0\n")
    wait_until(lambda: station.live.broker.connected)
    first, release = station.publisher._loop, threading.Event()
    exchange = mqtt_connection.Connection._exchange

    def exchange_or_hang(self: mqtt_connection.Connection, timeout_s: float) -> None:
        if self._loop is first.state:
            release.wait(60)
        exchange(self, timeout_s)

    monkeypatch.setattr(mqtt_connection.Connection, "_exchange", exchange_or_hang)
    submit(station, 5)
    wait_until(lambda: station.publisher._loop is not first, what="the watchdog")
    wait_until(lambda: mes.sequences == {1, 2, 3, 4, 5}, what="the verdicts from the new loop")
    release.set()
    wait_until(lambda: not first.is_alive(), what="the old loop to end")


def test_what_was_acknowledged_just_before_the_broker_died_is_sent_again(
    mosquitto: Mosquitto, mes: Mes, make_station: MakeStation
) -> None:
    station = make_station(mosquitto.port, more="settle_s = 600\n[evidence]\nmin_free_mib = 0\n")
    for future in submit(station, 20):
        future.result(30)
    wait_until(lambda: station.live.published_count == 20)
    assert station.outbox_pending() == 20, "acknowledged, and not yet trusted"
    mosquitto.kill()
    wait_until(lambda: not station.live.broker.connected)
    mosquitto.start()
    wait_until(lambda: len(mes.verdicts) >= 40, what="all of them once more")
    by_sequence = {verdict["sequence"]: verdict["verdict_id"] for verdict in mes.verdicts}
    assert len({verdict["verdict_id"] for verdict in mes.verdicts}) == len(by_sequence) == 20
    station.stop()
    reader = StoreReader(station.settings.station.store / DATABASE_FILE)
    assert reader.outbox_count() == 0, "a connection that ended in good order has settled"


def test_no_two_stations_share_a_client_id() -> None:
    ids = {mqtt_connection.client_id(topic) for topic in ("a-b/c/d/e/f", "a/b-c/d/e/f", "a/b/c/d/e-f", "ä/b/c/d/e")}
    assert len(ids) == 4
    assert all(len(item) == 23 and item.isascii() and item.isalnum() for item in ids)


def test_an_old_broker_is_spoken_to_in_its_language(mosquitto: Mosquitto, mes: Mes, make_station: MakeStation) -> None:
    station = make_station(mosquitto.port, more='protocol = "3.1.1"\n[evidence]\nmin_free_mib = 0\n')
    submit(station, 3)
    wait_until(lambda: mes.sequences == {1, 2, 3})
    wait_until(lambda: station.outbox_pending() == 0)
