"""`linegate bench accuracy`: the table of what the models reach, made anew.

Rules kept here: importing this module needs nothing that the line lacks; options are checked before anything is trained.
The rows are in `bench_rows`, running them in `bench_accuracy`, the table in `bench_table`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from linegate.cli import bench_commands
from linegate.errors import SettingsError
from linegate_training.commands import load


def register(commands: Any) -> None:
    """Add `accuracy` to `linegate bench`."""
    parser = bench_commands(commands).add_parser(
        "accuracy",
        help="train, export and measure the models' accuracy",
        description="Make rows of the accuracy table: train with the very `linegate train` that users have, measure the "
        "package with `linegate evaluate`, and write the numbers, with versions and date, into the README and accuracy.json "
        "beside it. A row whose data set is not here is told and left out. Exit status 0: all rows were measured; 1: not all.",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows by name (default: all; --list names them)")
    parser.add_argument("--list", action="store_true", help="name the rows and what they ask for, and end")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where copies of known data sets lie ($LINEGATE_DATA)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep packages, run folders and logs there; what is done is not done again"
    )
    parser.add_argument("--any-code", action="store_true", help="take what --keep has even if the code has changed, and say so")
    parser.add_argument("--folds", type=_numbers, metavar="N,N", help="of rows with folds or seeds these alone, as 0,1")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="the file with the table (default: training/README.md)")
    parser.add_argument("--strict", action="store_true", help="exit status 1 too if a measure lies below its floor")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    bench = load("bench_accuracy")
    rows = bench.named_rows(arguments.rows)
    if arguments.list:
        for row in rows:
            print(f"{row.name}\n    {load('bench_table').command_words(row)}")
            for measure in row.measures:
                print(f"    {measure.words}: floor {measure.floor:g}, goal {measure.goal:g}")
        return 0
    if arguments.any_code and arguments.keep is None:
        raise SettingsError("--any-code goes with --keep DIR, which holds what was measured before")
    with tempfile.TemporaryDirectory(prefix="linegate-bench-") as scratch, _ending_together():
        plan = bench.Plan(
            keep=(arguments.keep or Path(scratch)).absolute(),
            readme=arguments.readme or bench.README,
            root=arguments.root,
            folds=arguments.folds,
            any_code=arguments.any_code,
            tell=_tell,
        )
        outcome = bench.run_rows(rows, plan)
    if outcome.below_floor:
        _tell(f"below floor: {'; '.join(outcome.below_floor)}")
    if outcome.rows:
        _tell(f"wrote {plan.readme} and {load('bench_table').JSON_NAME} beside it")
    if arguments.json:
        values = {"rows": outcome.rows, "not_done": outcome.not_done, "below_floor": outcome.below_floor}
        print(json.dumps(values, ensure_ascii=False, allow_nan=False))
    return 1 if outcome.not_done or (arguments.strict and outcome.below_floor) else 0


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
    """Let SIGTERM unwind, so that a training under way ends with the bench."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas, as 0,1, got {text!r}") from None
