"""`linegate retrain`: a data set version and the package on the line → a candidate, compared, with the gate's verdict.

Rules kept here: options and places are checked before anything is computed; however it ends, the last line of the progress
file says so; SIGTERM ends it within seconds with exit status 143.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
from pathlib import Path
from typing import Any

from linegate.errors import LinegateError, SettingsError
from linegate.package import ModelPackage
from linegate.settings import parse
from linegate_training.commands import load
from linegate_training.commands.compare import add_compare_options, check_compare_options, refuse_inside, tell
from linegate_training.commands.train import package_name, read_toml, refuse_occupied
from linegate_training.progress_file import CANCELLED, Cancelled, StepFile, cancellable

_FULL = (errno.ENOSPC, errno.EDQUOT)


def register(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "retrain",
        help="train a candidate from a data set version and compare it with the package on the line",
        description="Train a candidate from the train split of a data set version, as linegate train does, and compare it with "
        "the champion on the frozen test set. Exit status 0: the gate says go; 1: no-go; 2: it failed; 143: cancelled.",
    )
    parser.add_argument("data", type=Path, metavar="VERSION", help="a data set version, a folder with version.json")
    parser.add_argument("--champion", required=True, type=Path, metavar="PACKAGE", help="the package on the line")
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="where candidate, report and comparison go")
    parser.add_argument("--name", help="the candidate's name (default: the champion's)")
    parser.add_argument("--version", help="its semantic version (default: the champion's next: 1.0.3 gives 1.1.0)")
    parser.add_argument("--seed", type=int, help="decides splits and samples (default: 0)")
    parser.add_argument("--images-shown", type=int, metavar="N", help="images that the net is shown in all (default: 10000)")
    parser.add_argument("--device", help="where the net learns: auto, cpu, cuda, cuda:N (default: auto)")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="shorter side of the input (default: from the data)")
    parser.add_argument("--precision", choices=("fp32", "int8", "fp16"), help="arithmetic (default: the champion's)")
    parser.add_argument(
        "--false-reject-rate", type=float, metavar="RATE", help="share of good parts that may fail (default: the champion's)"
    )
    parser.add_argument("--threads", type=int, help="cores to train with (default: 2)")
    parser.add_argument("--augment", metavar="RECIPE", help="fixed, mirrored, texture, none (default: the champion's)")
    parser.add_argument("--instant", action="store_true", help="learn from good parts alone, whatever else there is")
    parser.add_argument("--settings", type=Path, metavar="FILE.toml", help="all other settings; options go before it")
    parser.add_argument("--progress", type=Path, metavar="FILE", help="append a JSON line for each step and second there")
    parser.add_argument("--nice", type=int, default=10, metavar="N", help="lower the priority by N, 0 to 19 (default: 10)")
    add_compare_options(parser)
    parser.set_defaults(run=_retrain)


def _retrain(arguments: argparse.Namespace) -> int:
    steps = StepFile(arguments.progress)
    with cancellable(steps):
        try:
            status = _run(arguments, steps)
        except Cancelled:
            steps.end("cancelled", "cancelled")
            return CANCELLED
        except LinegateError as error:
            steps.end("failed", str(error))
            raise
        except OSError as error:
            if error.errno not in _FULL:
                steps.end("failed", str(error))
                raise
            text = f"{error.filename or arguments.out}: the disk is full: make room, and retrain again"
            steps.end("failed", text)
            raise LinegateError(text) from error
        except KeyboardInterrupt:
            steps.end("cancelled", "interrupted")
            raise
        except BaseException as error:
            steps.end("failed", f"{type(error).__name__}: {error}")
            raise
    return status


def _run(arguments: argparse.Namespace, steps: StepFile) -> int:
    if not 0 <= arguments.nice <= 19:
        raise SettingsError(f"--nice {arguments.nice}: give a number from 0 to 19")
    if arguments.nice:
        os.nice(arguments.nice)
    champion = ModelPackage.load(arguments.champion)
    arguments.name = arguments.name or champion.manifest.name
    arguments.version = arguments.version or load("retrain").next_version(champion.manifest.version)
    name = package_name(arguments)
    gate = load("gate").read_gate(arguments.gate)
    settings = _settings(arguments, champion)
    refuse_inside(arguments.out, arguments.champion)
    refuse_inside(arguments.out, arguments.data)
    check_compare_options(arguments)
    refuse_occupied(arguments.out / load("retrain").CANDIDATE)
    naming = load("packaging").Naming(name, arguments.version, _command(arguments))
    plan = load("retrain").Plan(arguments.data, champion, arguments.out, naming, settings, gate, arguments.recent, 1)
    comparison = load("retrain").retrain(plan, steps)
    if comparison is None:
        return 0  # another process of torchrun compares and prints
    status = tell(comparison, arguments.out, arguments.json)
    steps.end("done", load("comparison_page").headline(comparison))
    return status


def _settings(arguments: argparse.Namespace, champion: ModelPackage) -> Any:
    """Return the settings: options before the file, the file before what the champion was trained with."""
    values = {
        "seed": arguments.seed,
        "size_px": arguments.size,
        "false_reject_rate": arguments.false_reject_rate,
        "threads": arguments.threads,
        "precision": arguments.precision,
        "instant": arguments.instant or None,
        "augment": arguments.augment,
    }
    filed = {} if arguments.settings is None else read_toml(arguments.settings)
    given = dict(load("retrain").kept_settings(champion)) | filed
    given |= {key: value for key, value in values.items() if value is not None}
    if isinstance(given.get("roi_xyxy"), list):
        given["roi_xyxy"] = tuple(given["roi_xyxy"])
    where = "linegate retrain" if arguments.settings is None else f"linegate retrain, {arguments.settings}"
    settings = parse(given, load("settings").TrainSettings, where)
    # Changed one by one: a part that is given anew would fall back to the defaults of its kind, and not of this training.
    learn = settings.learn
    if arguments.images_shown is not None:
        changed = learn.model_dump() | {"images_shown": arguments.images_shown}
        learn = parse(changed, type(learn), "--images-shown")
    if arguments.device is not None:
        fit = parse(learn.fit.model_dump() | {"device": arguments.device}, type(learn.fit), "--device")
        learn = learn.model_copy(update={"fit": fit})
    return settings.model_copy(update={"learn": learn})


def _command(arguments: argparse.Namespace) -> str:
    """Return the command as a person would type it again."""
    words = ["linegate", "retrain", str(arguments.data), "--champion", str(arguments.champion), "--out", str(arguments.out)]
    options = {
        "--name": arguments.name, "--version": arguments.version, "--seed": arguments.seed,
        "--images-shown": arguments.images_shown, "--device": arguments.device, "--size": arguments.size,
        "--precision": arguments.precision, "--false-reject-rate": arguments.false_reject_rate, "--threads": arguments.threads,
        "--augment": arguments.augment, "--settings": arguments.settings,
    }  # fmt: skip
    for option, value in options.items():
        if value is not None:
            words += [option, str(value)]
    return shlex.join([*words, *(["--instant"] if arguments.instant else [])])
