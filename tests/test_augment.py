"""Augmentation: good parts stay good, marks move with their pixels, the same draw again, mistakes in one line."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from linegate.errors import DataError, SettingsError
from linegate_training.augment import PRESETS, AugmentRecipe, augmenter, recipe_from
from linegate_training.data.parts import Box

STILL = {"preset": "none"}


def part(width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """Return a part that looks like no other turn or mirror image of itself: brighter to the right, and towards the foot."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 0 * x + 128], -1).astype(np.uint8)


def test_an_image_without_marks_is_varied_and_keeps_its_size() -> None:
    image = part()
    drawn = augmenter(recipe_from("fixed"))(image, None, (), 1, 0)
    assert (drawn.image.shape, drawn.image.dtype, drawn.mask, drawn.boxes) == (image.shape, np.uint8, None, ())
    assert not np.array_equal(drawn.image, image)


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    image, mask, box = part(), np.zeros((48, 64), bool), Box("scratch", (3, 4, 10, 9))
    mask[4:9, 3:10] = True
    drawn = augmenter(recipe_from("none"))(image, mask, [box], 1, 0)
    assert np.array_equal(drawn.image, image)
    assert np.array_equal(drawn.mask, mask)
    assert drawn.boxes == (box,)


def test_the_default_never_flips_or_turns_a_part() -> None:
    image = part()
    augment = augmenter(recipe_from("fixed"))
    for index in range(100):
        drawn = augment(image, None, (), 1, index).image.astype(int)
        assert drawn[:, 40:, 0].mean() > drawn[:, :24, 0].mean() + 40
        assert drawn[30:, :, 1].mean() > drawn[:18, :, 1].mean() + 40


def test_a_texture_is_seen_in_all_eight_poses_equally_often() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    augment = augmenter(recipe_from({**STILL, "flip_horizontal": True, "flip_vertical": True, "rotate_90": True}))
    poses: dict[bytes, int] = {}
    for index in range(800):
        key = augment(image, None, (), 1, index).image.tobytes()
        poses[key] = poses.get(key, 0) + 1
    assert len(poses) == 8
    assert min(poses.values()) > 60


def test_the_draw_is_that_of_seed_epoch_and_image_in_any_order() -> None:
    image = part()

    def draws(seed: int, keys: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        augment = augmenter(recipe_from({"blur_px": 1.0}), seed)
        return {key: augment(image, None, (), *key).image.tobytes() for key in keys}

    keys = [(epoch, index) for epoch in (1, 2) for index in (0, 1)]
    first = draws(0, keys)
    assert draws(0, keys[::-1]) == first
    assert len(set(first.values())) == 4
    assert not set(draws(1, keys).values()) & set(first.values())


@pytest.mark.parametrize("preset", ["fixed", "texture"])
def test_mask_and_boxes_move_with_the_pixels(preset: str) -> None:
    augment = augmenter(recipe_from({"preset": preset, "brightness": 0.0, "contrast": 0.0, "noise": 0.0}))
    for index in range(50):
        image, mask = np.zeros((96, 96, 3), np.uint8), np.zeros((96, 96), bool)
        y, x = 20 + index % 30, 60 - index
        image[y : y + 12, x + 10 : x + 30] = 255
        mask[y : y + 12, x + 10 : x + 30] = True
        drawn = augment(image, mask, [Box("dent", (x + 10, y, x + 30, y + 12))], 1, index)
        assert drawn.mask is not None
        bright = drawn.image[..., 0] > 127
        assert set(np.unique(drawn.mask)) == {0, 1}
        assert (bright & (drawn.mask > 0)).sum() > 0.93 * (bright | (drawn.mask > 0)).sum()
        (box,) = drawn.boxes
        rows, columns = np.nonzero(bright)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert box.label == "dent"
        assert np.abs(np.subtract(box.xyxy, edges)).max() <= 2


def test_classes_in_a_mask_stay_what_they_are() -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[10:20, 10:20], mask[25:35, 30:50] = 3, 7
    drawn = augmenter(recipe_from("fixed"))(part(), mask, (), 1, 0)
    assert drawn.mask is not None
    assert set(np.unique(drawn.mask)) == {0, 3, 7}


def test_a_marked_defect_never_leaves_the_frame() -> None:
    image, mask = part(96, 96), np.zeros((96, 96), bool)
    mask[0:3, 0:3] = True
    augment = augmenter(recipe_from({"shift_share": 0.3, "rotate_deg": 10.0}))
    for index in range(60):
        drawn = augment(image, mask, [Box("chip", (0, 0, 3, 3))], 1, index)
        assert drawn.mask is not None
        assert drawn.mask.any()
        assert drawn.boxes
        left, top, right, bottom = drawn.boxes[0].xyxy
        assert 0 <= left < right <= 96
        assert 0 <= top < bottom <= 96


def test_a_grey_image_stays_grey() -> None:
    image = np.repeat(part()[..., :1], 3, 2)
    drawn = augmenter(recipe_from({"noise": 0.1}))(image, None, (), 1, 0).image
    assert np.array_equal(drawn[..., 0], drawn[..., 1])
    assert np.array_equal(drawn[..., 0], drawn[..., 2])


def test_light_and_noise_keep_within_their_limits() -> None:
    image = np.full((32, 32, 3), 100, np.uint8)
    augment = augmenter(recipe_from({**STILL, "brightness": 0.1, "contrast": 0.1}))
    levels = [int(augment(image, None, (), 1, index).image[0, 0, 0]) for index in range(200)]
    assert 100 * 0.9 - 26 <= min(levels) < 80
    assert 120 < max(levels) <= 100 * 1.1 + 26
    noisy = augmenter(recipe_from({**STILL, "noise": 0.02}))
    assert max(noisy(image, None, (), 1, index).image.std() for index in range(50)) < 0.02 * 255 * 1.2


def test_quarter_turns_of_an_oblong_image_are_refused() -> None:
    with pytest.raises(DataError, match="rotate_90 needs square images, got 64 x 48"):
        augmenter(recipe_from("texture"))(part(), None, (), 1, 0)


def test_an_image_or_mask_of_a_wrong_kind_is_refused() -> None:
    augment = augmenter(recipe_from("fixed"))
    with pytest.raises(DataError, match=r"image must be uint8 \(H, W, 3\), got float32"):
        augment(part().astype(np.float32), None, (), 1, 0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"mask must be \(48, 64\), as the image is, got \(64, 48\)"):
        augment(part(), np.zeros((64, 48), bool), (), 1, 0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ("flips", "augment: no preset 'flips': known are fixed, mirrored, texture, none"),
        ({"flip": True}, "unknown key 'flip'"),
        ({"rotate_degrees": 3}, "did you mean 'rotate_deg'"),
        ({"brightness": 2.0}, "brightness"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(values: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        recipe_from(values)


def test_a_recipe_is_a_preset_with_changes() -> None:
    assert recipe_from({}) == recipe_from("fixed") == PRESETS["fixed"] == AugmentRecipe()
    assert not any((AugmentRecipe().flip_horizontal, AugmentRecipe().flip_vertical, AugmentRecipe().rotate_90))
    assert recipe_from({"preset": "texture", "flip_vertical": False}).flip_vertical is False


def test_albumentations_asks_no_network() -> None:
    code = (
        "import socket, sys\n"
        "def refused(*arguments, **options): sys.exit('the network was asked')\n"
        "socket.getaddrinfo = socket.create_connection = refused\n"
        "from linegate_training.augment import augmenter, recipe_from\n"
        "assert 'albumentations' not in sys.modules\n"
        "augmenter(recipe_from('texture'))\n"
        "assert 'albumentations' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
