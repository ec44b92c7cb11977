"""Frame numbers of machine-vision cameras: nothing is lost unseen."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from linegate_edge.sources.frame_numbers import FrameNumbers


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
