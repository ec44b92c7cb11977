"""A PLC on loopback: a real Modbus TCP server, with the program that a press would run against a station.

Its program writes a part's data, raises the trigger counter, and waits until the result counter equals it. It can vanish
and come back, with its memory or, as after a power cut, without it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

T = TypeVar("T")
COUNTER, PART_TYPE, ENCODER, SERIAL = 0, 1, 2, 4
RESULT, RESULT_COUNTER, EPOCH, HEARTBEAT, LINE_STOP = 100, 101, 102, 104, 105
SERIAL_CHARS, REGISTERS, BITS = 16, 128, 32
MAP = (
    f"counter_register = {COUNTER}\npart_type_register = {PART_TYPE}\nencoder_register = {ENCODER}\n"
    f"serial_register = {SERIAL}\nserial_chars = {SERIAL_CHARS}\n"
    f"result_register = {RESULT}\nheartbeat_register = {HEARTBEAT}\nline_stop_register = {LINE_STOP}\n"
)
_READ, _READ_INPUTS, _READ_COILS = 3, 2, 1


class SimulatedPlc:
    """A PLC with 128 holding registers and 32 discrete inputs; its methods may be called from any thread."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.results: list[tuple[int, int]] = []
        """Each result that a station wrote: result counter, code."""
        self.requests = 0
        self._memory = [0] * REGISTERS
        self._inputs = [False] * BITS
        self._server: ModbusTcpServer | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="plc-simulator", daemon=True)
        self._thread.start()

    def settings(self, registers: str = MAP) -> str:
        """Return the `[trigger]` section of a STATION.toml for this PLC."""
        timing = "poll_ms = 5\nretry_s = 0.05\ntimeout_ms = 1000\nheartbeat_ms = 50\n"
        return f'[trigger]\nkind = "modbus"\nhost = "127.0.0.1"\nport = {self.port}\n{timing}{registers}'

    def appear(self) -> None:
        """Start serving."""
        self._do(self._appear())

    def vanish(self) -> None:
        """Break all connections and refuse new ones; the memory is kept."""
        self._do(self._vanish())

    def lose_memory(self) -> None:
        """Zero all registers, as a PLC does whose registers are not retentive."""
        self[0] = [0] * REGISTERS

    def __getitem__(self, register: int) -> int:
        if self._server is None:
            return self._memory[register]
        return int(self._do(self._server.async_getValues(1, _READ, register, 1))[0])

    def __setitem__(self, register: int, values: int | list[int]) -> None:
        values = [values] if isinstance(values, int) else values
        self._memory[register : register + len(values)] = values
        if self._server is not None:
            self._do(self._server.async_setValues(1, _READ, register, values))

    def set_input(self, address: int, high: bool) -> None:
        """Set a discrete input and the coil of the same address."""
        self._inputs[address] = high
        if self._server is not None:
            for function in (_READ_COILS, _READ_INPUTS):
                self._do(self._server.async_setValues(1, function, address, [high]))

    # -- the program -----------------------------------------------------------------------------------------------

    def part(self, serial: str = "", part_type: int = 0, encoder: int = 0, skip: int = 0) -> int:
        """Write a part's data, raise the counter (past `skip` others), and return it."""
        text = serial.encode("ascii").ljust(SERIAL_CHARS, b"\0")
        words = [int.from_bytes(text[at : at + 2], "big") for at in range(0, SERIAL_CHARS, 2)]
        self[PART_TYPE] = [part_type, encoder >> 16, encoder & 0xFFFF, *words]
        counter = (self[COUNTER] + 1 + skip) % 65_536
        self[COUNTER] = counter
        return counter

    @property
    def answered(self) -> bool:
        """Whether the PLC may let the part go."""
        return self[COUNTER] == self[RESULT_COUNTER]

    @property
    def epoch(self) -> int:
        """What the station has written into the epoch registers."""
        return self[EPOCH] << 16 | self[EPOCH + 1]

    # -- the server ------------------------------------------------------------------------------------------------

    async def _appear(self) -> None:
        words = [SimData(0, values=list(self._memory), datatype=DataType.REGISTERS)]
        bits = [SimData(0, values=list(self._inputs), datatype=DataType.BITS)]
        device = SimDevice(1, (list(bits), list(bits), words, list(words)), action=self._observe)
        self._server = ModbusTcpServer(device, address=("127.0.0.1", self.port))
        await self._server.serve_forever(background=True)

    async def _vanish(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            self._memory = [int(value) for value in await server.async_getValues(1, _READ, 0, REGISTERS)]
            await server.shutdown()

    async def _observe(
        self, function: int, _start: int, address: int, _count: int, _registers: list[int], values: list[int] | None
    ) -> None:
        self.requests += 1
        if values and function == 16 and address == RESULT and values[0] != 0:
            self.results.append((values[1], values[0]))

    def close(self) -> None:
        """Vanish for good."""
        self.vanish()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
