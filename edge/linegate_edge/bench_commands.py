"""`linegate bench line`, `latency`, `memory`, `store`, `loop` and `review`: their options.

Rules kept here: nothing heavy is imported before a command is chosen.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linegate.cli import bench_commands
from linegate_edge.logs import log_to_stderr
from linegate_edge.whole_numbers import count, workers

if TYPE_CHECKING:
    from linegate_edge.bench_station import Load


def register_benchmarks(commands: Any) -> None:
    """Add the station's benchmarks to `linegate bench`."""
    line = bench_commands(commands).add_parser(
        "line",
        help="the whole chain against bare inference",
        description="Measure bare session.run, and the chain from frames in memory to acknowledged verdicts, in one run.",
    )
    _add_load(line, parts=2000)
    line.add_argument("--views", type=count, default=1, metavar="N", help="views of a part (default: 1)")
    line.set_defaults(run=_line)

    latency = bench_commands(commands).add_parser(
        "latency",
        help="from the frame to the broker's acknowledgement, partly loaded",
        description="Measure the time from frame to PUBACK with parts at a fixed pace, against bare inference in one run.",
    )
    _add_load(latency, parts=2000)
    latency.add_argument("--load", type=float, default=0.7, help="share of the chain's own capacity (default: 0.7)")
    latency.set_defaults(run=_latency)

    memory = bench_commands(commands).add_parser(
        "memory",
        help="does the station grow over many parts?",
        description="Send many parts through the whole chain and read what is resident, at equal steps.",
    )
    _add_load(memory, parts=200_000)
    memory.set_defaults(run=_memory)

    store = bench_commands(commands).add_parser(
        "store",
        help="queries and commits in a store that has grown",
        description="Fill a store and time verdicts by serial, pages of the read API and commits, at each power of ten.",
    )
    store.add_argument("--rows", type=count, default=1_000_000, metavar="N", help="verdicts in the end (default: 1000000)")
    store.add_argument("--folder", type=Path, metavar="DIR", help="the disk to measure (default: that of temporary files)")
    store.add_argument("--json", action="store_true", help="print one JSON object in the last line")
    store.set_defaults(run=_store)

    loop = bench_commands(commands).add_parser(
        "loop",
        help="do reviews make a better model? the whole loop on magnetic_tile",
        description="Start with a good-only package, judge photographs, review rejects in the queue, retrain, promote, and "
        "measure the image AUROC on photographs that nobody saw. Needs the training extra, and magnetic_tile.",
    )
    loop.add_argument("--reviews", type=count, default=40, metavar="N", help="rejects to review (default: 40)")
    loop.add_argument("--data", type=Path, metavar="DIR", help="the set (default: magnetic_tile in $LINEGATE_DATA)")
    loop.add_argument("--work", type=Path, metavar="DIR", help="keep what is made there, and begin with the package it holds")
    loop.add_argument("--seed", type=int, default=0, help="which tiles come along the line (default: 0)")
    loop.add_argument("--json", action="store_true", help="print one JSON object")
    loop.set_defaults(run=_loop)
    review = bench_commands(commands).add_parser(
        "review",
        help="the review: from key to picture, questions to many parts, what it takes from the line",
        description="Measure a decision's way to the next picture, questions to many parts, and the line while people review.",
    )
    review.add_argument("--model", type=Path, metavar="PACKAGE", help="the model package (default: that of the demo)")
    review.add_argument("--parts", type=count, default=1_000_000, metavar="N", help="parts stored (default: 1000000)")
    review.add_argument("--only", choices=["page", "questions", "line"], help="measure this alone (default: all three)")
    review.add_argument("--folder", type=Path, metavar="DIR", help="where stores are made (default: that of temporary files)")
    review.add_argument("--json", action="store_true", help="print one JSON object in the last line")
    review.set_defaults(run=_review)


def _add_load(parser: argparse.ArgumentParser, *, parts: int) -> None:
    parser.add_argument("--model", required=True, type=Path, metavar="PACKAGE", help="the model package")
    parser.add_argument("--parts", type=count, default=parts, metavar="N", help=f"how many parts (default: {parts})")
    parser.add_argument("--workers", type=workers, default=0, help="worker threads; 0 is one a core (default: 0)")
    parser.add_argument("--fail-share", type=float, default=0.05, help="share of frames that fail (default: 0.05)")
    parser.add_argument("--evidence-share", type=float, default=0.0, help="share of passed parts that keep frames (default: 0)")
    parser.add_argument("--evidence-format", choices=["png", "jpeg"], default="png", help="how frames are kept (default: png)")
    parser.add_argument("--frames", type=Path, metavar="DIR", help="photographs to use (default: the package's own frames)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in the last line")


def _load(arguments: argparse.Namespace) -> Load:
    from linegate_edge.bench_station import Load

    log_to_stderr(logging.WARNING)
    return Load(
        arguments.model,
        workers=arguments.workers,
        views=getattr(arguments, "views", 1),
        fail_share=arguments.fail_share,
        evidence_share=arguments.evidence_share,
        evidence_format=arguments.evidence_format,
        frames=arguments.frames,
    )


def _line(arguments: argparse.Namespace) -> int:
    from linegate_edge.bench_line import run_bench_line

    return run_bench_line(_load(arguments), parts=arguments.parts, as_json=arguments.json)


def _latency(arguments: argparse.Namespace) -> int:
    from linegate_edge.bench_latency import run_bench_latency

    return run_bench_latency(_load(arguments), parts=arguments.parts, share=arguments.load, as_json=arguments.json)


def _memory(arguments: argparse.Namespace) -> int:
    from linegate_edge.bench_memory import run_bench_memory

    return run_bench_memory(_load(arguments), parts=arguments.parts, as_json=arguments.json)


def _store(arguments: argparse.Namespace) -> int:
    from linegate_edge.bench_store import run_bench_store

    log_to_stderr(logging.WARNING)
    return run_bench_store(rows=arguments.rows, folder=arguments.folder, as_json=arguments.json)


def _loop(arguments: argparse.Namespace) -> int:
    from linegate_edge.bench_loop import run_bench_loop

    log_to_stderr(logging.ERROR)
    return run_bench_loop(
        reviews=arguments.reviews,
        data=arguments.data,
        work=arguments.work,
        as_json=arguments.json,
        seed=arguments.seed,
    )


def _review(arguments: argparse.Namespace) -> int:
    from linegate_edge.bench_review import run_bench_review

    log_to_stderr(logging.WARNING)
    return run_bench_review(
        package=arguments.model,
        parts=arguments.parts,
        only=arguments.only,
        folder=arguments.folder,
        as_json=arguments.json,
    )
