"""What people and machines may ask of a running station: trigger, change over, start, stop, mode, replay.

Rules kept here: a change-over holds from the next part on, and parts in hand keep their recipe; the recipe in force outlives a
restart; nothing here waits for a camera, a disk or the broker. How the wish comes (MQTT, HTTP, PLC) is left to others.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from linegate.errors import StationError
from linegate_edge.line import Line
from linegate_edge.records import Mode, Recorded, Trigger
from linegate_edge.store import Store

KEPT_RECIPE: Final = "recipe"
"""The store's key for the name of the recipe in force."""


class Operate:
    """A station's handles; all methods may be called from any thread. `on_recipe` is called after a change-over."""

    def __init__(self, line: Line, store: Store, on_recipe: Callable[[], None] = lambda: None) -> None:
        self._line, self._store, self._on_recipe = line, store, on_recipe

    def trigger(self, trigger: Trigger) -> Future[Recorded]:
        """Open a part and return the future of its verdict.

        Raises:
            StationError: the station is stopping, or stopped by command.
        """
        if not self._line.running:
            raise StationError("the station is stopped and takes no triggers: start it first")
        return self._line.trigger(trigger)

    def choose_recipe(self, name: str) -> str:
        """Put a recipe in force from the next part on, and return its digest.

        Raises:
            StationError: there is no such recipe; the text names those there are.
        """
        recipe = self._line.book.choose(name)
        self._line.writer.keep(KEPT_RECIPE, name)
        self._on_recipe()
        return recipe.digest

    def recipes(self) -> dict[str, str]:
        """Return the digests of all recipes by name."""
        return {name: recipe.digest for name, recipe in self._line.book.recipes.items()}

    def start(self) -> None:
        """Take parts again."""
        self._line.pause(None)

    def stop(self) -> None:
        """Take no more parts until `start`: frames are refused, and a trigger that comes all the same is undecided."""
        self._line.pause("the station was stopped by command: start it to take parts")

    def set_mode(self, mode: Mode) -> None:
        """Mark the verdicts from the next part on: production, challenge parts that prove the gate, or a study."""
        self._line.mode = mode

    def replay(self, first: int, last: int | None) -> int:
        """Have verdicts `first` to `last` (None: the newest) published again; return how many.

        Raises:
            StationError: there are no such verdicts.
        """
        newest = self._store.last_sequence
        last = newest if last is None else min(last, newest)
        if not 1 <= first <= last:
            raise StationError(f"no verdicts from {first} on: this station has 1 to {newest}")
        self._line.writer.replay(first, last)
        return last - first + 1
