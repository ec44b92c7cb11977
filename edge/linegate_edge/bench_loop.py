"""`linegate bench loop`: does what people say make a better model? The whole loop, replayed on real photographs.

Rules kept here: every step is the product's own: a good-only package by `linegate train`, a station that judges, people who log
in and clear its queue over the API, a data set version, `linegate retrain`, approval and promotion; the reviewer knows the
truth of the photographs and nothing else. Measured is on photographs of parts that neither the line nor a reviewer ever saw.

The set is magnetic_tile: good tiles to begin with, and of the tiles to measure on one half (by tile, not by photograph) comes
along the line, and the other half is the untouched rest.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from linegate.errors import DataError, StationError
from linegate.images import read_image
from linegate.infer import Inspector
from linegate.package import ModelPackage
from linegate.stages import Frame, Part
from linegate_edge.api_client import ApiClient
from linegate_edge.records import Capture
from linegate_edge.review.audit import SYSTEM
from linegate_edge.settings import load_station
from linegate_edge.station import Station

log = logging.getLogger("linegate.bench")
ROOT_VARIABLE: Final = "LINEGATE_DATA"
SET_NAME: Final = "magnetic_tile"
_EXPOSURE: Final = re.compile(r"exp(\d)_num_(\d+)")
_PAUSE: Final = 1000
_RUN: Final = 20
_HELD_OUT: Final = 8
_POLL_S: Final = 2.0
_RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph with its truth; `tile` is which piece it shows."""

    path: Path
    label: str
    mask: Path | None
    tile: str


def run_bench_loop(*, reviews: int, data: Path | None, work: Path | None, as_json: bool, seed: int = 0) -> int:
    """Replay the loop, print what it gained, and return the exit status."""
    root = _find(data)
    with _folder(work) as folder:
        stream, rest = split(photographs(root), seed)
        started = time.monotonic()
        champion = _first_package(root, folder)
        result = replay(champion, root, folder, stream, rest, reviews=reviews)
        result["minutes"] = round((time.monotonic() - started) / 60, 1)
    if as_json:
        print(json.dumps(result))
    else:
        low, high = result["gain_95"]
        print(f"image AUROC on {result['rest']} untouched photographs: {result['before']:.4f}, then {result['after']:.4f}")
        print(f"gain {result['gain']:+.4f} (95 %: {low:+.4f} to {high:+.4f}), from {result['reviewed']} reviewed rejects")
        print(f"gate: {result['gate']}")
    return 0


def _find(data: Path | None) -> Path:
    root = data or (Path(os.environ[ROOT_VARIABLE]) / SET_NAME if ROOT_VARIABLE in os.environ else None)
    if root is None or not (root / "train" / "good").is_dir():
        where = f"{root} has no train/good" if root is not None else f"${ROOT_VARIABLE} is not set"
        raise DataError(f"{where}: give the folder that holds {SET_NAME} in ${ROOT_VARIABLE}, or the set itself by --data")
    return root


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="linegate-loop-") as made:
        yield Path(made)


def photographs(root: Path) -> list[Photograph]:
    """Return the photographs of the set's test folders, each with the tile that it shows.

    A tile was photographed at up to six exposures in a row: numbers rise, and so does the step of the exposure.
    """
    found = []
    for path in sorted((root / "test").glob("*/*.jpg")):
        match = _EXPOSURE.search(path.name)
        if match is None:
            raise DataError(f"{path}: expected exp<step>_num_<number> in the name: is this {SET_NAME}?")
        found.append((path.parent.name, int(match[2]), int(match[1]), path))
    made = []
    before = ("", 0, 0)
    tile = ""
    for label, number, step, path in sorted(found):
        if label != before[0] or number - before[1] > _PAUSE or step <= before[2]:
            tile = f"{label}-{number}"
        before = label, number, step
        mask = root / "ground_truth" / label / f"{path.stem}_mask.png"
        made.append(Photograph(path, label, mask if label != "good" else None, tile))
    return made


def _number(path: Path) -> int:
    match = _EXPOSURE.search(path.name)
    return int(match[2]) if match is not None else 0


def split(found: Sequence[Photograph], seed: int) -> tuple[list[Photograph], list[Photograph]]:
    """Return what comes along the line and the untouched rest: half of the tiles of each label, drawn by the seed."""
    draw = random.Random(seed)
    along: set[str] = set()
    for label in sorted({photo.label for photo in found}):
        tiles = sorted({photo.tile for photo in found if photo.label == label})
        draw.shuffle(tiles)
        along.update(tiles[: (len(tiles) + 1) // 2])
    stream = [photo for photo in found if photo.tile in along]
    draw.shuffle(stream)
    return stream, [photo for photo in found if photo.tile not in along]


def _first_package(root: Path, folder: Path) -> Path:
    """Train the good-only package that the station begins with, and hold some good photographs back for the frozen test set."""
    out = folder / "champion"
    if (out / "package.json").is_file():
        return out
    base = folder / "base"
    for subset in ("train", "test"):
        (base / subset / "good").mkdir(parents=True, exist_ok=True)
    # By runs of photographs, for those of one tile follow each other in their numbers.
    for number, path in enumerate(sorted((root / "train" / "good").glob("*.jpg"), key=_number)):
        link = base / ("test" if number // _RUN % _HELD_OUT == 0 else "train") / "good" / path.name
        if not link.exists():
            link.symlink_to(path)
    _linegate("train", str(base), "--out", str(out), "--name", "tiles", "--run-dir", str(folder / "champion-run"))
    return out


def _linegate(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "linegate.cli", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StationError(f"linegate {arguments[0]} failed: {(done.stderr.strip() or done.stdout).splitlines()[-1]}")


def replay(
    champion: Path, root: Path, folder: Path, stream: Sequence[Photograph], rest: Sequence[Photograph], *, reviews: int
) -> dict[str, Any]:
    """Replay the loop on a station of its own and return what came of it."""
    shutil.rmtree(folder / "var", ignore_errors=True)
    shutil.rmtree(folder / "datasets", ignore_errors=True)
    shutil.rmtree(folder / "models", ignore_errors=True)
    settings = folder / "STATION.toml"
    settings.write_text(
        f'[station]\ntopic = "linegate/bench/loop/line/{SET_NAME}"\n[model]\npackage = "{champion}"\n[mqtt]\nport = 9\n'
        f'[http]\nport = 0\n[evidence]\nmin_free_mib = 0\n[review]\nclose_share = 0\nbase = "{folder / "base"}"\n'
    )
    station = Station(load_station(settings))
    station.start()
    try:
        truth = _judge(station, stream)
        passwords = {name: station.access.users.add(SYSTEM, name, role) for name, role in _PEOPLE.items()}
        people = {name: ApiClient.signed_in(station.address, name, password or "") for name, password in passwords.items()}
        reviewed = _review(people["reviewer"], truth, reviews)
        version = people["trainer"].post("/api/v1/datasets", {"name": "reviews"})
        candidate, gate = _retrain(people["trainer"], version["folder"])
        before = _scores(champion, rest)
        _promote(people["reviewer"], candidate, gate, station)
        promoted = station.book.inspectors[0].package
        after = _scores(promoted.location, rest)
    finally:
        station.stop()
    defective = np.array([photo.label != "good" for photo in rest])
    gains = _resampled(before, after, defective)
    return {
        "before": round(auroc(before, defective), 4),
        "after": round(auroc(after, defective), 4),
        "gain": round(auroc(after, defective) - auroc(before, defective), 4),
        "gain_95": [round(float(np.quantile(gains, share)), 4) for share in (0.025, 0.975)],
        "reviewed": reviewed["rejects"],
        "reviewed_defective": reviewed["defective"],
        "rejects": reviewed["waiting"],
        "stream": len(stream),
        "rest": len(rest),
        "learned_from": version["counts"]["train"],
        "measured_on": version["counts"]["test"],
        "gate": "go" if gate["go"] else f"no-go: {'; '.join(rule['reason'] for rule in gate['rules'] if not rule['met'])}",
    }


_PEOPLE: Final = {"reviewer": "quality", "trainer": "ml"}


def _judge(station: Station, stream: Sequence[Photograph]) -> dict[str, Photograph]:
    """Have the station judge the photographs that come along, and return them by serial."""
    truth, waiting = {}, []
    for number, photo in enumerate(stream, start=1):
        serial = f"tile-{number:05d}"
        truth[serial] = photo
        image, pixel_format, media_type, data = read_image(photo.path)
        frame = Frame(image, pixel_format, serial, "bench", "main", number, datetime.now(UTC), data, media_type)
        waiting.append(station.line.submit(Capture(Part(serial, "bench"), frame)))
        if len(waiting) >= 8:
            waiting.pop(0).result(60)
    for done in waiting:
        done.result(60)
    station.reviews.index.catch_up()
    return truth


def _review(client: ApiClient, truth: dict[str, Photograph], reviews: int) -> dict[str, int]:
    """Decide so many rejects as somebody would who sees the truth: class and painted mask, or false reject."""
    done = defective = 0
    waiting: int | None = None
    while done < reviews:
        answer = client.post("/api/v1/queue/lend", {"reader": "bench-of-the-loop", "limit": min(50, reviews - done)})
        waiting = answer["waiting"] if waiting is None else waiting
        if not answer["items"]:
            break
        for item in answer["items"]:
            photo = truth[item["serial"]]
            body: dict[str, Any] = {"disposition": "false_reject"}
            if photo.mask is not None:
                png = base64.b64encode(photo.mask.read_bytes()).decode()
                body = {"disposition": "confirmed", "defect_class": photo.label, "masks": [{"view": "main", "png": png}]}
                defective += 1
            client.post(f"/api/v1/parts/{item['verdict_id']}/decision", body)
            done += 1
    return {"rejects": done, "defective": defective, "waiting": waiting or 0}


def _retrain(client: ApiClient, version: str) -> tuple[str, dict[str, Any]]:
    """Train a candidate on a version as the page does, put it on the shelf, and return its digest and the gate's word."""
    run = client.post("/api/v1/training", {"version": version})["run"]["number"]
    while (answer := client.get(f"/api/v1/training/{run}"))["run"]["state"] == "running":
        time.sleep(_POLL_S)
    if answer["run"]["state"] != "done":
        raise StationError(f"the training failed: {answer['run']['problem']}")
    digest = client.post("/api/v1/models", {"run": run})["digest"]
    return digest, answer["gate"]


def _promote(client: ApiClient, digest: str, gate: dict[str, Any], station: Station) -> None:
    client.post(f"/api/v1/models/{digest}/approve", {"comment": "replay of the loop"})
    wanted = {"recipe": station.book.active.name, "view": "main"}
    if not gate["go"]:
        wanted["override_reason"] = "replay of the loop: what the gate says is part of its result"
    client.post(f"/api/v1/models/{digest}/promote", wanted)


def _scores(package: Path, photos: Sequence[Photograph]) -> NDArray[np.float64]:
    inspector = Inspector(ModelPackage.load(package), "cpu", 1)
    scores = []
    for number, photo in enumerate(photos, start=1):
        image, pixel_format, _, _ = read_image(photo.path)
        frame = Frame(image, pixel_format, photo.path.name, "bench", "main", number, datetime.now(UTC))
        scores.append(inspector.predict(frame).score)
    return np.array(scores)


def auroc(scores: NDArray[np.float64], defective: NDArray[np.bool_]) -> float:
    """Return the share of pairs of a defective and a good one in which the defective scores higher, ties counting half.

    Hanley and McNeil, "The Meaning and Use of the Area under a ROC Curve", Radiology 143, 1982.
    """
    good, bad = np.sort(scores[~defective]), scores[defective]
    below = np.searchsorted(good, bad, "left") + np.searchsorted(good, bad, "right")
    return float(below.mean() / (2 * len(good)))


def _resampled(before: NDArray[np.float64], after: NDArray[np.float64], defective: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the gain over photographs drawn with replacement, good and defective apart, the same for both packages."""
    draw = np.random.default_rng(0)
    good, bad = np.flatnonzero(~defective), np.flatnonzero(defective)
    gains = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        chosen = np.concatenate([draw.choice(good, len(good)), draw.choice(bad, len(bad))])
        truth = defective[chosen]
        gains[number] = auroc(after[chosen], truth) - auroc(before[chosen], truth)
    return gains
