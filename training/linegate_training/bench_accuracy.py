"""Rows of the accuracy table → trained, exported, evaluated through the package, written down.

Rules kept here: what runs is the command line that users have, each command in a process of its own; a number comes from the
ONNX package, never from the torch module; a row that cannot be done says why in one line and the others go on; a case
that was measured by the same code, settings and libraries is not done twice. What the rows are is left to `bench_rows`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final

import onnx

import linegate
from linegate.errors import DataError, LinegateError, SettingsError
from linegate.infer import Inspector
from linegate.package import MANIFEST_FILE, ModelPackage
from linegate.stages import Frame, PixelFormat
from linegate_training.bench_rows import MS_AT_256, PACKAGE_MIB, ROWS, SECONDS_TO_PACKAGE, Row
from linegate_training.bench_table import check_readme, is_whole, record_of, shown, standing, write_table
from linegate_training.data.fetch import local_copy
from linegate_training.data.manifest import known_set, known_sets

CHECKOUT: Final = Path(__file__).resolve().parents[2]
README: Final = CHECKOUT / "training" / "README.md"
LIBRARIES: Final = ("torch", "onnxruntime", "numpy", "opencv-python")
RESULT_FILE: Final = "result.json"
_STATED_FILE: Final = "stated.json"
_WARM_UP, _ROUNDS, _FRAMES_A_ROUND = 10, 5, 40
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Plan:
    """How rows are run; `table` are all rows of the README, `program` is what stands for `linegate`.

    `folds` limits rows that have folds or seeds to some of them; `any_code` takes kept cases of other code too.
    """

    keep: Path
    readme: Path = README
    root: Path | None = None
    folds: tuple[int, ...] | None = None
    any_code: bool = False
    models: Path = CHECKOUT / "models"
    program: tuple[str, ...] = (sys.executable, "-m", "linegate.cli")
    table: tuple[Row, ...] = ROWS
    tell: Callable[[str], None] = print


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the rows: what was recorded of each, why others were not done, and which measures lie below the floor."""

    rows: dict[str, Any] = field(default_factory=dict)
    not_done: dict[str, str] = field(default_factory=dict)
    below_floor: list[str] = field(default_factory=list)


def named_rows(names: Sequence[str], table: Sequence[Row] = ROWS) -> list[Row]:
    """Return the rows so called, all of them for no name.

    Raises:
        SettingsError: there is no row of a name.
    """
    known = {row.name: row for row in table}
    for name in names:
        if name not in known:
            raise SettingsError(f"no row is called '{name}': choose from {', '.join(known)}")
    return [row for row in table if not names or row.name in names]


def run_rows(rows: Sequence[Row], plan: Plan) -> Outcome:
    """Run the rows one after the other, and write each into the table as soon as it is measured.

    Raises:
        SettingsError: the table cannot be written, or a row has none of the folds.
    """
    check_readme(plan.readme)
    chosen = {row.name: _chosen_cases(row, plan.folds) for row in rows}
    outcome = Outcome()
    for row in rows:
        try:
            cases = list(_packages(row, plan) if row.data is None else _trained(row, chosen[row.name], plan))
            entry = record_of(row, cases)
        except LinegateError as error:
            outcome.not_done[row.name] = str(error)
            plan.tell(f"{row.name}: not done: {error}")
            continue
        outcome.rows[row.name] = entry
        for measure in row.measures:
            value = row.value(cases, measure)
            if not measure.reached(value, measure.floor):
                outcome.below_floor.append(f"{row.name}: {measure.words}")
            plan.tell(f"{row.name}: {measure.words} {shown(measure, value)}: {standing(measure, value).replace('**', '')}")
        if not write_table(plan.readme, row.name, entry, plan.table):
            plan.tell(f"{row.name}: {len(cases)} of {entry['cases_asked']}: the table keeps the row that has all of them")
        elif not is_whole(entry):
            plan.tell(f"{row.name}: {len(cases)} of {entry['cases_asked']}, and the table says so")
    return outcome


def environment() -> dict[str, Any]:
    """Return versions and machine, as they are recorded with every number."""
    versions = {"linegate": linegate.__version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return {"versions": versions, "cpu": _cpu(), "cores": os.cpu_count() or 1}


def code_digest() -> str:
    """Return the SHA-256 over the Python files of the core and of training, which all numbers depend on."""
    digest = hashlib.sha256()
    for room in ("linegate", "linegate_training"):
        top = Path(str(resources.files(room)))
        for path in sorted(top.rglob("*.py")):
            digest.update(f"{room}/{path.relative_to(top).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def is_int8(model: bytes) -> bool:
    """Say whether a graph computes in int8: activations are quantised in it, not weights alone."""
    graph = onnx.load_model_from_string(model).graph
    return any(node.op_type in ("QuantizeLinear", "QLinearConv", "ConvInteger") for node in graph.node)


def _chosen_cases(row: Row, folds: Sequence[int] | None) -> list[int | None]:
    if not row.cases:
        return [None]
    chosen: list[int | None] = [case for case in row.cases if folds is None or case in folds]
    if not chosen:
        asked = ",".join(map(str, folds or ()))
        raise SettingsError(f"--folds {asked}: {row.name} has {row.cases[0]} to {row.cases[-1]}: choose from these")
    return chosen


def _trained(row: Row, chosen: Sequence[int | None], plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield what was measured in each case of a row."""
    assert row.data is not None
    _check_data(row.data, plan.root)
    for case in chosen:
        words = " ".join(filter(None, (row.name, row.label(case))))
        folder = plan.keep / row.name / (row.label(case).replace(" ", "-") or "single")
        stated = {
            "data": row.data, "options": row.options(case), "environment": environment()["versions"], "code": code_digest(),
        }  # fmt: skip
        kept = _read_json(folder / RESULT_FILE)
        if kept is not None and _agrees(kept.get("stated"), stated, plan.any_code) and not _lacking(row, kept["values"]):
            plan.tell(f"{words}: measured already, on {kept['measured_at'][:10]}")
            yield kept
            continue
        plan.tell(f"{words}: training")
        result = _run_case(row, case, folder, stated, plan)
        numbers = ", ".join(f"{one.words} {shown(one, float(result['values'][one.key]))}" for one in row.measures)
        plan.tell(f"{words}: {numbers}; {result['minutes']:.1f} minutes")
        yield result


def _run_case(row: Row, case: int | None, folder: Path, stated: dict[str, Any], plan: Plan) -> dict[str, Any]:
    package, run, stated_file = folder / "package", folder / "run", folder / _STATED_FILE
    try:
        # An interrupted training goes on where it stopped, if it is the same one and its time is not what is asked for.
        goes_on = run.is_dir() and _agrees(_read_json(stated_file), stated, plan.any_code)
        goes_on = goes_on and all(measure.key != SECONDS_TO_PACKAGE for measure in row.measures)
        for leftover in (package, *(() if goes_on else (run,))):
            shutil.rmtree(leftover, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT_FILE).unlink(missing_ok=True)
        _write_json(stated_file, stated)
        place = [] if plan.root is None else ["--root", str(plan.root.absolute())]
        to_train, to_evaluate = row.options(case)
        data = str(row.data)
        train = ["train", data, "--out", str(package), "--name", row.name, "--run-dir", str(run), *to_train, *place]
        train += ["--resume"] if goes_on else []
        seconds, appeared = _run([*plan.program, *train], folder / "train", package / MANIFEST_FILE)
        _run([*plan.program, "evaluate", str(package), data, "--json", *to_evaluate, *place], folder / "evaluate")
        values = _last_json(folder / "evaluate.out")
    except OSError as error:
        raise SettingsError(f"--keep {plan.keep}: cannot be written ({error.strerror}): name another folder") from error
    made = ModelPackage.load(package)
    values = {key: value for key, value in values.items() if value is None or isinstance(value, bool | int | float | str)}
    values[SECONDS_TO_PACKAGE] = seconds if appeared is None else appeared
    values[PACKAGE_MIB] = _mib(made)
    if lacking := _lacking(row, values):
        raise DataError(f"evaluating gave no {lacking[0]}: the data set lacks what it needs, or the package does")
    result = {
        "label": row.label(case), "values": values, "minutes": seconds / 60, "resumed": goes_on,
        "precision": "int8" if is_int8(made.model) else "float", "measured_at": _now(), "environment": environment(),
        "code": stated["code"], "stated": stated,
    }  # fmt: skip
    _write_json(folder / RESULT_FILE, result)
    return result


def _run(command: Sequence[str], log: Path, awaited: Path | None = None) -> tuple[float, float | None]:
    """Run a command, its output in LOG.out and LOG.log; return its seconds, and those until `awaited` appeared.

    Raises:
        DataError: it failed; the text is the last that it said.
    """
    appeared = None
    output, complaints = log.with_suffix(".out"), log.with_suffix(".log")
    with output.open("wb") as out, complaints.open("wb") as err:
        started = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            while process.poll() is None:
                if appeared is None and awaited is not None and awaited.exists():
                    appeared = time.monotonic() - started
                try:
                    process.wait(_POLL_S if awaited is not None and appeared is None else None)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    seconds = time.monotonic() - started
    if process.returncode:
        said = complaints.read_text(encoding="utf-8", errors="backslashreplace").strip().splitlines() or ["it said nothing"]
        if process.returncode < 0:
            said.append(f"ended by signal {-process.returncode}; is there too little memory?")
        raise DataError(f"linegate {log.name}: {said[-1].removeprefix('linegate: ')}")
    return seconds, appeared


def _packages(row: Row, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield size and time of each shipped package that computes in int8; the quietest of five rounds counts.

    Raises:
        DataError: there is none.
    """
    found, code = 0, code_digest()
    for folder in sorted(path.parent for path in plan.models.glob(f"*/{MANIFEST_FILE}")):
        package = ModelPackage.load(folder)
        if not is_int8(package.model):
            plan.tell(f"{row.name}: {folder.name} does not compute in int8 and is left out")
            continue
        found += 1
        ms, (width, height) = _time(package), package.manifest.input.size_wh
        share = width * height / 256**2
        scaled = "" if share == 1 else f"{ms:.1f} ms at {width} × {height}, scaled by area to 256 × 256"
        values = {MS_AT_256: ms / share, PACKAGE_MIB: _mib(package), "ms_per_image": ms, "package_digest": package.digest}
        yield {
            "label": folder.name, "values": values, "minutes": 0.0, "note": scaled, "precision": "int8",
            "measured_at": _now(), "environment": environment(), "code": code,
        }  # fmt: skip
    if not found:
        raise DataError(f"no int8 package in {plan.models.name}/: linegate train DATA --out models/NAME --precision int8")


def _time(package: ModelPackage) -> float:
    """Return the milliseconds of one `predict` on a frame of the input's size, one thread: the median of the best round."""
    inspector = Inspector(package, "cpu", threads=1)
    pixels = package.parity_samples.pixels
    frames = [
        Frame(pixels[index % len(pixels)], PixelFormat.RGB8, str(index), "bench", "bench", index, datetime.now(UTC))
        for index in range(_FRAMES_A_ROUND)
    ]
    for frame in frames[:_WARM_UP]:
        inspector.predict(frame)
    rounds = []
    for _ in range(_ROUNDS):
        taken = []
        for frame in frames:
            started = time.perf_counter()
            inspector.predict(frame)
            taken.append((time.perf_counter() - started) * 1e3)
        rounds.append(statistics.median(taken))
    return min(rounds)


def _check_data(data: str, root: Path | None) -> None:
    """Find out before starting anything that the data set is not here."""
    if data.split("/")[0] in known_sets():
        local_copy(data, known_set(data), root)
    elif not Path(data).is_dir():
        raise DataError(f"{data}: no such folder")


def _lacking(row: Row, values: dict[str, Any]) -> list[str]:
    return [measure.key for measure in row.measures if not isinstance(values.get(measure.key), int | float)]


def _agrees(kept: Any, stated: dict[str, Any], any_code: bool) -> bool:
    wanted = json.loads(json.dumps(stated))
    left_out = ("code",) if any_code else ()
    return isinstance(kept, dict) and all(kept.get(key) == wanted[key] for key in wanted if key not in left_out)


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return what a file holds; None where there is none, or a torn one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _write_json(path: Path, values: dict[str, Any]) -> None:
    staging = path.with_name(path.name + ".new")
    staging.write_text(json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1) + "\n", encoding="utf-8")
    staging.replace(path)


def _last_json(path: Path) -> dict[str, Any]:
    lines = path.read_text(encoding="utf-8").strip().splitlines()
    try:
        values = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        raise DataError("linegate evaluate printed no JSON: run it by hand") from error
    return dict(values)


def _mib(package: ModelPackage) -> float:
    return sum(path.stat().st_size for path in package.location.iterdir() if path.is_file()) / 2**20


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _now() -> str:
    return datetime.now(UTC).replace(microsecond=0).isoformat()
