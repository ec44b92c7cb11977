"""How far a training is, how fast it goes and how long it still takes, on standard error.

Rules kept here: a bar where a person looks at a terminal, else plain lines that a log can keep, not more than one in ten
seconds; the rate counts validation in, so the remaining time is that of the whole.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

LINE_EVERY_S = 10.0

Listener = Callable[[float, str], None]
_listeners: list[Listener] = []


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Let `listener` hear, while the context lasts, what share of a training is done, 0 to 1, and of what in words."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(share: float, text: str) -> None:
    """Tell all that listen what share of a training is done."""
    for listener in _listeners:
        listener(share, text)


@dataclass(frozen=True, slots=True)
class Pace:
    """Images a second since this process began, and the seconds that are left at that rate."""

    images_per_s: float
    left_s: float


class Progress:
    """Counts images of a whole training of `epochs`, of which `done_images` lie before this process."""

    def __init__(self, epochs: int, images_per_epoch: int, done_images: int, shown: bool) -> None:
        self.epochs = epochs
        self.total = epochs * images_per_epoch
        self.first = done_images
        self.images = done_images
        self.shown = shown
        self.bar = sys.stderr.isatty() and shown
        self.begun = time.monotonic()
        self.last_line = -LINE_EVERY_S
        # smoothing=0: the mean over the whole run, or the pauses of validation would swing the remaining time
        self.tqdm = tqdm(
            total=self.total, initial=done_images, unit="image", smoothing=0, disable=not self.bar, dynamic_ncols=True
        )

    def pace(self) -> Pace:
        """Return rate and remaining time as of now."""
        rate = (self.images - self.first) / max(time.monotonic() - self.begun, 1e-9)
        return Pace(rate, (self.total - self.images) / rate if rate else 0.0)

    def step(self, epoch: int, images: int, loss: float) -> None:
        """Count the images of one step."""
        self.images += images
        tell(self.images / self.total, f"epoch {epoch} of {self.epochs}, {clock(self.pace().left_s)} left")
        if self.bar:
            self.tqdm.set_description(f"epoch {epoch}/{self.epochs}", refresh=False)
            self.tqdm.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            self.tqdm.update(images)
        else:
            self._line(f"epoch {epoch}/{self.epochs}: loss {loss:.4g}")

    def epoch_done(self, epoch: int, loss: float, validation: float | None, last: bool) -> None:
        """Show the means of an epoch."""
        found = "" if validation is None else f", validation {validation:.4f}"
        if self.bar:
            self.tqdm.set_postfix_str(f"loss {loss:.4g}{found}")
        else:
            self._line(f"epoch {epoch}/{self.epochs} done: loss {loss:.4g}{found}", always=last)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.tqdm.close()

    def _line(self, text: str, always: bool = False) -> None:
        now = time.monotonic()
        if self.shown and (always or now - self.last_line >= LINE_EVERY_S):
            self.last_line = now
            pace = self.pace()
            print(f"{text}, {pace.images_per_s:.1f} images/s, {clock(pace.left_s)} left", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return `seconds` as people read them: 42 s, 3:05 min, 1:02:03 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"
