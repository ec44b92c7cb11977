"""`linegate bench accuracy`: rows run through the real command line, what is kept, and the table in the README.

One row trains for real, on made-up plates; where only the bookkeeping counts, a small program stands for `linegate`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from conftest import wait_until
from linegate.cli import bench_commands
from linegate.errors import LinegateError, SettingsError
from linegate_edge import cli as edge_cli
from linegate_training import bench_accuracy
from linegate_training.bench_accuracy import Plan, environment, is_int8, named_rows, run_rows
from linegate_training.bench_rows import PACKAGE_MIB, ROWS, SECONDS_TO_PACKAGE, Measure, Row
from linegate_training.bench_table import BEGIN, END, JSON_NAME, command_words, record_of, render, shown, standing, write_table
from linegate_training.commands import bench

ABOVE, BELOW = "# A room\n\nBefore.\n\n", "\n\nAfter.\n"
AUROC = Measure("image_auroc", "image AUROC", 0.9, 0.95, "others 0.8")
# A program with the interface of `linegate train` and `linegate evaluate`: it copies a package and scores by fold.
PROGRAM = """
import json, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
with (here / "calls.txt").open("a") as calls:
    print(json.dumps(words), file=calls)
case = next((words[i + 1] for i, word in enumerate(words) if word in ("--fold", "--seed")), "0")
if words[0] == "train":
    run = pathlib.Path(words[words.index("--run-dir") + 1])
    print("resumed" if run.exists() and "--resume" in words else "from the start")
    run.mkdir(exist_ok=True)
    if (here / f"broken-{case}").exists():
        print("noise\\nlinegate: plates: every image is the same: add others", file=sys.stderr)
        sys.exit(2)
    shutil.copytree(here / "package", words[words.index("--out") + 1])
else:
    print("note: measured")
    print(json.dumps({"image_auroc": 0.9 + int(case) / 100, "pixel_iou": None, "ms_per_image": 5.0, "escapes_by_class": {}}))
"""


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"{ABOVE}{BEGIN}\n{END}{BELOW}", encoding="utf-8")
    return path


@pytest.fixture
def plan(readme: Path, tmp_path: Path, spot_package: Path) -> Plan:
    """A plan whose program is the small one."""
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "linegate.py").write_text(PROGRAM, encoding="utf-8")
    shutil.copytree(spot_package, tmp_path / "program" / "package")
    (tmp_path / "plates").mkdir()
    said: list[str] = []
    return Plan(
        tmp_path / "kept", readme, program=(sys.executable, str(tmp_path / "program" / "linegate.py")), tell=said.append,
        models=tmp_path / "models",
    )  # fmt: skip


@pytest.fixture
def row(tmp_path: Path) -> Row:
    return Row("plates", str(tmp_path / "plates"), "good-only", (AUROC,), cases=(0, 1, 2))


def calls(plan: Plan) -> list[list[str]]:
    path = Path(plan.program[1]).with_name("calls.txt")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make_plates(root: Path) -> Path:
    random = np.random.default_rng(5)
    for name, count, scratched in (("train/good", 14, False), ("test/good", 5, False), ("test/scratch", 5, True)):
        (root / name).mkdir(parents=True)
        for index in range(count):
            image = np.clip(random.normal(110, 8, (96, 96)), 0, 255).astype(np.uint8)
            if scratched:
                cv2.line(image, (20, int(random.integers(15, 80))), (75, int(random.integers(15, 80))), 240, 4)
            cv2.imwrite(str(root / name / f"{index:02d}.png"), image)
    return root


def command(words: list[str]) -> int:
    """Run `linegate bench …` and return its exit status."""
    parser = argparse.ArgumentParser()
    bench.register(parser.add_subparsers())
    chosen = parser.parse_args(words)
    return int(chosen.run(chosen))


def case_of(value: float, label: str = "", **more: Any) -> dict[str, Any]:
    values = {"image_auroc": value, "ms_per_image": 7.26}
    made = {"versions": {"linegate": "0.1.0", "torch": "2.13.0"}, "cpu": "A processor", "cores": 2}
    stamp = "2026-11-23T10:00:00+00:00"
    return {"label": label, "values": values, "minutes": 1.5, "measured_at": stamp, "environment": made, "code": "a", **more}


def test_a_row_trains_exports_and_measures_with_the_real_command_line(readme: Path, tmp_path: Path) -> None:
    measures = (AUROC, Measure(SECONDS_TO_PACKAGE, "seconds to the package", 600, 300, digits=0, lowest_is_best=True))
    options = ("--size", "128", "--threads", "1")
    row = Row("made-up", str(make_plates(tmp_path / "plates")), "good-only", measures, options)
    outcome = run_rows([row], Plan(tmp_path / "kept", readme, table=(row,)))
    assert outcome.not_done == {}
    entry = json.loads(readme.with_name(JSON_NAME).read_text())["rows"]["made-up"]
    (case,) = entry["cases"]
    assert entry["measures"]["image_auroc"]["value"] == case["values"]["image_auroc"] >= 0.9
    assert entry["measures"]["image_auroc"]["floor_reached"]
    assert 0 < case["values"][SECONDS_TO_PACKAGE] <= case["minutes"] * 60
    assert case["values"]["model_sha256"]
    assert entry["environments"] == [environment()]
    assert "| made-up |" in readme.read_text()
    assert (tmp_path / "kept" / "made-up" / "single" / "package" / "package.json").is_file()
    assert not (Path.cwd() / "runs" / "made-up").exists()


def test_folds_are_run_one_by_one_and_their_mean_counts(plan: Plan, row: Row, readme: Path) -> None:
    outcome = run_rows([row], replace(plan, table=(row,)))
    trained = [words for words in calls(plan) if words[0] == "train"]
    assert [words[words.index("--fold") + 1] for words in trained] == ["0", "1", "2"]
    assert outcome.rows["plates"]["measures"]["image_auroc"]["value"] == pytest.approx(0.91)
    text = readme.read_text()
    assert text.startswith(ABOVE)
    assert text.endswith(BELOW)
    assert "**0.910** (0.900, 0.910, 0.920; mean of 3 folds)" in text
    assert "floor; goal 0.040 away" in text
    assert f"onnxruntime {environment()['versions']['onnxruntime']}" in text


def test_a_fold_that_is_done_is_not_trained_again(plan: Plan, row: Row) -> None:
    run_rows([row], replace(plan, folds=(0, 1)))
    first = len(calls(plan))
    run_rows([row], plan)
    later = calls(plan)[first:]
    assert [words[0] for words in later] == ["train", "evaluate"]
    assert later[0][later[0].index("--fold") + 1] == "2"


def test_a_kept_fold_of_other_settings_or_other_code_is_trained_again(
    plan: Plan, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_rows([row], plan)
    first = len(calls(plan))
    other = replace(row, train_options=("--size", "128"))
    run_rows([other], plan)
    assert len(calls(plan)) == 2 * first
    monkeypatch.setattr(bench_accuracy, "code_digest", lambda: "f" * 64)
    run_rows([other], replace(plan, any_code=True))
    assert len(calls(plan)) == 2 * first
    run_rows([other], plan)
    assert len(calls(plan)) == 3 * first


def test_an_interrupted_fold_goes_on_in_its_run_folder(plan: Plan, row: Row) -> None:
    broken = Path(plan.program[1]).with_name("broken-1")
    broken.touch()
    assert list(run_rows([row], plan).not_done) == ["plates"]
    broken.unlink()
    outcome = run_rows([row], plan)
    folds = [plan.keep / "plates" / f"fold-{index}" / "train.out" for index in range(3)]
    assert [path.read_text().strip() for path in folds] == ["from the start", "resumed", "from the start"]
    assert [case["resumed"] for case in outcome.rows["plates"]["cases"]] == [False, True, False]


def test_a_row_whose_time_counts_never_goes_on(plan: Plan, row: Row) -> None:
    timed = replace(row, measures=(Measure(SECONDS_TO_PACKAGE, "s", 90, 45, digits=0, lowest_is_best=True),), cases=())
    broken = Path(plan.program[1]).with_name("broken-0")
    broken.touch()
    run_rows([timed], plan)
    broken.unlink()
    assert 0 < run_rows([timed], plan).rows["plates"]["measures"][SECONDS_TO_PACKAGE]["value"] < 60
    assert (plan.keep / "plates" / "single" / "train.out").read_text().strip() == "from the start"


def test_a_broken_row_is_told_in_one_line_and_the_others_go_on(plan: Plan, row: Row, tmp_path: Path) -> None:
    Path(plan.program[1]).with_name("broken-1").touch()
    absent = replace(row, name="absent", data="kolektor_sdd")
    missing = replace(row, name="missing", data=str(tmp_path / "nowhere"))
    unmeasured = replace(row, name="unmeasured", measures=(replace(AUROC, key="pixel_iou"),))
    whole = replace(row, name="whole", cases=())
    said: list[str] = []
    rows = [row, absent, missing, unmeasured, whole]
    outcome = run_rows(rows, replace(plan, tell=said.append, root=tmp_path / "no sets"))
    assert list(outcome.rows) == ["whole"]
    assert outcome.not_done["plates"] == "linegate train: plates: every image is the same: add others"
    assert "no such folder" in outcome.not_done["absent"]
    assert "nowhere" in outcome.not_done["missing"]
    assert "no pixel_iou" in outcome.not_done["unmeasured"]
    assert all("\n" not in line for line in said)


def test_fewer_folds_are_marked_and_never_replace_all_of_them(plan: Plan, row: Row, readme: Path) -> None:
    plan = replace(plan, table=(row,))
    run_rows([row], replace(plan, folds=(0, 2)))
    assert "mean of only 2 of 3 folds" in readme.read_text()
    run_rows([row], plan)
    assert "mean of 3 folds" in readme.read_text()
    run_rows([row], replace(plan, folds=(0,)))
    assert "mean of 3 folds" in readme.read_text()


def test_folds_that_a_row_lacks_are_refused_before_training(plan: Plan, row: Row) -> None:
    with pytest.raises(SettingsError, match="plates has 0 to 2"):
        run_rows([row], replace(plan, folds=(7,)))
    assert calls(plan) == []


def test_rows_not_measured_this_time_keep_their_numbers_and_date(readme: Path) -> None:
    old, new = Row("old", "x", "good-only", (AUROC,)), Row("new", "y", "good-only", (AUROC,))
    table = (old, new, Row("never", "z", "typed", (AUROC,)))
    write_table(readme, "old", record_of(old, [case_of(0.96, measured_at="2026-01-02T00:00:00+00:00")]), table)
    write_table(readme, "new", record_of(new, [case_of(0.5)]), table)
    lines = {line.split(" | ")[0]: line for line in readme.read_text().splitlines() if line.startswith("| ")}
    assert lines["| old"].endswith("| **0.960** | goal | 7.3 | 1.5 | 2026-01-02 |")
    assert "| **0.500** | **below floor**; goal 0.450 away |" in lines["| new"]
    assert "not measured" in lines["| never"]


def test_the_table_says_with_what_each_row_was_made() -> None:
    one, two = Row("one", "x", "r", (AUROC,)), Row("two", "y", "r", (AUROC,), supervised=True, cases=(0, 1))
    newer = {"versions": {"linegate": "0.2.0"}, "cpu": "Another", "cores": 4}
    rows = {
        "one": record_of(one, [case_of(0.9)]),
        "two": record_of(two, [case_of(0.9, "fold 0"), case_of(0.9, "fold 1", environment=newer, code="b")]),
    }
    text = render(rows, (one, two))
    assert "- linegate 0.1.0, torch 2.13.0; A processor, 2 cores: one, two" in text
    assert "- linegate 0.2.0; Another, 4 cores: two" in text
    assert "- two: `linegate train y --out PACKAGE --supervised --fold N` (not all by the same code)" in text


def test_an_empty_table_has_a_line_for_every_measure() -> None:
    lines = render({}, ROWS).splitlines()
    assert len(lines) == 2 + sum(len(row.measures) for row in ROWS)
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_rounding_never_lifts_a_number_over_its_floor() -> None:
    measure = Measure("m", "m", 0.96, 0.985)
    assert shown(measure, 0.95996) == "0.95996"
    assert shown(measure, 0.9612) == "0.961"
    assert standing(measure, 0.95996).startswith("**below floor**")
    seconds = Measure("s", "s", 90, 45, digits=0, lowest_is_best=True)
    assert shown(seconds, 90.2) == "90.2"
    assert standing(seconds, 44.0) == "goal"
    assert standing(seconds, float("nan")).startswith("**below floor**")


@pytest.mark.parametrize(
    "text",
    ["no markers\n", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"],
    ids=["none", "open", "turned", "twice"],
)
def test_a_readme_without_its_markers_is_refused_before_training(plan: Plan, row: Row, text: str) -> None:
    plan.readme.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match="put the lines"):
        run_rows([row], plan)
    assert plan.readme.read_text() == text
    assert calls(plan) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99, "rows": {}}'])
def test_a_damaged_record_is_refused_and_left_alone(plan: Plan, row: Row, text: str) -> None:
    record = plan.readme.with_name(JSON_NAME)
    record.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=JSON_NAME):
        run_rows([row], plan)
    assert record.read_text() == text


def test_shipped_int8_packages_are_timed_and_others_left_out(
    plan: Plan, spot_package: Path, make_int8: Callable[[Path], None]
) -> None:
    row = named_rows(["int8-packages"])[0]
    shutil.copytree(spot_package, plan.models / "spots")
    said: list[str] = []
    plan = replace(plan, tell=said.append)
    assert "no int8 package" in run_rows([row], plan).not_done[row.name]
    assert any("spots does not compute in int8" in line for line in said)
    make_int8(plan.models / "quick")
    entry = run_rows([row], plan).rows[row.name]
    (case,) = entry["cases"]
    assert case["label"] == "quick"
    assert "scaled by area" in case["note"]
    assert case["values"]["ms_at_256"] > case["values"]["ms_per_image"] > 0
    assert 0 < case["values"][PACKAGE_MIB] < 8
    assert "scaled by area to 256 × 256" in plan.readme.read_text()


@pytest.fixture
def make_int8(spot_package: Path) -> Callable[[Path], None]:
    """Write a package whose graph rounds its input to eight bits and back."""
    from linegate.package import ModelPackage, write_package

    def write(place: Path) -> None:
        package = ModelPackage.load(spot_package)
        model = onnx.load_model_from_string(package.model)
        graph = model.graph
        graph.initializer.extend(
            [
                onnx.helper.make_tensor("q.scale", onnx.TensorProto.FLOAT, [], [0.01]),
                onnx.helper.make_tensor("q.zero", 2, [], [0]),
            ]
        )
        graph.node.extend(
            [
                onnx.helper.make_node("Cast", [graph.input[0].name], ["q.float"], to=onnx.TensorProto.FLOAT),
                onnx.helper.make_node("QuantizeLinear", ["q.float", "q.scale", "q.zero"], ["q.out"]),
            ]
        )
        write_package(place, package.manifest, {**package.files, "model.onnx": model.SerializeToString()})
        assert is_int8(model.SerializeToString())

    return write


def test_a_command_measures_and_says_so_as_json(
    plan: Plan, row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    low = replace(row, name="low", measures=(replace(AUROC, floor=0.99),), cases=())
    monkeypatch.setattr(bench_accuracy, "named_rows", lambda names: [low])
    monkeypatch.setattr(bench_accuracy, "Plan", lambda **given: replace(plan, **given))
    words = ["bench", "accuracy", "--readme", str(plan.readme), "--keep", str(tmp_path / "kept"), "--json"]
    assert command(words) == 0
    said = capsys.readouterr()
    assert "below floor: low: image AUROC" in said.err
    values = json.loads(said.out.strip().splitlines()[-1])
    assert values["below_floor"] == ["low: image AUROC"]
    assert values["rows"]["low"]["measures"]["image_auroc"]["value"] == 0.9
    assert command([*words, "--strict"]) == 1
    assert len(calls(plan)) == 2, "the second time nothing is left to do"


def test_a_training_under_way_ends_with_the_bench(plan: Plan, row: Row, tmp_path: Path) -> None:
    Path(plan.program[1]).write_text(
        "import os, pathlib, time\n"
        f"new = pathlib.Path({str(tmp_path / 'pid')!r} + '.new')\n"
        f"new.write_text(str(os.getpid()))\nnew.replace({str(tmp_path / 'pid')!r})\ntime.sleep(120)\n"
    )
    script = (
        "import sys; from pathlib import Path; from linegate_training.commands import bench\n"
        "from linegate_training.bench_accuracy import Plan, run_rows; from linegate_training.bench_rows import ROWS, Row\n"
        "keep, readme, data, program = sys.argv[1:]\n"
        "row = Row('plates', data, 'good-only', ROWS[0].measures)\n"
        "with bench._ending_together():\n"
        "    run_rows([row], Plan(Path(keep), Path(readme), program=(sys.executable, program)))\n"
    )
    arguments = [str(plan.keep), str(plan.readme), str(row.data), plan.program[1]]
    running = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.DEVNULL)
    try:
        wait_until((tmp_path / "pid").exists, 60, "the training began")
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 128 + signal.SIGTERM
    finally:
        running.kill()
        running.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["magnetic"], "no row is called 'magnetic'"),
        (["--any-code"], "--keep"),
        (["--readme", "nowhere/README.md"], "no such file"),
    ],
)
def test_a_mistake_in_the_options_is_told(words: list[str], said: str) -> None:
    with pytest.raises(LinegateError, match=said):
        command(["bench", "accuracy", *words])


def test_listing_names_every_row_of_the_issue_s_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["bench", "accuracy", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(row.name in listed and command_words(row) in listed for row in ROWS)


@pytest.mark.parametrize("rooms", [(edge_cli, bench), (bench, edge_cli), (edge_cli,), (bench,)])
def test_each_room_adds_to_bench_with_or_without_the_other(rooms: tuple[Any, ...]) -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    for room in rooms:
        room.register(commands)
    names = {edge_cli: {"line", "latency", "memory", "store", "loop", "review"}, bench: {"accuracy"}}
    assert set(bench_commands(commands).choices) == set().union(*(names[room] for room in rooms))


def test_the_options_of_every_row_are_those_that_the_command_line_has() -> None:
    from linegate.cli import build_parser

    parser = build_parser()
    for row in ROWS:
        if row.data is not None:
            to_train, to_evaluate = row.options(row.cases[0] if row.cases else None)
            parser.parse_args(["train", row.data, "--out", "p", "--run-dir", "r", "--name", row.name, *to_train])
            parser.parse_args(["evaluate", "p", row.data, "--json", *to_evaluate])
