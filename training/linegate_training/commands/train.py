"""`linegate train`: photographs → a model package.

Rules kept here: options and places are checked before anything is computed; the command as it can be typed again goes on the
package's card.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from linegate.errors import SettingsError
from linegate.settings import parse
from linegate_training.commands import load
from linegate_training.commands.data import add_data_options


def register(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "train",
        help="learn from photographs of parts and write a model package",
        description="Learn from good parts, and from defective ones where there are any. DATA is a folder with train/good, "
        "and if you have them train/<class> to learn from, test/<class> to measure on and "
        "ground_truth/<class>/<stem>_mask.png for either; or the name of a known data set (linegate data list).",
    )
    parser.add_argument("data", metavar="DATA", help="a folder in the MVTec AD layout, a data set version, or a known set")
    parser.add_argument("--out", required=True, type=Path, metavar="PACKAGE", help="where to write the package, a folder")
    parser.add_argument("--name", help="the package's name: a-z, 0-9, '_', '.', '-' (default: the name of --out)")
    parser.add_argument("--version", default="1.0.0", help="its semantic version (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="decides splits and samples (default: 0)")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where the report goes (default: runs/NAME)")
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="shorter side of the model's input (default: from the data, 256 to 512)"
    )
    parser.add_argument("--roi", metavar="L,T,R,B", help="region of interest, in shares of the frame, as 0.1,0,0.9,1")
    parser.add_argument(
        "--ignore", type=Path, metavar="MASK", help="picture over the region: what is not black is not looked at"
    )
    parser.add_argument("--precision", choices=("fp32", "int8", "fp16"), help="arithmetic on the line (default: fp32)")
    parser.add_argument(
        "--false-reject-rate", type=float, metavar="RATE", help="share of good parts that may fail (default: 0.01)"
    )
    parser.add_argument("--threads", type=int, help="cores to use (default: 2)")
    parser.add_argument(
        "--augment", metavar="RECIPE", help="how photographs may vary: fixed, mirrored, texture, none (default: fixed)"
    )
    parser.add_argument("--settings", type=Path, metavar="FILE.toml", help="all other settings; options go before it")
    parser.add_argument("--instant", action="store_true", help="a package from 20 to 50 good images in a minute; no defects")
    parser.add_argument(
        "--supervised", action="store_true", help="learn from the defects of a known data set, by its supervised split"
    )
    parser.add_argument(
        "--operating-point", choices=("false-rejects", "accuracy"), help="what the threshold is for (default: false-rejects)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted training in --run-dir")
    parser.add_argument("--limit-goods", type=int, metavar="N", help="learn from N of the good images, drawn by the seed")
    add_data_options(parser)
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    name = package_name(arguments)
    values = {
        "seed": arguments.seed,
        "size_px": arguments.size,
        "false_reject_rate": arguments.false_reject_rate,
        "threads": arguments.threads,
        "precision": arguments.precision,
        "operating_point": arguments.operating_point,
        "instant": arguments.instant or None,
        "augment": arguments.augment,
        "limit_goods": arguments.limit_goods,
        "roi_xyxy": None if arguments.roi is None else _roi(arguments.roi),
    }
    given = {key: value for key, value in values.items() if value is not None}
    filed = {} if arguments.settings is None else read_toml(arguments.settings)
    where = "linegate train" if arguments.settings is None else f"linegate train, {arguments.settings}"
    settings = parse(filed | given, load("settings").TrainSettings, where)
    _refuse_unprintable("DATA", arguments.data)
    _refuse_unprintable("--out", str(arguments.out))
    refuse_occupied(arguments.out)
    parts = load("data.fetch").open_parts(arguments.data, arguments.root, arguments.fold, supervised=arguments.supervised)
    if settings.limit_goods is not None:
        parts = parts.limited(settings.limit_goods, settings.seed)
    laid_out = [Path(arguments.data) / part for part in load("data.folder").PARTS]
    _refuse_among_images(arguments.out, [*laid_out, *{sample.path.parent for sample in parts.samples}])
    naming = load("packaging").Naming(name, arguments.version, _command(arguments))
    run_dir = arguments.run_dir or Path("runs") / name
    package = load("train").train(parts, arguments.out, naming, settings, run_dir, arguments.ignore, arguments.resume)
    if package is None:
        return 0  # another process of torchrun writes and prints
    test = package.manifest.metrics.get("test")
    if test is not None:
        print(load("card").table(test))
    print(f"wrote {arguments.out}: {package.reference}")
    return 0


def package_name(arguments: argparse.Namespace) -> str:
    """Return the name of the package that the options ask for.

    Raises:
        SettingsError: the name or the version is not one that a package may have.
    """
    name = str(arguments.name or arguments.out.resolve().name)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", name):
        raise SettingsError(f"--name {name!r}: use a-z, 0-9, '_', '.', '-', beginning with a letter or digit")
    if not re.fullmatch(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.-]+)?", arguments.version):
        raise SettingsError(f"--version {arguments.version!r}: use three numbers, as 1.0.0")
    return name


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a settings file holds.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"--settings {path}: cannot be read as TOML: {error}") from error


def _roi(text: str) -> tuple[float, ...]:
    try:
        left, top, right, bottom = values = tuple(float(word) for word in text.split(","))
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError
    except ValueError:
        raise SettingsError(f"--roi {text}: give left,top,right,bottom in shares of the frame, as 0.1,0,0.9,1") from None
    return values


def _refuse_unprintable(what: str, text: str) -> None:
    """Refuse a path that the card, which tells the command, cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(text).decode("utf-8", "backslashreplace")
        raise SettingsError(f"{what} {shown}: this path is not UTF-8: rename it, or name another") from error


def refuse_occupied(out: Path) -> None:
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
        "--threads": arguments.threads, "--fold": arguments.fold, "--precision": arguments.precision,
        "--roi": arguments.roi, "--ignore": arguments.ignore, "--operating-point": arguments.operating_point,
        "--limit-goods": arguments.limit_goods, "--augment": arguments.augment, "--settings": arguments.settings,
    }  # fmt: skip
    for option, value in options.items():
        if value is not None:
            words += [option, str(value)]
    words += [option for option, given in (("--supervised", arguments.supervised), ("--instant", arguments.instant)) if given]
    return shlex.join(words)
