"""`linegate bench review`: is the review quick for people, and free for the line?

Three measurements, each on a station of its own in a temporary folder: from the key that decides a part to the next part's
picture (`bench_review_page`), questions with many parts stored (`bench_review_questions`), and the line while ten people
review (`bench_review_line`). Rules kept here: what is asked of them is printed beside what was found; other load on the machine
is told, for it is in every number.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from linegate.errors import StationError
from linegate_edge.bench_review_line import measure_line
from linegate_edge.bench_review_page import PACES, measure_page
from linegate_edge.bench_review_questions import measure_questions
from linegate_edge.demo import demo_package
from linegate_edge.embedded_broker import embedded_broker

KEY_FLOOR_MS, KEY_GOAL_MS = 150.0, 60.0
QUESTION_FLOOR_MS, QUESTION_GOAL_MS = 200.0, 50.0
LOSS_FLOOR, LOSS_GOAL = 0.05, 0.01
WHAT: Final = ("page", "questions", "line")


def run_bench_review(*, package: Path | None, parts: int, only: str | None, folder: Path | None, as_json: bool) -> int:
    """Measure, print, and return the exit status.

    Raises:
        LinegateError: the package or the broker cannot be used, or playwright or Chromium is not here.
    """
    package = package or demo_package()

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    measures: dict[str, Callable[[Path, int], dict[str, Any]]] = {
        "page": lambda place, port: measure_page(place, package, port, tell),
        "questions": lambda place, port: measure_questions(place, package, parts, port, tell),
    }
    result: dict[str, Any] = {}
    try:
        for name, measure in measures.items():
            if only in (None, name):
                with tempfile.TemporaryDirectory(prefix="linegate-bench-", dir=folder) as place, embedded_broker() as port:
                    result[name] = _with_load(lambda measure=measure, place=place, port=port: measure(Path(place), port))  # type: ignore[misc]
    except OSError as error:
        raise StationError(f"{folder or tempfile.gettempdir()}: no store can be made here: {error.strerror}") from error
    if only in (None, "line"):
        result["line"] = _with_load(lambda: measure_line(package, tell))
    if as_json:
        print(json.dumps(result))
    else:
        _print(result)
    return 0


def _with_load(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    before = os.getloadavg()[0]
    return measure() | {"load_before": round(before, 1), "cores": os.cpu_count()}


def _print(result: dict[str, Any]) -> None:
    if "page" in result:
        page = result["page"]
        size = "{} × {}".format(*page["size_wh"])
        head = f"key to the next picture, {size}, {page['evidence_mib']} MiB each"
        print(f"{head}: floor {KEY_FLOOR_MS:g} ms, goal {KEY_GOAL_MS:g} ms")
        for name in PACES:
            taken = page["milliseconds"][name]
            print(f"  {name:<28} p50 {taken['p50']:>7.1f} ms   p95 {taken['p95']:>7.1f} ms   max {taken['max']:>7.1f} ms")
    if "questions" in result:
        asked = result["questions"]
        head = f"questions, {asked['parts']:,} parts, {asked['waiting']:,} wait"
        print(f"{head}: floor {QUESTION_FLOOR_MS:g} ms, goal {QUESTION_GOAL_MS:g} ms")
        for name, taken in asked["milliseconds"].items():
            print(f"  {name:<28} p50 {taken['p50']:>7.2f} ms   p95 {taken['p95']:>7.2f} ms   p99 {taken['p99']:>7.2f} ms")
    if "line" in result:
        line = result["line"]
        print(f"line with {line['people']} people: floor {LOSS_FLOOR:.0%}, goal {LOSS_GOAL:.0%}")
        print(f"  without                      {line['quiet_per_second']:>9.1f} frames/s")
        print(
            f"  with                         {line['busy_per_second']:>9.1f} frames/s, {line['reviews_per_second']} reviews/s"
        )
        for name, text in (("loss", "loss"), ("loss_by_cpu_time", "loss by the station's CPU time")):
            share = line[name]
            print(f"  {text:<30} {share['median']:>7.1%}   ({share['low']:.1%} to {share['high']:.1%}, {line['pairs']} pairs)")
        print(f"  a review costs the station   {line['station_cpu_ms_per_review']:>9.2f} ms of CPU time")
        print(f"  the people's own process     {line['people_cpu_share_of_machine']:>9.1%} of the machine")
    loads = ", ".join(f"{value['load_before']} before {name}" for name, value in result.items())
    print(f"other load of the machine ({os.cpu_count()} cores): {loads}")
