"""`linegate model` and `linegate training`: candidates and training runs from the command line.

Rules kept here: what changes something wants the station stopped, for its lock is taken first, and goes through the same
functions as the page; who sits at the machine is in the trail by the name of their login there. Looking works at any time.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from linegate.errors import LinegateError, StationError


def register_models(commands: Any) -> None:
    """Add `linegate model` and `linegate training`."""
    models = commands.add_parser(
        "model",
        help="candidates of a station: list, import, approve, promote, roll back",
        description="What changes something wants the station stopped; while it runs, use its page /models or its API.",
    ).add_subparsers(metavar="WHAT", required=True)

    listing = _station(models, "list", "what judges each view, and all packages", _list)
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    bring = _station(models, "import", "put a package on the shelf", _import)
    bring.add_argument("package", type=Path, metavar="PACKAGE", help="a package or a training run's folder, or a zip of it")
    approve = _station(models, "approve", "say that a package is fit for the line", _approve)
    approve.add_argument("digest", metavar="DIGEST", help="the package's digest, or its first digits")
    approve.add_argument("--comment", default="", help="what the trail shall say beside it")
    promote = _station(models, "promote", "have a package judge a view from the next start on", _promote)
    promote.add_argument("digest", metavar="DIGEST", help="the package's digest, or its first digits")
    promote.add_argument("--recipe", required=True, help="the recipe")
    promote.add_argument("--view", default="main", help="the view (default: main)")
    promote.add_argument("--override-reason", metavar="TEXT", help="why, where the gate did not say go")
    back = _station(models, "roll-back", "undo a promotion", _roll_back)
    back.add_argument("number", type=int, metavar="NUMBER", help="the promotion's number")
    back.add_argument("--reason", default="", help="what the trail shall say beside it")

    runs = commands.add_parser("training", help="training runs of a station: list, show, cancel").add_subparsers(
        metavar="WHAT", required=True
    )
    for name, text, run in (
        ("list", "all training runs", _list_runs),
        ("show", "one training run with the end of its log", _show_run),
        ("cancel", "end a training run", _cancel_run),
    ):
        parser = runs.add_parser(name, help=text, description=text.capitalize() + ".")
        parser.add_argument("store", type=Path, metavar="STORE", help="the folder of the station's store")
        if name != "list":
            parser.add_argument("number", type=int, metavar="NUMBER", help="the run's number")
        parser.set_defaults(run=run)


def _station(models: Any, name: str, text: str, run: Any) -> Any:
    parser = models.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
    parser.add_argument("station", type=Path, metavar="STATION.toml", help="the station's settings")
    parser.set_defaults(run=run)
    return parser


def _actor() -> Any:
    from linegate_edge.review.audit import Actor

    return Actor(getpass.getuser(), "console")


@contextlib.contextmanager
def _room(path: Path, *, changes: bool, whole: bool = False, undoing: int | None = None) -> Iterator[Any]:
    """Open a station's models; with `changes` the store is held meanwhile, which no running station gives away.

    A promoted package that is gone is told, and does not keep anybody from mending that, unless the `whole` is needed.

    Raises:
        LinegateError: the station runs, or its settings or packages cannot be used.
    """
    from linegate_edge.recipes import RecipeBook
    from linegate_edge.review.models.room import ModelRoom
    from linegate_edge.review.reviews import Reviews
    from linegate_edge.settings import load_station
    from linegate_edge.store import Store

    settings = load_station(path)
    with contextlib.ExitStack() as stack:
        if changes:
            try:
                stack.callback(Store(settings.station.store, settings.station.topic).close)
            except LinegateError as error:
                raise StationError(f"{error}; a station that runs is changed on its page /models, or by its API") from error
        reviews = Reviews(settings.station.store, settings.review)
        stack.callback(reviews.close)
        room = ModelRoom(settings, reviews, behind=lambda: True)
        overrides, gone = (room.promotions.overrides(), []) if whole else room.usable_overrides(undoing)
        for line in gone:
            print(f"linegate: {line}", file=sys.stderr)
        room.use_book(RecipeBook(settings, overrides=overrides))
        yield room


def _whole(room: Any, digits: str) -> str:
    found = [digest for digest in room.register.registered() if digest.startswith(digits)]
    if len(found) != 1:
        what = "no package" if not found else f"{len(found)} packages"
        raise StationError(f"{what} on the shelf with a digest that begins with '{digits[:64]}': see linegate model list")
    return str(found[0])


def _list(arguments: argparse.Namespace) -> int:
    from linegate_edge.review.models.views import models_answer

    with _room(arguments.station, changes=False) as room:
        answer = models_answer(room)
    if arguments.json:
        print(answer.model_dump_json())
        return 0
    for view in answer.views:
        since = f", promotion {view.promotion}" if view.promotion is not None else ""
        print(f"{view.recipe}/{view.view}: {view.package}, threshold {view.threshold:g}{since}")
    print(f"\n{'state':<10} {'digest':<12} {'gate':<6} {'approved':<9} package")
    for model in answer.models:
        gate = "-" if model.comparison is None else "go" if model.comparison.gate.go else "no-go"
        have = f"{sum(known.counts for known in model.approvals)} of {answer.approvals_needed}"
        print(f"{model.state:<10} {model.digest[:12]} {gate:<6} {have:<9} {model.name} {model.version}")
    for broken in answer.broken:
        print(f"{'broken':<10} {broken.digest[:12]} {'-':<6} {'-':<9} {broken.name} {broken.version}: {broken.problem}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    with _room(arguments.station, changes=True) as room, _told():
        actor = _actor()
        found = room.register.bring(actor, arguments.package, trained_by=actor.name)
    print(f"{found.reference} is on the shelf: {found.digest}")
    return 0


def _approve(arguments: argparse.Namespace) -> int:
    with _room(arguments.station, changes=True) as room, _told():
        room.register.approve(_actor(), digest := _whole(room, arguments.digest), arguments.comment)
    print(f"{digest[:12]} is approved by {_actor().name}")
    return 0


def _promote(arguments: argparse.Namespace) -> int:
    with _room(arguments.station, changes=True, whole=True) as room, _told():
        place = arguments.recipe, arguments.view
        done, note = room.promote(_actor(), _whole(room, arguments.digest), place, arguments.override_reason)
    print(f"promotion {done.number}: {done.package} judges {done.recipe}/{done.view} from the next start on")
    if note is not None:
        print(note)
    return 0


def _roll_back(arguments: argparse.Namespace) -> int:
    with _room(arguments.station, changes=True, undoing=arguments.number) as room, _told():
        done, note = room.roll_back(_actor(), arguments.number, arguments.reason)
    print(f"promotion {arguments.number} is undone: {done.package} judges {done.recipe}/{done.view} from the next start on")
    if note is not None:
        print(note)
    return 0


@contextlib.contextmanager
def _runs(store: Path) -> Iterator[Any]:
    from linegate_edge.review.audit import AuditTrail
    from linegate_edge.review.database import REVIEWS_FILE, ReviewDatabase
    from linegate_edge.review.models.training_runs import TrainingRuns

    if not (store / REVIEWS_FILE).is_file():
        raise StationError(f"{store}: no {REVIEWS_FILE} here: give the folder of a station's store")
    database = ReviewDatabase(store)
    with contextlib.closing(database), _told():
        yield TrainingRuns(store, AuditTrail(database))


def _list_runs(arguments: argparse.Namespace) -> int:
    from linegate_edge.review.models.run_record import read_progress

    with _runs(arguments.store) as runs:
        for run in runs.listed():
            progress = read_progress(runs.folder_of(run.number))
            far = f"{progress.share:.0%} {progress.step}" if progress is not None else ""
            print(f"{run.number:>4}  {run.state:<9} {run.version}  by {run.by}  {run.problem or far}")
    return 0


def _show_run(arguments: argparse.Namespace) -> int:
    from linegate_edge.review.models.run_record import read_log

    with _runs(arguments.store) as runs:
        run = runs.find(arguments.number)
        print(json.dumps(run.model_dump(mode="json"), indent=1, ensure_ascii=False))
        for line in read_log(runs.folder_of(run.number), 40):
            print(line)
    return 0


def _cancel_run(arguments: argparse.Namespace) -> int:
    with _runs(arguments.store) as runs:
        run = runs.cancel(_actor(), arguments.number, wait=True)
    print(f"training run {run.number} is {run.state}")
    return 0


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn a name that is not there into the one line that all errors are."""
    try:
        yield
    except LookupError as error:
        raise StationError(str(error.args[0])) from None
