"""`[trigger] kind = "modbus"`: where the PLC is and which of its registers mean what.

Rules kept here: addresses count from 0, as on the wire; what is read at a trigger lies within one Modbus request, so that
counter, serial, type and encoder are of one moment; no register has two meanings. The handshake itself is left to `plc`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from linegate.settings import Settings

MAX_READ: Final = 125
"""Registers that one Modbus request may read."""
RESULT_REGISTERS: Final = 4
"""Result code, result counter, and the epoch in two registers."""

Register = Annotated[int, Field(ge=0, le=65_535)]


class ModbusTrigger(Settings):
    """`[trigger] kind = "modbus"`: a PLC raises a counter (or an input) for each part and reads the result back."""

    kind: Literal["modbus"]
    host: Annotated[str, Field(min_length=1, max_length=128)]
    port: int = Field(default=502, ge=1, le=65_535)
    unit: int = Field(default=1, ge=0, le=255)
    poll_ms: int = Field(default=10, ge=1, le=10_000)
    timeout_ms: int = Field(default=500, ge=10, le=60_000)
    retry_s: float = Field(default=2.0, gt=0, le=3600)
    counter_register: Register | None = None
    input: Register | None = None
    input_kind: Literal["discrete", "coil"] = "discrete"
    serial_register: Register | None = None
    serial_chars: int = Field(default=16, ge=1, le=2 * MAX_READ)
    part_type_register: Register | None = None
    part_type_chars: int = Field(default=0, ge=0, le=2 * MAX_READ)
    encoder_register: Register | None = None
    low_first: bool = False
    max_missed: int = Field(default=100, ge=0, le=10_000)
    result_register: Register | None = None
    heartbeat_register: Register | None = None
    heartbeat_ms: int = Field(default=500, ge=20, le=60_000)
    line_stop_register: Register | None = None

    @model_validator(mode="after")
    def _one_map_without_overlap(self) -> Self:
        if (self.counter_register is None) == (self.input is None):
            raise ValueError("give either counter_register or input: one of them says that a part is here")
        if self.counter_register is not None and self.result_register is None:
            raise ValueError("counter_register needs result_register: the result counter is the other half of the handshake")
        if self.read_span is not None and self.read_span[1] > MAX_READ:
            raise ValueError(
                f"counter, serial, part type and encoder span {self.read_span[1]} registers, at most {MAX_READ} can be read "
                "at one moment: move them together in the PLC"
            )
        taken: dict[int, str] = {}
        for name, (first, count) in {**self.reads, **self.writes}.items():
            if first + count > 65_536:
                raise ValueError(f"{name} {first} with its {count} registers goes past 65535")
            for register in range(first, first + count):
                if taken.setdefault(register, name) != name:
                    raise ValueError(f"register {register} belongs to {taken[register]} and to {name}: give each its own")
        return self

    @property
    def reads(self) -> Mapping[str, tuple[int, int]]:
        """First register and count of all that is read at a trigger, by the name of its setting."""
        type_count = max(1, (self.part_type_chars + 1) // 2)
        return _given(
            counter_register=(self.counter_register, 1),
            serial_register=(self.serial_register, (self.serial_chars + 1) // 2),
            part_type_register=(self.part_type_register, type_count),
            encoder_register=(self.encoder_register, 2),
        )

    @property
    def writes(self) -> Mapping[str, tuple[int, int]]:
        """First register and count of all that the station writes, by the name of its setting."""
        return _given(
            result_register=(self.result_register, RESULT_REGISTERS),
            heartbeat_register=(self.heartbeat_register, 1),
            line_stop_register=(self.line_stop_register, 1),
        )

    @property
    def read_span(self) -> tuple[int, int] | None:
        """First register and count of the one request that reads all of `reads`, or None where there is nothing to read."""
        if not self.reads:
            return None
        first = min(start for start, _ in self.reads.values())
        return first, max(start + count for start, count in self.reads.values()) - first


def _given(**registers: tuple[int | None, int]) -> dict[str, tuple[int, int]]:
    return {name: (first, count) for name, (first, count) in registers.items() if first is not None}
