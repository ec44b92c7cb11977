"""Commands → done, each once, and answered: one thread, whatever way they come.

Rules kept here: a command that comes again with the same id is answered the same and not done again, and one whose id was
used for another is refused; one that was turned away, `stopped` or `busy`, may be tried again with its id; a trigger is
answered when it is durable; what is wrong with a command is told to whoever sent it and never ends the thread. A trigger
is known again over restarts, by its origin in the store; of others the last `REMEMBERED` are. Who may send commands is
left to the broker's access rules, what they say to `commands`.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from linegate.errors import LinegateError, StationError
from linegate_edge.commands import (
    Answer,
    AnswerReason,
    Command,
    CommandError,
    ConfirmCommand,
    Confirmed,
    ModeCommand,
    RecipeCommand,
    ReplayCommand,
    StartCommand,
    StopCommand,
    TriggerCommand,
    parse_command,
)
from linegate_edge.message import utc_now
from linegate_edge.metrics import Metrics
from linegate_edge.operate import Operate
from linegate_edge.records import Trigger

log = logging.getLogger("linegate.commands")
REMEMBERED: Final = 4096
"""How many answers are kept, for commands that come again."""
_WAITING: Final = 1024
_WAITERS: Final = 16

Reply = Callable[[Answer], None]
"""Takes the answer, from any thread, and neither waits nor raises."""
Confirm = Callable[[Confirmed], int | None]
"""Takes a confirmation and returns how many verdicts it named; None where the station asks for none."""


@dataclass(slots=True)
class _Known:
    """A command by its id: the SHA-256 of what it said, its answer once there is one, and who waits for that."""

    digest: bytes
    answer: Answer | None = None
    waiters: list[Reply] = field(default_factory=list)


class Dispatch:
    """Does commands in the order of their arrival; `take` may be called from any thread and never waits."""

    def __init__(self, operate: Operate, station: str, boot_id: str, metrics: Metrics, confirm: Confirm) -> None:
        self._operate, self._confirm, self._metrics = operate, confirm, metrics
        self._answer = functools.partial(Answer, station=station, boot_id=boot_id)
        self._waiting: queue.Queue[tuple[bytes, Reply] | None] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="commands", daemon=True)

    def start(self) -> None:
        """Start to do commands."""
        self._thread.start()

    def stop(self) -> None:
        """Do no more commands: those that wait, and those that still come, are answered `stopped`."""
        self._closed = True
        if self._thread.ident is not None:
            self._waiting.put(None)
            self._thread.join()

    def take(self, payload: bytes, reply: Reply) -> None:
        """Take a command as it came; `reply` is told its answer."""
        if self._closed:
            text = "the station is stopping and takes no commands: send it again later"
            self._turn_away(payload, reply, AnswerReason.STOPPED, text)
            return
        try:
            self._waiting.put_nowait((payload, reply))
        except queue.Full:
            text = f"{_WAITING} commands wait already, and this one was not taken: send it again later"
            self._turn_away(payload, reply, AnswerReason.BUSY, text)

    def _turn_away(self, payload: bytes, reply: Reply, reason: AnswerReason, text: str) -> None:
        try:
            command = parse_command(payload)
            raise CommandError(reason, text, command.command, command.command_id)
        except CommandError as error:
            reply(self._refusal(error))

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (entry := self._waiting.get()) is not None:
            payload, reply = entry
            if self._closed:
                self.take(payload, reply)
                continue
            try:
                self._heed(payload, reply)
            except CommandError as error:
                reply(self._refusal(error))

    def _heed(self, payload: bytes, reply: Reply) -> None:
        """Do a command that is new; answer one that is known.

        Raises:
            CommandError: it is malformed, or its id was used for another.
        """
        command = parse_command(payload)
        digest = hashlib.sha256(command.model_dump_json().encode()).digest()
        with self._lock:
            known = self._known.get(command.command_id)
            if known is None:
                self._remember(command.command_id, _Known(digest, waiters=[reply]))
            elif known.digest != digest:
                text = f"command_id '{command.command_id}' was used for another command: give each command its own"
                raise CommandError(AnswerReason.ID_REUSED, text, command.command, command.command_id)
            elif known.answer is None:
                known.waiters = [*known.waiters[1 - _WAITERS :], reply]
                return
        if known is not None:
            assert known.answer is not None
            reply(known.answer)
            return
        try:
            self._do(command)
        except CommandError as error:
            self._finish(command, ok=False, reason=error.reason, text=str(error))
        except Exception as error:  # the loop of a thread: told, logged, and the next command is heeded
            log.error("command '%s' failed", command.command, exc_info=not isinstance(error, LinegateError))
            text = str(error) if isinstance(error, LinegateError) else "the station made a mistake; its log says more"
            self._finish(command, ok=False, reason=AnswerReason.FAILED, text=text)

    def _remember(self, command_id: str, known: _Known) -> None:
        self._known[command_id] = known
        if len(self._known) > REMEMBERED:
            oldest = next((name for name, entry in self._known.items() if entry.answer is not None), None)
            if oldest is not None:
                del self._known[oldest]

    def _do(self, command: Command) -> None:
        """Do one command and have it answered.

        Raises:
            CommandError: it cannot be done; nothing was changed.
        """
        operate = self._operate
        match command:
            case TriggerCommand():
                self._trigger(command)
            case RecipeCommand():
                if command.recipe not in operate.recipes():
                    text = f"no recipe '{command.recipe}': this station has {', '.join(sorted(operate.recipes()))}"
                    raise CommandError(AnswerReason.UNKNOWN_RECIPE, text)
                digest = operate.choose_recipe(command.recipe)
                text = f"recipe '{command.recipe}' is in force from the next part on"
                self._finish(command, text=text, recipe=command.recipe, recipe_digest=digest)
            case StartCommand():
                operate.start()
                self._finish(command, text="the station takes parts", running=True)
            case StopCommand():
                operate.stop()
                self._finish(command, text="the station takes no more parts", running=False)
            case ModeCommand():
                operate.set_mode(command.mode)
                self._finish(command, text=f"verdicts are marked '{command.mode}' from the next part on", mode=command.mode)
            case ReplayCommand():
                try:
                    count = operate.replay(command.first, command.last)
                except StationError as error:
                    raise CommandError(AnswerReason.UNKNOWN_SEQUENCE, str(error)) from None
                self._finish(command, text=f"{count} verdicts are published again", count=count)
            case ConfirmCommand():
                confirmed = self._confirm(command.confirm)
                if confirmed is None:
                    text = "this station goes by the broker's acknowledgements: see [mqtt] confirm"
                    raise CommandError(AnswerReason.NOT_CONFIRMING, text)
                self._finish(command, text=f"the confirmation of {confirmed} verdicts is taken", count=confirmed)

    def _trigger(self, command: TriggerCommand) -> None:
        def accepted(verdict_id: str) -> None:
            self._finish(command, text="the part gets its verdict", verdict_id=verdict_id)

        at = command.triggered_at or utc_now()
        try:
            self._operate.trigger(Trigger(command.part, at, f"command:{command.command_id}", command.encoder, accepted))
        except StationError as error:
            raise CommandError(AnswerReason.STOPPED, str(error)) from None

    # -- answers ----------------------------------------------------------------------------------------------------

    def _finish(
        self,
        command: Command,
        *,
        text: str,
        ok: bool = True,
        reason: AnswerReason = AnswerReason.ACCEPTED,
        **results: Any,
    ) -> None:
        answer = self._answer(
            command=command.command,
            command_id=command.command_id,
            ok=ok,
            reason=reason,
            reason_text=text,
            answered=utc_now(),
            **results,
        )
        self._metrics.commands.labels(command.command, reason).inc()
        with self._lock:
            known = self._known.get(command.command_id)
            if known is None:
                return
            known.answer = answer
            waiters, known.waiters = known.waiters, []
            if reason is AnswerReason.STOPPED:  # nothing was done, and it may be tried again when the station runs
                del self._known[command.command_id]
        for reply in waiters:
            reply(answer)

    def _refusal(self, error: CommandError) -> Answer:
        """Return the answer to what is no command that could be done; it is not remembered."""
        self._metrics.commands.labels("none", error.reason).inc()
        log.warning("a command was refused: %s", error)
        return self._answer(
            command=error.command,
            command_id=error.command_id,
            ok=False,
            reason=error.reason,
            reason_text=str(error),
            answered=utc_now(),
        )
