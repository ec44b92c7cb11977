"""What the tests of models share: packages that differ, comparisons of them, a room of models with people in it."""

from __future__ import annotations

import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conftest import station_toml, write_spot_package
from linegate.dataset_version import Counts, VersionRecord, items_digest, to_bytes
from linegate.package import ModelPackage
from linegate_edge.recipes import RecipeBook
from linegate_edge.review.audit import Actor, verify
from linegate_edge.review.models.room import ModelRoom
from linegate_edge.review.reviews import Reviews
from linegate_edge.settings import load_station

ANNA, BEN, MIA = Actor("anna", "quality"), Actor("ben", "quality"), Actor("mia", "ml")
PLACE = ("default", "main")
NO_BROKER = 9
LIMITS = "[evidence]\nmin_free_mib = 0\n"


def rate(events: int, trials: int) -> dict[str, Any]:
    share = events / trials
    return {"events": events, "trials": trials, "rate": share, "ci95": [max(0.0, share - 0.05), min(1.0, share + 0.05)]}


def numbers(escapes: int, false_rejects: int) -> dict[str, Any]:
    return {
        "escapes": rate(escapes, 40),
        "false_rejects": rate(false_rejects, 160),
        "undecided_defective": rate(1, 40),
        "undecided_good": rate(4, 160),
        "escapes_by_class": {"crack": rate(escapes, 25), "scratch": rate(0, 15)},
        "auroc": 0.97,
        "auroc_ci95": [0.94, 0.99],
    }


def both(scale: int = 1) -> dict[str, Any]:
    paired = {"both": 1, "champion_only": 3, "candidate_only": 1, "p": 0.625}
    return {
        "good": 160,
        "defective": 40,
        "champion": numbers(4 * scale, 12),
        "candidate": numbers(2 * scale, 7),
        "escapes": paired,
        "false_rejects": {**paired, "p": 0.0414},
        "auroc_difference": {"difference": 0.012, "ci95": [-0.004, 0.028], "p": 0.14, "draws": 2000},
    }


def comparison(
    champion: ModelPackage, candidate: ModelPackage, *, go: bool = True, picture: str | None = None
) -> dict[str, Any]:
    """Return a comparison as training writes it."""

    def facts(package: ModelPackage) -> dict[str, Any]:
        thresholds = package.manifest.thresholds
        return {
            "name": package.manifest.name,
            "version": package.manifest.version,
            "digest": package.digest,
            "threshold": thresholds.score,
            "undecided_below": thresholds.undecided_below,
            "seen_in_training": 0,
        }

    said = {"decision": "pass", "score": 0.4, "threshold": 0.8, "predicted": None}
    difference = {
        "image": "images/" + "a" * 64 + ".png",
        "sha256": "a" * 64,
        "group": "A-17",
        "view": "main",
        "label": "crack",
        "verdict_id": None,
        "reviewed_at": None,
        "recent": True,
        "outcome": "escape caught",
        "champion": said,
        "candidate": {**said, "decision": "fail", "score": 0.91},
        "picture": picture,
    }
    return {
        "schema_version": 1,
        "created_at": datetime(2026, 11, 24, 8, tzinfo=UTC).isoformat(),
        "version": {"name": "tiles", "number": 3, "digest": "d" * 64},
        "champion": facts(champion),
        "candidate": facts(candidate),
        "frozen": both(),
        "recent": both(2),
        "recent_reviews": 120,
        "speed": {"champion_ms": 11.8, "candidate_ms": 12.4, "ratio": 1.05, "pairs": 50, "provider": "cpu", "threads": 1},
        "differences": [difference],
        "gate": {
            "go": go,
            "rules": [
                {"name": "parity", "met": True, "reason": "the candidate computes here what it computed where it was made"},
                {
                    "name": "max_escape_increase",
                    "met": go,
                    "reason": "escapes fall from 10.0 % to 5.0 %" if go else "more escapes",
                },
            ],
            "settings": {"max_escape_increase": 0.0},
        },
    }


def write_run(folder: Path, champion: ModelPackage, *, threshold: float, go: bool = True, name: str = "spots") -> ModelPackage:
    """Write a folder as a training leaves it: package, comparison, pictures."""
    package = write_spot_package(folder / "candidate", threshold=threshold, name=name)
    (folder / "differences").mkdir(exist_ok=True)
    (folder / "differences" / "0001-crack.jpg").write_bytes(b"\xff\xd8picture")
    text = json.dumps(comparison(champion, package, go=go, picture="differences/0001-crack.jpg"))
    (folder / "comparison.json").write_text(text)
    return package


def zip_of(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return target


class World:
    """A room of models without a line: one recipe, one view, judged by the package of STATION.toml."""

    def __init__(self, folder: Path, package: Path, more: str = "") -> None:
        self.folder, self.package = folder, package
        self.path = station_toml(folder, package, broker_port=NO_BROKER, more=LIMITS + more)
        self.open()

    def open(self) -> None:
        """Begin anew with what lies on the disk, as a station does."""
        self.settings = load_station(self.path)
        self.reviews = Reviews(self.settings.station.store, self.settings.review)
        self.room = ModelRoom(self.settings, self.reviews, lambda: False)
        try:
            self.book = RecipeBook(self.settings, overrides=self.room.promotions.overrides())
        except BaseException:
            self.reviews.close()
            raise
        self.room.open(self.book)

    def close(self) -> None:
        self.room.close()
        self.reviews.close()

    @property
    def champion(self) -> ModelPackage:
        return self.book.recipes["default"].views["main"].inspector.package

    def candidate(self, name: str = "run", *, threshold: float = 0.5, go: bool = True, trained_by: str | None = "mia") -> str:
        """Put a candidate with a comparison on the shelf and return its digest."""
        folder = self.folder / name
        write_run(folder, self.champion, threshold=threshold, go=go)
        return self.room.register.bring(MIA, folder, called=name, trained_by=trained_by).digest

    def actions(self) -> list[str]:
        """Return what the trail tells, the oldest first, and check that it holds."""
        assert verify(self.settings.station.store).problem is None
        return [line.action for line in reversed(self.reviews.trail.lines())]


def write_version(folder: Path, number: int, counts: Counts) -> Path:
    """Write the record of a data set version without its images, as far as a list shows it."""
    record = VersionRecord(
        name="tiles",
        number=number,
        digest=items_digest([]),
        parent=None,
        created_at=datetime(2026, 11, 20 + number, 9, tzinfo=UTC),
        created_by="mia",
        stations=("acme/graz/press/line-1/tiles",),
        note="after the new supplier",
        test_share=0.2,
        counts=counts,
        conflicts=(),
        near_duplicates=(),
        groups={},
        items=(),
    )
    target = folder / record.folder_name
    target.mkdir(parents=True)
    (target / "version.json").write_bytes(to_bytes(record))
    return target
