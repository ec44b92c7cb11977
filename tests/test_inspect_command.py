"""`linegate inspect`: tables for people, JSON for programs, pictures, and an exit status for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import BAD_PICTURES, encode, spot_picture
from linegate import __version__
from linegate.cli import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a-good.png").write_bytes(encode(spot_picture(defect=False)))
    (folder / "deeper" / "b-bad.png").write_bytes(encode(spot_picture(defect=True)))
    (folder / "c-torn.jpg").write_bytes(BAD_PICTURES["truncated JPEG"][0])
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_good_photographs_pass_with_exit_status_0(photos: Path, spot_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(photos / "a-good.png"), "--model", str(spot_package)]) == 0
    out = capsys.readouterr().out
    assert "pass" in out
    assert "spots 1.0.0" in out


@pytest.mark.parametrize("name", ["deeper/b-bad.png", "c-torn.jpg"])
def test_a_fail_and_an_undecided_exit_with_1(name: str, photos: Path, spot_package: Path) -> None:
    assert main(["inspect", str(photos / name), "--model", str(spot_package)]) == 1


def test_a_folder_is_judged_whole_one_json_object_a_line_with_overlays(
    photos: Path, spot_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlays = tmp_path / "overlays"
    command = ["inspect", str(photos), "--model", str(spot_package), "--json", "--overlay", str(overlays)]
    assert main(command) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_name = {Path(row["photo"]).name: row for row in rows}
    assert {name: row["verdict"] for name, row in by_name.items()} == {
        "a-good.png": "pass",
        "b-bad.png": "fail",
        "c-torn.jpg": "undecided",
    }
    assert by_name["c-torn.jpg"]["reason"] == "image_truncated"
    assert "c-torn.jpg" in by_name["c-torn.jpg"]["reason_text"]
    assert by_name["b-bad.png"]["regions"][0]["label"] == "defect"
    assert all(len(row["package_digest"]) == 64 for row in rows)
    assert Path(by_name["b-bad.png"]["overlay"]).read_bytes().startswith(b"\xff\xd8")
    assert len(list(overlays.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "nowhere.png", "--model", "{package}"], "nowhere.png: no such file or folder"),
        (["inspect", "{photo}", "--model", "nowhere"], "no such model package"),
        (["inspect", "{photo}", "--model", "{package}", "--provider", "abacus"], "unknown provider 'abacus'"),
        (["inspect", "{empty}", "--model", "{package}"], "no pictures in this folder"),
        (["inspect", "{photo}", "--model", "{package}", "--overlay", "{photo}"], "cannot be made"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_status_2(
    arguments: list[str], words: str, photos: Path, spot_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"package": spot_package, "photo": photos / "a-good.png", "empty": tmp_path / "empty"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("linegate: ")
    assert error.count("\n") == 1


def test_unknown_options_and_commands_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["inspekt"], ["inspect"], ["inspect", "x", "--model", "y", "--fast"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == f"linegate {__version__}"


def test_the_limit_of_pixels_is_an_option(photos: Path, spot_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["inspect", str(photos / "a-good.png"), "--model", str(spot_package), "--max-megapixels", "0.001"]
    assert main(command) == 1
    assert "the limit is 1,000 pixels" in capsys.readouterr().out
