"""`linegate doctor` and `linegate station check`: what is wrong is one line with its mend, and nothing is changed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from conftest import TOPIC, MakeStation, Mes, Mosquitto, free_port, require, station_toml, submit, wait_until
from linegate.cli import main
from linegate_edge.certificates import certificate_finding, validity
from linegate_edge.doctor import (
    judge_clock,
    judge_cores,
    judge_governors,
    judge_load,
    judge_pace,
    judge_providers,
    machine_findings,
)
from linegate_edge.doctor_broker import broker_findings
from linegate_edge.doctor_disk import (
    disk_findings,
    filesystem_of,
    judge_filesystem,
    judge_fsync,
    judge_last_verdict,
    judge_room,
    measure_fsync_ms,
)
from linegate_edge.doctor_station import is_running, judge_file
from linegate_edge.findings import Finding
from linegate_edge.settings import EvidenceSection, MqttSection
from linegate_edge.station_check import view_findings
from simulators.plc import SimulatedPlc

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def levels(findings: Iterator[Finding]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in findings:
        found.setdefault(finding.check, set()).add(finding.level)
        assert "\n" not in str(finding)
        assert (finding.mend is None) == (finding.level == "ok"), "a mend for all that is not well"
    return found


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (judge_providers([], "1.32"), "fail"),
        (judge_providers(["cpu"], "1.32"), "ok"),
        (judge_cores(1, 8, None), "warn"),
        (judge_cores(8, 8, 2.5), "warn"),
        (judge_cores(4, 8, None), "ok"),
        (judge_load(7.0, 4), "warn"),
        (judge_load(3.0, 4), "ok"),
        (judge_governors({}), "ok"),
        (judge_governors({"performance": 4}), "ok"),
        (judge_governors({"performance": 3, "powersave": 1}), "warn"),
        (judge_clock(5, 16_000_000), "warn"),
        (judge_clock(0, 400), "ok"),
        (judge_pace(3600.25, 0.25), "warn"),
        (judge_pace(0.2501, 0.25), "ok"),
        (judge_filesystem("tmpfs"), "fail"),
        (judge_filesystem("nfs4"), "fail"),
        (judge_filesystem("overlay"), "warn"),
        (judge_filesystem("ext4"), "ok"),
        (judge_room(100, 10**6, 10**7, 512), "fail"),
        (judge_room(400, 10**6, 10**7, 512), "warn"),
        (judge_room(4000, 9, 10**7, 512), "warn"),
        (judge_room(4000, 0, 0, 512), "ok"),  # btrfs counts no files
        (judge_fsync(80.0), "warn"),
        (judge_fsync(2.0), "ok"),
        (judge_last_verdict(None, NOW), "ok"),
        (judge_last_verdict(NOW + timedelta(hours=1), NOW), "warn"),
        (judge_last_verdict(NOW - timedelta(hours=1), NOW), "ok"),
    ],
)
def test_what_was_measured_is_judged(finding: Finding, level: str) -> None:
    assert finding.level == level
    assert (finding.mend is None) == (level == "ok")


def test_this_machine_is_looked_at_without_a_broken_check() -> None:
    findings = list(machine_findings())
    assert {finding.check for finding in findings} >= {"linegate", "providers", "cpu", "clock"}
    assert not [finding for finding in findings if "could not be looked at" in finding.what]


def test_the_file_system_is_that_of_the_deepest_mount(tmp_path: Path) -> None:
    place = tmp_path.resolve() / "a b"
    place.mkdir()
    mountinfo = (
        "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"21 20 0:5 / {str(place).replace(' ', chr(92) + '040')} rw shared:1 - tmpfs tmpfs rw\n"
    )
    assert filesystem_of(place / "store", mountinfo) == "tmpfs"
    assert filesystem_of(tmp_path, mountinfo) == "ext4"


def test_a_durable_write_is_measured_and_leaves_nothing(tmp_path: Path) -> None:
    assert measure_fsync_ms(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    findings = list(disk_findings(tmp_path / "file" / "var", EvidenceSection()))
    assert [finding.level for finding in findings] == ["fail"]
    assert "[station] store" in str(findings[0].mend)


def test_a_secret_that_everybody_may_read_is_told(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    assert judge_file("[mqtt] password_file", secret, secret=True).level == "fail"
    secret.write_text("word")
    secret.chmod(0o644)
    assert judge_file("[mqtt] password_file", secret, secret=True).level == "warn"
    secret.chmod(0o640)
    assert judge_file("[mqtt] password_file", secret, secret=True).level == "ok"


# -- broker --------------------------------------------------------------------------------------------------------


def settings_for(port: int, **values: Any) -> MqttSection:
    return MqttSection(port=port, connect_timeout_s=3.0, **values)


@pytest.fixture
def guarded_broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker with two users, of which only `station` may write verdicts."""
    folder = tmp_path / "broker"
    folder.mkdir()
    for user in ("station", "guest"):
        flags = ["-b"] if (folder / "users").exists() else ["-c", "-b"]
        subprocess.run([require("mosquitto_passwd"), *flags, str(folder / "users"), user, "word"], check=True)
    (folder / "acl").write_text(f"user station\ntopic readwrite {TOPIC}/vision/v1/#\nuser guest\ntopic read other/#\n")
    for name in ("users", "acl"):
        (folder / name).chmod(0o600)
    broker = Mosquitto(folder, free_port(), f"allow_anonymous false\npassword_file {folder}/users\nacl_file {folder}/acl")
    broker.start()
    yield broker
    broker.kill()


def test_a_broker_that_is_not_there_is_told() -> None:
    findings = list(broker_findings(settings_for(free_port()), TOPIC, running=False))
    assert [finding.level for finding in findings] == ["fail"]
    assert "cannot be reached" in findings[0].what


def test_a_broker_that_takes_a_connection_and_says_nothing_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = MqttSection(port=silent.getsockname()[1], connect_timeout_s=0.5)
        findings = list(broker_findings(settings, TOPIC, running=False))
    assert [finding.level for finding in findings] == ["fail"]
    assert "said nothing for 0.5 s" in findings[0].what


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_takes_all_is_well_and_keeps_the_state_it_had(
    mosquitto: Mosquitto, make_station: MakeStation, protocol: str
) -> None:
    make_station(mosquitto.port).stop()  # leaves its last word on the broker
    settings = settings_for(mosquitto.port, protocol=protocol)
    assert levels(broker_findings(settings, TOPIC, running=False)) == {"broker": {"ok"}}
    late = Mes(mosquitto.port)
    wait_until(lambda: late.states)
    assert [state["state"] for state in late.states] == ["stopped"]
    late.close()


def test_login_and_rights_are_told_apart(guarded_broker: Mosquitto, tmp_path: Path) -> None:
    def look(user: str, password: str) -> list[Finding]:
        file = tmp_path / "password"
        file.write_text(password)
        settings = settings_for(guarded_broker.port, username=user, password_file=file)
        return list(broker_findings(settings, TOPIC, running=False))

    assert [finding.level for finding in look("station", "word")] == ["ok", "ok"]
    unknown = look("station", "guess")
    assert [finding.level for finding in unknown] == ["fail"]
    assert "refuses: Not authorized" in unknown[0].what
    guest = look("guest", "word")
    assert [finding.level for finding in guest] == ["ok", "fail"]
    assert f"write {TOPIC}/vision/v1/verdict" in str(guest[1].mend)


# -- the commands --------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    status = main([*arguments, "--json"])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def failures(findings: list[dict[str, Any]]) -> set[str]:
    return {finding["check"] for finding in findings if finding["level"] == "fail"}


def test_a_running_station_is_well_and_not_disturbed(
    mosquitto: Mosquitto, mes: Mes, make_station: MakeStation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    station = make_station(mosquitto.port)
    submit(station, 1)[0].result(20)
    assert is_running(station.settings.station.store)
    _, findings = run(capsys, "doctor", str(tmp_path / "STATION.toml"))
    assert failures(findings) <= {"disk"}, "the disk is the test machine's own"
    assert {"check": "station", "level": "ok", "what": "runs", "mend": None} in findings
    assert submit(station, 1, start=1)[0].result(20).sequence == 2
    assert {state["state"] for state in mes.states} == {"online"}


def test_all_that_is_missing_is_told_at_once(tmp_path: Path, spot_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "spots"
    shutil.copytree(spot_package, package)
    (package / "card.md").write_text("another")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        more = (
            f'[trigger]\nkind = "modbus"\nhost = "127.0.0.1"\nport = {free_port()}\ncounter_register = 0\nresult_register = 9\n'
            '[[source]]\nkind = "folder"\npath = "nowhere"\n'
            '[[source]]\nkind = "opencv"\naddress = "/dev/video99"\n'
        )
        http_port = taken.getsockname()[1]
        path = station_toml(tmp_path, package, broker_port=free_port(), http_port=http_port, more=more)
        status, findings = run(capsys, "doctor", str(path))
    assert status == 1
    assert failures(findings) == {"package", "camera", "plc", "broker", "port"}
    assert len([finding for finding in findings if finding["check"] == "camera" and finding["level"] == "fail"]) == 2
    assert not (tmp_path / "var").exists(), "nothing is made"


def test_a_store_whose_promotions_cannot_be_read_is_told(
    tmp_path: Path, spot_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = station_toml(tmp_path, spot_package, broker_port=free_port(), http_port=free_port())
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "reviews.sqlite3").write_bytes(b"no database at all, and long enough to be looked at" * 100)
    status, findings = run(capsys, "station", "check", str(path))
    assert status == 1
    assert [finding["what"] for finding in findings if finding["check"] == "package" and finding["level"] == "fail"] == [
        f"{tmp_path / 'var' / 'reviews.sqlite3'}: promotions cannot be read: file is not a database"
    ]


def test_a_plc_that_is_there_is_found(tmp_path: Path, spot_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plc = SimulatedPlc(free_port())
    plc.appear()
    try:
        path = station_toml(tmp_path, spot_package, broker_port=free_port(), http_port=free_port(), more=plc.settings())
        _, findings = run(capsys, "doctor", str(path))
    finally:
        plc.close()
    assert [finding["level"] for finding in findings if finding["check"] == "plc"] == ["ok"]


@pytest.mark.parametrize("command", [["doctor"], ["station", "check"]])
def test_a_settings_file_that_is_wrong_is_a_finding(
    command: list[str], tmp_path: Path, spot_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = station_toml(tmp_path, spot_package, broker_port=9, more="[recipee]\n")
    status, findings = run(capsys, *command, str(path))
    assert status == 1
    assert "did you mean 'recipe'?" in next(finding["what"] for finding in findings if finding["check"] == "settings")


def test_a_good_station_file_passes_the_check_and_starts_nothing(
    tmp_path: Path, spot_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = f'[[source]]\nkind = "folder"\npath = "{tmp_path}"\n'
    path = station_toml(tmp_path, spot_package, broker_port=9, more=more)
    assert main(["station", "check", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", "settings"], ["ok", "package"], ["ok", "recipe"]]
    assert "proved on cpu" in lines[1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["STATION.toml"]


def test_views_without_cameras_and_cameras_without_recipes_are_told() -> None:
    recipes = {"flange": ("top", "side"), "plate": ("top",)}
    assert levels(view_findings(recipes, {"a": "top", "b": "side"})) == {"recipe": {"ok"}}
    found = list(view_findings(recipes, {"a": "top", "c": "bottom"}))
    assert [finding.level for finding in found] == ["warn", "ok", "fail"]
    assert "no camera for side" in found[0].what
    assert "view 'bottom'" in found[2].what


# -- certificates --------------------------------------------------------------------------------------------------


def write_certificate(path: Path, begins: datetime, ends: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "station7")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
    certificate = builder.not_valid_before(begins).not_valid_after(ends).sign(key, hashes.SHA256())
    with path.open("ab") as file:
        file.write(certificate.public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize(
    ("begins", "ends", "level", "words"),
    [
        (-1, 365, "ok", "valid until"),
        (-300, 10, "warn", "10 days from now"),
        (-300, -1, "fail", "expired on 2026-11-23"),
        (2, 365, "fail", "valid from 2026-11-26 on"),
        (-300, 365 * 40, "ok", "valid until 2066"),  # from 2050 on a certificate gives four digits of the year
    ],
)
def test_a_certificate_is_judged_by_its_dates(tmp_path: Path, begins: int, ends: int, level: str, words: str) -> None:
    path = tmp_path / "station.crt"
    write_certificate(path, NOW + timedelta(days=begins), NOW + timedelta(days=ends))
    finding = certificate_finding("[mqtt] cert_file", path, NOW)
    assert finding.level == level
    assert words in finding.what


def test_a_chain_is_as_good_as_its_first_to_end(tmp_path: Path) -> None:
    path = tmp_path / "chain.pem"
    write_certificate(path, NOW - timedelta(days=1), NOW + timedelta(days=900))
    write_certificate(path, NOW - timedelta(days=90), NOW - timedelta(days=2))
    assert certificate_finding("[mqtt] ca_file", path, NOW).level == "fail"


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", os.urandom(64)])
def test_a_file_that_holds_no_certificate_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "station.crt"
    path.write_bytes(content)
    assert certificate_finding("[mqtt] cert_file", path, NOW).level == "fail"


def test_a_certificate_torn_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "station.crt"
    write_certificate(path, NOW, NOW + timedelta(days=1))
    der = x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(serialization.Encoding.DER)
    assert validity(der) == (NOW, NOW + timedelta(days=1))
    for length in range(len(der)):
        with pytest.raises(ValueError, match="is no certificate"):
            validity(der[:length])
