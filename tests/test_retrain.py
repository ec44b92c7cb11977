"""From reviews to a candidate that may go to the line or not; what is told on the way, and how it ends."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import write_spot_package
from linegate import cli
from linegate.comparison import load_comparison
from linegate.dataset_version import Version
from linegate.package import ModelPackage
from linegate_edge.review.dataset_versions import build_version
from linegate_training.data.fetch import open_parts
from linegate_training.data.held_out import read_held_out
from linegate_training.progress_file import StepFile
from simulators.reviews import reviewed

SETTINGS = """
size_px = 128
cross_fit_folds = 3
variants = 0
validation_share = 0.2
[learn]
images_shown = 240
epochs_at_least = 1
epoch_defects = 24
[learn.fit]
batch = 8
checkpoint_every_s = 0
"""
KINDS = ("good", "good", "scratch", "spot")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrain")
    (folder / "quick.toml").write_text(SETTINGS)
    (folder / "gate.toml").write_text("max_slowdown = 100.0\nmin_test_good = 5\nmin_test_defective = 5\n")
    write_spot_package(folder / "champion", name="plates")
    return folder


@pytest.fixture(scope="module")
def typed(place: Path) -> Version:
    reviews = [reviewed(place / "evidence", seed, KINDS[seed % 4]) for seed in range(80)]
    return build_version(reviews, place / "datasets", name="plates", created_by="ada", test_share=0.4)


@pytest.fixture(scope="module")
def good_only(place: Path) -> Version:
    reviews = [reviewed(place / "evidence", seed) for seed in range(0, 80, 2)]
    return build_version(reviews, place / "datasets", name="goods", created_by="ada", test_share=0.3)


def command(place: Path, version: Version, run: Path, *options: str) -> list[str]:
    fixed = ["--champion", str(place / "champion"), "--out", str(run), "--settings", str(place / "quick.toml")]
    return ["retrain", str(version.folder), *fixed, "--gate", str(place / "gate.toml"), "--nice", "0", *options]


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_progress(lines: list[dict[str, Any]], steps: list[str]) -> None:
    assert [step for step, _ in itertools.groupby(line["step"] for line in lines)] == steps
    assert all(set(line) == {"at", "step", "share", "text"} and line["text"] for line in lines)
    shares = [line["share"] for line in lines]
    assert shares == sorted(shares)
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)


def test_a_version_is_read_as_the_parts_that_it_names(typed: Version) -> None:
    parts = open_parts(str(typed.folder))
    items = {item.image: item for item in typed.record.items}
    assert {sample.name for sample in parts.samples} == set(items)
    for sample in parts.samples:
        item = items[sample.name]
        assert (sample.subset, sample.label, sample.group) == (item.split, item.label, item.group)
        assert (sample.mask is None) == (item.mask is None)
    assert len(parts.defects()) == sum(count for label, count in typed.record.counts.train.items() if label != "good")
    assert typed.record.digest in parts.split


def test_typed_reviews_become_a_candidate_that_goes(
    place: Path, typed: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = tmp_path / "progress.jsonl"
    assert cli.main(command(place, typed, tmp_path / "run", "--progress", str(progress), "--json")) == 0
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    candidate = ModelPackage.load(tmp_path / "run" / "candidate")
    assert candidate.manifest.labels == ("good", "scratch", "spot")
    assert (candidate.manifest.name, candidate.manifest.version) == ("plates", "1.1.0")
    assert typed.record.digest in candidate.manifest.dataset.split["data_set"]
    found = load_comparison(tmp_path / "run" / "comparison.json")
    assert found.model_dump(mode="json") == printed
    assert found.candidate is not None
    assert (found.candidate.digest, found.candidate.seen_in_training) == (candidate.digest, 0)
    assert found.frozen is not None
    assert found.frozen.candidate.escapes.events < found.frozen.champion.escapes.events
    assert set(found.frozen.candidate.escapes_by_class) == {"scratch", "spot"}
    assert found.frozen.good + found.frozen.defective == sum(typed.record.counts.test.values())
    assert all((tmp_path / "run" / one.picture).is_file() for one in found.differences if one.picture is not None)
    assert {"report.html", "comparison.html", "settings.json"} <= {path.name for path in (tmp_path / "run").iterdir()}
    check_progress(told(progress), ["data", "train", "export", "compare", "done"])
    assert told(progress)[-1]["text"].startswith("Go: ")
    # Nothing of the frozen test set was learned from.
    rows = [line.split(",") for line in candidate.files["split.csv"].decode().splitlines()[1:]]
    frozen = {item.sha256 for item in typed.record.items if item.split == "test"}
    assert {row[1] for row in rows if row[2] == "test"} == frozen


def test_good_parts_alone_make_a_candidate_that_cannot_be_told(
    place: Path, good_only: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--version", "2.0.0", "--name", "goods", "--progress", str(tmp_path / "run.jsonl"))
    assert cli.main(command(place, good_only, tmp_path / "run", *options)) == 1
    out = capsys.readouterr().out
    assert "NOT MET min_test_defective: 0 defective parts in the frozen test set are too few to tell" in out
    assert out.splitlines()[-2] == "no-go"
    assert ModelPackage.load(tmp_path / "run" / "candidate").reference.startswith("goods 2.0.0 ")
    assert told(tmp_path / "run.jsonl")[-1]["text"].startswith("No-go: ")


def test_train_and_evaluate_take_a_version(
    place: Path, good_only: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--settings", str(place / "quick.toml"), "--run-dir", str(tmp_path / "run"), "--out", str(tmp_path / "package")]
    assert cli.main(["train", str(good_only.folder), *options]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "package"), str(good_only.folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["good"], values["seen_in_training"]) == (good_only.record.counts.test["good"], 0)


def test_a_package_is_calibrated_on_what_a_version_learns_from_and_never_on_its_test(place: Path, typed: Version) -> None:
    held = read_held_out(typed.folder, ModelPackage.load(place / "champion"))
    learned = {item.sha256 for item in typed.record.items if item.split == "train"}
    assert set(held.digests.values()) == learned
    assert {sample.label for sample in held.samples} == {"good", "scratch", "spot"}


@pytest.mark.parametrize("step", ["train", "data"])
def test_sigterm_ends_it_within_seconds(place: Path, typed: Version, tmp_path: Path, step: str) -> None:
    progress = tmp_path / "progress.jsonl"
    options = ("--images-shown", "1000000", "--progress", str(progress))
    words = [sys.executable, "-m", "linegate.cli", *command(place, typed, tmp_path / "run", *options)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        wanted = '"epoch ' if step == "train" else '"step": "data"'
        while not progress.exists() or wanted not in progress.read_text():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert process.wait(30) == 143
        assert time.monotonic() - asked < 10
    finally:
        process.kill()
        said = process.communicate()[1]
    assert told(progress)[-1]["step"] == "cancelled"
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "comparison.json").exists()
    assert not list((tmp_path / "run").glob(".*"))


def test_when_it_fails_the_last_line_says_why(
    place: Path, good_only: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = tmp_path / "progress.jsonl"
    image = good_only.folder / good_only.record.items[0].image
    before = image.read_bytes()
    image.chmod(0o644)
    image.write_bytes(before[:-1])
    try:
        assert cli.main(command(place, good_only, tmp_path / "run", "--progress", str(progress))) == 2
    finally:
        image.write_bytes(before)
    check_progress(told(progress), ["data", "failed"])
    assert "was changed" in told(progress)[-1]["text"]
    assert capsys.readouterr().err.strip().splitlines() == [f"linegate: {told(progress)[-1]['text']}"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, or a skip where this user may not mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small tmpfs needs the right to mount: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["typed", "good_only"])
def test_a_full_disk_is_one_line(
    place: Path, request: pytest.FixtureRequest, tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    progress = tmp_path / "progress.jsonl"
    version = request.getfixturevalue(kind)
    assert cli.main(command(place, version, small_disk / "run", "--progress", str(progress))) == 2
    last = told(progress)[-1]
    assert last["step"] == "failed"
    assert "No space left on device" in last["text"] or "disk is full" in last["text"]
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"linegate: {last['text']}"
    assert not list((small_disk / "run").glob(".*"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--nice", "40"), "--nice 40: give a number from 0 to 19"),
        (("--device", "gpu"), "--device"),
        (("--images-shown", "-1"), "--images-shown"),
        (("--version", "2"), "use three numbers, as 1.0.0"),
        (("--progress", "/proc/none/progress"), "--progress /proc/none/progress: cannot be written"),
        (("--champion", "none"), "none"),
    ],
)
def test_a_wrong_option_is_one_line(
    place: Path, good_only: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], expected: str
) -> None:
    assert cli.main(command(place, good_only, tmp_path / "run", *options)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert expected in lines[0]


def test_a_run_among_what_is_read_is_refused(place: Path, good_only: Version, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(place, good_only, good_only.folder / "run")) == 2
    assert "which is never changed" in capsys.readouterr().err
    Version.load(good_only.folder)


def test_the_last_line_is_the_last_and_shares_never_fall(tmp_path: Path) -> None:
    steps = StepFile(tmp_path / "progress.jsonl")
    steps.begin("data", "two\nlines")
    steps.begin("compare", "b")
    steps.begin("train", "c")
    steps.end("failed", "why")
    steps.begin("train", "late")
    lines = told(tmp_path / "progress.jsonl")
    assert [line["text"] for line in lines] == ["two lines", "b", "c", "why"]
    assert [line["share"] for line in lines] == [0, 0.85, 0.85, 0.85]
    assert os.access(tmp_path / "progress.jsonl", os.R_OK)
