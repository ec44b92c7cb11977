"""A PLC over Modbus TCP: it says that a part is here, and reads the verdict back.

Rules kept here: each trigger gets one verdict, and its result is written once it is stored, in the order of the counter; a
trigger that was skipped between two polls is undecided, with a reason of its own; a connection that breaks is reported
once and made anew, and what was concluded meanwhile is written then. All Modbus traffic is one thread's. Which parts are
owed an answer is decided by `plc_handshake`, how they are judged by the line.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Final, Protocol

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ModbusPDU

from linegate.errors import StationError
from linegate.stages import Part
from linegate_edge.message import utc_now
from linegate_edge.metrics import Metrics
from linegate_edge.plc_handshake import Count, Standing, compare
from linegate_edge.plc_settings import RESULT_REGISTERS, ModbusTrigger
from linegate_edge.records import Recorded, Trigger

log = logging.getLogger("linegate.plc")
# The client logs each failed try; the one line of `_set_problem` says it better.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

RESULT_CODES: Final = {"pass": 1, "fail": 2, "undecided": 3}
NO_RESULT: Final = 0


class Judge(Protocol):
    """The line, as far as a PLC needs it."""

    def trigger(self, trigger: Trigger, missed: str | None = None) -> Future[Recorded]:
        """Open a part, or take note of one that was `missed`, and return the future of its verdict."""


class Plc(threading.Thread):
    """The PLC of a station; `problem` is why there is no handshake with it, in one line, or None.

    `knows_origin` says whether a trigger of this origin has its verdict already, `line_stop` why the line must stop, and
    `alive` whether the station judges at all: the heartbeat beats only then.
    """

    def __init__(
        self,
        settings: ModbusTrigger,
        judge: Judge,
        metrics: Metrics,
        *,
        knows_origin: Callable[[str], bool],
        line_stop: Callable[[], str | None],
        alive: Callable[[], bool],
    ) -> None:
        super().__init__(name="plc", daemon=True)
        self.problem: str | None = "not connected yet"
        self._settings, self._judge, self._metrics = settings, judge, metrics
        self._knows_origin, self._line_stop, self._alive = knows_origin, line_stop, alive
        self._where = f"PLC {settings.host}:{settings.port}"
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._owed: deque[tuple[Count, Future[Recorded]]] = deque()
        self._seen: Count | None = None
        self._high: bool | None = None
        self._beats = 0
        self._next_beat = self._next_result = 0.0
        self._shown_stop: bool | None = None
        metrics.plc_up.set(0)

    def run(self) -> None:
        """Keep the handshake up until stopped."""
        poll_s = self._settings.poll_ms / 1e3
        while not self._stopping.is_set():
            link = _Link(self._settings)
            try:
                link.open()
                self._meet(link)
                self._set_problem(None)
                while not self._stopping.is_set():
                    self._wake.clear()
                    self._turn(link)
                    self._wake.wait(poll_s)
            except _LinkError as error:
                self._set_problem(str(error))
            except StationError as error:
                # The station takes no parts, or a verdict could not be stored: the PLC goes on waiting, as it must, and the
                # next look at its registers finds the part again.
                self._set_problem(f"waits for a verdict in vain: {error}")
            except Exception as error:
                log.exception("%s: the handshake failed", self._where)
                self._set_problem(f"{type(error).__name__}: {error}")
            finally:
                link.close()
            self._stopping.wait(self._settings.retry_s)

    def stop(self) -> None:
        """Ask the thread to end; a part without an answer is found again by the next start."""
        self._stopping.set()
        self._wake.set()

    # -- one turn --------------------------------------------------------------------------------------------------

    def _turn(self, link: _Link) -> None:
        if self._settings.input is not None:
            self._watch_input(link, self._settings.input)
        else:
            self._watch_counter(link)
        now = time.monotonic()
        if now >= self._next_result and self._owed and self._owed[0][1].done():
            self._answer(link)
            # A PLC that does not wait must still be able to see each result: no two within one poll.
            self._next_result = now + self._settings.poll_ms / 1e3
        if self._settings.heartbeat_register is not None and now >= self._next_beat and self._alive():
            self._beats = (self._beats + 1) % 65_536
            link.write(self._settings.heartbeat_register, [self._beats])
            self._next_beat = now + self._settings.heartbeat_ms / 1e3
        stop = self._line_stop() is not None
        if self._settings.line_stop_register is not None and stop != self._shown_stop:
            link.write(self._settings.line_stop_register, [int(stop)])
            self._shown_stop = stop

    def _meet(self, link: _Link) -> None:
        """Find out, on a new connection, which parts are owed an answer."""
        self._shown_stop = None
        register = self._settings.result_register
        if self._settings.input is not None:
            if self._seen is None:
                # An edge has no number: parts are counted from the start of the station, in an epoch of this run.
                self._seen = Count.in_new_epoch(0)
                if register is not None:
                    link.write(register, _result(NO_RESULT, self._seen))
            return
        assert register is not None  # ModbusTrigger asks for it where there is a counter
        data = link.read_data()
        _, counter, high, low = link.read(register, RESULT_REGISTERS)
        concluded = Count(high << 16 | low, counter)
        standing = compare(data["counter_register"][0], concluded, self._settings.max_missed + 1, self._is_known)
        if standing.restarted:
            log.warning("%s: its counters begin anew at %d", self._where, data["counter_register"][0])
            # Before anything is triggered: a crash from here on finds this epoch again.
            link.write(register, _result(NO_RESULT, standing.concluded))
        self._resume(standing, data)

    def _resume(self, standing: Standing, data: _Data) -> None:
        in_hand = dict(self._owed)
        lost = len(in_hand.keys() - set(standing.owed))
        if standing.restarted and lost:
            log.warning("%s: waits no longer for %d parts; their verdicts stand in the store", self._where, lost)
        self._owed.clear()
        self._seen = standing.concluded
        self._start_parts(standing.owed, data, in_hand)

    def _watch_counter(self, link: _Link) -> None:
        assert self._seen is not None  # set by `_meet`
        data = link.read_data()
        counter = data["counter_register"][0]
        counts = self._seen.until(counter, self._settings.max_missed + 1)
        if counts is None:
            self._meet(link)
        elif counts:
            self._start_parts(counts, data, {})

    def _watch_input(self, link: _Link, address: int) -> None:
        high = link.read_input(address)
        if high and self._high is False:
            assert self._seen is not None  # set by `_meet`
            self._start_parts([self._seen.following], link.read_data(), {})
        self._high = high  # only now: an edge whose part was not taken is seen again

    def _start_parts(self, counts: Sequence[Count], data: _Data, in_hand: Mapping[Count, Future[Recorded]]) -> None:
        """Open the part of the last count, which is the one before the cameras; those before it were skipped."""
        for count in counts:
            future = in_hand.get(count)
            if future is None:
                future = self._open(count, data) if count == counts[-1] else self._miss(count)
                future.add_done_callback(lambda _: self._wake.set())
            self._owed.append((count, future))
            self._seen = count

    def _open(self, count: Count, data: _Data) -> Future[Recorded]:
        settings = self._settings
        serial = _text(data.get("serial_register"), settings.serial_chars, settings.low_first)
        part_type: str | None = None
        if settings.part_type_chars > 0:
            part_type = _text(data.get("part_type_register"), settings.part_type_chars, settings.low_first)
        elif "part_type_register" in data:
            part_type = str(data["part_type_register"][0])
        encoder = None
        if "encoder_register" in data:
            words = data["encoder_register"]
            high, low = reversed(words) if settings.low_first else words
            encoder = high << 16 | low
        part = Part(serial, "plc", part_type) if serial is not None else Part(_name(count), "counter", part_type)
        return self._judge.trigger(Trigger(part, utc_now(), self._origin(count), encoder))

    def _miss(self, count: Count) -> Future[Recorded]:
        text = f"the PLC raised its counter past {count.counter} between two polls: let it wait for the result"
        log.warning("%s: %s", self._where, text)
        self._metrics.triggers_missed.inc()
        return self._judge.trigger(Trigger(Part(_name(count), "counter"), utc_now(), self._origin(count)), text)

    def _answer(self, link: _Link) -> None:
        count, future = self._owed[0]
        error = future.exception()
        if error is not None:
            self._owed.popleft()
            raise StationError(f"the verdict of count {count.counter} is missing: {error}")
        if self._settings.result_register is not None:
            link.write(self._settings.result_register, _result(RESULT_CODES[future.result().message["decision"]], count))
        self._owed.popleft()

    def _origin(self, count: Count) -> str:
        return f"modbus:{self._settings.host}:{count.epoch:08x}:{count.counter}"

    def _is_known(self, count: Count) -> bool:
        return self._knows_origin(self._origin(count))

    def _set_problem(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            log.warning("%s: %s; trying again every %g s", self._where, problem, self._settings.retry_s)
        elif problem is None and self.problem is not None:
            log.info("%s: connected", self._where)
        self.problem = problem
        self._metrics.plc_up.set(problem is None)


_Data = dict[str, list[int]]
"""Registers read at one moment, by the name of their setting."""


class _LinkError(Exception):
    """The PLC does not answer, or refuses; the text says what was asked and how to mend it."""


class _Link:
    """One connection to a PLC.

    Raises:
        _LinkError: from every method, where the PLC does not answer or refuses.
    """

    def __init__(self, settings: ModbusTrigger) -> None:
        self._settings = settings
        # No retry inside one connection: after a time-out the next answer could be that of the request before.
        self._client = ModbusTcpClient(settings.host, port=settings.port, timeout=settings.timeout_ms / 1e3, retries=0)

    def open(self) -> None:
        """Connect."""
        if not self._client.connect():  # type: ignore[no-untyped-call]
            raise _LinkError("cannot be reached: check [trigger] host and port, and the PLC's Modbus server")

    def close(self) -> None:
        """Disconnect."""
        self._client.close()  # type: ignore[no-untyped-call]

    def read(self, first: int, count: int) -> list[int]:
        """Return holding registers."""
        request = functools.partial(self._client.read_holding_registers, first, count=count, device_id=self._settings.unit)
        registers = list(self._ask(f"registers {first} to {first + count - 1} cannot be read", request).registers)
        if len(registers) != count:
            raise _LinkError(f"answers {len(registers)} registers where {count} were asked for: check the PLC's Modbus server")
        return registers

    def read_data(self) -> _Data:
        """Return all that a trigger brings, read by one request and thus at one moment."""
        span = self._settings.read_span
        if span is None:
            return {}
        first, registers = span[0], self.read(*span)
        return {name: registers[at - first : at - first + count] for name, (at, count) in self._settings.reads.items()}

    def read_input(self, address: int) -> bool:
        """Return a discrete input, or a coil where the settings say so."""
        client, unit = self._client, self._settings.unit
        if self._settings.input_kind == "coil":
            request = functools.partial(client.read_coils, address, count=1, device_id=unit)
        else:
            request = functools.partial(client.read_discrete_inputs, address, count=1, device_id=unit)
        return bool(self._ask(f"{self._settings.input_kind} {address} cannot be read", request).bits[0])

    def write(self, first: int, values: list[int]) -> None:
        """Write holding registers by one request."""
        request = functools.partial(self._client.write_registers, first, values, device_id=self._settings.unit)
        self._ask(f"registers {first} to {first + len(values) - 1} cannot be written", request)

    def _ask(self, what: str, request: Callable[[], ModbusPDU]) -> ModbusPDU:
        try:
            answer = request()
        except (ModbusException, OSError) as error:
            raise _LinkError(f"the connection broke: {what} ({error}): check the network and the PLC") from error
        if answer.isError():
            text = f"{what}: the PLC refuses with exception code {answer.exception_code}"
            raise _LinkError(f"{text}: compare the [trigger] registers with the PLC's map")
        return answer


def _result(code: int, count: Count) -> list[int]:
    """Return the result registers; the code stands first, for a PLC that takes registers over one by one."""
    return [code, count.counter, count.epoch >> 16, count.epoch & 0xFFFF]


def _name(count: Count) -> str:
    return f"plc-{count.epoch:08x}-{count.counter:05d}"


def _text(registers: list[int] | None, chars: int, low_first: bool) -> str | None:
    """Return the ASCII text in registers, two characters each, up to the first NUL; None where there is none."""
    if registers is None:
        return None
    data = b"".join(register.to_bytes(2, "little" if low_first else "big") for register in registers)[:chars]
    text = data.split(b"\0")[0].decode("ascii", "backslashreplace").strip()
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text) or None
