"""What a MES may say to a station and what it is answered: commands, answers, confirmations, schema version 1.

Rules kept here: every type is frozen; what comes in is closed, so that a field nobody heeds is named and not ignored; what
goes out has every field always, null where it does not apply; a reason is a stable code for programs beside a line for
people. Doing what a command says is left to `dispatch`, the way it came to `mqtt_commands` and `review/commands`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

import pydantic_core
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from linegate.settings import describe
from linegate.stages import Part
from linegate_edge.message import SCHEMA_VERSION
from linegate_edge.records import Mode

MAX_COMMAND_BYTES: Final = 65_536
_MAX_SEQUENCE: Final = 2**63 - 1
_NO_CONTROL: Final = r"^[^\x00-\x1f\x7f]+$"

Text = Annotated[str, Field(min_length=1, max_length=128, pattern=_NO_CONTROL)]
Version = Annotated[str, Field(pattern=r"^\d{1,4}\.\d{1,4}$", examples=[SCHEMA_VERSION])]
Sequence = Annotated[int, Field(ge=1, le=_MAX_SEQUENCE)]


def _to_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time lies outside the calendar") from None


def _not_before_first(last: int, info: ValidationInfo) -> int:
    if last < info.data.get("first", last):
        raise ValueError(f"must not be less than first ({info.data['first']})")
    return last


class _Incoming(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SequenceSpan(_Incoming):
    """The verdicts from `first` to `last`, both included."""

    first: Sequence
    last: Annotated[Sequence, AfterValidator(_not_before_first)]


class Confirmed(_Incoming):
    """Which verdicts the MES has taken over: by id, by spans of sequence numbers, or both."""

    verdict_ids: list[Text] = Field(default_factory=list, max_length=1000)
    sequences: list[SequenceSpan] = Field(default_factory=list, max_length=256)

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.verdict_ids and not self.sequences:
            raise ValueError("name what is confirmed in verdict_ids or sequences")
        return self


class _Command(_Incoming):
    schema_version: Version
    command_id: Text = Field(description="Idempotency key: a repeated command is answered the same, and done once.")


class TriggerCommand(_Command):
    """A part is here: it gets exactly one verdict, whose id is in the answer."""

    command: Literal["trigger"]
    serial: Text | None = Field(default=None, description="Without one, the command's id names the part.")
    part_type: Text | None = None
    order: Text | None = None
    batch: Text | None = None
    supplier_lot: Text | None = Field(default=None, description="The lot in which its material was delivered.")
    carrier: Text | None = None
    attempt: int = Field(default=1, ge=1, le=1_000_000)
    encoder: int | None = Field(default=None, ge=0, le=_MAX_SEQUENCE, description="The conveyor's count.")
    triggered_at: Annotated[AwareDatetime, AfterValidator(_to_utc)] | None = Field(
        default=None, description="When the part was there; without it, when the command came."
    )

    @property
    def part(self) -> Part:
        """The part that is here."""
        serial, source = (self.serial, "command") if self.serial is not None else (self.command_id, "command_id")
        return Part(
            serial,
            source,
            self.part_type,
            self.order,
            self.batch,
            self.supplier_lot,
            carrier=self.carrier,
            attempt=self.attempt,
        )


class RecipeCommand(_Command):
    """Change over: the recipe is in force from the next part on."""

    command: Literal["recipe"]
    recipe: Text


class StartCommand(_Command):
    """Take parts again."""

    command: Literal["start"]


class StopCommand(_Command):
    """Take no more parts until `start`; those in hand get their verdicts."""

    command: Literal["stop"]


class ModeCommand(_Command):
    """Mark the verdicts from the next part on."""

    command: Literal["mode"]
    mode: Mode


class ReplayCommand(_Command):
    """Publish stored verdicts again, with the ids that they have."""

    command: Literal["replay"]
    first: Sequence
    last: Annotated[Sequence, AfterValidator(_not_before_first)] | None = Field(
        default=None, description="Without one, to the newest."
    )


class ConfirmCommand(_Command):
    """The same as a confirmation on `ack`, for those who want it answered."""

    command: Literal["confirm"]
    confirm: Confirmed


Command = TriggerCommand | RecipeCommand | StartCommand | StopCommand | ModeCommand | ReplayCommand | ConfirmCommand
COMMANDS: Final[dict[str, type[Command]]] = {
    "trigger": TriggerCommand,
    "recipe": RecipeCommand,
    "start": StartCommand,
    "stop": StopCommand,
    "mode": ModeCommand,
    "replay": ReplayCommand,
    "confirm": ConfirmCommand,
}


class Confirmation(_Incoming):
    """What the MES says on `ack`: it has these verdicts for good. It is not answered."""

    schema_version: Version = SCHEMA_VERSION
    confirm: Confirmed


class AnswerReason(StrEnum):
    """Why a command was accepted, or was not; the values are stable."""

    ACCEPTED = "accepted"
    MALFORMED = "malformed"
    VERSION = "unsupported_version"
    UNKNOWN_COMMAND = "unknown_command"
    ID_REUSED = "command_id_reused"
    UNKNOWN_RECIPE = "unknown_recipe"
    UNKNOWN_SEQUENCE = "unknown_sequence"
    NOT_CONFIRMING = "confirmation_not_asked_for"
    STOPPED = "stopped"
    BUSY = "busy"
    FAILED = "failed"


class Answer(BaseModel):
    """What the station says to a command; fields that the command has no use for are null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: str = SCHEMA_VERSION
    station: str
    boot_id: str
    command: str | None
    command_id: str | None
    ok: bool
    reason: AnswerReason
    reason_text: str
    answered: datetime
    verdict_id: str | None = None
    recipe: str | None = None
    recipe_digest: str | None = None
    mode: Mode | None = None
    running: bool | None = None
    count: int | None = None


class CommandError(Exception):
    """A command that cannot be done; `command` and `command_id` are what could be read of it."""

    def __init__(self, reason: AnswerReason, text: str, command: str | None = None, command_id: str | None = None) -> None:
        super().__init__(text)
        self.reason, self.command, self.command_id = reason, command, command_id


def parse_command(payload: bytes) -> Command:
    """Return the command in a payload.

    Raises:
        CommandError: it is none that this station knows; the text says what is wrong with it.
    """
    values = _object_in(payload)
    command_id = _text_or_none(values.get("command_id"))
    name = _text_or_none(values.get("command"))
    version = values.get("schema_version")
    if isinstance(version, str) and version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        text = f"schema_version {version[:16]!r}: this station speaks {SCHEMA_VERSION}"
        raise CommandError(AnswerReason.VERSION, text, name, command_id)
    if name is not None and name not in COMMANDS:
        text = f"unknown command '{name[:64]}': known are {', '.join(COMMANDS)}"
        raise CommandError(AnswerReason.UNKNOWN_COMMAND, text, name, command_id)
    model = COMMANDS.get(name or "")
    if model is None:
        text = f"key 'command' must be one of {', '.join(COMMANDS)}"
        raise CommandError(AnswerReason.MALFORMED, text, None, command_id)
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        raise CommandError(AnswerReason.MALFORMED, describe(error, model), name, command_id) from None


def parse_ack(payload: bytes) -> Confirmation | None:
    """Return the confirmation in a payload from `ack`, or None where it is a station's answer.

    Raises:
        CommandError: it is neither.
    """
    values = _object_in(payload)
    if "ok" in values and "command_id" in values:
        return None
    try:
        return Confirmation.model_validate_json(payload)
    except ValidationError as error:
        raise CommandError(AnswerReason.MALFORMED, describe(error, Confirmation)) from None


def _object_in(payload: bytes) -> dict[str, Any]:
    if len(payload) > MAX_COMMAND_BYTES:
        raise CommandError(AnswerReason.MALFORMED, f"{len(payload)} bytes are too many: {MAX_COMMAND_BYTES} at most")
    try:
        values = pydantic_core.from_json(payload, allow_inf_nan=False)
    except ValueError as error:
        raise CommandError(AnswerReason.MALFORMED, f"not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise CommandError(AnswerReason.MALFORMED, f"expected a JSON object, got {type(values).__name__}")
    return values


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and 1 <= len(value) <= 128 and value.isprintable() else None
