"""A PLC over Modbus TCP: each part gets one verdict and one answer, whoever restarts or vanishes meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import MakeStation, free_port, station_toml, submit, wait_until
from linegate.errors import SettingsError, StationError
from linegate.stages import Decision, Reason
from linegate_edge.metrics import Metrics
from linegate_edge.plc import Plc
from linegate_edge.plc_handshake import Count, compare
from linegate_edge.plc_settings import ModbusTrigger
from linegate_edge.records import Recorded, Trigger
from linegate_edge.settings import load_station
from linegate_edge.store import DATABASE_FILE, StoreReader
from simulators.plc import HEARTBEAT, LINE_STOP, RESULT, RESULT_COUNTER, SimulatedPlc

NO_BROKER = 9
PASS, FAIL, UNDECIDED = 1, 2, 3


class Judge:
    """Stands in for the line: one verdict an origin, kept over restarts of the PLC's thread, given when the test says."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.triggers: list[Trigger] = []
        self.missed: list[str] = []
        self.verdicts: dict[str, str] = {}
        self.held: list[tuple[Future[Recorded], str]] = []
        self.holding = self.stopping = False
        self.stop_reason: str | None = None

    def trigger(self, trigger: Trigger, missed: str | None = None) -> Future[Recorded]:
        if self.stopping:
            raise StationError("the station is stopping and takes no more parts")
        if missed is not None:
            with self.lock:
                self.missed.append(missed)
            return self._judge(trigger.origin, Decision.UNDECIDED)
        with self.lock:
            self.triggers.append(trigger)
        decision = Decision.FAIL if trigger.part.serial.startswith("BAD") else Decision.PASS
        return self._judge(trigger.origin, decision)

    def _judge(self, origin: str | None, decision: str) -> Future[Recorded]:
        future: Future[Recorded] = Future()
        assert origin is not None
        with self.lock:
            if self.holding:
                self.held.append((future, json.dumps({"origin": origin, "decision": decision})))
                return future
        future.set_result(self._record(origin, decision))
        return future

    def _record(self, origin: str, decision: str) -> Recorded:
        with self.lock:
            repeated = origin in self.verdicts
            known = self.verdicts.setdefault(origin, decision)
        return Recorded(len(self.verdicts), origin, json.dumps({"decision": known}), repeated)

    def release(self) -> None:
        with self.lock:
            held, self.held, self.holding = self.held, [], False
        for future, text in held:
            future.set_result(self._record(**json.loads(text)))


MakePlc = Callable[..., Plc]


@pytest.fixture
def simulator() -> Iterator[SimulatedPlc]:
    plc = SimulatedPlc(free_port())
    plc.appear()
    yield plc
    plc.close()


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def make_plc(simulator: SimulatedPlc, judge: Judge, tmp_path: Path) -> Iterator[MakePlc]:
    """Start a station's side of the handshake, once or, after `stop`, again."""
    made: list[Plc] = []

    def make(registers: str | None = None, alive: Callable[[], bool] = lambda: True, metrics: Metrics | None = None) -> Plc:
        plc = Plc(
            trigger_settings(tmp_path, simulator.settings() if registers is None else simulator.settings(registers)),
            judge,
            metrics or Metrics(),
            knows_origin=judge.verdicts.__contains__,
            line_stop=lambda: judge.stop_reason,
            alive=alive,
        )
        plc.start()
        made.append(plc)
        return plc

    yield make
    for plc in made:
        stop(plc)


def trigger_settings(folder: Path, section: str) -> ModbusTrigger:
    path = folder / "STATION.toml"
    path.write_text(f'[station]\ntopic = "a/b/c/d/e"\n[model]\npackage = "p"\n{section}')
    trigger = load_station(path).trigger
    assert isinstance(trigger, ModbusTrigger)
    return trigger


def stop(plc: Plc) -> None:
    plc.stop()
    plc.join(10)
    assert not plc.is_alive()


def answered(simulator: SimulatedPlc) -> None:
    wait_until(lambda: simulator.answered, what="the result counter equals the trigger counter")


def test_a_plc_without_a_part_triggers_nothing(simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc) -> None:
    make_plc()
    wait_until(lambda: simulator[HEARTBEAT] >= 2)
    assert judge.triggers == judge.missed == simulator.results == []


def test_parts_are_triggered_with_their_data_and_answered_by_their_counter(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc
) -> None:
    make_plc()
    for serial, kind, encoder in (("A-17", 3, 70_000), ("BAD-18", 4, 70_500)):
        simulator.part(serial, kind, encoder)
        answered(simulator)
    parts = [(trigger.part.serial, trigger.part.serial_source, trigger.part.part_type) for trigger in judge.triggers]
    assert parts == [("A-17", "plc", "3"), ("BAD-18", "plc", "4")]
    assert [trigger.encoder for trigger in judge.triggers] == [70_000, 70_500]
    assert simulator.results == [(1, PASS), (2, FAIL)]


def test_a_part_without_a_serial_gets_one_that_no_other_part_has(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc
) -> None:
    make_plc()
    simulator.part()
    answered(simulator)
    assert judge.triggers[0].part.serial == f"plc-{simulator.epoch:08x}-00001"
    assert judge.triggers[0].part.serial_source == "counter"


@pytest.mark.parametrize("order", ["big", "little"])
def test_text_and_long_counts_are_read_in_the_plc_s_own_order(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc, order: Literal["big", "little"]
) -> None:
    kind, serial = (
        [int.from_bytes(text[at : at + 2], order) for at in range(0, len(text), 2)] for text in (b"FL-9", b"A\xff\x077\0?")
    )
    encoder = [1, 2] if order == "big" else [2, 1]
    make_plc(
        f"counter_register = 0\npart_type_register = 1\npart_type_chars = 4\nserial_register = 3\nserial_chars = 6\n"
        f"encoder_register = 6\nlow_first = {'true' if order == 'little' else 'false'}\nresult_register = {RESULT}\n"
    )
    simulator[0] = [1, *kind, *serial, *encoder]  # by one write, as a PLC's scan does it
    answered(simulator)
    (trigger,) = judge.triggers
    assert (trigger.part.part_type, trigger.part.serial, trigger.encoder) == ("FL-9", r"A\xff\x077", 65_538)


def test_no_result_is_written_before_the_verdict_is_stored(simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc) -> None:
    judge.holding = True
    make_plc()
    simulator.part("A-1")
    wait_until(lambda: judge.held)
    beats = simulator[HEARTBEAT]
    wait_until(lambda: simulator[HEARTBEAT] != beats)
    assert simulator[RESULT_COUNTER] == 0
    assert simulator[RESULT] == 0
    judge.release()
    answered(simulator)
    assert simulator[RESULT] == PASS


def test_each_skipped_trigger_is_undecided_and_the_last_one_is_judged(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc
) -> None:
    metrics = Metrics()
    make_plc(metrics=metrics)
    wait_until(lambda: simulator.epoch)
    simulator.part("A-3", skip=2)
    answered(simulator)
    assert simulator.results == [(1, UNDECIDED), (2, UNDECIDED), (3, PASS)]
    assert ["past 1 " in missed or "past 2 " in missed for missed in judge.missed] == [True, True]
    assert metrics.registry.get_sample_value("linegate_triggers_missed_total") == 2


def test_the_counter_wraps_without_losing_or_doubling_a_part(simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc) -> None:
    simulator[0] = 65_533
    simulator[RESULT] = [0, 65_533, 0, 7]
    make_plc()
    for _ in range(5):
        simulator.part()
        answered(simulator)
    assert [counter for counter, _ in simulator.results] == [65_534, 65_535, 0, 1, 2]
    assert simulator.epoch == 8
    assert len(judge.verdicts) == 5


def test_a_station_that_restarts_answers_the_part_in_hand_once_and_does_not_judge_it_anew(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc
) -> None:
    judge.holding = True
    first = make_plc()
    simulator.part("BAD-1")
    wait_until(lambda: judge.held)
    stop(first)
    judge.release()  # stored, but the PLC was not told
    make_plc()
    answered(simulator)
    assert simulator.results == [(1, FAIL)]
    assert len({trigger.origin for trigger in judge.triggers}) == 1
    assert len(judge.verdicts) == 1


def test_a_station_that_restarts_does_not_repeat_an_answered_part(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc
) -> None:
    first = make_plc()
    simulator.part("A-1")
    answered(simulator)
    stop(first)
    make_plc()
    simulator.part("A-2")
    answered(simulator)
    assert [trigger.part.serial for trigger in judge.triggers] == ["A-1", "A-2"]


def test_a_part_raised_while_the_station_was_away_is_judged_when_it_is_back(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc
) -> None:
    stop(make_plc())
    wait_until(lambda: simulator.epoch)
    simulator.part("A-1")
    make_plc()
    answered(simulator)
    assert simulator.results == [(1, PASS)]


def test_a_result_that_came_while_the_plc_was_away_is_written_when_it_is_back(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc
) -> None:
    judge.holding = True
    plc = make_plc()
    simulator.part("A-1")
    wait_until(lambda: judge.held)
    simulator.vanish()
    wait_until(lambda: plc.problem is not None)
    judge.release()
    assert plc.problem is not None
    simulator.appear()
    answered(simulator)
    wait_until(lambda: plc.problem is None)
    assert simulator.results == [(1, PASS)]
    assert len(judge.triggers) == 1, "the part in hand is not triggered a second time"


def test_a_missing_plc_is_reported_once_and_looked_for_again(
    simulator: SimulatedPlc, make_plc: MakePlc, caplog: pytest.LogCaptureFixture
) -> None:
    simulator.vanish()
    with caplog.at_level("INFO"):
        metrics = Metrics()
        plc = make_plc(metrics=metrics)
        wait_until(lambda: plc.problem is not None and "cannot be reached" in plc.problem)
        simulator.appear()
        wait_until(lambda: plc.problem is None)
    assert len([record for record in caplog.records if "cannot be reached" in record.message]) == 1
    assert metrics.registry.get_sample_value("linegate_plc_up") == 1


def test_a_plc_that_lost_its_memory_begins_a_new_epoch(simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc) -> None:
    make_plc()
    for serial in ("BAD-1", "BAD-2"):
        simulator.part(serial)
        answered(simulator)
    before = simulator.epoch
    simulator.vanish()
    simulator.lose_memory()
    simulator.appear()
    simulator.part("A-1")
    answered(simulator)
    assert simulator.epoch not in (0, before)
    assert simulator.results == [(1, FAIL), (2, FAIL), (1, PASS)], "the verdict of another part 1 is not given again"


def test_a_plc_that_lost_its_memory_on_a_standing_connection_begins_a_new_epoch(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc
) -> None:
    make_plc()
    for _ in range(3):
        simulator.part("BAD")
        answered(simulator)
    before = simulator.epoch
    simulator.lose_memory()
    wait_until(lambda: simulator.epoch not in (0, before))
    simulator.part("A-1")
    answered(simulator)
    assert simulator.results[-1] == (1, PASS)


@pytest.mark.parametrize("kind", ["discrete", "coil"])
def test_a_digital_input_triggers_at_each_rising_edge(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc, kind: str
) -> None:
    simulator.set_input(5, True)  # high from the start is no edge
    make_plc(f'input = 5\ninput_kind = "{kind}"\nserial_register = 4\nresult_register = {RESULT}\n')
    for number in (1, 2):
        polled = simulator.requests
        wait_until(lambda: simulator.requests > polled + 4)  # noqa: B023 - called at once
        simulator.set_input(5, False)
        polled = simulator.requests
        wait_until(lambda: simulator.requests > polled + 4)  # noqa: B023 - called at once
        simulator.set_input(5, True)
        wait_until(lambda: simulator[RESULT_COUNTER] == number)  # noqa: B023 - called at once
    assert len(judge.triggers) == 2
    assert simulator.results == [(1, PASS), (2, PASS)]


def test_the_heartbeat_stops_with_the_line_and_the_line_stop_is_shown(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc
) -> None:
    alive = threading.Event()
    alive.set()
    make_plc(alive=alive.is_set)
    wait_until(lambda: simulator[HEARTBEAT] >= 3)
    judge.stop_reason = "the disk is full"
    wait_until(lambda: simulator[LINE_STOP] == 1)
    judge.stop_reason = None
    wait_until(lambda: simulator[LINE_STOP] == 0)
    alive.clear()
    polled = simulator.requests
    wait_until(lambda: simulator.requests > polled + 2)
    beats, polled = simulator[HEARTBEAT], simulator.requests
    wait_until(lambda: simulator.requests > polled + 40)  # 200 ms: four beats would have come
    assert simulator[HEARTBEAT] == beats


def test_a_station_that_takes_no_parts_leaves_the_plc_waiting_until_it_does(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc
) -> None:
    judge.stopping = True
    plc = make_plc()
    simulator.part("A-1")
    wait_until(lambda: plc.problem is not None and "takes no more parts" in plc.problem)
    assert simulator[RESULT_COUNTER] == 0
    judge.stopping = False
    answered(simulator)
    assert simulator.results == [(1, PASS)]


def test_a_verdict_that_could_not_be_stored_is_asked_for_again(
    simulator: SimulatedPlc, judge: Judge, make_plc: MakePlc
) -> None:
    judge.holding = True
    make_plc()
    simulator.part("A-1")
    wait_until(lambda: judge.held)
    failed, _ = judge.held.pop()
    judge.holding = False
    failed.set_exception(StationError("the verdict could not be stored: disk full"))
    answered(simulator)
    assert simulator.results == [(1, PASS)]
    assert len({trigger.origin for trigger in judge.triggers}) == 1


def test_registers_that_the_plc_does_not_have_are_told(simulator: SimulatedPlc, make_plc: MakePlc) -> None:
    plc = make_plc("counter_register = 0\nresult_register = 900\n")
    wait_until(lambda: plc.problem is not None and "refuses" in plc.problem)
    assert "registers 900 to 903 cannot be read" in str(plc.problem)


@pytest.mark.parametrize(
    ("registers", "words"),
    [
        ("result_register = 100\n", "give either counter_register or input"),
        ("counter_register = 0\ninput = 1\nresult_register = 100\n", "give either counter_register or input"),
        ("counter_register = 0\n", "needs result_register"),
        ("counter_register = 0\nserial_register = 0\nresult_register = 100\n", "register 0 belongs to counter_register"),
        ("counter_register = 0\nresult_register = 100\nheartbeat_register = 103\n", "register 103 belongs to"),
        ("counter_register = 0\nserial_register = 200\nresult_register = 100\n", "at most 125"),
        ("counter_register = 0\nresult_register = 65534\n", "goes past 65535"),
    ],
)
def test_a_register_map_that_cannot_work_is_refused(tmp_path: Path, registers: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        trigger_settings(tmp_path, f'[trigger]\nkind = "modbus"\nhost = "plc"\n{registers}')
    assert "\n" not in str(caught.value)


COUNTS = st.builds(Count, st.integers(1, 2**32 - 1), st.integers(0, 65_535))


def none_known(_: Count) -> bool:
    return False


@given(COUNTS, st.integers(0, 101))
def test_every_count_up_to_the_plc_s_is_owed_once(concluded: Count, steps: int) -> None:
    counter = (concluded.counter + steps) % 65_536
    standing = compare(counter, concluded, 101, none_known)
    assert not standing.restarted
    assert [count.counter for count in standing.owed] == [(concluded.counter + n) % 65_536 for n in range(1, steps + 1)]
    assert len(set(standing.owed)) == steps
    assert concluded not in standing.owed


@given(COUNTS, st.integers(102, 65_535))
def test_a_counter_that_was_set_back_owes_one_part_at_most_in_a_new_epoch(concluded: Count, steps: int) -> None:
    counter = (concluded.counter + steps) % 65_536
    standing = compare(counter, concluded, 101, none_known)
    assert standing.restarted
    assert standing.concluded.epoch != 0
    assert [count.counter for count in standing.owed] == ([counter] if counter else [])


@given(COUNTS, st.integers(0, 5))
def test_a_plc_that_remembers_less_than_the_station_begins_a_new_epoch(concluded: Count, steps: int) -> None:
    counter = (concluded.counter + steps) % 65_536
    assert compare(counter, concluded, 101, lambda _: True).restarted


def test_a_plc_without_an_epoch_whose_counters_are_equal_waits_for_nothing() -> None:
    assert compare(0, Count(0, 0), 101, none_known).owed == ()
    assert compare(400, Count(0, 400), 101, none_known).owed == ()
    assert [count.counter for count in compare(400, Count(0, 0), 101, none_known).owed] == [400]


def test_a_real_line_answers_a_plc_once_for_each_part(simulator: SimulatedPlc, make_station: MakeStation) -> None:
    station = make_station(NO_BROKER, more=f"[evidence]\nmin_free_mib = 0\n{simulator.settings()}")
    wait_until(lambda: simulator.epoch)
    for number, skip, code in ((0, 0, FAIL), (1, 0, PASS), (2, 1, PASS)):
        simulator.part(f"part-{number:05d}", skip=skip)
        submit(station, 1, start=number)  # the frame finds its part by the serial
        answered(simulator)
        assert simulator[RESULT] == code
    assert simulator.results == [(1, FAIL), (2, PASS), (3, UNDECIDED), (4, PASS)]
    reader = StoreReader(station.settings.station.store / DATABASE_FILE)
    messages = [json.loads(text) for _, text in reader.outbox_after(0, 10)]
    reader.close()
    assert len(messages) == 4
    assert {message["part"]["serial"] for message in messages} >= {"part-00000", "part-00001", "part-00002"}
    assert [message["reason"] for message in messages].count(Reason.TRIGGER_MISSED) == 1


def in_hand(store: Path) -> int:
    if not (store / DATABASE_FILE).exists():
        return 0
    database = apsw.Connection(str(store / DATABASE_FILE), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return len(list(database.execute("SELECT 1 FROM open_trigger")))
    except apsw.SQLError:  # the tables are being made
        return 0
    finally:
        database.close()


def test_a_station_killed_with_a_part_in_hand_answers_it_once(
    simulator: SimulatedPlc, spot_package: Path, tmp_path: Path
) -> None:
    path = station_toml(tmp_path, spot_package, broker_port=NO_BROKER, more=simulator.settings())
    command = [sys.executable, "-m", "linegate.cli", "run", str(path)]
    store = tmp_path / "var"
    for serial in ("A-1", "A-2"):
        simulator.part(serial)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
            wait_until(lambda: in_hand(store) == 1, what="the part is in the journal")  # no camera: it waits for a frame
            first.kill()
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as second:
            answered(simulator)
            second.terminate()
    assert simulator.results == [(1, UNDECIDED), (2, UNDECIDED)]
    reader = StoreReader(store / DATABASE_FILE)
    messages = [json.loads(text) for _, text in reader.outbox_after(0, 10)]
    reader.close()
    assert [(message["part"]["serial"], message["reason"]) for message in messages] == [
        ("A-1", "station_restarted"),
        ("A-2", "station_restarted"),
    ]
