"""A frame that is dark, saturated, frozen, blurred or shifted is told before a model sees it; a normal one never is."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from conftest import MakeStation, spot_picture, wait_until
from linegate.health import HealthCheck, HealthLimits, HealthReference
from linegate.stages import Frame, Part, PixelFormat, Reason
from linegate_edge.records import Capture
from linegate_edge.station import Station

Image = NDArray[np.uint8]
NO_BROKER = 9
EVERYTHING = HealthLimits(min_sharpness=0.5, max_shift=0.03, learn_frames=5)


def part(seed: int, *, shift: int = 0) -> Image:
    """Return a made-up turned part on a dark plate, 480 × 640, with a sensor's noise."""
    noise = np.random.default_rng(seed)
    picture = np.full((480, 640), 60, np.uint8)
    for radius, grey in ((150, 180), (90, 90), (40, 210)):
        cv2.circle(picture, (330 + shift, 230), radius, grey, -1, cv2.LINE_AA)
    for angle in range(0, 360, 60):
        x, y = 330 + shift + 120 * np.cos(np.radians(angle)), 230 + 120 * np.sin(np.radians(angle))
        cv2.circle(picture, (round(x), round(y)), 12, 40, -1, cv2.LINE_AA)
    return np.clip(picture + noise.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def frame(picture: Image, sequence: int = 0) -> Frame:
    pixel_format = PixelFormat.MONO8 if picture.ndim == 2 else PixelFormat.RGB8
    return Frame(picture, pixel_format, f"f{sequence}", "camera", "main", sequence, datetime.now(UTC))


def reason_of(check: HealthCheck, picture: Image, sequence: int = 0) -> Reason | None:
    fault = check.check(frame(picture, sequence))
    assert fault is None or (fault.frame_id == f"f{sequence}" and "\n" not in fault.detail)
    return fault.reason if fault is not None else None


def learned(limits: HealthLimits = EVERYTHING) -> HealthCheck:
    check = HealthCheck(limits)
    assert {reason_of(check, part(seed), seed) for seed in range(limits.learn_frames)} == {None}
    assert check.reference is not None
    return check


def test_a_black_frame_is_too_dark_and_a_dim_part_is_not() -> None:
    check = HealthCheck(HealthLimits())
    black = np.random.default_rng(0).integers(0, 8, (480, 640)).astype(np.uint8)
    assert reason_of(check, black) is Reason.FRAME_TOO_DARK
    assert reason_of(check, part(1) // 4, 1) is None


def test_a_white_frame_is_saturated_and_a_bright_part_is_not() -> None:
    check = HealthCheck(HealthLimits())
    assert reason_of(check, np.full((480, 640, 3), 255, np.uint8)) is Reason.FRAME_SATURATED
    assert reason_of(check, np.clip(part(1).astype(int) + 100, 0, 255).astype(np.uint8), 1) is None


def test_a_camera_that_stands_still_is_told_after_as_many_frames_as_the_limit_says() -> None:
    check = HealthCheck(HealthLimits(max_frozen=3))
    reasons = [reason_of(check, part(7), sequence) for sequence in range(5)]
    assert reasons == [None, None, None, Reason.FRAME_FROZEN, Reason.FRAME_FROZEN]
    assert reason_of(check, part(8), 9) is None


def test_a_frame_that_is_looked_at_twice_is_not_frozen() -> None:
    check = HealthCheck(HealthLimits(max_frozen=1))
    assert [reason_of(check, part(7), 4) for _ in range(3)] == [None] * 3


def test_one_changed_pixel_in_the_noise_is_no_frozen_camera() -> None:
    check = HealthCheck(HealthLimits(max_frozen=1))
    assert [reason_of(check, part(seed), seed) for seed in range(4)] == [None] * 4


def test_a_blurred_frame_is_told_against_the_views_own_reference_whatever_the_light() -> None:
    check = learned()
    blurred = cv2.GaussianBlur(part(30), (0, 0), 9).astype(np.uint8)
    assert reason_of(check, blurred, 30) is Reason.FRAME_BLURRED
    assert reason_of(check, (part(31) // 2).astype(np.uint8), 31) is None


@pytest.mark.parametrize("shift", [-60, 40])
def test_a_shifted_view_is_told_and_the_place_it_always_had_is_not(shift: int) -> None:
    check = learned()
    assert reason_of(check, part(40, shift=shift), 40) is Reason.VIEW_SHIFTED
    assert reason_of(check, part(41, shift=3), 41) is None


def test_a_reference_is_kept_as_json_and_used_again() -> None:
    reference = learned().reference
    assert reference is not None
    again = HealthCheck(EVERYTHING, HealthReference.from_json(json.loads(json.dumps(reference.to_json()))))
    assert reason_of(again, part(50, shift=60), 50) is Reason.VIEW_SHIFTED
    with pytest.raises(ValueError, match="not a reference"):
        HealthReference.from_json({"sharpness": 1})


def test_frames_of_another_size_are_learned_anew() -> None:
    check = learned()
    other = [cv2.resize(part(seed), (400, 300)).astype(np.uint8) for seed in range(60, 66)]
    assert {reason_of(check, picture, 60 + index) for index, picture in enumerate(other)} == {None}
    assert check.reference is not None
    assert check.reference.thumbnail.shape == (96, 128)


@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_any_small_frame_is_checked_without_an_exception(width: int, height: int, colour: bool) -> None:
    shape = (height, width, 3) if colour else (height, width)
    check = HealthCheck(HealthLimits(min_sharpness=0.1, max_shift=0.1, learn_frames=1))
    for seed in range(3):
        check.check(frame(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8), seed))


@pytest.mark.parametrize("limits", [{"min_sharpness": 1.5}, {"max_shift": -0.1}, {"learn_frames": 0}, {"max_frozen": 0}])
def test_a_limit_out_of_range_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        HealthLimits(**limits)  # type: ignore[arg-type]


# -- in the station ---------------------------------------------------------------------------------------------------


def judge(station: Station, picture: Image, sequence: int) -> dict[str, object]:
    taken = Frame(picture, PixelFormat.MONO8, f"f{sequence}", "camera", "main", sequence, datetime.now(UTC))
    return station.line.submit(Capture(Part(f"part-{sequence}", "test"), taken)).result(30).message


def test_an_unfit_frame_makes_its_part_undecided_and_is_kept(make_station: MakeStation) -> None:
    station = make_station(NO_BROKER)
    message = judge(station, np.zeros((64, 64), np.uint8), 1)
    assert (message["decision"], message["reason"]) == ("undecided", Reason.FRAME_TOO_DARK)
    assert message["views"][0]["image_sha256"]  # type: ignore[index]
    assert judge(station, spot_picture(defect=False, seed=3), 2)["decision"] == "pass"


def test_limits_are_those_of_the_settings_and_references_outlive_a_restart(make_station: MakeStation) -> None:
    more = "[evidence]\nmin_free_mib = 0\n[health]\nmin_bright_share = 0.0\nmax_shift = 0.1\nlearn_frames = 2\n"
    station = make_station(NO_BROKER, more=more)
    assert judge(station, np.zeros((64, 64), np.uint8), 1)["decision"] == "pass"
    judge(station, spot_picture(defect=False, seed=1), 2)
    wait_until(lambda: station.line.health.learned == {"default/main"}, what="the reference")
    station.stop()
    again = make_station(NO_BROKER, more=more)
    judge(again, spot_picture(defect=False, seed=5), 3)
    assert again.line.health.learned == {"default/main"}, "known from the first frame on"
