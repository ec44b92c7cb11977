"""`linegate export`: a finished training → a package in another precision, without training again."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from linegate.errors import SettingsError
from linegate.settings import parse
from linegate_training.commands import load
from linegate_training.commands.train import package_name, refuse_occupied

SETTINGS_FILE = "settings.json"
TRAINED_FILE = "trained.pt"


def register(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "export",
        help="make a package in another precision from a finished training",
        description="Make a package from the run folder of a finished training and the data it learned from: proved, "
        "quantised and calibrated anew. A net that learned from defects is taken from the run as it is; what is known of "
        "good parts alone is computed again from them, by the same seed.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run folder that linegate train left (runs/NAME)")
    parser.add_argument("data", metavar="DATA", help="the folder or known data set that it learned from")
    parser.add_argument("--out", required=True, type=Path, metavar="PACKAGE", help="where to write the package, a folder")
    parser.add_argument("--precision", choices=("fp32", "int8", "fp16"), default="fp32", help="default: %(default)s")
    parser.add_argument("--name", help="the package's name (default: the name of --out)")
    parser.add_argument("--version", default="1.0.0", help="its semantic version (default: %(default)s)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where copies of known data sets lie ($LINEGATE_DATA)")
    parser.add_argument("--fold", type=int, help="which fold is measured on, for data sets that come in folds")
    parser.add_argument("--supervised", action="store_true", help="by the supervised split of a known data set")
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    name = package_name(arguments)
    refuse_occupied(arguments.out)
    path = arguments.run_dir / SETTINGS_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read ({error}): name a run folder that linegate train left") from error
    settings = parse_settings({**values, "precision": arguments.precision}, str(path))
    parts = load("data.fetch").open_parts(arguments.data, arguments.root, arguments.fold, supervised=arguments.supervised)
    if settings.limit_goods is not None:
        parts = parts.limited(settings.limit_goods, settings.seed)
    words = ["linegate", "export", str(arguments.run_dir), arguments.data, "--out", str(arguments.out)]
    words += ["--precision", arguments.precision]
    words += [] if arguments.fold is None else ["--fold", str(arguments.fold)]
    words += ["--supervised"] if arguments.supervised else []
    naming = load("packaging").Naming(name, arguments.version, shlex.join(words))
    trained = arguments.run_dir / TRAINED_FILE
    if parts.defects() and not settings.instant and not trained.is_file():
        raise SettingsError(f"{trained}: is missing, so there is no net to export: let linegate train finish (--resume)")
    # Without the run's folder: its settings and report are of the package that it made, and stay.
    package = load("train").train(parts, arguments.out, naming, settings, trained=trained)
    print(f"wrote {arguments.out}: {package.reference}")
    return 0


def parse_settings(values: dict[str, Any], where: str) -> Any:
    """Return the settings that a training recorded, as `TrainSettings`; JSON has no tuples, so lists stand for them."""
    if values.get("roi_xyxy") is not None:
        values = {**values, "roi_xyxy": tuple(values["roi_xyxy"])}
    return parse(values, load("settings").TrainSettings, where)
