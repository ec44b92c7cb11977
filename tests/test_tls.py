"""Mutual TLS against a real Mosquitto with access rights: who is let in, what is told, and that nothing is lost meanwhile."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
import trustme

from conftest import TOPIC, Mosquitto, free_port, submit, wait_until, write_spot_package
from linegate.errors import SettingsError
from linegate_edge.doctor_broker import broker_findings
from linegate_edge.settings import load_station
from linegate_edge.station import Station
from simulators.tcp_proxy import TcpProxy

DEPLOY = Path(__file__).parents[1] / "edge" / "deploy" / "mosquitto"
PLANT = "acme/graz"


class Plant:
    """A CA, the certificates that it issued, and the broker of the deployment example."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(folder / "ca.pem")
        self.issue("broker", self.ca, "127.0.0.1")
        self.issue("tiles", self.ca)
        self.issue("mes", self.ca)
        (folder / "acl").write_bytes((DEPLOY / "acl").read_bytes())
        text = (DEPLOY / "mosquitto.conf").read_text()
        text = text.replace("/etc/mosquitto/certs/", f"{folder}/").replace("/etc/mosquitto/acl", f"{folder}/acl")
        own = re.compile(r"^(listener|persist|autosave|set_tcp|max_).*\n", re.MULTILINE)  # the fixture's broker has its own
        self.broker = Mosquitto(folder / "broker", self.port, own.sub("", text))

    def issue(self, name: str, ca: trustme.CA, host: str = "", *, ended: bool = False) -> None:
        """Write NAME.pem and NAME.key, for a client of this name or a server at this host."""
        now = datetime.now(UTC)
        dates: dict[str, Any] = {"not_before": now - timedelta(days=9), "not_after": now - timedelta(days=1)} if ended else {}
        certificate = ca.issue_cert(host or f"{name}.example", common_name=name, **dates)
        (self.folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(self.folder / f"{name}.key")


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path)
    made.broker.start()
    yield made
    made.broker.kill()


class TlsMes:
    """An MES with its own certificate."""

    def __init__(self, plant: Plant) -> None:
        self.sequences: list[int] = []
        self.states: list[str] = []
        ready = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="mes", protocol=mqtt.MQTTv5)
        context = ssl.create_default_context(cafile=str(plant.folder / "ca.pem"))
        context.load_cert_chain(plant.folder / "mes.pem", plant.folder / "mes.key")
        self._client.tls_set_context(context)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{PLANT}/+/+/+/vision/v1/#", qos=1)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", plant.port)
        self._client.loop_start()
        assert ready.wait(10)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic.endswith("/verdict"):
            self.sequences.append(json.loads(message.payload)["sequence"])
        elif message.topic.endswith("/state"):
            self.states.append(json.loads(message.payload)["state"])

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def tls_mes(plant: Plant) -> Iterator[TlsMes]:
    listener = TlsMes(plant)
    yield listener
    listener.close()


MakeTlsStation = Callable[..., Station]


@pytest.fixture
def make_tls_station(plant: Plant) -> Iterator[MakeTlsStation]:
    """Make and start a station with these `[mqtt]` lines beside host and port."""
    write_spot_package(plant.folder / "package")
    stations: list[Station] = []

    def make(lines: str, *, host: str = "127.0.0.1", port: int | None = None, topic: str = TOPIC) -> Station:
        path = plant.folder / "STATION.toml"
        path.write_text(
            f'[station]\ntopic = "{topic}"\n[model]\npackage = "package"\n[http]\nport = 0\n[evidence]\nmin_free_mib = 0\n'
            f'[mqtt]\nhost = "{host}"\nport = {port or plant.port}\nbackoff_max_s = 0.3\n{lines}'
        )
        station = Station(load_station(path))
        station.start()
        stations.append(station)
        return station

    yield make
    for station in stations:
        station.stop()


RIGHT = 'tls = true\nca_file = "ca.pem"\ncert_file = "tiles.pem"\nkey_file = "tiles.key"\n'


def told(station: Station) -> str:
    return str(station.live.broker.text)


def test_the_right_certificate_is_let_in_and_every_verdict_arrives(make_tls_station: MakeTlsStation, tls_mes: TlsMes) -> None:
    station = make_tls_station(RIGHT)
    for future in submit(station, 300):
        future.result(30)
    wait_until(lambda: set(tls_mes.sequences) == set(range(1, 301)), what="all verdicts over TLS")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("none", "asks for a client certificate: give [mqtt] cert_file and key_file"),
        ("other_ca", "does not trust this station's certificate"),
        ("ended", "refuses this station's certificate, which has expired"),
        ("broker_not_trusted", "shows a certificate that no CA in [mqtt] ca_file has signed"),
        ("other_name", "shows a certificate for another name than localhost"),
        ("no_tls", "closes the connection without an answer: check .* tls where the port is one for TLS"),
    ],
)
def test_a_wrong_certificate_is_told_in_one_line_and_nothing_is_lost_until_the_right_one_comes(
    case: str, words: str, plant: Plant, make_tls_station: MakeTlsStation, tls_mes: TlsMes
) -> None:
    lines, host = RIGHT, "127.0.0.1"
    if case == "none":
        lines = 'tls = true\nca_file = "ca.pem"\n'
    elif case == "other_ca":
        plant.issue("tiles", trustme.CA())
    elif case == "ended":
        plant.issue("tiles", plant.ca, ended=True)
    elif case == "broker_not_trusted":
        trustme.CA().cert_pem.write_to_path(plant.folder / "other.pem")
        lines = RIGHT.replace("ca.pem", "other.pem")
    elif case == "other_name":
        host = "localhost"
    else:
        lines = "connect_timeout_s = 1.0\n"
    station = make_tls_station(lines, host=host)
    for future in submit(station, 20):
        future.result(30)
    wait_until(lambda: re.search(words.replace("[mqtt]", r"\[mqtt\]"), told(station)), 20, f"{words}, not {told(station)}")
    assert "\n" not in told(station)
    assert tls_mes.sequences == []
    station.stop()
    plant.issue("tiles", plant.ca)
    make_tls_station(RIGHT)
    wait_until(lambda: set(tls_mes.sequences) == set(range(1, 21)), what="what waited in the outbox")


def test_tls_on_a_port_in_clear_is_told_with_the_mend(
    plant: Plant, make_tls_station: MakeTlsStation, mosquitto: Mosquitto
) -> None:
    plant.port = mosquitto.port
    station = make_tls_station(RIGHT)
    wait_until(lambda: "breaks the TLS handshake off" in told(station))
    assert "check [mqtt] port, or set tls = false" in told(station)


def test_a_certificate_that_is_replaced_is_used_without_a_restart(
    plant: Plant, make_tls_station: MakeTlsStation, tls_mes: TlsMes
) -> None:
    plant.issue("tiles", plant.ca, ended=True)
    station = make_tls_station(RIGHT)
    submit(station, 5)[-1].result(30)
    wait_until(lambda: "has expired" in told(station))
    plant.issue("tiles", plant.ca)
    wait_until(lambda: set(tls_mes.sequences) == set(range(1, 6)), what="the verdicts, by the renewed certificate")
    connections = station.metrics.registry.get_sample_value("linegate_broker_connections_total")
    plant.issue("tiles", plant.ca)
    value = station.metrics.registry.get_sample_value
    wait_until(lambda: (value("linegate_broker_connections_total") or 0) > (connections or 0), what="a new connection")
    submit(station, 5, start=5)[-1].result(30)
    wait_until(lambda: set(tls_mes.sequences) == set(range(1, 11)))


def test_a_renewal_is_no_outage_to_the_mes(
    plant: Plant, make_tls_station: MakeTlsStation, tls_mes: TlsMes, caplog: pytest.LogCaptureFixture
) -> None:
    station = make_tls_station(f"settle_s = 600\n{RIGHT}")
    submit(station, 20)[-1].result(30)
    wait_until(lambda: len(tls_mes.sequences) == 20 and tls_mes.states == ["online"])
    with caplog.at_level("WARNING", "linegate.publish"):
        plant.issue("tiles", plant.ca)
        wait_until(lambda: len(tls_mes.states) > 1, what="the next connection")
        submit(station, 5, start=20)[-1].result(30)
        wait_until(lambda: len(tls_mes.sequences) >= 25)
    assert tls_mes.states == ["online", "online"], "the last will told of a death that was none"
    assert tls_mes.sequences == list(range(1, 26)), "a connection that ended in good order has settled: nothing is repeated"
    assert not [line for line in caplog.messages if f":{plant.port}: " in line and "verdicts wait in the outbox" in line]


@pytest.fixture
def proxy(plant: Plant) -> Iterator[TcpProxy]:
    between = TcpProxy(plant.port)
    yield between
    between.swallowing = False  # or its threads never end
    between.close()


PATIENCE = "ack_timeout_s = 1.0\nconnect_timeout_s = 1.0\nsettle_s = 0.5\n"


def test_a_handshake_that_the_network_swallows_is_told_and_tried_again(
    proxy: TcpProxy, make_tls_station: MakeTlsStation, tls_mes: TlsMes
) -> None:
    proxy.swallowing = True
    station = make_tls_station(RIGHT + PATIENCE, port=proxy.port)
    submit(station, 10)[-1].result(30)
    wait_until(lambda: "took no connection in 1 s, or did not finish TLS" in told(station))
    assert tls_mes.sequences == []
    proxy.swallowing = False
    wait_until(lambda: set(tls_mes.sequences) == set(range(1, 11)), what="what waited in the outbox")


def test_tls_that_is_cut_in_a_record_or_swallowed_loses_nothing(
    proxy: TcpProxy, make_tls_station: MakeTlsStation, tls_mes: TlsMes
) -> None:
    proxy.cut_after = 30_000
    station = make_tls_station(RIGHT + PATIENCE, port=proxy.port)
    submit(station, 120)[-1].result(30)
    wait_until(lambda: proxy.cuts == 1 and set(tls_mes.sequences) == set(range(1, 121)), what="all verdicts after the cut")
    proxy.swallowing = True
    submit(station, 40, start=120)[-1].result(30)
    wait_until(lambda: not station.live.broker.connected, what="the station to notice")
    proxy.swallowing = False
    wait_until(lambda: set(tls_mes.sequences) == set(range(1, 161)), what="all verdicts after the silence")
    assert station.live.triggers_and_verdicts == (160, 160)


def test_half_a_certificate_leaves_the_connection_as_it_is(
    plant: Plant, make_tls_station: MakeTlsStation, tls_mes: TlsMes, caplog: pytest.LogCaptureFixture
) -> None:
    station = make_tls_station(RIGHT)
    wait_until(lambda: station.live.broker.connected)
    (plant.folder / "tiles.pem").write_text("half of it")
    with caplog.at_level("WARNING", "linegate.publish"):
        wait_until(lambda: "goes on with the old ones" in caplog.text)
    submit(station, 3)[-1].result(30)
    wait_until(lambda: set(tls_mes.sequences) == {1, 2, 3})


def test_a_station_without_the_right_to_its_topic_is_told_and_keeps_its_verdicts(
    make_tls_station: MakeTlsStation, tls_mes: TlsMes
) -> None:
    station = make_tls_station(RIGHT, topic=f"{PLANT}/press/line-1/other")
    assert [future.result(30).sequence for future in submit(station, 3)]
    wait_until(lambda: "check the broker's access rules" in told(station), 5, told(station))
    assert station.outbox_pending() == 3
    assert tls_mes.sequences == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('ca_file = "ca.pem"\n', "set tls = true"),
        ('tls = true\ncert_file = "tiles.pem"\n', "cert_file and key_file go together"),
        ('tls = true\nca_file = "none.pem"\n', "ca_file .*none.pem: No such file"),
        ('tls = true\nca_file = "tiles.key"\n', "give the CA's certificate, in PEM"),
        ('tls = true\ncert_file = "tiles.pem"\nkey_file = "mes.key"\n', "must belong together"),
        ('tls = true\ncert_file = "tiles.pem"\nkey_file = "none.key"\n', "key_file .*none.key: No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_before_anything_starts(
    make_tls_station: MakeTlsStation, lines: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        make_tls_station(lines)
    assert "\n" not in str(caught.value)


def test_the_login_may_come_from_the_environment(
    plant: Plant, make_tls_station: MakeTlsStation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINEGATE_MQTT_USERNAME", "tiles")
    monkeypatch.setenv("LINEGATE_MQTT_PASSWORD", "secret")
    settings = make_tls_station(RIGHT).settings.mqtt
    assert settings.username is None
    from linegate_edge.publish import credentials

    assert credentials(settings) == ("tiles", "secret")


def test_doctor_meets_the_broker_over_tls(plant: Plant, make_tls_station: MakeTlsStation) -> None:
    settings = make_tls_station(RIGHT).settings.mqtt
    found = list(broker_findings(settings, TOPIC, running=True))
    assert [finding.what for finding in found if "takes the login" in finding.what]
    refused = settings.model_copy(update={"cert_file": None, "key_file": None})
    (finding,) = broker_findings(refused, TOPIC, running=True)
    assert "client certificate" in finding.what
