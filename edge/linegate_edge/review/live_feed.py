"""`Live` → what the page receives: the state as JSON, and the picture of a part that it tells of.

Rules kept here: a state is made once for all pages, and a picture is drawn only when a page asks, one at a time and once
a part, so that people who watch cost the line little; a picture always belongs to the part it is asked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from linegate.images import encode_jpeg
from linegate.overlay import draw_overlay
from linegate.stages import Frame, PixelFormat
from linegate_edge.live import Live
from linegate_edge.records import Judged
from linegate_edge.review.answers import LiveState

_KEPT_PARTS: Final = 4
_KEPT_FRAME_BYTES: Final = 64 * 2**20
_JPEG_QUALITY: Final = 85


class LiveFeed:
    """The live side of a station for any number of pages.

    `trouble` says in one line why the station is not able to work, or None; it is asked often, and must be quick.
    """

    def __init__(self, live: Live, trouble: Callable[[], str | None]) -> None:
        self._live, self._trouble = live, trouble
        self._lock = threading.Lock()
        self._drawing = threading.Lock()
        self._announced: OrderedDict[int, Judged] = OrderedDict()
        self._drawn: OrderedDict[int, bytes] = OrderedDict()
        self._state = ""
        self._state_mark: tuple[int, str | None] | None = None

    def state(self) -> str:
        """Return the present state as the JSON of a `LiveState`; the very same text while nothing changes."""
        with self._lock:
            mark = self._live.version, self._trouble()
            if mark != self._state_mark:
                self._state, self._state_mark = self._make_state(mark[1]), mark
            return self._state

    def _make_state(self, trouble: str | None) -> str:
        last = self._live.last
        snapshot = self._live.snapshot()
        # The line may have gone on between the two; then the next state, a moment later, brings the picture.
        same = last is not None and snapshot["last"] is not None and last[1].sequence == snapshot["last"]["sequence"]
        overlay_uri = None
        if last is not None and same and (shown := last[0].shown) is not None and isinstance(shown.item, Frame):
            self._announce(last[1].sequence, last[0])
            overlay_uri = f"/live/last.jpg?sequence={last[1].sequence}"
        state = LiveState.model_validate(snapshot | {"overlay_uri": overlay_uri, "trouble": trouble})
        return state.model_dump_json()

    def _announce(self, sequence: int, judged: Judged) -> None:
        self._announced[sequence] = judged
        while len(self._announced) > 1 and (
            len(self._announced) > _KEPT_PARTS
            or sum(_frame_bytes(kept) for kept in self._announced.values()) > _KEPT_FRAME_BYTES
        ):
            self._announced.popitem(last=False)

    def overlay(self, sequence: int | None) -> bytes:
        """Return the JPEG of the last part, or of the one of `sequence`, with its heat map and regions.

        Raises:
            LookupError: there is no such part any more, or no picture of it; the text says which.
        """
        with self._lock:
            last = self._live.last
            if sequence is None and last is not None:
                sequence = last[1].sequence
            judged = self._announced.get(sequence) if sequence is not None else None
            if judged is None and last is not None and last[1].sequence == sequence:
                judged = last[0]
        with self._drawing:
            drawn = self._drawn.get(sequence) if sequence is not None else None
            if drawn is not None:
                return drawn
            if judged is None or sequence is None:
                raise LookupError("no part was inspected yet" if last is None else f"part {sequence} is not the last one")
            look = judged.shown
            if look is None or not isinstance(look.item, Frame):
                raise LookupError(f"part {sequence} has no picture that could be shown: {judged.verdict.reason_text}")
            view = judged.recipe.views.get(look.item.view)
            map_threshold = None if view is None else view.inspector.package.manifest.thresholds.map
            picture = draw_overlay(look.item, look.prediction, judged.verdict.decision, map_threshold)
            drawn = encode_jpeg(picture, PixelFormat.RGB8, _JPEG_QUALITY)
            self._drawn[sequence] = drawn
            while len(self._drawn) > _KEPT_PARTS:
                self._drawn.popitem(last=False)
            return drawn


def _frame_bytes(judged: Judged) -> int:
    items = [look.item for look in judged.looks if isinstance(look.item, Frame)]
    return sum(item.image.nbytes + len(item.encoded or b"") for item in items)
