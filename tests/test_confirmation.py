"""Verdicts that the MES confirms itself, at once, late or never; and verdicts that are published again on demand."""

from __future__ import annotations

import json
import logging
from collections import Counter

import pytest

from conftest import TOPIC, MakeStation, Mosquitto, submit, wait_until
from linegate_edge.commands import CommandError, parse_ack
from linegate_edge.confirmation import Unconfirmed
from linegate_edge.station import Station
from simulators.mes import CommandingMes

QUICK = "[evidence]\nmin_free_mib = 0\n"


def confirming(timeout_s: float = 60.0, more: str = "") -> str:
    return f'confirm = "mes"\nconfirm_timeout_s = {timeout_s}\n{more}{QUICK}'


def connected(station: Station) -> Station:
    wait_until(lambda: station.live.broker.connected)
    return station


def reconcile(mes: CommandingMes, count: int) -> None:
    """Check that all verdicts from 1 to `count` came, each sequence number with one id."""
    ids = {verdict["sequence"]: verdict["verdict_id"] for verdict in mes.verdicts}
    assert sorted(ids) == list(range(1, count + 1))
    assert {(verdict["sequence"], verdict["verdict_id"]) for verdict in mes.verdicts} == set(ids.items())


# -- which are done, by hand -------------------------------------------------------------------------------------------


def test_nothing_is_overdue_where_nothing_was_sent() -> None:
    empty = Unconfirmed(10.0)
    assert len(empty) == 0
    assert not empty.overdue(1e9)
    assert empty.confirm(1, 100, []) == []


def test_a_confirmation_counts_for_what_was_sent_and_for_nothing_else() -> None:
    unconfirmed = Unconfirmed(10.0)
    for number in (3, 4, 5):
        assert not unconfirmed.acknowledged(number, 0.0)
    assert unconfirmed.confirm(1, 4, []) == [3, 4]
    assert unconfirmed.confirm(1, 4, []) == [], "once"
    assert unconfirmed.confirm(6, 2**62, []) == []
    assert len(unconfirmed) == 1


def test_a_confirmation_that_overtakes_the_brokers_acknowledgement_counts() -> None:
    unconfirmed = Unconfirmed(10.0)
    unconfirmed.sending(7)
    assert unconfirmed.confirm(7, 7, inflight=[7]) == []
    assert unconfirmed.acknowledged(7, 0.0)
    assert len(unconfirmed) == 0


def test_what_is_overdue_is_sent_again_and_then_waits_anew() -> None:
    unconfirmed = Unconfirmed(10.0)
    unconfirmed.acknowledged(1, 0.0)
    unconfirmed.acknowledged(2, 5.0)
    assert unconfirmed.waits(1, 9.9)
    assert not unconfirmed.overdue(9.9)
    assert unconfirmed.overdue(10.0)
    assert not unconfirmed.waits(1, 10.0)
    assert unconfirmed.waits(2, 10.0)
    unconfirmed.sending(1)
    unconfirmed.acknowledged(1, 11.0)
    assert not unconfirmed.overdue(14.9), "2 is the oldest now"
    assert unconfirmed.overdue(15.0)


def test_the_stations_own_answer_is_no_confirmation() -> None:
    assert parse_ack(json.dumps({"ok": True, "command_id": None}).encode()) is None
    with pytest.raises(CommandError, match=r"'confirm' is missing"):
        parse_ack(b"{}")


# -- a real station, broker and MES ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_id", [False, True], ids=["by sequence", "by id"])
def test_a_verdict_leaves_the_outbox_when_the_mes_confirms_it(
    mosquitto: Mosquitto, make_station: MakeStation, by_id: bool
) -> None:
    mes = CommandingMes(mosquitto.port, TOPIC, confirm_after_s=0.0, by_id=by_id)
    station = connected(make_station(mosquitto.port, more=confirming()))
    for future in submit(station, 300):
        future.result(30)
    wait_until(lambda: station.outbox_pending() == 0)
    reconcile(mes, 300)
    assert len(mes.verdicts) == 300, "none of them twice"
    assert station.metrics.registry.get_sample_value("linegate_unconfirmed") == 0
    mes.close()


def test_without_a_confirmation_nothing_leaves_the_outbox_however_often_the_broker_acknowledges(
    mosquitto: Mosquitto, make_station: MakeStation, caplog: pytest.LogCaptureFixture
) -> None:
    mes = CommandingMes(mosquitto.port, TOPIC)  # never confirms
    with caplog.at_level(logging.WARNING, "linegate.publish"):
        station = connected(make_station(mosquitto.port, more=confirming(0.4, "settle_s = 0\n")))
        submit(station, 20)
        wait_until(lambda: len(mes.verdicts) >= 60, what="every verdict three times")
        assert station.outbox_pending() == 20
        assert station.metrics.registry.get_sample_value("linegate_unconfirmed") is not None
        submit(station, 20, start=20)  # the line and newer verdicts do not wait for it
        wait_until(lambda: set(mes.sequences) == set(range(1, 41)))
    assert len([line for line in caplog.messages if "not confirmed" in line]) == 1, "one line, not one a try"
    reconcile(mes, 40)
    assert station.outbox_pending() == 40
    mes.confirm(mes.verdicts[:1])
    mes.confirm_after_s = 0.0  # it comes to its senses, and hears all of them once more
    wait_until(lambda: station.outbox_pending() == 0)
    reconcile(mes, 40)
    mes.close()


def test_an_mes_that_confirms_later_than_it_may_gets_repeats_and_nothing_is_lost(
    mosquitto: Mosquitto, make_station: MakeStation
) -> None:
    mes = CommandingMes(mosquitto.port, TOPIC, confirm_after_s=1.5)
    station = connected(make_station(mosquitto.port, more=confirming(0.5)))
    for future in submit(station, 50):
        future.result(30)
    wait_until(lambda: station.outbox_pending() == 0)
    reconcile(mes, 50)
    assert max(Counter(mes.sequences).values()) >= 2
    mes.close()


def test_what_was_not_confirmed_is_sent_again_after_the_broker_lost_its_state(
    mosquitto: Mosquitto, make_station: MakeStation
) -> None:
    mes = CommandingMes(mosquitto.port, TOPIC)
    station = connected(make_station(mosquitto.port, more=confirming()))
    submit(station, 30)
    wait_until(lambda: len(mes.verdicts) == 30)
    mosquitto.kill()
    wait_until(lambda: not station.live.broker.connected)
    submit(station, 10, start=30)
    mes.confirm_after_s = 0.0
    mosquitto.start()
    wait_until(lambda: station.outbox_pending() == 0, 30)
    reconcile(mes, 40)
    mes.close()


def test_a_confirmation_of_what_was_never_sent_takes_nothing_out(
    mosquitto: Mosquitto, make_station: MakeStation, caplog: pytest.LogCaptureFixture
) -> None:
    mes = CommandingMes(mosquitto.port, TOPIC)
    station = connected(make_station(mosquitto.port, more=confirming()))
    mes.say("ack", {"confirm": {"sequences": [{"first": 1, "last": 2**62}]}})
    with caplog.at_level(logging.WARNING, "linegate.commands"):
        mes.say("ack", b"nonsense")
        wait_until(lambda: any("no confirmation" in line for line in caplog.messages), what="both to have arrived")
    submit(station, 5)
    wait_until(lambda: len(mes.verdicts) == 5)
    assert station.outbox_pending() == 5
    answer = mes.command("confirm", confirm={"sequences": [{"first": 1, "last": 5}]})
    assert (answer["ok"], answer["count"]) == (True, 5)
    wait_until(lambda: station.outbox_pending() == 0)
    mes.close()


def test_an_old_protocol_confirms_too_and_the_stations_own_answers_do_no_harm(
    mosquitto: Mosquitto, make_station: MakeStation, caplog: pytest.LogCaptureFixture
) -> None:
    mes = CommandingMes(mosquitto.port, TOPIC, confirm_after_s=0.0)
    with caplog.at_level(logging.WARNING, "linegate.commands"):
        station = connected(make_station(mosquitto.port, more=confirming(more='protocol = "3.1.1"\n')))
        assert mes.command("mode", mode="challenge")["ok"], "its answer comes back to the station, for want of noLocal"
        submit(station, 5)
        wait_until(lambda: station.outbox_pending() == 0 and len(mes.verdicts) == 5)
    assert not [line for line in caplog.messages if not line.startswith("first start: ")]
    mes.close()


# -- replay ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settle_s", [0, 600], ids=["settled", "not settled"])
def test_a_replay_publishes_the_same_verdicts_again(mosquitto: Mosquitto, make_station: MakeStation, settle_s: int) -> None:
    mes = CommandingMes(mosquitto.port, TOPIC)
    station = connected(make_station(mosquitto.port, more=f"settle_s = {settle_s}\n{QUICK}"))
    for future in submit(station, 200):
        future.result(30)
    wait_until(lambda: len(mes.verdicts) == 200)
    if settle_s == 0:
        wait_until(lambda: station.outbox_pending() == 0)
    answer = mes.command("replay", first=51, last=150)
    assert (answer["ok"], answer["count"]) == (True, 100)
    wait_until(lambda: {number for number, times in Counter(mes.sequences).items() if times >= 2} == set(range(51, 151)))
    reconcile(mes, 200)
    station.stop()
    assert mes.sequences[200:] == sorted(mes.sequences[200:]) or settle_s, "in order"
    mes.close()


def test_a_replay_does_not_hold_up_newer_verdicts(mosquitto: Mosquitto, make_station: MakeStation) -> None:
    mes = CommandingMes(mosquitto.port, TOPIC)
    station = connected(make_station(mosquitto.port, more=f"settle_s = 0\nmax_inflight = 4\n{QUICK}"))
    for future in submit(station, 600):
        future.result(60)
    wait_until(lambda: station.outbox_pending() == 0)
    before = len(mes.verdicts)
    mes.command("replay", first=1)
    mes.wait(lambda: mes.sequences[before:])
    submit(station, 10, start=600)
    wait_until(lambda: len(mes.verdicts) - before >= 610)
    after = mes.sequences[before:]
    newer = [number for number in after if number > 600]
    assert newer == list(range(601, 611)), "in order"
    assert after.index(610) < after.index(600), "and before the replay was through"
    reconcile(mes, 610)
    wait_until(lambda: station.outbox_pending() == 0)
    mes.close()


def test_a_replay_that_an_outage_interrupts_is_finished_afterwards(mosquitto: Mosquitto, make_station: MakeStation) -> None:
    mes = CommandingMes(mosquitto.port, TOPIC)
    station = connected(make_station(mosquitto.port, more=f"settle_s = 0\n{QUICK}"))
    for future in submit(station, 100):
        future.result(30)
    wait_until(lambda: station.outbox_pending() == 0)
    mosquitto.kill()
    wait_until(lambda: not station.live.broker.connected)
    before = len(mes.verdicts)
    assert station.operate.replay(1, None) == 100
    mosquitto.start()
    wait_until(lambda: set(mes.sequences[before:]) == set(range(1, 101)), 30)
    wait_until(lambda: station.outbox_pending() == 0)
    reconcile(mes, 100)
    mes.close()


def test_a_replay_of_what_is_not_there_is_refused(mosquitto: Mosquitto, make_station: MakeStation) -> None:
    mes = CommandingMes(mosquitto.port, TOPIC)
    connected(make_station(mosquitto.port))
    answer = mes.command("replay", first=1)
    assert (answer["ok"], answer["reason"], answer["count"]) == (False, "unknown_sequence", None)
    mes.close()
