"""Decisions of people → what a data set version is made of: which photograph shows what, by whose word.

Rules kept here: only what a person said is truth, never what the model saw: a view is defective where a person drew upon it or,
where nobody drew, where the station rejected it; of a defective part the other views are nobody's word, and left out. Every
person's newest word on a part is handed on, so that two who differ are found. Making the version is left to `dataset_versions`.

| disposition | the part | is |
|---|---|---|
| confirmed | failed, undecided | defective |
| confirmed | passed | good |
| false reject | | good |
| escape | | defective |
| limit sample | | neither: it is for people to compare by, and is not learned from |
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import apsw
import cv2
import numpy as np

from linegate.dataset_version import GOOD, VersionBox
from linegate.images import SUFFIX_OF_MEDIA_TYPE
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.dataset_pictures import ReviewedImage

UNNAMED: Final = "defect"
"""The class of a defect that nobody named."""


@dataclass(slots=True)
class LeftOut:
    """How many looks could not be used, by why."""

    pruned: int = 0
    not_judged: int = 0
    unclear_view: int = 0
    limit_samples: int = 0

    def words(self) -> list[str]:
        """Return a line for each reason that was met."""
        said = (
            (self.pruned, "pictures have been pruned, or were never kept"),
            (self.not_judged, "looks were never judged by a model: dark, torn or missing frames"),
            (self.unclear_view, "views of defective parts show no defect that somebody marked"),
            (self.limit_samples, "limit samples are not learned from"),
        )
        return [f"{count} {text}" for count, text in said if count]


@dataclass(frozen=True, slots=True)
class _Word:
    """One person's newest decision on a part."""

    number: int
    verdict_id: str
    disposition: str
    defect_class: str | None
    regions: list[dict[str, Any]]
    by: str
    at: str
    message: dict[str, Any]
    kept: frozenset[str]
    masks: dict[str, bytes] = field(default_factory=dict)


def reviewed_images(database: ReviewDatabase, evidence: EvidenceFolder, left_out: LeftOut) -> Iterator[ReviewedImage]:
    """Yield what people said of each photograph that is still there; what cannot be used is counted in `left_out`.

    Raises:
        StoreError: the reviews cannot be read.
    """
    with database.look() as db:
        words = list(_words(db))
    for word in words:
        yield from _looks(word, evidence, left_out)


def _words(db: apsw.Connection) -> Iterator[_Word]:
    # A decision that the next one undid is nobody's word any more.
    rows: list[tuple[Any, ...]] = db.execute(
        """
        SELECT max(d.number), d.verdict_id, d.disposition, d.defect_class, d.regions, d.by, d.at, v.message, d.sequence
        FROM decision d JOIN line.verdict v USING (sequence)
        WHERE d.disposition IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM decision u WHERE u.previous = d.number AND u.disposition IS NULL)
        GROUP BY d.sequence, d.by ORDER BY 1
        """
    ).fetchall()
    for number, verdict_id, disposition, defect_class, regions, by, at, message, sequence in rows:
        masks = {view: bytes(mask) for view, mask in db.execute("SELECT view, mask FROM drawing WHERE decision = ?", (number,))}
        kept = frozenset(name for (name,) in db.execute("SELECT name FROM line.evidence WHERE sequence = ?", (sequence,)))
        yield _Word(
            number, verdict_id, disposition, defect_class, json.loads(regions), by, at, json.loads(message), kept, masks
        )


def _looks(word: _Word, evidence: EvidenceFolder, left_out: LeftOut) -> Iterator[ReviewedImage]:
    views = word.message["views"]
    if word.disposition == "limit_sample":
        left_out.limit_samples += len(views)
        return
    passed = word.message["decision"] == "pass"
    good = word.disposition == "false_reject" or (word.disposition == "confirmed" and passed)
    marked = {region["view"] for region in word.regions} | set(word.masks)
    if not marked:
        marked = {view["view"] for view in views if view["decision"] != "pass"}
        if passed and len(views) == 1:
            marked = {views[0]["view"]}  # an escape of the only view there is
    for view in views:
        name = view["view"]
        file = None if view["image_uri"] is None else view["image_uri"].rsplit("/", 1)[-1]
        if view["score"] is None:
            left_out.not_judged += 1
        elif file is None or file not in word.kept or not evidence.path_of(file).is_file():
            left_out.pruned += 1
        elif not good and name not in marked:
            left_out.unclear_view += 1
        else:
            yield _image(word, view, evidence, file, good)


def _image(word: _Word, view: dict[str, Any], evidence: EvidenceFolder, file: str, good: bool) -> ReviewedImage:
    name = view["view"]
    own = [] if good else [region for region in word.regions if region["view"] == name]
    label = GOOD
    if not good:
        found = max(view["regions"], key=lambda region: float(region["score"]), default={"defect_class": UNNAMED})
        drawn = own[0]["defect_class"] if own else None
        label = word.defect_class or drawn or found["defect_class"]
    mask: Any = None
    if not good and name in word.masks:
        mask = cv2.imdecode(np.frombuffer(word.masks[name], np.uint8), cv2.IMREAD_GRAYSCALE)
    return ReviewedImage(
        path=evidence.path_of(file),
        sha256=view["image_sha256"],
        media_type=_media_type(file),
        view=name,
        serial=word.message["part"]["serial"],
        verdict_id=word.verdict_id,
        disposition=word.disposition,
        label=label,
        reviewed_at=datetime.fromisoformat(word.at),
        reviewed_by=word.by,
        boxes=tuple(VersionBox(label=region["defect_class"], xyxy=tuple(region["box_xyxy"])) for region in own),
        mask=mask,
        score=view["score"],
        threshold=view["threshold"],
        station=word.message["station"],
    )


def _media_type(file: str) -> str:
    suffix = f".{file.rsplit('.', 1)[-1]}"
    return next((kind for kind, own in SUFFIX_OF_MEDIA_TYPE.items() if own == suffix), "application/octet-stream")
