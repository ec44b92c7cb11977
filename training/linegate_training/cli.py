"""The commands that training adds to `linegate`: train, evaluate, data.

Rules kept here: importing this module imports neither torch nor anything else that the line does not have, for every
`linegate` command imports it; a command that needs them and lacks them says how to install them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from linegate.errors import LinegateError, SettingsError
from linegate.package import ModelPackage
from linegate.settings import parse

_INSTALL = "pip install 'linegate[training]'"


def register(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    _register_train(commands)
    _register_evaluate(commands)
    _register_data(commands)


def _register_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="learn from photographs of good parts and write a model package",
        description="Learn from good parts only. DATA is a folder with train/good (and, to measure on, test/<class> and "
        "ground_truth/<class>/<stem>_mask.png), or the name of a known data set (linegate data list).",
    )
    parser.add_argument("data", metavar="DATA", help="a folder in the MVTec AD layout, or a known data set")
    parser.add_argument("--out", required=True, type=Path, metavar="PACKAGE", help="where to write the package, a folder")
    parser.add_argument("--name", help="the package's name: a-z, 0-9, '_', '.', '-' (default: the name of --out)")
    parser.add_argument("--version", default="1.0.0", help="its semantic version (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="decides splits and samples (default: 0)")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of the model's input (default: 256)")
    parser.add_argument(
        "--false-reject-rate", type=float, metavar="RATE", help="share of good parts that may fail (default: 0.01)"
    )
    parser.add_argument("--threads", type=int, help="cores to use (default: 2)")
    _add_data_options(parser)
    parser.set_defaults(run=_train)


def _register_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure a model package on test parts",
        description="Measure a package on the test parts of DATA, through the line's own inspection. DATA is a folder with "
        "test/good and test/<class> (and, to measure maps, ground_truth/<class>/<stem>_mask.png), or a known data set.",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the model package, folder or zip")
    parser.add_argument("data", metavar="DATA", help="a folder in the MVTec AD layout, or a known data set")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--provider", default="auto", help="how to run the model (default: auto)")
    parser.add_argument("--threads", type=int, default=1, help="cores one image may use (default: %(default)s)")
    _add_data_options(parser)
    parser.set_defaults(run=_evaluate)


def _register_data(commands: Any) -> None:
    parser = commands.add_parser("data", help="list, fetch and verify public data sets", description="Public data sets.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="name the data sets that the project knows")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    listing.set_defaults(run=_data_list)
    fetching = actions.add_parser("fetch", help="get a data set")
    fetching.add_argument("name", metavar="NAME")
    fetching.add_argument("--root", type=Path, metavar="DIR", help="where copies lie (default: $LINEGATE_DATA, else here)")
    fetching.set_defaults(run=_data_fetch)
    verifying = actions.add_parser("verify", help="check a copy against the manifest")
    verifying.add_argument("name", metavar="NAME")
    verifying.add_argument("--root", type=Path, metavar="DIR", help="where copies lie (default: $LINEGATE_DATA)")
    verifying.set_defaults(run=_data_verify)


def _add_data_options(parser: Any) -> None:
    parser.add_argument("--root", type=Path, metavar="DIR", help="where copies of known data sets lie ($LINEGATE_DATA)")
    parser.add_argument("--fold", type=int, help="which fold to measure on, for data sets that come in folds")


def _train(arguments: argparse.Namespace) -> int:
    name = arguments.name or arguments.out.resolve().name
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", name):
        raise SettingsError(f"--name {name!r}: use a-z, 0-9, '_', '.', '-', beginning with a letter or digit")
    if not re.fullmatch(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.-]+)?", arguments.version):
        raise SettingsError(f"--version {arguments.version!r}: use three numbers, as 1.0.0")
    values = {
        "seed": arguments.seed,
        "size_px": arguments.size,
        "false_reject_rate": arguments.false_reject_rate,
        "threads": arguments.threads,
    }
    given = {key: value for key, value in values.items() if value is not None}
    settings = parse(given, _load("settings").TrainSettings, "linegate train")
    _refuse_unprintable("DATA", arguments.data)
    _refuse_unprintable("--out", str(arguments.out))
    _refuse_occupied(arguments.out)
    parts = _load("data.fetch").open_parts(arguments.data, arguments.root, arguments.fold)
    laid_out = [Path(arguments.data) / part for part in _load("data.folder").PARTS]
    _refuse_among_images(arguments.out, [*laid_out, *{sample.path.parent for sample in parts.samples}])
    package = _load("train").train(parts, arguments.out, name, arguments.version, settings, _command(arguments))
    test = package.manifest.metrics.get("test")
    if test is not None:
        print(_load("card").table(test))
    print(f"wrote {arguments.out}: {package.reference}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.threads < 1:
        raise SettingsError(f"--threads {arguments.threads}: at least 1 is needed")
    package = ModelPackage.load(arguments.package)
    parts = _load("data.fetch").open_parts(arguments.data, arguments.root, arguments.fold, to_learn=False)
    values = _load("evaluate").evaluate(package, parts, arguments.provider, arguments.threads)
    values["package_digest"] = package.digest
    if arguments.json:
        print(json.dumps(values, ensure_ascii=False, allow_nan=False))
    else:
        print(f"{package.reference} on {values['good']} good and {values['defective']} defective parts of {parts.name}")
        print(_load("card").table(values))
    return 0


def _data_list(arguments: argparse.Namespace) -> int:
    known = _load("data.manifest").known_sets()
    if arguments.json:
        print(json.dumps({name: entry.model_dump(mode="json") for name, entry in known.items()}, ensure_ascii=False))
        return 0
    for name, entry in known.items():
        where = f"pip install {entry.source.package}" if entry.source.kind == "pypi" else entry.source.page
        print(f"{name}\n    {entry.title}\n    licence: {entry.licence}\n    from: {where}\n    split: {entry.split.words}")
    return 0


def _data_fetch(arguments: argparse.Namespace) -> int:
    folder = _load("data.fetch").fetch(arguments.name, arguments.root)
    known = _load("data.manifest").known_set(arguments.name)
    print(f"{arguments.name} lies in {folder}; licence: {known.licence}")
    return _report(folder, arguments.name)


def _data_verify(arguments: argparse.Namespace) -> int:
    known = _load("data.manifest").known_set(arguments.name)
    return _report(_load("data.fetch").local_copy(arguments.name, known, arguments.root), arguments.name)


def _report(folder: Path, name: str) -> int:
    known = _load("data.manifest").known_set(name)
    problems = _load("data.fetch").check(folder, known)
    for problem in problems:
        print(f"{folder}: {problem}", file=sys.stderr)
    if problems:
        return 1
    proved = known.expected.digests or known.expected.trees
    checked = "counts and SHA-256 of files" if proved else "counts of files only: no digests are known"
    print(f"{folder}: whole ({checked})")
    return 0


def _refuse_unprintable(what: str, text: str) -> None:
    """Refuse a path that the card, which tells the command, cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(text).decode("utf-8", "backslashreplace")
        raise SettingsError(f"{what} {shown}: this path is not UTF-8: rename it, or name another") from error


def _refuse_occupied(out: Path) -> None:
    """Find out before an hour of training, not after it, that the package cannot be written."""
    try:
        if out.name in ("", ".."):
            raise SettingsError(f"--out {out}: name the package's folder itself, as models/{out.resolve().name or 'parts'}")
        if os.path.lexists(out) and not (out.is_dir() and ((out / "package.json").exists() or not any(out.iterdir()))):
            raise SettingsError(f"--out {out}: exists and is no model package: name another place")
        # The package is written beside its place and then renamed, so the nearest folder there is must take a new one.
        nearest = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
        if not nearest.is_dir():
            raise SettingsError(f"--out {out}: {nearest} is no folder: name another place")
        tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=nearest).cleanup()
    except OSError as error:
        raise SettingsError(f"--out {out}: cannot be written ({error.strerror}): name another place") from error


def _refuse_among_images(out: Path, folders: list[Path]) -> None:
    """Refuse a place where the package would count as images or a class of the data set."""
    for folder in folders:
        if out.resolve().is_relative_to(folder.resolve()):
            raise SettingsError(f"--out {out}: lies in {folder}, among the images: name a place outside")


def _command(arguments: argparse.Namespace) -> str:
    """Return the command as a person would type it again, less the places on this machine that do not matter."""
    words = ["linegate", "train", arguments.data, "--out", str(arguments.out)]
    options = {
        "--name": arguments.name, "--version": None if arguments.version == "1.0.0" else arguments.version,
        "--seed": arguments.seed, "--size": arguments.size, "--false-reject-rate": arguments.false_reject_rate,
        "--threads": arguments.threads, "--fold": arguments.fold,
    }  # fmt: skip
    for option, value in options.items():
        if value is not None:
            words += [option, str(value)]
    return shlex.join(words)


def _load(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"linegate_training.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "linegate_training":
            raise
        raise LinegateError(f"this command needs {error.name}, which is not installed: {_INSTALL}") from error
