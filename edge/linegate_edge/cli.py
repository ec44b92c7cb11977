"""The station's commands: `linegate run`, `doctor`, `station`, `demo`, `bench`.

Rules kept here: nothing heavy is imported before a command is chosen; logs go to standard error.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from linegate.cli import bench_commands
from linegate.errors import LinegateError
from linegate_edge.logs import FORMAT_VARIABLE, FORMATS, choose_format, log_to_stderr

log = logging.getLogger("linegate")


def register(commands: Any) -> None:
    """Add the station's commands to the `linegate` command line."""
    run = commands.add_parser("run", help="run one station", description="Run one station until SIGTERM or Ctrl-C.")
    run.add_argument("station", type=Path, metavar="STATION.toml", help="the station's settings")
    run.add_argument(
        "--log-format", choices=FORMATS, help=f"how logs are written (default: ${FORMAT_VARIABLE}, or {FORMATS[0]})"
    )
    run.set_defaults(run=_run)

    doctor = commands.add_parser(
        "doctor",
        help="see whether this machine is fit for a station",
        description="Look at this machine and at what STATION.toml names. Exit status 1: something will not work.",
    )
    doctor.add_argument("station", type=Path, nargs="?", metavar="STATION.toml", help="the station's settings")
    doctor.add_argument("--json", action="store_true", help="print one JSON object a line")
    doctor.set_defaults(run=_doctor)

    check = station_commands(commands).add_parser(
        "check",
        help="see whether a STATION.toml would make a station",
        description="Check settings, package, recipes and certificates; nothing is started. Exit status 1: it would not run.",
    )
    check.add_argument("station", type=Path, metavar="STATION.toml", help="the station's settings")
    check.add_argument("--json", action="store_true", help="print one JSON object a line")
    check.set_defaults(run=_station_check)

    demo = commands.add_parser(
        "demo",
        help="watch real photographs being judged, on this machine alone",
        description="Start a broker, a line camera that streams real photographs, a station, its page and a subscriber.",
    )
    demo.add_argument("--parts", type=_count, metavar="N", help="end after N parts (default: go on until Ctrl-C)")
    demo.add_argument("--headless", action="store_true", help="as fast as the line goes, not at a pace to watch")
    demo.add_argument("--json", action="store_true", help="print the counts as one JSON object in the last line")
    demo.add_argument("--port", type=_port, help="port of the page; 0 takes a free one (default: 8080 if free)")
    demo.add_argument("--model", type=Path, metavar="PACKAGE", help="another model package for the demo's photographs")
    demo.set_defaults(run=_demo)

    line = bench_commands(commands).add_parser(
        "line",
        help="the whole chain against bare inference",
        description="Measure bare session.run, and the chain from frames in memory to acknowledged verdicts, in one run.",
    )
    line.add_argument("--model", required=True, type=Path, metavar="PACKAGE", help="the model package")
    line.add_argument("--parts", type=_count, default=2000, metavar="N", help="parts of each kind (default: 2000)")
    line.add_argument("--workers", type=_workers, default=0, help="worker threads; 0 is one a core (default: 0)")
    line.add_argument("--fail-share", type=float, default=0.05, help="share of parts that fail (default: 0.05)")
    line.add_argument("--frames", type=Path, metavar="DIR", help="photographs to use (default: the package's own frames)")
    line.add_argument("--json", action="store_true", help="print one JSON object in the last line")
    line.set_defaults(run=_bench_line)


def station_commands(commands: Any) -> Any:
    """Return the subcommands of `linegate station`; the first one that asks makes them."""
    parser = commands.choices.get("station")
    if parser is None:
        parser = commands.add_parser("station", help="look at a station without running it")
        parser.subcommands = parser.add_subparsers(metavar="WHAT", required=True)
    return parser.subcommands


def _run(arguments: argparse.Namespace) -> int:
    log_format = choose_format(arguments.log_format)
    log_to_stderr(logging.INFO, log_format)
    try:
        from linegate_edge.settings import load_station

        settings = load_station(arguments.station)
        log_to_stderr(logging.INFO, log_format, settings.station.topic)
        from linegate_edge.station import run_station

        return run_station(arguments.station, settings)
    except LinegateError as error:
        if log_format == "text":
            raise
        log.critical("%s", error)  # a collector of JSON can do nothing with a line of text
        return 2


def _doctor(arguments: argparse.Namespace) -> int:
    from linegate_edge.doctor import run_doctor

    log_to_stderr(logging.ERROR)
    return run_doctor(arguments.station, as_json=arguments.json)


def _station_check(arguments: argparse.Namespace) -> int:
    from linegate_edge.station_check import run_station_check

    log_to_stderr(logging.ERROR)
    return run_station_check(arguments.station, as_json=arguments.json)


def _demo(arguments: argparse.Namespace) -> int:
    from linegate_edge.demo import run_demo

    log_to_stderr(logging.WARNING)
    return run_demo(
        parts=arguments.parts,
        headless=arguments.headless,
        as_json=arguments.json,
        port=arguments.port,
        model=arguments.model,
    )


def _bench_line(arguments: argparse.Namespace) -> int:
    from linegate_edge.bench import run_bench_line

    log_to_stderr(logging.WARNING)
    return run_bench_line(
        arguments.model,
        parts=arguments.parts,
        workers=arguments.workers,
        fail_share=arguments.fail_share,
        frames=arguments.frames,
        as_json=arguments.json,
    )


def _count(text: str) -> int:
    return _whole_number(text, 1, 1_000_000_000)


def _workers(text: str) -> int:
    return _whole_number(text, 0, 256)


def _port(text: str) -> int:
    return _whole_number(text, 0, 65_535)


def _whole_number(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
    return number
