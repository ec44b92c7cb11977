"""Defects to learn from: folders with masks, boxes, groups or labels alone, and the supervised reading of known sets."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linegate.errors import DataError
from linegate_training.data.fetch import open_parts
from linegate_training.data.folder import read_folder
from linegate_training.data.layouts import with_items
from linegate_training.data.manifest import ItemRule, known_set
from linegate_training.data.parts import Box, Sample, check_classes, check_different, check_masks

FRAME = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
VOC = f"<annotation><object><name>{{}}</name>{FRAME}</object></annotation>"


def picture(path: Path, value: int = 100, size_wh: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size_wh[1], size_wh[0]), value, np.uint8)).save(path)
    return path


def boxed(path: Path, label: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(VOC.format(label), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "tiles"
    for index in range(4):
        picture(root / "train/good" / f"{index}.png")
    for index in (20, 21, 22):
        picture(root / "train/crack" / f"{index}.png")
    picture(root / "test/good/10.png")
    picture(root / "test/crack/11.png")
    return root


def test_defects_to_learn_need_no_truth_but_their_folder(folder: Path) -> None:
    parts = read_folder(folder)
    assert [sample.name for sample in parts.defects()] == [f"train/crack/{index}.png" for index in (20, 21, 22)]
    assert all(sample.label == "crack" and sample.mask is None and sample.boxes == () for sample in parts.defects())
    assert len(parts.goods()) == 4
    assert len(parts.tests()) == 2
    assert "good and defective" in parts.split


def test_folder_of_good_parts_has_no_defects_to_learn(folder: Path) -> None:
    shutil.rmtree(folder / "train/crack")
    assert read_folder(folder).defects() == []
    assert read_folder(folder).split == "as the folders say: train/good to learn from, test to measure on"


def test_some_defects_may_have_masks_and_others_boxes(folder: Path) -> None:
    mask = picture(folder / "ground_truth/crack/20_mask.png", 255)
    picture(folder / "ground_truth/crack/11_mask.png", 255)
    boxed(folder / "annotations/crack/21.xml", "crack")
    boxed(folder / "annotations/crack/11.xml", "crack")
    parts = read_folder(folder)
    drawn, marked, listed = parts.defects()
    assert (drawn.mask, drawn.boxes) == (mask, ())
    assert (marked.mask, marked.boxes) == (None, (Box("crack", (2, 3, 9, 8)),))
    assert (listed.mask, listed.boxes) == (None, ())
    assert parts.has_masks
    assert [len(sample.boxes) for sample in parts.tests() if sample.defective] == [1]


def test_masks_of_learned_defects_alone_do_not_ask_for_those_of_the_test(folder: Path) -> None:
    picture(folder / "ground_truth/crack/20_mask.png", 255)
    parts = read_folder(folder)
    assert not parts.has_masks
    picture(folder / "test/dent/12.png")
    picture(folder / "ground_truth/dent/12_mask.png", 255)
    with pytest.raises(DataError, match=r"11\.png: has no mask"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("truth", "said"), [("ground_truth/crack/99_mask.png", "a mask"), ("annotations/crack/99.xml", "an ann")]
)
def test_truth_without_an_image_is_refused_by_name(folder: Path, truth: str, said: str) -> None:
    boxed(folder / truth, "crack") if truth.endswith("xml") else picture(folder / truth)
    with pytest.raises(DataError, match=rf"{truth}: {said}.* without an image: remove it, or add the image"):
        read_folder(folder)


@pytest.mark.parametrize("truth", ["ground_truth/dent/1_mask.png", "annotations/dent/1.xml"])
def test_truth_of_a_class_without_images_is_refused(folder: Path, truth: str) -> None:
    boxed(folder / truth, "dent") if truth.endswith("xml") else picture(folder / truth)
    with pytest.raises(DataError, match="without images: there is no"):
        read_folder(folder)


def test_mask_that_could_be_of_two_images_is_refused(folder: Path) -> None:
    picture(folder / "train/crack/11.png")
    assert len(read_folder(folder).defects()) == 4
    picture(folder / "ground_truth/crack/11_mask.png", 255)
    with pytest.raises(DataError, match="belongs to train/crack/11 and to test/crack/11: give the two images different names"):
        read_folder(folder)


def test_boxes_of_another_class_than_the_folder_are_refused(folder: Path) -> None:
    boxed(folder / "annotations/crack/21.xml", "dent")
    with pytest.raises(DataError, match="labelled dent, its image is listed as crack"):
        read_folder(folder)


def test_good_part_with_marked_pixels_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "ground_truth/good/1_mask.png", 0)
    shutil.rmtree(folder / "test/crack")
    check_masks(read_folder(folder).samples, "tiles")
    assert capsys.readouterr().err == ""
    picture(folder / "ground_truth/good/1_mask.png", 255)
    with pytest.raises(DataError, match=r"1_mask\.png: marks 1200 pixels of train/good/1\.png, which is labelled good"):
        check_masks(read_folder(folder).samples, "tiles")


def test_mask_of_a_learned_defect_is_checked_like_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "ground_truth/crack/20_mask.png", 0)
    check_masks(read_folder(folder).defects(), "tiles")
    assert "1 of 1 masks mark no pixel" in capsys.readouterr().err
    picture(folder / "ground_truth/crack/20_mask.png", 255, (20, 30))
    with pytest.raises(DataError, match="is 20 × 30, its image 40 × 30"):
        check_masks(read_folder(folder).defects(), "tiles")


def test_class_with_one_example_is_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_classes(read_folder(folder).defects(), "tiles")
    assert capsys.readouterr().err == ""
    picture(folder / "train/dent/30.png")
    check_classes(read_folder(folder).defects(), "tiles")
    assert "tiles: one example only of dent" in capsys.readouterr().err


def test_images_that_are_all_one_are_refused() -> None:
    check_different([], "tiles", "good images")
    check_different(["a"], "tiles", "images of crack")
    check_different(["a", "b", "a"], "tiles", "good images")
    with pytest.raises(DataError, match="tiles: all 3 images of crack are one and the same"):
        check_different(["a"] * 3, "tiles", "images of crack")


def test_groups_are_read_and_others_stay_alone(folder: Path) -> None:
    (folder / "groups.csv").write_text("image,group\ntrain/good/0.png,part 7\ntrain/crack/20.png,part 7\n", encoding="utf-8")
    groups = {sample.name: sample.group for sample in read_folder(folder).samples if sample.group is not None}
    assert groups == {"train/good/0.png": "part 7", "train/crack/20.png": "part 7"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,group\ntrain/good/9.png,a\n", "lists train/good/9.png, which is no image here"),
        ("image,group\ntrain/good/0.png,\n", "line 2 needs a value for image and for group"),
        ("name,part\ntrain/good/0.png,a\n", "line 2 needs a value"),
        ("image,group\ntrain/good/0.png,a\ntrain/good/0.png,b\n", "line 3 puts train/good/0.png into b, before it was in a"),
        ("image,group\n\xff", "cannot be read"),
    ],
)
def test_wrong_groups_are_refused(folder: Path, text: str, said: str) -> None:
    (folder / "groups.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=said):
        read_folder(folder)


def test_two_defect_classes_will_do_without_good_parts_when_supervised(folder: Path) -> None:
    shutil.rmtree(folder / "train/good")
    picture(folder / "train/dent/30.png")
    with pytest.raises(DataError, match="no good images"):
        open_parts(str(folder))
    parts = open_parts(str(folder), supervised=True)
    assert parts.goods() == []
    assert len(parts.defects()) == 4


def folds_of(root: Path, header: str = "image,label,fold") -> Path:
    rows = [header]
    for index in range(8):
        label = "crack" if index % 2 else "good"
        picture(root / "test" / label / f"{index}.png")
        group = f",g{index // 3}" if header.endswith("group") else ""
        rows.append(f"test/{label}/{index}.png,{label},{index // 4}{group}")
        if label == "crack":
            picture(root / "ground_truth/crack" / f"{index}_mask.png", 255)
    (root / "folds.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def test_folder_with_folds_learns_the_others_with_masks(tmp_path: Path) -> None:
    root = folds_of(tmp_path / "tiles")
    parts = open_parts(str(root), fold=1, supervised=True)
    assert [sample.name for sample in parts.goods()] == ["test/good/0.png", "test/good/2.png"]
    assert [sample.name for sample in parts.defects()] == ["test/crack/1.png", "test/crack/3.png"]
    assert all(sample.mask is not None for sample in parts.defects())
    assert len(parts.tests()) == 4
    assert parts.has_masks
    with pytest.raises(DataError, match="no fold 5: choose one of 0, 1"):
        open_parts(str(root), fold=5, supervised=True)
    (root / "folds.csv").unlink()
    with pytest.raises(DataError, match=r"no fold 1, for there is no folds\.csv"):
        open_parts(str(root), fold=1, supervised=True)


def test_parts_of_a_group_that_the_fold_has_are_not_learned(tmp_path: Path) -> None:
    root = folds_of(tmp_path / "tiles", "image,label,fold,group")
    parts = open_parts(str(root), fold=1, supervised=True)
    assert [sample.name for sample in [*parts.goods(), *parts.defects()]] == [
        "test/good/0.png", "test/good/2.png", "test/crack/1.png",
    ]  # fmt: skip
    assert {sample.group for sample in parts.tests()} == {"g1", "g2"}


def test_known_set_with_folds_learns_defects_when_supervised(tmp_path: Path) -> None:
    folds_of(tmp_path / "magnetic_tile")
    for index in range(3):
        picture(tmp_path / "magnetic_tile/train/good" / f"x{index}.png")
    assert len(open_parts("magnetic_tile", tmp_path, supervised=True).defects()) == 2
    assert open_parts("magnetic_tile", tmp_path, fold=1).defects() == []
    assert len(open_parts("magnetic_tile", tmp_path, fold=1).tests()) == 8


def test_items_of_consecutive_images_never_lie_on_both_sides(tmp_path: Path) -> None:
    root = tmp_path / "kolektor_sdd"
    rows = ["image,label,mask,fold"]
    for index in range(399):
        label = "crack" if index % 8 == 5 else "good"
        picture(root / "images" / f"{index:03}.png", size_wh=(16, 16))
        mask = f"masks/{index:03}.png" if label == "crack" else ""
        if mask:
            picture(root / mask, 255, (16, 16))
        rows.append(f"images/{index:03}.png,{label},{mask},{index // 133}")
    (root / "folds.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for fold in range(3):
        parts = open_parts("kolektor_sdd", tmp_path, fold, supervised=True)
        learned, tests = [*parts.goods(), *parts.defects()], parts.tests()
        assert len(tests) == 133
        assert {sample.group for sample in learned}.isdisjoint(sample.group for sample in tests)
        assert len(learned) == (248, 239, 263)[fold]
        assert all(sample.mask is not None for sample in parts.defects())


def test_photographs_of_one_item_at_rising_exposure_are_one_group() -> None:
    names = ["exp1_num_100", "exp3_num_130", "exp2_num_115", "exp1_num_160", "exp6_num_900", "exp2_num_170"]
    samples = [Sample(name, Path(name), "train", "good" if index < 5 else "crack") for index, name in enumerate(names)]
    groups = [sample.group for sample in with_items(samples, ItemRule(kind="exposures"))]
    assert groups == ["good 100", "good 100", "good 100", "good 160", "good 900", "crack 170"]


def test_set_with_boxes_learns_types_without_good_parts(tmp_path: Path) -> None:
    root = tmp_path / "neu_det"
    rows = ["image,label,boxes,split"]
    for index, label in enumerate(["crazing", "patches"] * 3):
        picture(root / "images" / f"{index}.png")
        boxed(root / "annotations" / f"{index}.xml", label)
        rows.append(f"images/{index}.png,{label},annotations/{index}.xml,{'test' if index > 3 else 'train'}")
    (root / "split.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    parts = open_parts("neu_det", tmp_path, supervised=True)
    assert parts.goods() == []
    assert Counter(sample.label for sample in parts.defects()) == {"crazing": 2, "patches": 2}
    assert all(len(sample.boxes) == 1 for sample in parts.samples)
    assert len(parts.tests()) == 2
    assert open_parts("neu_det", tmp_path, to_learn=False).tests() == parts.tests()
    (root / "split.csv").write_text("\n".join(rows).replace("test", "val"), encoding="utf-8")
    with pytest.raises(DataError, match="is in split 'val', expected train or test"):
        open_parts("neu_det", tmp_path, supervised=True)


def test_elpv_supervised_is_a_stratified_quarter_with_every_cell_labelled() -> None:
    parts = open_parts("elpv", supervised=True)
    assert len(parts.samples) == 2624
    assert len(parts.tests()) == 655
    assert sum(sample.defective for sample in parts.tests()) == 205
    assert len(parts.defects()) == 616
    assert parts == open_parts("elpv", supervised=True)
    assert parts.split == known_set("elpv").split.supervised
