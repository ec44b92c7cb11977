"""The command `linegate dataset from-reviews`: what people said of parts → a data set version.

Rules kept here: nothing heavy is imported before the command is chosen. It may run beside the station.
"""

from __future__ import annotations

import argparse
import getpass
import json
from pathlib import Path
from typing import Any


def register_dataset(commands: Any) -> None:
    """Add the command to the `linegate` command line."""
    parser = commands.add_parser(
        "dataset", help="make data set versions of what people reviewed", description="Data set versions."
    )
    what = parser.add_subparsers(metavar="WHAT", required=True)
    made = what.add_parser(
        "from-reviews",
        help="freeze all that was reviewed as a data set version",
        description="Freeze all that was reviewed at a station as an immutable data set version, and print what is in it. Its "
        "test set is kept for ever. Exit status 1: there are conflicts for a person to settle.",
    )
    made.add_argument("station", type=Path, metavar="STATION.toml", help="the station's settings")
    made.add_argument("--out", type=Path, metavar="DIR", help="folder of versions (default: [review] datasets)")
    made.add_argument("--name", default="reviews", help="name of the version (default: reviews)")
    made.add_argument("--base", type=Path, metavar="DIR", help="photographs that the first package was made of ([review] base)")
    made.add_argument("--note", default="", help="a note that stays with the version")
    made.add_argument("--settled", action="append", default=[], metavar="SHA256", help="an image whose conflict is settled")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.set_defaults(run=_from_reviews)


def _from_reviews(arguments: argparse.Namespace) -> int:
    from linegate_edge.evidence import EvidenceFolder
    from linegate_edge.review.access.users import open_store
    from linegate_edge.review.audit import Actor, AuditTrail
    from linegate_edge.review.datasets import Datasets
    from linegate_edge.review.index import PartIndex
    from linegate_edge.settings import load_station

    settings = load_station(arguments.station)
    store = settings.station.store
    database = open_store(store)
    try:
        PartIndex(database, settings.review).catch_up()
        evidence = EvidenceFolder(store / "evidence", settings.evidence, owned=False)
        datasets = Datasets(database, AuditTrail(database), evidence, arguments.out or settings.datasets_folder)
        made = datasets.make(
            Actor(getpass.getuser(), "command line"),
            name=arguments.name,
            base=arguments.base or settings.review.base,
            note=arguments.note,
            settled=arguments.settled,
        )
    finally:
        database.close()
    record = made.version.record
    if arguments.json:
        counts = record.counts.model_dump(mode="json")
        found = {"folder": str(made.version.folder), "digest": record.digest, "new": made.new, "counts": counts}
        print(
            json.dumps(found | {"left_out": made.left_out, "conflicts": [c.model_dump(mode="json") for c in record.conflicts]})
        )
    else:
        print(made.version.folder)
        print(f"{record.reference}{'' if made.new else ', which was there already'}")
        for split, counts in (("to learn from", record.counts.train), ("to measure on", record.counts.test)):
            print(f"{split}: {', '.join(f'{count} {label}' for label, count in sorted(counts.items())) or 'nothing'}")
        told = [*(conflict.text for conflict in record.conflicts), *(pair.text for pair in record.near_duplicates)]
        for line in (*made.left_out, *told):
            print(f"note: {line}")
    return 1 if record.conflicts else 0
