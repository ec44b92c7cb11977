"""What is kept of a look beside its picture: heat map and thumbnail, and that no verdict hangs on them."""

from __future__ import annotations

from datetime import UTC, datetime

import cv2
import numpy as np
import pytest

from conftest import MakeStation, free_port, spot_picture
from linegate.infer import Inspector
from linegate.stages import Frame, Part, PixelFormat, Prediction
from linegate_edge.records import Capture
from linegate_edge.store import StoreReader
from linegate_edge.traces import THUMBNAIL_SIDE, trace_of


def frame(picture: np.ndarray) -> Frame:
    pixel_format = PixelFormat.MONO8 if picture.ndim == 2 else PixelFormat.RGB8
    return Frame(picture, pixel_format, "f-1", "cam", "main", 1, datetime.now(UTC))


def prediction(heat: np.ndarray, size_wh: tuple[int, int]) -> Prediction:
    return Prediction("f-1", "cam", "main", 1.0, heat.astype(np.float32), (0, 0, *size_wh), size_wh, ())


def test_the_heat_map_keeps_its_scale() -> None:
    heat = np.array([[0.0, 1.0, 2.0], [4.0, 9.0, np.nan]])
    trace = trace_of(frame(np.full((64, 96), 100, np.uint8)), prediction(heat, (96, 64)), map_threshold=2.0)
    grey = cv2.imdecode(np.frombuffer(trace.heat, np.uint8), cv2.IMREAD_UNCHANGED)
    assert grey.tolist() == [[0, 0, 85], [255, 255, 0]]
    assert trace.size_wh == (96, 64)


@pytest.mark.parametrize("shape", [(16, 16), (64, 48), (3648, 5472), (64, 48, 3)])
def test_a_thumbnail_is_small_and_grey_whatever_the_frame_is(shape: tuple[int, ...]) -> None:
    picture = np.full(shape, 120, np.uint8)
    trace = trace_of(frame(picture), prediction(np.ones((300, 500)), (shape[1], shape[0])), map_threshold=1.0)
    assert set(trace.thumbnail) == {120}
    assert len(trace.thumbnail) == THUMBNAIL_SIDE**2
    grey = cv2.imdecode(np.frombuffer(trace.heat, np.uint8), cv2.IMREAD_UNCHANGED)
    assert grey.shape == (96, 160)


def test_a_map_that_cannot_be_kept_costs_no_verdict(make_station: MakeStation, monkeypatch: pytest.MonkeyPatch) -> None:
    station = make_station(free_port())
    predict = Inspector.predict

    def without_map(self: Inspector, item: Frame, *more: object) -> Prediction:
        found = predict(self, item, *more)  # type: ignore[arg-type]
        return Prediction(
            found.frame_id, found.camera, found.view, found.score, np.zeros((0, 0), np.float32), found.roi_xyxy,
            found.frame_size_wh, found.regions, found.durations_ms,
        )  # fmt: skip

    monkeypatch.setattr(Inspector, "predict", without_map)
    for serial in ("a", "b"):
        recorded = station.line.submit(Capture(Part(serial, "test"), frame(spot_picture(defect=True)))).result(20)
        assert recorded.message["decision"] == "fail"
        assert recorded.message["views"][0]["image_uri"], "its picture is kept all the same"
    assert station.line.alive
    assert StoreReader(station.reviews.database.folder / "linegate.sqlite3").verdict_count() == 2
