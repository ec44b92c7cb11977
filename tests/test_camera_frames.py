"""Frame numbers, clocks and lines of machine-vision cameras: nothing lost unseen, no time made up, no sheared image."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from linegate.stages import PixelFormat
from linegate_edge.sources.camera_clock import CameraClock
from linegate_edge.sources.frame_numbers import FrameNumbers
from linegate_edge.sources.pixels import CHANNELS, copy_image

SECOND = 1_000_000_000
HOST_NS = 1_795_515_000 * SECOND


def seconds_between(moment: datetime, host_ns: int) -> float:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1) - host_ns / SECOND


@given(
    start=st.integers(1, 65_535),
    arrivals=st.lists(st.sampled_from(["whole", "unnumbered", "lost"]), max_size=200),
)
@example(start=65_534, arrivals=["whole", "lost", "whole"])
def test_every_frame_that_is_lost_between_two_numbers_is_counted_also_where_the_counter_goes_round(
    start: int, arrivals: list[str]
) -> None:
    numbers = FrameNumbers()
    numbers.missed_before(start)
    missed = 0
    for index, arrival in enumerate([*arrivals, "whole"], start):
        number = index % 65_535 + 1
        if arrival == "whole":
            missed += numbers.missed_before(number)
        elif arrival == "unnumbered":
            missed += numbers.missed_before(None)
    assert missed == arrivals.count("lost")


def test_a_counter_that_begins_anew_has_lost_nothing() -> None:
    numbers = FrameNumbers()
    assert [numbers.missed_before(number) for number in (0, 1, 500, 1, 2)] == [0, 0, 498, 0, 0]


def test_a_camera_that_numbers_nothing_has_lost_nothing() -> None:
    numbers = FrameNumbers()
    assert [numbers.missed_before(None) for _ in range(3)] == [0, 0, 0]
    assert numbers.missed_before(9) == 0


@pytest.mark.parametrize("drift", [50e-6, -50e-6, 0.0])
def test_a_camera_s_clock_that_drifts_all_day_keeps_to_the_host_s(drift: float) -> None:
    clock, worst = CameraClock("camera"), 0.0
    for passed_s in range(0, 24 * 3600, 10):
        host_ns = HOST_NS + passed_s * SECOND
        worst = max(
            worst, abs(seconds_between(clock.moment(5 * SECOND + round(passed_s * SECOND * (1 - drift)), host_ns), host_ns))
        )
    assert worst < 0.005


def test_a_frame_that_was_delayed_is_dated_by_the_camera() -> None:
    clock = CameraClock("camera")
    delays_ns = [3_000_000, 1_000_000, 400_000_000, 2_000_000]
    moments = [clock.moment((7 + index) * SECOND, HOST_NS + index * SECOND + delay) for index, delay in enumerate(delays_ns, 1)]
    gaps = [(after - before) / timedelta(milliseconds=1) for before, after in itertools.pairwise(moments[1:])]
    assert gaps == [1000.0, 1000.0]


@pytest.mark.parametrize("step_s", [3600, -3600])
def test_a_host_whose_clock_is_set_does_not_date_frames_by_its_old_time(step_s: int) -> None:
    clock = CameraClock("camera")
    clock.moment(5 * SECOND, HOST_NS)
    host_ns = HOST_NS + (1 + step_s) * SECOND
    assert seconds_between(clock.moment(6 * SECOND, host_ns), host_ns) == pytest.approx(0, abs=1e-5)


def test_a_camera_that_restarts_its_clock_is_laid_over_anew() -> None:
    clock = CameraClock("camera")
    clock.moment(5_000 * SECOND, HOST_NS)
    clock.moment(1 * SECOND, HOST_NS + 10 * SECOND)
    host_ns = HOST_NS + 11 * SECOND
    assert seconds_between(clock.moment(2 * SECOND, host_ns), host_ns) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("ahead_s", [0, 37], ids=["UTC", "TAI"])
def test_a_ptp_clock_dates_frames_whether_it_counts_utc_or_tai(ahead_s: int) -> None:
    camera_ns = HOST_NS + ahead_s * SECOND - 20_000_000
    assert seconds_between(CameraClock("ptp").moment(camera_ns, HOST_NS), HOST_NS) == pytest.approx(-0.02, abs=1e-5)


def test_a_ptp_clock_that_is_not_in_step_yet_is_not_believed() -> None:
    assert seconds_between(CameraClock("ptp").moment(5 * SECOND, HOST_NS), HOST_NS) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("camera_ns", [None, 0, 5 * SECOND])
def test_the_host_s_time_is_taken_where_asked_for_or_where_the_camera_has_none(camera_ns: int | None) -> None:
    clock = CameraClock("host" if camera_ns else "camera")
    assert seconds_between(clock.moment(camera_ns, HOST_NS), HOST_NS) == 0


@given(
    timestamps=st.sampled_from(["host", "camera", "ptp"]),
    stamps=st.lists(st.tuples(st.integers(0, 2**62), st.integers(HOST_NS, HOST_NS + 10**14)), max_size=30),
)
def test_no_frame_is_taken_after_it_came_or_more_than_two_seconds_before(
    timestamps: str, stamps: list[tuple[int, int]]
) -> None:
    clock = CameraClock(timestamps)  # type: ignore[arg-type]
    for camera_ns, host_ns in stamps:
        assert -2.001 <= seconds_between(clock.moment(camera_ns, host_ns), host_ns) <= 1e-5


@given(
    size_wh=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    pixel_format=st.sampled_from(list(PixelFormat)),
    padding=st.integers(0, 5),
    cut=st.booleans(),
)
def test_padded_lines_give_the_image_without_its_padding_and_short_buffers_none(
    size_wh: tuple[int, int], pixel_format: PixelFormat, padding: int, cut: bool
) -> None:
    (width, height), channels = size_wh, CHANNELS[pixel_format]
    shape = (height, width) if channels == 1 else (height, width, channels)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    lines = np.pad(image.reshape(height, width * channels), ((0, 0), (0, padding)), constant_values=77)
    data = lines.reshape(-1)[: lines.size - padding]
    copied = copy_image(data[:-1] if cut else data, size_wh, pixel_format, padding)
    if cut:
        assert copied is None
    else:
        assert copied is not None
        assert np.array_equal(copied, image)
        assert not np.shares_memory(copied, data)


@pytest.mark.parametrize("size_wh", [(0, 4), (4, 0)])
def test_a_size_of_nothing_is_no_image(size_wh: tuple[int, int]) -> None:
    assert copy_image(np.zeros(16, np.uint8), size_wh, PixelFormat.MONO8) is None
