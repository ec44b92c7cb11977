"""`linegate evaluate`: a package and test parts → its numbers, and a report."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from linegate.errors import SettingsError
from linegate.package import ModelPackage
from linegate_training.commands import load
from linegate_training.commands.data import add_data_options


def register(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a model package on test parts",
        description="Measure a package on the test parts of DATA, through the line's own inspection. DATA is a folder with "
        "test/good and test/<class> (and, to measure maps, ground_truth/<class>/<stem>_mask.png), or a known data set.",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the model package, folder or zip")
    parser.add_argument("data", metavar="DATA", help="a folder in the MVTec AD layout, a data set version, or a known set")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with curves, pictures and tables too")
    parser.add_argument("--supervised", action="store_true", help="by the supervised split of a known data set")
    parser.add_argument("--provider", default="auto", help="how to run the model (default: auto)")
    parser.add_argument("--threads", type=int, default=1, help="cores one image may use (default: %(default)s)")
    add_data_options(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.threads < 1:
        raise SettingsError(f"--threads {arguments.threads}: at least 1 is needed")
    if arguments.report is not None:
        _refuse_report(arguments.report, arguments.package)
    package = ModelPackage.load(arguments.package)
    supervised = arguments.supervised
    parts = load("data.fetch").open_parts(arguments.data, arguments.root, arguments.fold, False, supervised)
    measured = load("evaluate").measure(package, parts, arguments.provider, arguments.threads)
    values = load("evaluate").summarise(measured)
    if arguments.report is not None:
        load("report").write_report(arguments.report, measured)
        print(f"wrote {arguments.report}", file=sys.stderr)
    values["package_digest"] = package.digest
    if arguments.json:
        print(json.dumps(values, ensure_ascii=False, allow_nan=False))
    else:
        print(f"{package.reference} on {values['good']} good and {values['defective']} defective parts of {parts.name}")
        print(load("card").table(values))
    return 0


def _refuse_report(report: Path, package: Path) -> None:
    """Find out before measuring that the report cannot be written, or may not be where it is asked for."""
    if report.suffix.lower() not in (".html", ".htm") or report.is_dir():
        raise SettingsError(f"--report {report}: name a file that ends in .html")
    if report.resolve().is_relative_to(package.resolve()):
        raise SettingsError(f"--report {report}: lies in the package, which holds no photographs: name a place outside")
    try:
        report.absolute().parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=report.absolute().parent).close()
    except OSError as error:
        raise SettingsError(f"--report {report}: cannot be written ({error.strerror}): name another place") from error
