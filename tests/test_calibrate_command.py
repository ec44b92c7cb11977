"""`linegate calibrate` moves a package's threshold, records it, and leaves the model as it is."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import SIZE, encode
from linegate import cli
from linegate.decide import Recipe, decide
from linegate.images import read_image
from linegate.infer import Inspector
from linegate.package import MODEL_FILE, SPLIT_FILE, ModelPackage, write_package
from linegate.stages import Decision, Frame, PixelFormat
from linegate_training.data.folder import read_folder
from linegate_training.evaluate import evaluate


def picture(seed: int, *, spot: bool = False) -> bytes:
    """Return a PNG: a dim part whose brightest place varies, with a brighter spot if it is defective."""
    random = np.random.default_rng(seed)
    pixels = random.integers(20, 60, (SIZE, SIZE), dtype=np.uint8)
    brightness = int(random.integers(170, 250) if spot else random.integers(70, 160))
    pixels[8:16, 8:16] = brightness
    return encode(pixels)


def make_parts(folder: Path, goods: int, defects: int = 0, first: int = 0) -> Path:
    for name, count, spot in (("good", goods, False), ("spot", defects, True)):
        if count:
            (folder / name).mkdir(parents=True)
        for index in range(count):
            (folder / name / f"{index:03d}.png").write_bytes(picture(first + index + 10_000 * spot, spot=spot))
    return folder


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 good and 70 defective parts that no package knows; do not change it."""
    return make_parts(tmp_path_factory.mktemp("fresh") / "plates", 320, 70)


@pytest.fixture
def package(tmp_path: Path, spot_package: Path) -> Path:
    """A package of one's own, which says that it learned from one image that is not there."""
    spots = ModelPackage.load(spot_package)
    split = f"name,sha256,subset,label\nx.png,{'0' * 64},train,good\n".encode()
    card = b"# spots\n\nSees spots.\n\n## Operating point\n\nOld words.\n\n## Numbers\n\nNone.\n"
    return write_package(tmp_path / "spots", spots.manifest, {**spots.files, SPLIT_FILE: split, "card.md": card}).location


def calibrate(*arguments: object) -> int:
    return cli.main(["calibrate", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line with which the command refuses."""
    capsys.readouterr()
    assert calibrate(*arguments) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert said.startswith("linegate: ")
    return said


def test_a_folder_of_good_photographs_moves_the_threshold_with_a_promise(
    package: Path, fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ModelPackage.load(package)
    assert calibrate(package, fresh / "good", "--false-reject-rate", 0.01, "--by", "Ada", "--reason", "new\nlamp") == 0
    after = ModelPackage.load(package)
    old, new = before.manifest.thresholds, after.manifest.thresholds
    assert after.files[MODEL_FILE] == before.files[MODEL_FILE]
    assert after.files["parity.npz"] == before.files["parity.npz"]
    assert after.digest != before.digest
    assert new.score != old.score
    assert new.map != old.map
    assert (new.version, new.set_by, new.calibration["reason"]) == (old.version + 1, "Ada", "new lamp")
    assert new.set_at > old.set_at
    assert new.calibration["guaranteed"]
    assert new.calibration["score"]["parts"] == 320
    assert new.calibration["data"]["images"] == 320
    assert new.calibration["model_sha256"] == hashlib.sha256(after.model).hexdigest()
    assert "False rejects ≤ 1 % with 95 % confidence, from 320 good parts." in capsys.readouterr().out


def test_card_tells_the_new_operating_point_in_place_of_the_old(package: Path, fresh: Path) -> None:
    calibrate(package, fresh / "good", "--by", "Ada")
    card = ModelPackage.load(package).files["card.md"].decode()
    assert "Old words" not in card
    assert card.count("## Operating point\n") == 1
    assert (
        card.index("## Operating point")
        < card.index("False rejects ≤ 1 %")
        < card.index("Set by Ada")
        < card.index("## Numbers")
    )
    assert card.endswith("## Numbers\n\nNone.\n")
    assert str(fresh) not in card


def test_card_without_an_operating_point_gets_one(spot_package: Path, fresh: Path, tmp_path: Path) -> None:
    assert calibrate(spot_package, fresh / "good", "--out", tmp_path / "new") == 0
    card = ModelPackage.load(tmp_path / "new").files["card.md"].decode()
    assert card.startswith("# spots\n\nSees bright spots.\n\n## Operating point\n\nA part fails at a score of ")


def test_every_move_stays_on_record(package: Path, fresh: Path) -> None:
    calibrate(package, fresh / "good", "--by", "Ada")
    first = ModelPackage.load(package).manifest.thresholds
    calibrate(package, "--threshold", 0.7, "--by", "Bob", "--reason", "trial")
    calibrate(package, fresh, "--false-reject-rate", 0.02, "--escape-rate", 0.05, "--by", "Eve")
    new = ModelPackage.load(package).manifest.thresholds
    history = new.calibration["history"]
    assert [(entry["version"], entry["set_by"]) for entry in history] == [(1, "test"), (2, "Ada"), (3, "Bob")]
    assert new.version == 4
    assert history[1]["score"] == first.score
    assert history[2]["score"] == 0.7
    assert history[1]["calibration"]["data"]["digest"] == first.calibration["data"]["digest"]
    assert all("history" not in entry["calibration"] for entry in history)


def test_line_judges_by_the_new_threshold_and_band(package: Path, fresh: Path) -> None:
    assert calibrate(package, fresh, "--false-reject-rate", 0.01, "--undecided-rate", 0.1) == 0
    moved = ModelPackage.load(package)
    seen = moved.manifest.thresholds.calibration["seen"]
    inspector = Inspector(moved)
    recipe = Recipe("package", {"v": inspector.view_recipe})
    decided: dict[tuple[str, Decision], int] = {}
    for row in csv.DictReader(io.StringIO(moved.files["calibration.csv"].decode())):
        image, pixel_format, _, _ = read_image(fresh / row["name"])
        prediction = inspector.predict(Frame(image, pixel_format, row["name"], "c", "v", 0, datetime.now(UTC)))
        assert float(row["score"]) == pytest.approx(prediction.score, rel=1e-6)
        key = ("good" if row["label"] == "good" else "defective", decide([prediction], recipe).decision)
        decided[key] = decided.get(key, 0) + 1
    assert decided.get(("good", Decision.FAIL), 0) == seen["false_rejects"]
    assert decided.get(("good", Decision.UNDECIDED), 0) == seen["undecided_good"] > 0
    assert decided.get(("defective", Decision.PASS), 0) == seen["escapes"]
    assert pixel_format is PixelFormat.MONO8


def test_both_promises_and_costs_come_from_defects_too(package: Path, fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    promises = ("--false-reject-rate", 0.02, "--escape-rate", 0.05)
    costs = ("--cost-escape", 50, "--cost-false-reject", 1, "--defect-share", 0.05)
    assert calibrate(package, fresh, *promises, *costs, "--json") == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["calibration"]["method"] == "costs"
    assert values["calibration"]["guaranteed"]
    assert values["calibration"]["cost_per_part"]["cost"] >= 0
    assert values["calibration"]["score"]["value"] <= values["score"] <= values["calibration"]["escape"]["value"]
    assert values["previous_score"] == 0.8
    assert values["package_digest"] == ModelPackage.load(package).digest


def test_without_options_the_rate_of_the_package_is_kept(package: Path, fresh: Path, tmp_path: Path) -> None:
    calibrate(package, fresh / "good", "--false-reject-rate", 0.05)
    calibrate(package, make_parts(tmp_path / "more", 70, first=5000))
    calibration = ModelPackage.load(package).manifest.thresholds.calibration
    assert calibration["false_reject_rate"] == 0.05
    assert calibration["score"]["parts"] == 70


def test_too_few_parts_are_said_and_all_of_them_pass(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(package, make_parts(tmp_path / "few", 20)) == 0
    said = capsys.readouterr().out
    assert "20 good parts are too few to promise false rejects ≤ 1 % with 95 % confidence: 299 are needed" in said
    thresholds = ModelPackage.load(package).manifest.thresholds
    assert not thresholds.calibration["guaranteed"]
    assert thresholds.calibration["seen"]["false_rejects"] == 0


def test_band_alone_is_set_without_parts(package: Path) -> None:
    assert calibrate(package, "--undecided-below", 0.1) == 0
    thresholds = ModelPackage.load(package).manifest.thresholds
    assert (thresholds.score, thresholds.undecided_below, thresholds.map) == (0.8, 0.1, 0.8)


def test_a_band_that_goes_is_told(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(package, "--undecided-below", 0.1)
    assert calibrate(package, "--threshold", 0.7) == 0
    assert "nothing is undecided any more; --undecided-below 0.1 sets it again" in capsys.readouterr().err


def test_stated_threshold_is_measured_on_parts_that_are_given(package: Path, fresh: Path) -> None:
    assert calibrate(package, fresh, "--threshold", 0.65) == 0
    calibration = ModelPackage.load(package).manifest.thresholds.calibration
    assert (calibration["seen"]["good"], calibration["seen"]["defective"]) == (320, 70)
    assert "was stated, not calculated" in calibration["words"]


def split_of(*rows: tuple[bytes, str]) -> bytes:
    lines = [f"{index}.png,{hashlib.sha256(data).hexdigest()},{subset},good" for index, (data, subset) in enumerate(rows)]
    return ("\n".join(["name,sha256,subset,label", *lines]) + "\n").encode()


def test_parts_that_the_package_learned_from_and_copies_are_left_out(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_parts(tmp_path / "data" / "train", 40).parent
    shutil.copy(data / "train/good/030.png", data / "train/good/copy.png")
    learned = [((data / f"train/good/{index:03d}.png").read_bytes(), "train") for index in range(10)]
    tested = ((data / "train/good/010.png").read_bytes(), "test")
    old = ModelPackage.load(package)
    write_package(package, old.manifest, {**old.files, SPLIT_FILE: split_of(*learned, tested)})
    assert calibrate(package, data) == 0
    said = capsys.readouterr().err
    assert "10 images are left out, for the package learned from them" in said
    assert "1 images are left out, for their bytes are those of others" in said
    assert "1 images are test parts of the package" in said
    calibration = ModelPackage.load(package).manifest.thresholds.calibration
    assert calibration["score"]["parts"] == 30
    assert calibration["data"]["left_out_as_learned"] == 10


def test_evaluate_knows_the_parts_that_a_threshold_was_set_from(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = make_parts(tmp_path / "data" / "test", 12, 6).parent
    assert evaluate(ModelPackage.load(package), read_folder(test, to_learn=False))["seen_in_training"] == 0
    assert calibrate(package, test / "test/good") == 0
    capsys.readouterr()
    assert evaluate(ModelPackage.load(package), read_folder(test, to_learn=False))["seen_in_training"] == 12
    assert "12 of 18 test images" in capsys.readouterr().err


def test_calibration_folder_goes_before_train_and_test_is_never_used(package: Path, tmp_path: Path) -> None:
    make_parts(tmp_path / "data/train", 30)
    make_parts(tmp_path / "data/test", 30, 5, first=100)
    make_parts(tmp_path / "data/calibration", 25, 5, first=200)
    assert calibrate(package, tmp_path / "data") == 0
    seen = ModelPackage.load(package).manifest.thresholds.calibration["seen"]
    assert (seen["good"], seen["defective"]) == (25, 5)


def test_test_parts_alone_are_refused(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_parts(tmp_path / "data/test", 30, 5)
    assert "stay untouched" in refused(capsys, package, tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "needs DATA"),
        (("--false-reject-rate", 0.01), "needs DATA"),
        (("DATA", "--false-reject-rate", 2), "must be a share"),
        (("DATA", "--confidence", 2), "must be from 0.5"),
        (("DATA", "--cost-escape", 3), "costs choose only together"),
        (("DATA", "--threshold", 1, "--escape-rate", 0.1), "one or the other"),
        (("DATA", "--threshold", 1, "--confidence", 0.9), "promises none"),
        (("--threshold", "nan"), "finite"),
        (("DATA", "--undecided-below", -1), "0 or more"),
        (("DATA", "--by", " "), "--by: is empty"),
        (("DATA", "--threads", 0), "at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(
    package: Path, fresh: Path, capsys: pytest.CaptureFixture[str], options: tuple[Any, ...], words: str
) -> None:
    before = ModelPackage.load(package).digest
    assert words in refused(capsys, package, *(fresh if option == "DATA" else option for option in options))
    assert ModelPackage.load(package).digest == before


def test_folders_that_do_not_fit_are_refused(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in refused(capsys, package, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert "no images" in refused(capsys, package, tmp_path / "empty")
    one = make_parts(tmp_path / "one", 1)
    assert "1 good parts" in refused(capsys, package, one)
    assert "at least 2" in refused(capsys, package, make_parts(tmp_path / "goods", 5), "--escape-rate", 0.1)
    shutil.copytree(one / "good", tmp_path / "ok" / "OK")
    assert "rename it to 'good'" in refused(capsys, package, tmp_path / "ok")
    (one / "loose.png").write_bytes(picture(77))
    assert "images both here and in good/" in refused(capsys, package, one)
    both = make_parts(tmp_path / "both", 3, 3)
    shutil.copy(both / "good/000.png", both / "spot/same.png")
    assert "is the same image as" in refused(capsys, package, both)
    torn = make_parts(tmp_path / "torn", 3)
    (torn / "good/001.png").write_bytes(picture(1)[:400])
    assert "001.png" in refused(capsys, package, torn)


def test_equal_scores_are_refused(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "same").mkdir()
    for index in range(5):
        pixels = np.full((SIZE, SIZE), 10, np.uint8)
        pixels[:4, :4] = 200
        pixels[60, 60] = index
        (tmp_path / "same" / f"{index}.png").write_bytes(encode(pixels))
    assert "all 5 parts score 0.7843" in refused(capsys, package, tmp_path / "same")


def test_all_parts_learned_from_are_refused(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_parts(tmp_path / "data", 3)
    old = ModelPackage.load(package)
    rows = [(path.read_bytes(), "train") for path in sorted((data / "good").iterdir())]
    write_package(package, old.manifest, {**old.files, SPLIT_FILE: split_of(*rows)})
    assert "all 3 images" in refused(capsys, package, data)


def test_train_of_a_package_that_does_not_list_what_it_learned_is_refused(
    spot_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_parts(tmp_path / "data/train", 3)
    assert "does not list what it learned from" in refused(capsys, spot_package, tmp_path / "data", "--out", tmp_path / "new")


def test_zip_needs_a_place_to_write(package: Path, fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", package))
    assert "--out NEW" in refused(capsys, archive, fresh / "good")
    assert "written as folders" in refused(capsys, archive, "--threshold", 1, "--out", tmp_path / "x.zip")
    assert calibrate(archive, "--threshold", 0.7, "--out", tmp_path / "unpacked") == 0
    assert ModelPackage.load(tmp_path / "unpacked").manifest.thresholds.score == 0.7
    assert ModelPackage.load(archive).manifest.thresholds.score == 0.8


def test_place_that_cannot_be_written_is_found_before_scoring(
    package: Path, fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "is no folder" in refused(capsys, package, fresh / "good", "--out", tmp_path / "file" / "new")
    assert "among the images" in refused(capsys, package, fresh, "--out", fresh / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    assert "is no model package" in refused(capsys, package, "--threshold", 1, "--out", tmp_path / "full")
    assert (tmp_path / "full" / "letter.txt").read_text() == "mine"
