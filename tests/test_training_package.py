"""From photographs to a package that the line loads: training, export and evaluation, with the real backbone.

The photographs are made up: grey parts with grain, some with a bright scratch.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from linegate import cli
from linegate.errors import DataError, ParityError, SettingsError
from linegate.infer import Inspector, prepare
from linegate.package import InputSpec, ModelPackage
from linegate.settings import parse
from linegate_training.card import table
from linegate_training.data.fetch import open_parts
from linegate_training.data.folder import read_folder
from linegate_training.data.parts import Sample, read_part
from linegate_training.data.splits import split_goods
from linegate_training.evaluate import evaluate
from linegate_training.export import Arrays, frame_example, parity_samples, prove, to_onnx
from linegate_training.good_parts import extract, fit, torch_extractor
from linegate_training.models.good_only import FeatureNet, GoodOnlyNet, Unit
from linegate_training.packaging import Naming, split_csv
from linegate_training.settings import TrainSettings
from linegate_training.train import train

GOODS = 24
FAST = TrainSettings(size_px=128, cross_fit_folds=3, variants=1)
NAMED = Naming("p", "1.0.0", "x")
SIZE_WH = (160, 128)


def make_part(random: np.random.Generator, scratched: bool) -> tuple[Any, Any]:
    """Return a picture (120, 150) and its mask."""
    y, x = np.mgrid[0:120, 0:150]
    grey = 90 + 30 * np.exp(-((x - 75) ** 2 + (y - 60) ** 2) / 1500) + random.normal(0, 6, (120, 150)) + random.normal(0, 2)
    mask = np.zeros((120, 150), np.uint8)
    if scratched:
        start = (int(random.integers(20, 60)), int(random.integers(20, 100)))
        cv2.line(mask, start, (start[0] + 60, int(random.integers(20, 100))), 255, 4)
        grey[mask > 0] += 70
    return np.clip(grey, 0, 255).astype(np.uint8), mask


def make_set(root: Path, goods: int = GOODS, tests: int = 8, masks: bool = True) -> Path:
    random = np.random.default_rng(11)
    for name, count, scratched in (("train/good", goods, False), ("test/good", tests, False), ("test/scratch", tests, True)):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, mask = make_part(random, scratched)
            cv2.imwrite(str(root / name / f"{index:03d}.png"), image)
            if scratched and masks:
                (root / "ground_truth/scratch").mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / "ground_truth/scratch" / f"{index:03d}_mask.png"), mask)
    return root


@pytest.fixture(scope="module")
def parts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("data") / "plates")


@pytest.fixture(scope="module")
def package(parts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """A package trained by the command, as a user would."""
    out = tmp_path_factory.mktemp("packages") / "plates"
    run = ["--run-dir", str(out.parent / "run")]
    status = cli.main(["train", str(parts_folder), "--out", str(out), "--size", "128", "--false-reject-rate", "0.05", *run])
    assert status == 0
    return ModelPackage.load(out)


def test_twenty_four_good_photographs_make_a_package_that_finds_scratches(package: ModelPackage) -> None:
    test = package.manifest.metrics["test"]
    assert test["image_auroc"] >= 0.95
    assert test["pixel_auroc"] >= 0.9
    assert test["escape_rate"] <= 0.25
    assert test["false_reject_rate"] <= 0.25
    assert (test["good"], test["defective"]) == (8, 8)


def test_package_says_what_it_is(package: ModelPackage) -> None:
    manifest = package.manifest
    assert manifest.name == "plates"
    assert manifest.input.size_wh == SIZE_WH  # the photographs are 150 × 120
    assert manifest.thresholds.calibration["false_reject_rate"] == 0.05
    assert manifest.thresholds.calibration["score"]["parts"] == GOODS
    assert manifest.dataset.split["train"] == GOODS
    assert manifest.training.settings["size_px"] == 128
    lines = package.files["split.csv"].decode().splitlines()
    assert lines[0] == "name,sha256,subset,label"
    assert len(lines) == 1 + GOODS + 16
    card = package.files["card.md"].decode()
    for needed in ("linegate train", "--size 128", "Licence of the images", "false-reject rate", "cannot see"):
        assert needed in card


def test_package_is_small_enough_for_the_line(package: ModelPackage) -> None:
    assert sum(map(len, package.files.values())) < 8 * 2**20


def test_exported_graph_tells_nothing_of_the_machine_that_made_it(package: ModelPackage) -> None:
    assert str(Path(__file__).parents[1]).encode() not in package.model
    assert b"site-packages" not in package.model


def test_parity_frames_are_made_up_and_stay_the_same(package: ModelPackage) -> None:
    samples = package.parity_samples
    again = parity_samples(package.model, SIZE_WH, seed=0)
    np.testing.assert_array_equal(samples.pixels, again.pixels)
    assert len(samples.pixels) >= 3


def test_line_judges_as_training_measured(
    package: ModelPackage, parts_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(["inspect", str(parts_folder / "test/scratch"), "--model", str(package.location), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 1
    escapes = sum(row["verdict"] == "pass" for row in rows)
    assert escapes == package.manifest.metrics["test"]["escapes"]
    assert any(row["regions"] for row in rows)


def test_evaluate_prints_one_json_object_last(
    package: ModelPackage, parts_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(package.location), str(parts_folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored = package.manifest.metrics["test"]
    for key in ("image_auroc", "image_ap", "pixel_auroc", "aupro", "false_reject_rate", "escape_rate"):
        assert values[key] == pytest.approx(stored[key])
    assert values["ms_per_image"] > 0
    assert 0 <= values["false_reject_rate_at_zero_escapes"] <= 1
    low, high = values["escape_rate_ci95"]
    assert low <= values["escape_rate"] <= high
    assert values["package_digest"] == package.digest


def test_evaluate_shows_people_a_table(package: ModelPackage, parts_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(package.location), str(parts_folder)]) == 0
    shown = capsys.readouterr().out
    assert "image AUROC" in shown
    assert "escape rate at the threshold" in shown


def test_evaluate_gives_null_where_a_measure_is_undefined(package: ModelPackage, tmp_path: Path) -> None:
    root = make_set(tmp_path / "unmasked", goods=1, tests=3, masks=False)
    values = evaluate(package, read_folder(root))
    assert values["pixel_auroc"] is None
    assert values["aupro"] is None
    assert values["image_auroc"] is not None
    for path in (root / "test/scratch").iterdir():
        path.unlink()
    values = evaluate(package, read_folder(root))
    for key in ("image_auroc", "image_ap", "escape_rate", "escape_rate_ci95", "false_reject_rate_at_zero_escapes"):
        assert values[key] is None
    json.dumps(values, allow_nan=False)


def test_evaluate_without_test_parts_is_refused(package: ModelPackage, tmp_path: Path) -> None:
    make_set(tmp_path, goods=1, tests=0)
    with pytest.raises(DataError, match="no test images"):
        evaluate(package, read_folder(tmp_path))


def test_test_set_alone_is_measured(
    package: ModelPackage, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("test", "ground_truth"):
        shutil.copytree(parts_folder / name, tmp_path / "fresh" / name)
    assert cli.main(["evaluate", str(package.location), str(tmp_path / "fresh"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["image_auroc"] == pytest.approx(package.manifest.metrics["test"]["image_auroc"])
    assert values["seen_in_training"] == 0
    line = refused(["evaluate", str(package.location), str(tmp_path / "fresh/test")], capsys)
    assert "name the folder that holds test/good" in line


def test_evaluate_refuses_a_variable_that_names_no_folder(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LINEGATE_DATA", str(tmp_path / "missing"))
    line = refused(["evaluate", str(package.location), "elpv"], capsys)
    assert f"LINEGATE_DATA names no folder: {tmp_path / 'missing'}" in line


def test_test_images_seen_in_training_are_told(
    package: ModelPackage, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert package.manifest.metrics["test"]["seen_in_training"] == 0
    assert "test images seen in training" not in package.files["card.md"].decode()
    root = tmp_path / "leaky"
    shutil.copytree(parts_folder / "test", root / "test")
    for name in ("000", "001", "002"):
        shutil.copy(parts_folder / "train/good" / f"{name}.png", root / "test/good" / f"again-{name}.png")
    assert cli.main(["evaluate", str(package.location), str(root), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[-1])["seen_in_training"] == 3
    (note,) = [line for line in shown.err.splitlines() if line.startswith("note:")]
    assert f"3 of 19 test images are among those the package learned from, the first {root / 'test/good/again-000.png'}" in note
    assert cli.main(["evaluate", str(package.location), str(root)]) == 0
    assert "| test images seen in training" in capsys.readouterr().out


def test_training_tells_that_its_test_images_are_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_set(tmp_path / "leaky", goods=12, tests=2, masks=False)
    shutil.copy(root / "train/good/000.png", root / "test/good/copy.png")
    made = train(read_folder(root), tmp_path / "p", NAMED, FAST)
    assert made.manifest.metrics["test"]["seen_in_training"] == 1
    assert "1 of 5 test images are among those the package learned from" in capsys.readouterr().err
    assert "test images seen in training" in made.files["card.md"].decode()


def test_package_without_a_split_does_not_say_what_it_saw(package: ModelPackage, parts_folder: Path) -> None:
    files = {name: data for name, data in package.files.items() if name != "split.csv"}
    values = evaluate(dataclasses.replace(package, files=files), read_folder(parts_folder))
    assert values["seen_in_training"] is None
    assert "test images seen in training" not in table(values)


def test_split_lists_names_with_commas_and_quotes(parts_folder: Path) -> None:
    parts = read_folder(parts_folder)
    names = ['a",b.png', "c,d.png", "plain.png"]
    samples = tuple(Sample(name, Path(name), "test", "good") for name in names)
    listed = split_csv(dataclasses.replace(parts, samples=samples), {}, dict.fromkeys(names, "0")).decode()
    assert [row["name"] for row in csv.DictReader(io.StringIO(listed))] == names
    assert listed.splitlines()[-1] == '"plain.png",0,test,"good"'


def test_card_says_about_where_the_threshold_is_cross_fitted(package: ModelPackage) -> None:
    calibration = package.manifest.thresholds.calibration
    assert calibration["held_out"] is False
    assert "≤ about" in calibration["words"]
    assert "≤ about" in package.files["card.md"].decode()


def test_same_seed_gives_the_same_graph_and_numbers(parts_folder: Path, tmp_path: Path) -> None:
    parts = read_folder(parts_folder)
    first = train(parts, tmp_path / "a", Naming("a", "1.0.0", "first"), FAST)
    second = train(parts, tmp_path / "b", Naming("b", "1.0.0", "second"), FAST)
    assert first.model == second.model
    assert first.files["split.csv"] == second.files["split.csv"]
    assert first.files["parity.npz"] == second.files["parity.npz"]
    assert first.manifest.thresholds.score == second.manifest.thresholds.score
    drop = {"ms_per_image", "ms_per_image_p95", "package"}
    numbers = [{k: v for k, v in one.manifest.metrics["test"].items() if k not in drop} for one in (first, second)]
    assert numbers[0] == numbers[1]


def test_another_seed_gives_another_split(parts_folder: Path) -> None:
    digests = [f"{index:064x}" for index in range(GOODS)]
    assert split_goods(digests, 0, 0.2, 100, 5) != split_goods(digests, 1, 0.2, 100, 5)


@pytest.fixture(scope="module")
def net(parts_folder: Path) -> tuple[GoodOnlyNet, list[Any]]:
    goods = read_folder(parts_folder).goods()
    spec = InputSpec(size_wh=SIZE_WH)
    features = FeatureNet(SIZE_WH)
    split = split_goods([sample.name for sample in goods], 0, 0.25, 0, 3)
    fitted = fit(extract(torch_extractor(features), goods, spec, FAST), split, FAST)
    assert fitted.scores.shape == fitted.peaks.shape == (6,)
    return GoodOnlyNet(features, fitted.head), [prepare(*read_part(sample), spec)[0] for sample in goods[:4]]


def by_torch(net: GoodOnlyNet) -> Callable[[Any], Arrays]:
    def expected(pixels: Any) -> Arrays:
        with torch.inference_mode():
            score, anomaly_map = net(torch.from_numpy(pixels))
        return {"score": score.numpy(), "map": anomaly_map.numpy()}

    return expected


def exported(net: GoodOnlyNet) -> bytes:
    return to_onnx(net, [frame_example(SIZE_WH)], ["pixels"], ["score", "map"])


def test_torch_and_onnxruntime_agree_on_real_and_on_wild_frames(net: tuple[GoodOnlyNet, list[Any]]) -> None:
    trained, frames = net
    random = np.random.default_rng(0)
    shape = frames[0].shape
    wild = [np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)]
    wild += [random.integers(0, 256, shape).astype(np.uint8) for _ in range(3)]
    proof = prove(by_torch(trained), exported(trained), [*frames, *wild])
    assert proof.parts == 9
    assert max(proof.score, proof.map) <= 1e-4


def test_export_that_disagrees_writes_no_package(net: tuple[GoodOnlyNet, list[Any]]) -> None:
    trained, frames = net
    model = exported(trained)
    units = trained.head.units
    try:
        wider = Unit(units.whole.centre, units.whole.spread * 1.01)
        narrower = Unit(units.peak.centre, units.peak.spread * 0.99)
        trained.head.units = dataclasses.replace(units, whole=wider, peak=narrower)
        with pytest.raises(ParityError, match="no package was written"):
            prove(by_torch(trained), model, frames)
    finally:
        trained.head.units = units
    with pytest.raises(ParityError, match="over 0 parts"):
        prove(by_torch(trained), model, [])


def test_scores_do_not_depend_on_the_batch(net: tuple[GoodOnlyNet, list[Any]]) -> None:
    trained, frames = net
    with torch.inference_mode():
        together, _ = trained(torch.from_numpy(np.concatenate(frames)))
        alone = torch.cat([trained(torch.from_numpy(frame))[0] for frame in frames])
    np.testing.assert_allclose(together.numpy(), alone.numpy(), rtol=1e-4, atol=1e-4)


def test_copies_of_one_photograph_are_refused(tmp_path: Path) -> None:
    image, _ = make_part(np.random.default_rng(0), False)
    (tmp_path / "same/train/good").mkdir(parents=True)
    for index in range(12):
        cv2.imwrite(str(tmp_path / "same/train/good" / f"{index}.png"), image)
    with pytest.raises(DataError, match="all 12 good images are one and the same"):
        train(read_folder(tmp_path / "same"), tmp_path / "p", NAMED, FAST)


def test_colour_and_unequal_sizes_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(4)
    (tmp_path / "mixed/train/good").mkdir(parents=True)
    for index in range(12):
        image, _ = make_part(random, False)
        image = cv2.resize(image, (150 + index, 120))
        cv2.imwrite(str(tmp_path / "mixed/train/good" / f"{index}.png"), cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    made = train(read_folder(tmp_path / "mixed"), tmp_path / "p", NAMED, FAST)
    said = capsys.readouterr().err
    assert "150–161 wide" in said
    assert "too few to promise" in said
    assert "299 are needed" in said
    assert "test" not in made.manifest.metrics
    assert Inspector(made).parity_difference <= made.manifest.parity.score_tolerance


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("linegate: ")
    return line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--size", "200"], "multiple of 32"),
        (["--size", "64"], "greater than or equal to 128"),
        (["--false-reject-rate", "0"], "greater than 0"),
        (["--seed", "-1"], "greater than or equal to 0"),
        (["--name", "My Model"], "use a-z, 0-9"),
        (["--version", "one"], "use three numbers"),
    ],
)
def test_wrong_option_is_one_line(
    options: list[str], expected: str, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(["train", str(parts_folder), "--out", str(tmp_path / "p"), *options], capsys)
    assert expected in line
    assert not (tmp_path / "p").exists()


def test_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'size_px'"):
        parse({"size_pixels": 256}, TrainSettings, "settings")


def test_too_few_good_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_set(tmp_path / "few", goods=4, tests=0)
    assert "4 good images, at least 10" in refused(["train", str(tmp_path / "few"), "--out", str(tmp_path / "p")], capsys)


def test_truncated_photograph_stops_training_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_set(tmp_path / "torn", goods=12, tests=0)
    victim = root / "train/good/003.png"
    victim.write_bytes(victim.read_bytes()[:2000])
    line = refused(["train", str(root), "--out", str(tmp_path / "p"), "--size", "128"], capsys)
    assert "003.png" in line
    assert not (tmp_path / "p").exists()


def test_place_that_holds_something_else_is_refused_before_training(
    parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note.txt").write_text("mine")
    line = refused(["train", str(parts_folder), "--out", str(tmp_path), "--name", "x"], capsys)
    assert "is no model package" in line
    assert (tmp_path / "note.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("file/x", "is no folder"),
        ("file/x/y", "is no folder"),
        ("dangling", "is no model package"),
        ("dangling/x", "is no folder"),
        ("/proc/linegate/x", "cannot be written"),
        (".", "name the package's folder itself"),
        ("n" * 260, "cannot be written"),
    ],
)
def test_place_that_cannot_be_written_is_refused_before_training(
    out: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    line = refused(["train", "no-such-data", "--out", out, "--name", "x"], capsys)
    assert expected in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


@pytest.mark.parametrize("inside", ["train/p", "train/good/p", "test/p", "test/good/p", "ground_truth/scratch/p"])
def test_place_among_the_images_is_refused_before_training(
    inside: str, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(parts_folder)
    for folder in (parts_folder, tmp_path / "link"):
        line = refused(["train", str(parts_folder), "--out", str(folder / inside)], capsys)
        assert "among the images" in line
    assert not (parts_folder / inside).exists()


def test_evaluating_what_is_no_package_is_one_line(
    parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such model package" in refused(["evaluate", str(tmp_path / "no"), str(parts_folder)], capsys)


MODELS = Path(__file__).parents[1] / "models"
SHIPPED = {
    "elpv": ("CC BY-NC-SA 4.0", "Deitsch", "anomaly"),
    "magnetic_tile": ("none stated", "Huang", "anomaly"),
    "kolektor_sdd": ("CC BY-NC-SA 4.0", "Tabernik", "anomaly"),
    "neu_det": ("none stated", "Song", "typed"),
}


@pytest.fixture(scope="module", params=sorted(SHIPPED))
def shipped(request: pytest.FixtureRequest) -> ModelPackage:
    return ModelPackage.load(MODELS / str(request.param))


def test_packages_that_ship_are_those_of_the_readme_and_small() -> None:
    assert {one.name for one in MODELS.iterdir() if one.is_dir()} == set(SHIPPED)
    text = (MODELS / "README.md").read_text(encoding="utf-8")
    sizes = {name: sum(map(len, ModelPackage.load(MODELS / name).files.values())) for name in SHIPPED}
    assert max(sizes.values()) < 8 * 2**20
    assert sum(sizes.values()) < 32 * 2**20, "history keeps each package that ever shipped"
    for name in SHIPPED:
        assert f"[{name}]({name}/card.md)" in text


def test_shipped_package_loads_and_names_command_licence_and_authors(shipped: ModelPackage) -> None:
    Inspector(shipped)
    name = shipped.manifest.name
    licence, author, task = SHIPPED[name]
    card = shipped.files["card.md"].decode()
    command = next(line for line in card.splitlines() if line.startswith("linegate train "))
    assert command.startswith(f"linegate train {name} --out models/{name}")
    assert command in (MODELS / "README.md").read_text(encoding="utf-8")
    assert licence in card
    assert author in card
    assert shipped.manifest.task == task


def test_shipped_package_leaves_every_test_part_unseen(shipped: ModelPackage) -> None:
    rows = [line.replace('"', "").split(",") for line in shipped.files["split.csv"].decode().splitlines()[1:]]
    seen = {digest for _, digest, subset, _ in rows if subset in ("train", "validation", "calibration")}
    tests = {digest for _, digest, subset, _ in rows if subset == "test"}
    known = shipped.manifest.metrics["test"]["seen_in_training"]
    assert len(seen & tests) <= known
    assert sum(subset == "test" for _, _, subset, _ in rows) >= 100


def test_shipped_package_scores_some_cells_as_its_card_says() -> None:
    package = ModelPackage.load(MODELS / "elpv")
    parts = open_parts("elpv", supervised=True)
    tests = parts.tests()
    chosen = tuple(tests[:: max(1, len(tests) // 120)])
    values = evaluate(package, type(parts)(parts.name, chosen, parts.licence, parts.source), checked=True)
    assert values["image_auroc"] == pytest.approx(package.manifest.metrics["test"]["image_auroc"], abs=0.07)
    assert values["accuracy"] == pytest.approx(package.manifest.metrics["test"]["accuracy"], abs=0.08)


def test_every_training_setting_is_documented() -> None:
    readme = (Path(__file__).parents[1] / "training/README.md").read_text(encoding="utf-8")
    for name in TrainSettings.model_fields:
        assert f"`{name}`" in readme
