"""The station's commands: `linegate run`, `doctor`, `station`, `user`, `audit`, `demo`, `bench`.

Rules kept here: nothing heavy is imported before a command is chosen; logs go to standard error.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from linegate.errors import LinegateError
from linegate_edge.bench_commands import register_benchmarks
from linegate_edge.dataset_commands import register_dataset
from linegate_edge.logs import FORMAT_VARIABLE, FORMATS, choose_format, log_to_stderr
from linegate_edge.model_commands import register_models
from linegate_edge.people_commands import register_people
from linegate_edge.whole_numbers import count, port

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

    contract = station_commands(commands).add_parser(
        "contract",
        help="the messages and topics as JSON Schema and AsyncAPI",
        description="Print the AsyncAPI document, or write it and a JSON Schema for each message into a folder.",
    )
    contract.add_argument("--out", type=Path, metavar="DIR", help="folder to write the documents into")
    contract.set_defaults(run=_contract)

    demo = commands.add_parser(
        "demo",
        help="watch real photographs being judged, on this machine alone",
        description="Start a broker, a line camera that streams real photographs, a station, its page and a subscriber.",
    )
    demo.add_argument("--parts", type=count, metavar="N", help="end after N parts (default: go on until Ctrl-C)")
    demo.add_argument("--headless", action="store_true", help="as fast as the line goes, not at a pace to watch")
    demo.add_argument("--json", action="store_true", help="print the counts as one JSON object in the last line")
    demo.add_argument("--port", type=port, help="port of the page; 0 takes a free one (default: 8080 if free)")
    demo.add_argument("--model", type=Path, metavar="PACKAGE", help="another model package for the demo's photographs")
    demo.set_defaults(run=_demo)
    soak = commands.add_parser(
        "soak",
        help="break things around a station for a while, then account for every part",
        description="Run a station with two cameras and an MES while broker, station, camera and frames are broken at random; "
        "then leave it in peace and compare parts, verdicts and what was received, one by one. Needs Mosquitto. Exit status 1: "
        "they do not agree.",
    )
    soak.add_argument("--minutes", type=float, default=10.0, metavar="N", help="how long things are broken (default: 10)")
    soak.add_argument("--model", type=Path, metavar="PACKAGE", help="the model package (default: that of the demo)")
    soak.add_argument("--parts-per-second", type=float, default=40.0, metavar="N", help="of both cameras (default: 40)")
    soak.add_argument("--fault", action="append", default=[], metavar="KIND", help="these faults alone, as 'station killed'")
    soak.add_argument("--seed", type=int, default=0, help="which faults come when (default: 0)")
    soak.add_argument("--json", action="store_true", help="print the account as one JSON object in the last line")
    soak.set_defaults(run=_soak)
    register_models(commands)
    register_dataset(commands)
    register_people(commands)
    register_benchmarks(commands)


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


def _soak(arguments: argparse.Namespace) -> int:
    from linegate_edge.demo import demo_package
    from linegate_edge.soak import run_soak

    log_to_stderr(logging.WARNING)
    return run_soak(
        arguments.model or demo_package(),
        minutes=arguments.minutes,
        parts_per_second=arguments.parts_per_second,
        seed=arguments.seed,
        as_json=arguments.json,
        faults=arguments.fault,
    )


def _contract(arguments: argparse.Namespace) -> int:
    from linegate_edge.contract import ASYNCAPI_FILE, documents, write_documents

    if arguments.out is None:
        print(documents()[ASYNCAPI_FILE], end="")
        return 0
    for path in write_documents(arguments.out):
        print(path)
    return 0


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
