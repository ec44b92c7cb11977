"""The `linegate` command: `inspect` lives here, the other rooms bring theirs through entry points.

Rules kept here: a user's mistake is one line on standard error and exit status 2, never a traceback; what programs read
goes to standard output.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from uuid import uuid4

from linegate import __version__
from linegate.decide import Recipe, decide
from linegate.errors import ImageError, LinegateError, SettingsError
from linegate.images import IMAGE_SUFFIXES, MAX_PIXELS, encode_jpeg, read_image
from linegate.infer import PROVIDERS, Inspector
from linegate.overlay import draw_overlay
from linegate.package import ModelPackage
from linegate.stages import Decision, Frame, FrameFault, PixelFormat, Prediction, Verdict

_VIEW = "photo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name that is no UTF-8 must not end the run
    try:
        parser = build_parser()
        chosen = parser.parse_args(arguments)
        return int(chosen.run(chosen))
    except LinegateError as error:
        print(f"linegate: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("linegate: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with the commands of all installed rooms."""
    parser = argparse.ArgumentParser(prog="linegate", description="Linegate: a quality gate for the production line that sees.")
    parser.add_argument("--version", action="version", version=f"linegate {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _register_inspect(commands)
    for entry_point in sorted(entry_points(group="linegate.commands"), key=lambda entry: entry.name):
        entry_point.load()(commands)
    return parser


def bench_commands(commands: Any) -> Any:
    """Return the subcommands of `linegate bench`, to which any room may add; the first one that asks makes them."""
    parser = commands.choices.get("bench")
    if parser is None:
        parser = commands.add_parser("bench", help="measure this machine and the models")
        parser.subcommands = parser.add_subparsers(metavar="WHAT", required=True)
    return parser.subcommands


def _register_inspect(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="judge photographs with a model package",
        description="Judge photographs, or all in a folder. Exit status 0: all pass; 1: any fails or is undecided; 2: usage.",
    )
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="a picture, or a folder of pictures")
    parser.add_argument("--model", required=True, type=Path, metavar="PACKAGE", help="the model package, folder or zip")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of the table")
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="write each picture with its heat map there")
    parser.add_argument("--provider", default="auto", help=f"auto, {', '.join(PROVIDERS)} (default: auto)")
    parser.add_argument(
        "--max-megapixels", type=_megapixels, default=MAX_PIXELS / 1e6, help="refuse larger (default: %(default)g)"
    )
    parser.set_defaults(run=_inspect)


@dataclasses.dataclass(frozen=True, slots=True)
class _Judged:
    path: Path
    frame: Frame | None
    prediction: Prediction | None
    verdict: Verdict


def _inspect(arguments: argparse.Namespace) -> int:
    paths = list(_find_photos(arguments.photos))
    inspector = Inspector(ModelPackage.load(arguments.model), arguments.provider, threads=os.cpu_count() or 1)
    if arguments.overlay is not None:
        try:
            arguments.overlay.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"--overlay {arguments.overlay}: cannot be made: {error.strerror}") from error
    all_pass = True
    max_pixels = int(arguments.max_megapixels * 1e6)
    if not arguments.json:
        print(f"model {inspector.package.reference} on {inspector.provider}")
        print(f"{'verdict':<10} {'score':>10} {'threshold':>10}  photograph")
    for index, path in enumerate(paths):
        judged = _judge(path, index, inspector, max_pixels)
        all_pass &= judged.verdict.decision is Decision.PASS
        overlay = _write_overlay(judged, arguments.overlay, index, inspector) if arguments.overlay else None
        print(_as_json(judged, overlay, inspector) if arguments.json else _as_row(judged), flush=True)
    return 0 if all_pass else 1


def _find_photos(named: Iterable[Path]) -> Iterator[Path]:
    for path in named:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if _is_picture(p))
            if not found:
                raise SettingsError(f"{path}: no pictures in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise SettingsError(f"{path}: no such file or folder")


def _is_picture(path: Path) -> bool:
    """Say whether a file is taken from a folder: by its suffix, and not a hidden one, as some systems leave beside each."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _megapixels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 170:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 170, got {text!r}")
    return value


def _judge(path: Path, index: int, inspector: Inspector, max_pixels: int) -> _Judged:
    recipe = Recipe("package", {_VIEW: inspector.view_recipe})
    frame_id, now = str(uuid4()), datetime.now(UTC)
    try:
        image, pixel_format, media_type, data = read_image(path, max_pixels=max_pixels)
    except ImageError as error:
        fault = FrameFault(error.reason, str(error), frame_id, "file", _VIEW, index, now)
        return _Judged(path, None, None, decide([fault], recipe))
    frame = Frame(image, pixel_format, frame_id, "file", _VIEW, index, now, data, media_type)
    prediction = inspector.predict(frame)
    return _Judged(path, frame, prediction, decide([prediction], recipe))


def _write_overlay(judged: _Judged, folder: Path, index: int, inspector: Inspector) -> Path | None:
    if judged.frame is None:
        return None
    map_threshold = inspector.package.manifest.thresholds.map
    picture = draw_overlay(judged.frame, judged.prediction, judged.verdict.decision, map_threshold)
    # Numbered, since two folders may hold pictures of one name.
    target = folder / f"{index:05d}-{judged.path.stem[:80]}-{judged.verdict.decision}.jpg"
    try:
        target.write_bytes(encode_jpeg(picture, PixelFormat.RGB8))
    except OSError as error:
        raise SettingsError(f"{target}: cannot be written: {error.strerror}") from error
    return target


def _as_json(judged: _Judged, overlay: Path | None, inspector: Inspector) -> str:
    view = judged.verdict.views[0]
    values = {
        "photo": str(judged.path),
        "verdict": judged.verdict.decision,
        "reason": judged.verdict.reason,
        "reason_text": judged.verdict.reason_text,
        "score": view.score,
        "threshold": view.threshold,
        "regions": [dataclasses.asdict(region) for region in view.regions],
        "package": inspector.package.manifest.name,
        "package_version": inspector.package.manifest.version,
        "package_digest": inspector.package.digest,
        "provider": inspector.provider,
        "overlay": None if overlay is None else str(overlay),
    }
    return json.dumps(values, ensure_ascii=False)


def _as_row(judged: _Judged) -> str:
    view = judged.verdict.views[0]
    score = "-" if view.score is None else f"{view.score:.4g}"
    threshold = "-" if view.threshold is None else f"{view.threshold:.4g}"
    why = f"  ({judged.verdict.reason_text})" if judged.verdict.decision is Decision.UNDECIDED else ""
    return f"{judged.verdict.decision:<10} {score:>10} {threshold:>10}  {judged.path}{why}"


if __name__ == "__main__":
    sys.exit(main())
