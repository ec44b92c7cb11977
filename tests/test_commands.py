"""Commands over MQTT and HTTP: each answered, each done once, none of them able to break the station."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from conftest import TOPIC, MakeStation, Mosquitto, free_port, require, submit, wait_until
from linegate_edge import dispatch
from linegate_edge.commands import COMMANDS, Answer, AnswerReason, CommandError, parse_command
from linegate_edge.review.commands import STATUS
from linegate_edge.station import Station
from simulators.mes import CommandingMes

QUICK = "[evidence]\nmin_free_mib = 0\n"
COMMANDED = f'[trigger]\nkind = "command"\n{QUICK}'


@pytest.fixture
def mes(mosquitto: Mosquitto) -> Iterator[CommandingMes]:
    """An MES that commands a station, on the real broker."""
    commander = CommandingMes(mosquitto.port, TOPIC)
    yield commander
    commander.close()


def connected(station: Station) -> Station:
    wait_until(lambda: station.live.broker.connected)
    return station


MALFORMED = {
    b"": ("malformed", "not valid JSON"),
    b"[]": ("malformed", "expected a JSON object, got list"),
    b"\xff\xfe": ("malformed", "not valid JSON"),
    b"[" * 2000: ("malformed", "not valid JSON"),
    b"{}": ("malformed", "key 'command' must be one of trigger"),
    b'{"command": 7}': ("malformed", "key 'command' must be one of trigger"),
    b'{"command": "trigger"}': ("malformed", "key 'schema_version' is missing; key 'command_id' is missing"),
    b'{"schema_version": "1.0", "command": "dance", "command_id": "a"}': ("unknown_command", "unknown command 'dance'"),
    b'{"schema_version": "2.0", "command": "stop", "command_id": "a"}': ("unsupported_version", "speaks 1.0"),
    b'{"schema_version": "1.0", "command": "stop", "command_id": ""}': ("malformed", "at least 1 character"),
    b'{"schema_version": "1.0", "command": "stop", "command_id": 5}': ("malformed", "valid string"),
    b'{"schema_version": "1.0", "command": "trigger", "command_id": "a", "serail": "A"}': ("malformed", "mean 'serial'"),
    b'{"schema_version": "1.0", "command": "trigger", "command_id": "a", "attempt": 0}': ("malformed", "'attempt'"),
    b'{"schema_version": "1.0", "command": "trigger", "command_id": "a", "serial": "\\u0000"}': ("malformed", "'serial'"),
    b'{"schema_version": "1.0", "command": "trigger", "command_id": "a", "triggered_at": "2026-01-01T00:00:00"}': (
        "malformed",
        "timezone",
    ),
    b'{"schema_version": "1.0", "command": "replay", "command_id": "a", "first": 5, "last": 4}': ("malformed", "'last'"),
    b'{"schema_version": "1.0", "command": "replay", "command_id": "a", "first": 1e400}': ("malformed", "'first'"),
    b'{"schema_version": "1.0", "command": "confirm", "command_id": "a", "confirm": {}}': ("malformed", "verdict_ids or"),
    b'{"schema_version": "1.0", "command": "mode", "command_id": "a", "mode": "party"}': ("malformed", "'mode'"),
    b" " * 70_000: ("malformed", "70000 bytes are too many"),
}


@pytest.mark.parametrize("payload", MALFORMED, ids=lambda payload: payload[:60].decode(errors="replace").strip() or "empty")
def test_a_malformed_command_is_named_in_one_line(payload: bytes) -> None:
    reason, words = MALFORMED[payload]
    with pytest.raises(CommandError) as error:
        parse_command(payload)
    assert error.value.reason == reason
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_could_be_read_of_a_refused_command_is_in_the_error() -> None:
    with pytest.raises(CommandError) as error:
        parse_command(b'{"schema_version": "1.0", "command": "recipe", "command_id": "r-1"}')
    assert (error.value.command, error.value.command_id) == ("recipe", "r-1")


def test_malformed_commands_are_answered_and_the_station_goes_on(
    mosquitto: Mosquitto, mes: CommandingMes, make_station: MakeStation
) -> None:
    station = connected(make_station(mosquitto.port))
    for payload in MALFORMED:
        mes.say("cmd", payload)
    mes.wait(lambda: [True] if len(mes.answers) == len(MALFORMED) else [])
    assert sorted(body["reason"] for _, body, _ in mes.answers) == sorted(reason for reason, _ in MALFORMED.values())
    for _, body, _ in mes.answers:
        assert Answer.model_validate_json(json.dumps(body)).ok is False
    assert mes.command("mode", mode="study")["ok"], "the next command is heeded"
    assert submit(station, 1)[0].result(30).message["mode"] == "study"


def test_a_trigger_is_answered_with_the_id_of_the_verdict_that_then_comes(
    mosquitto: Mosquitto, mes: CommandingMes, make_station: MakeStation
) -> None:
    station = connected(make_station(mosquitto.port, more=COMMANDED))
    piece = {"serial": "A-1", "part_type": "FL", "order": "O", "batch": "B", "supplier_lot": "L", "carrier": "C", "attempt": 2}
    answer = mes.command("trigger", "t-1", **piece)
    assert (answer["ok"], answer["reason"], answer["command"]) == (True, "accepted", "trigger")
    assert (answer["station"], answer["boot_id"]) == (TOPIC, station.boot_id)
    again = mes.command("trigger", "t-1", **piece)
    assert again == answer, "answered the same while its part is open"
    station.line.stop(5)  # the part has no frame: it gets its verdict, as any trigger does
    verdict = mes.wait(lambda: mes.verdicts)[0]
    assert verdict["verdict_id"] == answer["verdict_id"]
    assert verdict["part"] == {
        "serial": "A-1",
        "serial_source": "command",
        "type": "FL",
        "order": "O",
        "batch": "B",
        "supplier_lot": "L",
        "carrier": "C",
        "attempt": 2,
    }
    assert station.live.triggers_and_verdicts == (1, 1)


def test_a_trigger_is_known_again_after_a_restart(mosquitto: Mosquitto, mes: CommandingMes, make_station: MakeStation) -> None:
    more = COMMANDED.replace("[evidence]", "[limits]\nstop_timeout_s = 2\n[evidence]")
    first = connected(make_station(mosquitto.port, more=more))
    answer = mes.command("trigger", "t-1", serial="A-1")
    first.stop()
    second = connected(make_station(mosquitto.port, more=more))
    again = mes.command("trigger", "t-1", serial="A-1")
    assert again["verdict_id"] == answer["verdict_id"]
    assert again["boot_id"] == second.boot_id
    assert second.live.triggers_and_verdicts == (0, 0), "no second part"


def test_a_trigger_without_a_serial_names_its_part_by_the_command(
    mosquitto: Mosquitto, mes: CommandingMes, make_station: MakeStation
) -> None:
    station = connected(make_station(mosquitto.port, more=COMMANDED))
    mes.command("trigger", "t-77", triggered_at="2026-01-01T12:00:00+02:00")
    station.line.stop(5)
    verdict = mes.wait(lambda: mes.verdicts)[0]
    assert (verdict["part"]["serial"], verdict["part"]["serial_source"]) == ("t-77", "command_id")
    assert verdict["time"]["triggered"] == "2026-01-01T10:00:00Z"


def test_a_repeated_command_is_done_once_and_another_under_its_id_is_refused(
    mosquitto: Mosquitto, mes: CommandingMes, make_station: MakeStation
) -> None:
    station = connected(make_station(mosquitto.port))
    stopped = mes.command("stop", "s-1")
    assert (stopped["ok"], stopped["running"], station.line.running) == (True, False, False)
    assert mes.command("start", "s-2")["running"] is True
    assert mes.command("stop", "s-1") == stopped, "the very same answer"
    assert station.line.running, "and it was not done again"
    reused = mes.command("mode", "s-1", mode="study")
    assert (reused["ok"], reused["reason"]) == (False, "command_id_reused")
    assert station.line.mode == "production"


def test_a_trigger_that_a_stopped_station_turned_away_may_be_tried_again(
    mosquitto: Mosquitto, mes: CommandingMes, make_station: MakeStation
) -> None:
    connected(make_station(mosquitto.port, more=COMMANDED))
    mes.command("stop")
    refused = mes.command("trigger", "t-1", serial="A")
    assert (refused["ok"], refused["reason"], refused["verdict_id"]) == (False, "stopped", None)
    mes.command("start")
    assert mes.command("trigger", "t-1", serial="A")["ok"]


def test_a_change_over_is_answered_with_the_recipes_digest(
    mosquitto: Mosquitto, mes: CommandingMes, make_station: MakeStation
) -> None:
    station = connected(make_station(mosquitto.port))
    (name, digest), *_ = station.operate.recipes().items()
    answer = mes.command("recipe", recipe=name)
    assert (answer["ok"], answer["recipe"], answer["recipe_digest"]) == (True, name, digest)
    unknown = mes.command("recipe", recipe="nowhere")
    assert (unknown["ok"], unknown["reason"], unknown["recipe"]) == (False, "unknown_recipe", None)
    assert f"this station has {name}" in unknown["reason_text"]


def test_answers_carry_correlation_data_and_go_only_below_the_stations_root(
    mosquitto: Mosquitto, mes: CommandingMes, make_station: MakeStation
) -> None:
    connected(make_station(mosquitto.port))
    wanted = {
        f"{TOPIC}/mes/answers": f"{TOPIC}/mes/answers",
        f"{TOPIC}/vision/v1/ack": f"{TOPIC}/vision/v1/ack",
        f"{TOPIC}/vision/v1/verdict": f"{TOPIC}/vision/v1/ack",
        f"{TOPIC}/vision/v1/cmd": f"{TOPIC}/vision/v1/ack",
        f"{TOPIC}x/answers": f"{TOPIC}/vision/v1/ack",
        "somewhere/else": f"{TOPIC}/vision/v1/ack",
    }
    for number, topic in enumerate(wanted):
        command = {"schema_version": "1.0", "command": "start", "command_id": f"c-{number}"}
        mes.say("cmd", command, ResponseTopic=topic, CorrelationData=f"data-{number}".encode())
    mes.wait(lambda: [True] if len(mes.answers) == len(wanted) else [])
    for number, (topic, body, properties) in enumerate(mes.answers):
        assert (body["command_id"], topic) == (f"c-{number}", list(wanted.values())[number])
        assert properties.CorrelationData == f"data-{number}".encode()
        assert properties.ContentType == "application/json"
        assert ("schema_version", "1.0") in properties.UserProperty


def test_a_retained_command_is_not_done(mosquitto: Mosquitto, mes: CommandingMes, make_station: MakeStation) -> None:
    mes.say("cmd", {"schema_version": "1.0", "command": "stop", "command_id": "old"}, retain=True)
    for protocol in ("5", "3.1.1"):
        station = connected(make_station(mosquitto.port, more=f'protocol = "{protocol}"\n{QUICK}'))
        assert mes.command("mode", mode="study")["ok"], "commands of today are done"
        assert station.line.running
        station.stop()
    assert not mes.answers_to("old")


def test_an_old_broker_carries_commands_too(mosquitto: Mosquitto, mes: CommandingMes, make_station: MakeStation) -> None:
    connected(make_station(mosquitto.port, more=f'protocol = "3.1.1"\n{QUICK}'))
    assert mes.command("stop")["running"] is False


def test_a_subscription_that_the_broker_refuses_is_told_and_verdicts_go_out_all_the_same(
    tmp_path: Path, make_station: MakeStation, caplog: pytest.LogCaptureFixture
) -> None:
    require("mosquitto")
    plugin = next(Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"), None)
    assert plugin is not None, "comes with mosquitto; its ACL file would drop the commands without a word"
    denied = {"acltype": "subscribeLiteral", "topic": f"{TOPIC}/vision/v1/cmd", "priority": 1, "allow": False}
    rules = {
        "defaultACLAccess": dict.fromkeys(("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe"), True),
        "roles": [{"rolename": "station", "acls": [denied]}],
        "groups": [{"groupname": "all", "roles": [{"rolename": "station"}]}],
        "anonymousGroup": "all",
        "clients": [],
    }
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    (tmp_path / "rules.json").chmod(0o600)
    extra = f"allow_anonymous true\nplugin {plugin}\nplugin_opt_config_file {tmp_path}/rules.json"
    broker = Mosquitto(tmp_path / "broker", free_port(), extra)
    broker.start()
    mes = CommandingMes(broker.port, TOPIC)
    with caplog.at_level(logging.WARNING, "linegate.commands"):
        station = connected(make_station(broker.port))
        wait_until(lambda: any("refused the subscription" in line for line in caplog.messages))
    submit(station, 1)
    wait_until(lambda: mes.sequences == [1])
    mes.close()
    broker.kill()


def test_an_answer_that_the_broker_could_not_take_is_published_when_it_is_back(
    mosquitto: Mosquitto, make_station: MakeStation
) -> None:
    station = connected(make_station(mosquitto.port, more=COMMANDED))
    mosquitto.kill()
    wait_until(lambda: not station.live.broker.connected)
    answers: list[Answer] = []
    box = station.publisher._box
    box.take(
        b'{"schema_version": "1.0", "command": "stop", "command_id": "late"}',
        lambda answer: (answers.append(answer), box.answer(f"{TOPIC}/vision/v1/ack", b"c", answer))[0],
    )
    wait_until(lambda: answers)
    mosquitto.start()
    mes = CommandingMes(mosquitto.port, TOPIC)
    assert mes.wait(lambda: mes.answers_to("late"))[0]["running"] is False
    mes.close()


def test_the_oldest_answers_are_forgotten_first(make_station: MakeStation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "REMEMBERED", 3)
    station = make_station(9)
    answers: list[Answer] = []

    def ask(command: str, command_id: str) -> Answer:
        count = len(answers)
        payload = json.dumps({"schema_version": "1.0", "command": command, "command_id": command_id})
        station.dispatch.take(payload.encode(), answers.append)
        wait_until(lambda: len(answers) > count)
        return answers[-1]

    ask("stop", "1")
    for number in range(2, 5):
        ask("start", str(number))
    assert ask("start", "4").ok, "still known, and the same"
    assert ask("start", "1").ok, "forgotten: a command of its own"


# -- HTTP --------------------------------------------------------------------------------------------------------------


def post(station: Station, body: object, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{station.address}commands", content=content, headers={"Content-Type": "application/json", **headers})


def test_commands_over_http_have_the_same_answers(make_station: MakeStation) -> None:
    station = make_station(9, more=COMMANDED)
    command = {"schema_version": "1.0", "command": "trigger", "command_id": "t-1", "serial": "A-1"}
    response = post(station, command)
    assert response.status_code == 200
    answer = Answer.model_validate_json(response.content)
    assert answer.ok
    assert answer.verdict_id is not None
    assert post(station, command).json() == response.json()
    refused = post(station, command | {"serial": "A-2"})
    assert (refused.status_code, refused.json()["reason"]) == (409, "command_id_reused")
    unknown = post(station, {"schema_version": "1.0", "command": "recipe", "command_id": "r", "recipe": "nowhere"})
    assert (unknown.status_code, unknown.json()["reason"]) == (404, "unknown_recipe")
    confirm = {"schema_version": "1.0", "command": "confirm", "command_id": "c", "confirm": {"verdict_ids": ["x"]}}
    refused = post(station, confirm)
    assert (refused.status_code, refused.json()["reason"]) == (409, "confirmation_not_asked_for")
    replay = post(station, {"schema_version": "1.0", "command": "replay", "command_id": "p", "first": 7})
    assert (replay.status_code, replay.json()["reason"]) == (404, "unknown_sequence")


def test_http_refuses_what_is_no_command_and_what_another_sites_page_sends(make_station: MakeStation) -> None:
    station = make_station(9)
    assert post(station, b"{").status_code == 422
    assert post(station, b" " * 70_000).status_code == 413
    assert post(station, b"{}", **{"Content-Type": "text/plain"}).status_code == 415
    stop = {"schema_version": "1.0", "command": "stop", "command_id": "s"}
    assert post(station, stop, Origin="https://evil.example").status_code == 403
    assert station.line.running
    assert post(station, stop).status_code == 200
    assert not station.line.running


def test_every_reason_has_its_http_status() -> None:
    assert set(STATUS) == set(AnswerReason)


def test_every_command_is_known_by_its_own_name() -> None:
    for name, model in COMMANDS.items():
        assert model.model_fields["command"].annotation.__args__ == (name,)
