"""One family that grows: good parts alone, then defects with masks, boxes or labels alone; and what each command says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from linegate import cli
from linegate.infer import Inspector
from linegate.package import ModelPackage
from linegate_training.calibrate import Aim
from linegate_training.data.parts import Sample
from linegate_training.settings import TrainSettings
from linegate_training.train import _aim, working_size

SETTINGS = """
size_px = 128
cross_fit_folds = 3
variants = 0
validation_share = 0.2
[learn]
images_shown = 480
epochs_at_least = 1
epoch_defects = 24
[learn.fit]
batch = 8
checkpoint_every_s = 0
"""


def make_plate(random: np.random.Generator, kind: str) -> tuple[Any, Any]:
    """Return a plate (128, 128), with a dark scratch or a bright spot on it, and its mask."""
    x = np.arange(128)[np.newaxis]
    grey = 110 + 20 * np.cos(x / 20) + random.normal(0, 4, (128, 128)) + random.normal(0, 2)
    mask = np.zeros((128, 128), np.uint8)
    place = (int(random.integers(24, 100)), int(random.integers(24, 100)))
    if kind == "scratch":
        cv2.line(mask, place, (place[0] + int(random.integers(-20, 20)), min(127, place[1] + 26)), 255, 4)
        grey[mask > 0] -= 70
    if kind == "spot":
        cv2.circle(mask, place, 9, 255, -1)
        grey[mask > 0] += 90
    return np.clip(grey, 0, 255).astype(np.uint8), mask


def make_plates(root: Path, learned: dict[str, int], masks: bool = True) -> Path:
    random = np.random.default_rng(5)
    kinds = [kind for kind in learned if kind != "good"] or ["scratch"]
    wanted = {("train", kind): count for kind, count in learned.items()} | {("test", kind): 8 for kind in ["good", *kinds]}
    for (subset, kind), count in wanted.items():
        (root / subset / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, mask = make_plate(random, kind)
            name = f"{subset}{index:03d}"
            cv2.imwrite(str(root / subset / kind / f"{name}.png"), image)
            if masks and kind != "good":
                (root / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / "ground_truth" / kind / f"{name}_mask.png"), mask)
    return root


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "quick.toml"
    path.write_text(SETTINGS)
    return path


def train(data: Path, place: Path, settings_file: Path, *options: str) -> ModelPackage:
    command = ["train", str(data), "--out", str(place / "plates"), "--run-dir", str(place / "run")]
    assert cli.main([*command, "--settings", str(settings_file), *options]) == 0
    return ModelPackage.load(place / "plates")


@pytest.fixture(scope="module")
def typed_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plates(tmp_path_factory.mktemp("typed") / "plates", {"good": 24, "scratch": 16, "spot": 16})


@pytest.fixture(scope="module")
def typed(typed_data: Path, settings_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelPackage, Path]:
    place = tmp_path_factory.mktemp("trained")
    return train(typed_data, place, settings_file), place / "run"


def test_defects_in_the_training_folder_are_learned_and_named(typed: tuple[ModelPackage, Path]) -> None:
    package, _ = typed
    assert package.manifest.task == "typed"
    assert package.manifest.labels == ("good", "scratch", "spot")
    test = package.manifest.metrics["test"]
    assert test["image_auroc"] >= 0.95
    assert test["class_accuracy"] >= 0.85
    assert test["pixel_iou"] >= 0.3
    subsets = {line.split(",")[2] for line in package.files["split.csv"].decode().splitlines()[1:]}
    assert subsets == {"train", "validation", "calibration", "test"}
    card = package.files["card.md"].decode()
    assert "shows a defect, where, and of which class" in card
    assert "It learned from " in card
    assert "Classes: scratch, spot." in card


def test_boxes_are_learned_by_the_whole_command(tmp_path: Path, settings_file: Path) -> None:
    data, random = (
        make_plates(tmp_path / "boxed", {"good": 24, "scratch": 24, "spot": 24}, masks=False),
        np.random.default_rng(6),
    )
    for kind in ("scratch", "spot"):
        (data / "annotations" / kind).mkdir(parents=True)
        for path in [*(data / "train" / kind).iterdir(), *(data / "test" / kind).iterdir()]:
            image, mask = make_plate(random, kind)
            cv2.imwrite(str(path), image)
            x, y, width, height = cv2.boundingRect(mask)
            box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax>"
            xml = f"<annotation><object><name>{kind}</name><bndbox>{box}</bndbox></object></annotation>"
            (data / "annotations" / kind / f"{path.stem}.xml").write_text(xml)
    package = train(data, tmp_path, settings_file)
    assert package.manifest.outputs.detections is not None
    assert package.manifest.thresholds.detection != 0.3, "the validation parts choose it"
    test = package.manifest.metrics["test"]
    assert test["class_accuracy"] >= 0.9
    assert test["map50"] >= 0.4
    assert test["image_auroc"] >= 0.9


def test_without_good_parts_the_threshold_lets_few_defects_escape() -> None:
    def aim(*labels: str) -> Aim:
        samples = [Sample(f"{number}.png", Path(f"{number}.png"), "train", label) for number, label in enumerate(labels)]
        return _aim(samples, TrainSettings())

    assert aim("dent", "dent", "scratch").escape_rate == 0.01
    assert aim("dent").threshold == 0.0
    assert aim("good", "good", "dent").false_reject_rate == 0.01


def test_regions_carry_the_class(typed: tuple[ModelPackage, Path], typed_data: Path) -> None:
    from datetime import UTC, datetime

    from linegate.images import read_image
    from linegate.stages import Frame

    inspector = Inspector(typed[0])
    right = 0
    for path in sorted((typed_data / "test/spot").iterdir()):
        image, pixel_format, _, _ = read_image(path)
        seen = inspector.predict(Frame(image, pixel_format, path.name, "c", "v", 1, datetime.now(UTC)))
        assert seen.class_scores is not None
        assert sum(seen.class_scores.values()) == pytest.approx(1.0, abs=1e-3)
        right += bool(seen.regions) and seen.regions[0].label == "spot"
    assert right >= 6


def test_run_folder_holds_report_settings_net_and_log(typed: tuple[ModelPackage, Path]) -> None:
    _, run = typed
    assert {"report.html", "settings.json", "trained.pt", "log.jsonl", "checkpoint.pt"} <= {one.name for one in run.iterdir()}
    assert json.loads((run / "settings.json").read_text())["size_px"] == 128


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_export_makes_the_same_model_again(
    typed: tuple[ModelPackage, Path], typed_data: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    package, run = typed
    command = ["export", str(run), str(typed_data), "--out", str(tmp_path / "again"), "--precision", precision]
    assert cli.main(command) == 0
    again = ModelPackage.load(tmp_path / "again")
    Inspector(again)
    if precision == "fp32":
        assert again.model == package.model
    if precision == "int8":
        assert "int8 is" in capsys.readouterr().err
        assert "int8 is" in again.manifest.metrics["export"]
    before, after = package.manifest.metrics["test"]["image_auroc"], again.manifest.metrics["test"]["image_auroc"]
    assert abs(before - after) <= 0.05


def test_export_without_a_finished_training_says_so(
    typed_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(tmp_path), str(typed_data), "--out", str(tmp_path / "p")]) == 2
    assert "name a run folder that linegate train left" in capsys.readouterr().err


def test_image_labels_alone_teach(settings_file: Path, tmp_path: Path) -> None:
    data = make_plates(tmp_path / "data", {"good": 20, "spot": 16}, masks=False)
    package = train(data, tmp_path, settings_file)
    assert package.manifest.task == "anomaly"
    assert package.manifest.labels == ("good", "spot")
    assert package.manifest.metrics["test"]["image_auroc"] >= 0.9


def test_instant_learns_from_good_parts_even_where_there_are_defects(
    typed_data: Path, settings_file: Path, tmp_path: Path
) -> None:
    package = train(typed_data, tmp_path, settings_file, "--instant", "--limit-goods", "15", "--precision", "int8")
    assert package.manifest.labels == ("good", "defect")
    assert package.manifest.dataset.split["train"] == 15
    assert "int8 is" in package.manifest.metrics["export"]


def test_what_is_ignored_and_what_lies_outside_the_region_changes_nothing(
    typed_data: Path, settings_file: Path, tmp_path: Path
) -> None:
    ignore = np.zeros((50, 50), np.uint8)
    ignore[:, :20] = 255
    cv2.imwrite(str(tmp_path / "ignore.png"), ignore)
    options = ("--instant", "--ignore", str(tmp_path / "ignore.png"), "--roi", "0,0,0.75,1")
    package = train(typed_data, tmp_path, settings_file, *options)
    assert package.manifest.input.roi_xyxy == (0, 0, 0.75, 1)
    inspector = Inspector(package)
    frame = np.full((1, 160, 128, 3), 100, np.uint8) if package.manifest.input.size_wh == (128, 160) else None
    assert frame is not None
    spoiled = frame.copy()
    spoiled[:, :, :40] = 255
    assert float(inspector.run(frame)["score"][0]) == float(inspector.run(spoiled)["score"][0])
    spoiled[:, 60:100, 90:] = 255
    assert float(inspector.run(frame)["score"][0]) != float(inspector.run(spoiled)["score"][0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--roi", "0.5,0,0.2,1"], "give left,top,right,bottom in shares of the frame"),
        (["--augment", "mirrord"], "no preset 'mirrord'"),
        (["--precision", "int8", "--settings", "no-such.toml"], "cannot be read as TOML"),
    ],
)
def test_wrong_option_is_told_in_one_line(
    typed_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    command = ["train", str(typed_data), "--out", str(tmp_path / "p"), "--run-dir", str(tmp_path / "run"), *options]
    assert cli.main(command) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("linegate: ")
    assert expected in line


def test_unknown_setting_in_the_file_names_the_nearest(
    typed_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "typo.toml").write_text("[learn.fit]\nepoch = 3\n")
    assert cli.main(["train", str(typed_data), "--out", str(tmp_path / "p"), "--settings", str(tmp_path / "typo.toml")]) == 2
    assert "did you mean 'epochs'?" in capsys.readouterr().err


def test_training_killed_and_resumed_gives_the_same_net(
    typed_data: Path, typed: tuple[ModelPackage, Path], settings_file: Path, tmp_path: Path
) -> None:
    package, _ = typed
    run = tmp_path / "run"
    command = [sys.executable, "-m", "linegate.cli", "train", str(typed_data), "--out", str(tmp_path / "plates")]
    command += ["--run-dir", str(run), "--settings", str(settings_file), "--resume"]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run / "log.jsonl").exists() or len((run / "log.jsonl").read_text().splitlines()) < 2:
        assert first.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (run / "trained.pt").exists()
    assert subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=180).returncode == 0
    resumed = ModelPackage.load(tmp_path / "plates")
    assert resumed.model == package.model
    for key in ("image_auroc", "class_accuracy", "pixel_iou"):
        assert resumed.manifest.metrics["test"][key] == package.manifest.metrics["test"][key]


def test_two_processes_of_torchrun_make_one_package(typed_data: Path, settings_file: Path, tmp_path: Path) -> None:
    quick = tmp_path / "quick.toml"
    quick.write_text(settings_file.read_text().replace("images_shown = 480", "images_shown = 96"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "linegate.cli"]
    command += ["train", str(typed_data), "--out", str(tmp_path / "plates"), "--run-dir", str(tmp_path / "run")]
    command += ["--settings", str(quick), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("wrote ") == 1
    assert ModelPackage.load(tmp_path / "plates").manifest.task == "typed"


@pytest.mark.parametrize(
    ("size_wh", "expected"),
    [((400, 400), (256, 256)), ((300, 250), (256, 256)), ((500, 1260), (256, 640)), ((4000, 100), (1024, 256))],
)
def test_input_follows_the_aspect_of_the_photographs(
    tmp_path: Path, size_wh: tuple[int, int], expected: tuple[int, int]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((size_wh[1], size_wh[0]), np.uint8))
    assert working_size([Sample("a", tmp_path / "a.png", "train", "good")], TrainSettings()) == expected


@pytest.mark.parametrize(("defect_px", "expected"), [(40, (256, 256)), (12, (352, 352)), (2, (512, 512))])
def test_input_grows_where_marked_defects_would_be_lost(tmp_path: Path, defect_px: int, expected: tuple[int, int]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((512, 512), np.uint8))
    mask = np.zeros((512, 512), np.uint8)
    mask[100 : 100 + defect_px, 100 : 100 + defect_px] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    samples = [Sample("a", tmp_path / "a.png", "train", "crack", tmp_path / "mask.png")]
    assert working_size(samples, TrainSettings()) == expected
    assert working_size(samples, TrainSettings(size_px=256)) == (256, 256)
