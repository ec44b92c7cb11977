"""`linegate compare`: two packages and a data set version → which of them is better, and whether the gate lets it through."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from linegate.comparison import COMPARISON_FILE, COMPARISON_PAGE
from linegate.dataset_version import Version
from linegate.errors import SettingsError
from linegate.package import ModelPackage
from linegate_training.commands import load


def register(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "compare",
        help="compare two packages on the frozen test set of a data set version",
        description="Compare a champion and a candidate on the frozen test set of a data set version, through the line's own "
        "inspection. Exit status 0: the gate says go; 1: no-go; 2: it could not be told.",
    )
    parser.add_argument("champion", type=Path, metavar="CHAMPION", help="the package on the line, folder or zip")
    parser.add_argument("candidate", type=Path, metavar="CANDIDATE", help="the package that may take its place")
    parser.add_argument("data", type=Path, metavar="VERSION", help="a data set version, a folder with version.json")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help=f"where {COMPARISON_FILE} and the page go")
    parser.add_argument("--provider", default="auto", help="how to run the models (default: auto)")
    add_compare_options(parser)
    parser.set_defaults(run=_compare)


def add_compare_options(parser: Any) -> None:
    """Add what says how two packages are compared."""
    parser.add_argument("--gate", type=Path, metavar="FILE.toml", help="the gate's rules (default: training/README.md)")
    parser.add_argument(
        "--recent", type=int, default=200, metavar="N", help="so many reviews, the newest, are shown apart (default: 200)"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as one JSON object, the last line")


def _compare(arguments: argparse.Namespace) -> int:
    check_compare_options(arguments)
    gate = load("gate").read_gate(arguments.gate)
    packages = [ModelPackage.load(path) for path in (arguments.champion, arguments.candidate)]
    for path in (arguments.champion, arguments.candidate, arguments.data):
        refuse_inside(arguments.out, path)
    version = Version.load(arguments.data)
    parts = load("data.versions").parts_of(version, to_learn=False)
    compared = load("compare").compare(*packages, version, parts, gate, arguments.recent, arguments.provider)
    return tell(load("comparison_page").write_comparison(arguments.out, compared), arguments.out, arguments.json)


def check_compare_options(arguments: argparse.Namespace) -> None:
    """Refuse options and places before anything is computed.

    Raises:
        SettingsError: one of them is wrong.
    """
    if arguments.recent < 1:
        raise SettingsError(f"--recent {arguments.recent}: at least 1 is needed")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=arguments.out).close()
    except OSError as error:
        raise SettingsError(f"--out {arguments.out}: cannot be written ({error.strerror}): name another folder") from error


def refuse_inside(out: Path, place: Path) -> None:
    """Refuse to write into what is read, of which every byte is covered by a digest.

    Raises:
        SettingsError: `out` lies in `place`.
    """
    if out.resolve().is_relative_to(place.resolve()):
        raise SettingsError(f"--out {out}: lies in {place}, which is never changed: name a place outside")


def tell(comparison: Any, out: Path, as_json: bool) -> int:
    """Print a comparison and return the exit status that the gate's verdict has: 0 go, 1 no-go."""
    if as_json:
        print(json.dumps(comparison.model_dump(mode="json"), ensure_ascii=False, allow_nan=False))
    else:
        print(load("comparison_page").summary(comparison))
        print(f"wrote {out / COMPARISON_PAGE}")
    return 0 if comparison.gate.go else 1
