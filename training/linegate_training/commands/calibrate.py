"""`linegate calibrate`: move a package's operating point without a new export.

Rules kept here: importing this module needs nothing that the line lacks; what the options say together is checked before
any picture is read. Calculating is left to `calibrate`, writing to `recalibrate`.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from linegate.errors import SettingsError
from linegate.package import ModelPackage
from linegate_training.commands import load


def register(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "calibrate",
        help="move a package's threshold, from fresh parts and with a promise",
        description="Set the threshold of PACKAGE from parts that it has not learned from, to a promised rate, by costs, or as "
        "stated, and record who, when and from what; the model stays as it is. DATA is a folder with calibration/good (and "
        "calibration/<defect class>), or good/ and <defect class>/, or images of good parts; of train/ the parts that the "
        "package has not learned from are used, test/ never. Without options: the false-reject rate that it was set for.",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the model package, folder or zip")
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA", help="a folder of parts (not needed with --threshold)")
    promises = parser.add_argument_group("promises")
    promises.add_argument("--false-reject-rate", type=float, metavar="RATE", help="share of good parts that may fail, as 0.01")
    promises.add_argument("--escape-rate", type=float, metavar="RATE", help="share of defective parts that may pass, as 0.02")
    promises.add_argument("--confidence", type=float, metavar="SHARE", help="how sure each promise is (default: 0.95)")
    costs = parser.add_argument_group("costs, all three in one unit")
    costs.add_argument("--cost-escape", type=float, metavar="COST", help="what one escape costs")
    costs.add_argument("--cost-false-reject", type=float, metavar="COST", help="what one false reject costs")
    costs.add_argument("--defect-share", type=float, metavar="SHARE", help="share of defective parts on the line, as 0.02")
    stated = parser.add_argument_group("threshold and band")
    stated.add_argument("--threshold", type=float, metavar="SCORE", help="set this threshold, and calculate none")
    stated.add_argument("--undecided-below", type=float, metavar="D", help="scores within D under the threshold are undecided")
    stated.add_argument("--undecided-rate", type=float, metavar="RATE", help="share of good parts that may be undecided")
    parser.add_argument("--by", metavar="NAME", help="who sets it (default: the user of this machine)")
    parser.add_argument("--reason", metavar="TEXT", help="why, for the record")
    parser.add_argument("--out", type=Path, metavar="NEW", help="write another package there (default: PACKAGE itself)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--provider", default="auto", help="how to run the model (default: auto)")
    parser.add_argument("--threads", type=int, default=1, help="cores one image may use (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if arguments.threads < 1:
        raise SettingsError(f"--threads {arguments.threads}: at least 1 is needed")
    rates = (arguments.false_reject_rate, arguments.escape_rate, arguments.undecided_rate)
    calculates = any(value is not None for value in (*rates, *_costs(arguments)))
    if arguments.data is None and (calculates or (arguments.threshold is None and arguments.undecided_below is None)):
        raise SettingsError("calibrate needs DATA, a folder of parts that the package has not seen, or --threshold SCORE")
    if arguments.threshold is not None and arguments.confidence is not None:
        raise SettingsError("--confidence goes with a promised rate; a stated --threshold promises none: leave one out")
    set_by, reason = _who(arguments.by), _one_line("--reason", arguments.reason)
    package = ModelPackage.load(arguments.package)
    aim = _aim(arguments, package)
    out = _place(arguments)
    parts = None if arguments.data is None else load("data.held_out").read_held_out(arguments.data, package)
    if parts is not None:
        _tell(parts)
    moved = load("recalibrate").recalibrate(
        package, parts, aim, out, set_by, reason, arguments.provider, arguments.threads
    )  # fmt: skip
    _print(package, moved, arguments.json)
    return 0


def _aim(arguments: argparse.Namespace, package: ModelPackage) -> Any:
    calibrate, risk = load("calibrate"), load("risk")
    given = _costs(arguments)
    if any(value is not None for value in given) and None in given:
        raise SettingsError("costs choose only together: give --cost-escape, --cost-false-reject and --defect-share")
    costs = None if None in given else risk.Costs(*given)
    rate, threshold = arguments.false_reject_rate, arguments.threshold
    if arguments.data is None and threshold is None:
        threshold = package.manifest.thresholds.score
    if rate is None and arguments.escape_rate is None and costs is None and threshold is None:
        rate = load("recalibrate").earlier_rate(package)
    return calibrate.Aim(
        rate, arguments.escape_rate, arguments.undecided_rate,
        calibrate.CONFIDENCE if arguments.confidence is None else arguments.confidence,
        costs, threshold, arguments.undecided_below,
    )  # fmt: skip


def _costs(arguments: argparse.Namespace) -> tuple[float | None, float | None, float | None]:
    return arguments.cost_escape, arguments.cost_false_reject, arguments.defect_share


def _who(by: str | None) -> str:
    named = _one_line("--by", by)
    if named is not None:
        return named
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise SettingsError("this machine does not say who you are: give --by NAME") from error


def _one_line(option: str, text: str | None) -> str | None:
    if text is None:
        return None
    words = " ".join(text.split())
    if not words:
        raise SettingsError(f"{option}: is empty: say something, or leave it out")
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise SettingsError(f"{option}: is not UTF-8: type it again") from error
    return words


def _place(arguments: argparse.Namespace) -> Path:
    """Return where the package is written, and find out before scoring, not after it, that it cannot be."""
    package: Path = arguments.package
    out: Path | None = arguments.out
    if out is None and not package.is_dir():
        raise SettingsError(f"{package}: a zip is not written to: give --out NEW, a folder for the calibrated package")
    place = package.resolve() if out is None else out.resolve()
    if place.suffix.lower() == ".zip" or not place.name:
        raise SettingsError(f"--out {out}: packages are written as folders: name one")
    if arguments.data is not None and place.is_relative_to(arguments.data.resolve()):
        raise SettingsError(f"{place}: lies in {arguments.data}, among the images: name a place outside with --out")
    try:
        nearest = next(folder for folder in place.parents if os.path.lexists(folder))
        if not nearest.is_dir():
            raise SettingsError(f"{place}: cannot be written, for {nearest} is no folder: name another place with --out")
        tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=nearest).cleanup()
    except OSError as error:
        raise SettingsError(f"{place}: cannot be written ({error.strerror}): name another place with --out") from error
    return place


def _tell(parts: Any) -> None:
    notes = []
    if parts.learned:
        notes.append(f"{parts.learned} images are left out, for the package learned from them")
    if parts.repeated:
        notes.append(f"{parts.repeated} images are left out, for their bytes are those of others")
    if parts.tests:
        notes.append(f"{parts.tests} images are test parts of the package: from now on they do not count as untouched")
    if not parts.checked:
        notes.append("the package does not list what it learned from: the promise holds only if these parts are fresh")
    for note in notes:
        print(f"note: {parts.name}: {note}", file=sys.stderr)


def _print(before: ModelPackage, after: ModelPackage, as_json: bool) -> None:
    old, new = before.manifest.thresholds, after.manifest.thresholds
    if old.undecided_below and not new.undecided_below:
        kept = f"--undecided-below {old.undecided_below:.4g} sets it again"
        print(f"note: {before.manifest.name}: nothing is undecided any more; {kept}", file=sys.stderr)
    if as_json:
        values = new.model_dump(mode="json")
        values["calibration"].pop("history")
        values |= {"package": after.manifest.name, "package_digest": after.digest, "location": str(after.location)}
        print(json.dumps({**values, "previous_score": old.score}, ensure_ascii=False, allow_nan=False))
        return
    print(new.calibration["words"])
    print(
        f"threshold {old.score:.4g} → {new.score:.4g}, undecided below it {old.undecided_below:.4g} → {new.undecided_below:.4g}"
    )
    print(f"wrote {after.location}: {after.reference}, thresholds version {new.version}")
