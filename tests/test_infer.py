"""Frames become predictions by one path, on a provider that is chosen, reported and proved."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from conftest import SIZE, spot_picture
from linegate.errors import ProviderError
from linegate.infer import Inspector, available_providers, boxes_to_regions, find_regions, prepare
from linegate.overlay import draw_overlay
from linegate.package import InputSpec, ModelPackage
from linegate.stages import Decision, Frame, PixelFormat

SPEC = InputSpec(size_wh=(SIZE, SIZE))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def frame_of(image: np.ndarray, pixel_format: PixelFormat = PixelFormat.MONO8) -> Frame:
    return Frame(image, pixel_format, "f1", "camera", "main", 1, NOW)


@pytest.fixture(scope="module")
def inspector(spot_package: Path) -> Inspector:
    return Inspector(ModelPackage.load(spot_package))


def test_an_empty_map_has_no_regions() -> None:
    assert find_regions(np.zeros((8, 8), np.float32), 0.5, 0, (0, 0, 80, 80), "defect") == ()


def test_of_overlapping_detections_the_surest_stays_and_those_that_agree_move_its_sides() -> None:
    detections = np.array(
        [
            [0.10, 0.10, 0.50, 0.50, 0.8, 0],
            [0.10, 0.10, 0.50, 0.60, 0.4, 0],  # agrees: overlaps by 0.8
            [0.10, 0.10, 0.50, 0.80, 0.3, 0],  # the same defect: overlaps by 0.57, too little to agree
            [0.10, 0.10, 0.50, 0.50, 0.7, 1],  # another class has its own
            [0.70, 0.70, 0.90, 0.90, 0.1, 0],
        ],
        np.float32,
    )
    for threshold in (0.5, 0.2):
        dent, crack = boxes_to_regions(detections, threshold, (1000, 0, 2000, 1000), ("dent", "crack"))
        # (0.8 · 500 + 0.4 · 600) / 1.2 = 533.3
        assert (dent.label, dent.score, dent.box_xyxy) == ("dent", pytest.approx(0.8), (1100, 100, 1500, 534))
        assert (crack.label, crack.box_xyxy) == ("crack", (1100, 100, 1500, 500))
    assert len(boxes_to_regions(detections, 0.05, (0, 0, 1000, 1000), ("dent", "crack"))) == 3
    assert boxes_to_regions(detections, 0.9, (0, 0, 1000, 1000), ("dent", "crack")) == ()


def test_regions_lie_in_frame_pixels_inside_the_region_of_interest() -> None:
    anomaly_map = np.zeros((10, 10), np.float32)
    anomaly_map[2:4, 5:8] = 0.7
    anomaly_map[9, 9] = 0.9
    strong, wide = find_regions(anomaly_map, 0.5, 0, (100, 200, 200, 300), "crack")
    assert (strong.score, strong.box_xyxy, strong.area_px) == (pytest.approx(0.9), (190, 290, 200, 300), 100)
    assert (wide.label, wide.box_xyxy, wide.area_px) == ("crack", (150, 220, 180, 240), 600)
    assert find_regions(anomaly_map, 0.5, 0.02, (100, 200, 200, 300), "crack") == (wide,)


@pytest.mark.parametrize("size_wh", [(SIZE, SIZE), (SIZE * 3, SIZE * 2), (SIZE // 2, SIZE // 2)])
def test_a_defect_is_found_at_any_frame_size(inspector: Inspector, size_wh: tuple[int, int]) -> None:
    good = inspector.predict(frame_of(spot_picture(defect=False, size_wh=size_wh)))
    bad = inspector.predict(frame_of(spot_picture(defect=True, size_wh=size_wh)))
    assert good.score < 0.8 <= bad.score
    assert good.regions == ()
    left, top, right, bottom = bad.regions[0].box_xyxy
    assert 0 <= left < right <= size_wh[0]
    assert 0 <= top < bottom <= size_wh[1]


def test_colour_order_does_not_change_the_judgement() -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    prepared = prepare(rgb, PixelFormat.RGB8, SPEC)[0]
    np.testing.assert_array_equal(prepared, prepare(rgb[..., ::-1].copy(), PixelFormat.BGR8, SPEC)[0])
    np.testing.assert_array_equal(prepared[0], rgb)


def test_grey_frames_fill_all_three_channels() -> None:
    grey = spot_picture(defect=False)
    prepared, _ = prepare(grey, PixelFormat.MONO8, SPEC)
    np.testing.assert_array_equal(prepared[0], np.stack([grey] * 3, axis=-1))


def test_the_chosen_provider_is_reported(inspector: Inspector) -> None:
    assert inspector.provider == available_providers()[0]
    assert inspector.parity_difference <= 1e-4


def test_an_unknown_or_absent_provider_is_refused_with_the_choice(spot_package: Path) -> None:
    package = ModelPackage.load(spot_package)
    with pytest.raises(ProviderError, match="choose one of: auto, tensorrt, cuda, openvino, cpu"):
        Inspector(package, "gpu")
    if "cuda" not in available_providers():
        with pytest.raises(ProviderError, match=r"which offers: .*cpu"):
            Inspector(package, "cuda")


def test_frames_of_other_types_are_refused_with_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \(H, W, 3\), got float32"):
        frame_of(np.zeros((8, 8, 3), np.float32), PixelFormat.RGB8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be uint8 \(H, W\)"):
        frame_of(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="aware UTC"):
        Frame(np.zeros((8, 8), np.uint8), PixelFormat.MONO8, "f", "c", "v", 1, datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("shape", [(20, 30), (3000, 2000), (64, 64, 3)])
def test_an_overlay_leaves_the_frame_as_it_was(inspector: Inspector, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    frame = frame_of(image, PixelFormat.MONO8 if len(shape) == 2 else PixelFormat.RGB8)
    before = image.copy()
    picture = draw_overlay(frame, inspector.predict(frame), Decision.FAIL, 0.5)
    np.testing.assert_array_equal(image, before)
    assert picture.dtype == np.uint8
    assert 480 <= max(picture.shape[:2]) <= 1600


def test_the_region_of_interest_is_cut_before_the_resize() -> None:
    grey = np.zeros((100, 200), np.uint8)
    grey[50:, 100:] = 255
    spec = InputSpec(size_wh=(SIZE, SIZE), roi_xyxy=(0.5, 0.5, 1.0, 1.0))
    prepared, roi = prepare(grey, PixelFormat.MONO8, spec)
    assert roi == (100, 50, 200, 100)
    assert prepared.min() == 255
