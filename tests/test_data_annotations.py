"""Boxes from Pascal VOC: what is read, and one clear line for each thing that cannot be right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from linegate.errors import DataError
from linegate_training.data.annotations import read_boxes
from linegate_training.data.parts import Box

Frame = tuple[object, object, object, object]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "7.png"
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(path)
    return path


def voc(path: Path, *boxes: tuple[str, Frame], size: str = "<size><width>40</width><height>30</height></size>") -> Path:
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, (x1, y1, x2, y2) in boxes
    )
    path.write_text(f"<annotation>{size}{objects}</annotation>", encoding="utf-8")
    return path


def test_file_without_boxes_is_refused(image: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"7\.xml: marks no box on a part listed as crack: draw one, or remove the file"):
        read_boxes(voc(tmp_path / "7.xml"), image, "crack")


def test_box_that_counts_from_one_and_includes_its_end_becomes_one_that_does_not(image: Path, tmp_path: Path) -> None:
    path = voc(tmp_path / "7.xml", ("crack", (1, 1, 40, 30)), ("dent", (5, 6, 5, 6)))
    assert read_boxes(path, image, "crack", {"dent"}) == (Box("crack", (0, 0, 40, 30)), Box("dent", (4, 5, 5, 6)))


@given(left=st.integers(0, 39), top=st.integers(0, 29), width=st.integers(1, 40), height=st.integers(1, 30))
def test_any_box_inside_comes_back_as_it_was_written(
    left: int, top: int, width: int, height: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    image = folder / "any.png"
    if not image.exists():
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(image)
    box = (left, top, min(left + width, 40), min(top + height, 30))
    path = voc(folder / "any.xml", ("crack", (box[0] + 1, box[1] + 1, box[2], box[3])))
    assert read_boxes(path, image, "crack") == (Box("crack", box),)


def test_tools_that_count_from_zero_or_in_fractions_are_read(image: Path, tmp_path: Path) -> None:
    path = voc(tmp_path / "7.xml", ("crack", (0, 0, "12.4", 30.0)), size="<size><width>0</width><height>0</height></size>")
    assert read_boxes(path, image, "crack") == (Box("crack", (0, 0, 13, 30)),)


@pytest.mark.parametrize("frame", [(1, 1, 42, 30), (-1, 1, 5, 5), (1, 1, 5, 33), (41, 1, 41, 5)])
def test_box_outside_the_image_is_refused_with_both(image: Path, tmp_path: Path, frame: Frame) -> None:
    path = voc(tmp_path / "7.xml", ("crack", (1, 1, 2, 2)), ("crack", frame))
    with pytest.raises(DataError, match=r"7\.xml: box 2 \(.*\) reaches out of the image, 40 × 30"):
        read_boxes(path, image, "crack")


def test_empty_box_is_refused(image: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"box 1 is empty .* = 9 5 8 7"):
        read_boxes(voc(tmp_path / "7.xml", ("crack", (9, 5, 8, 7))), image, "crack")


def test_boxes_that_disagree_with_the_listed_label_are_refused(image: Path, tmp_path: Path) -> None:
    path = voc(tmp_path / "7.xml", ("dent", (1, 1, 5, 5)))
    with pytest.raises(DataError, match="its boxes are labelled dent, its image is listed as crack"):
        read_boxes(path, image, "crack", {"dent"})


def test_box_of_an_unknown_class_is_refused(image: Path, tmp_path: Path) -> None:
    path = voc(tmp_path / "7.xml", ("crack", (1, 1, 5, 5)), ("crak", (1, 1, 5, 5)))
    with pytest.raises(DataError, match="a box is labelled crak, expected one of crack, dent"):
        read_boxes(path, image, "crack", {"dent"})


def test_annotation_of_another_size_is_refused_with_both_sizes(image: Path, tmp_path: Path) -> None:
    path = voc(tmp_path / "7.xml", ("crack", (1, 1, 5, 5)), size="<size><width>80</width><height>60</height></size>")
    with pytest.raises(DataError, match=r"drawn on an image of 80 × 60, 7\.png is 40 × 30"):
        read_boxes(path, image, "crack")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not readable xml"),
        (b"<annotation>", "not readable xml"),
        (b"\xff\xfe<", "not UTF-8"),
        (b"<html/>", "got <html>"),
        (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>', "has a document type"),
        (b"<annotation><object><name>crack</name></object></annotation>", "box 1 has no bndbox"),
        (b"<annotation><object><bndbox/></object></annotation>", "box 1 has no name"),
        (b"<annotation><object><name>crack</name><bndbox/></object></annotation>", "xmin is None, expected a number"),
    ],
)
def test_damaged_file_is_refused_in_one_line(image: Path, tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "7.xml"
    path.write_bytes(text)
    with pytest.raises(DataError) as caught:
        read_boxes(path, image, "crack")
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["nan", "inf", "1e999", "many"])
def test_side_that_is_no_number_is_refused(image: Path, tmp_path: Path, number: str) -> None:
    with pytest.raises(DataError, match=f"xmax is '{number}', expected a number"):
        read_boxes(voc(tmp_path / "7.xml", ("crack", (1, 1, number, 5))), image, "crack")


def test_missing_file_is_refused(image: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_boxes(tmp_path / "no.xml", image, "crack")
