"""Data set versions of one station: made from its reviews, with the trail's line, one at a time.

Rules kept here: the version before of the same name is the parent, so that what was measured on once is measured on for
ever; where nothing new was said the same version is given again. What the truth is comes from `reviewed`, how a version is
written from `dataset_versions`.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from linegate.dataset_version import Version
from linegate.errors import DataError
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.review.audit import Actor, AuditTrail
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.dataset_versions import build_version, list_versions
from linegate_edge.review.reviewed import LeftOut, reviewed_images


@dataclass(frozen=True, slots=True)
class Made:
    """A version, whether it is `new`, and a line for each reason why looks were left out."""

    version: Version
    new: bool
    left_out: tuple[str, ...]


class Datasets:
    """The versions in `folder`, made from the reviews in `database`; all methods may be called from any thread."""

    def __init__(self, database: ReviewDatabase, trail: AuditTrail, evidence: EvidenceFolder, folder: Path) -> None:
        self._database, self._trail, self._evidence, self.folder = database, trail, evidence, folder
        self._building = threading.Lock()

    def make(
        self,
        actor: Actor,
        *,
        name: str = "reviews",
        base: Path | None = None,
        note: str = "",
        settled: Collection[str] = (),
        test_share: float = 0.3,
    ) -> Made:
        """Make a version of all that was reviewed, or return the one there is; `base` are the first package's photographs.

        Raises:
            DataError: another one is being made, nothing was reviewed, or a picture, mask or the disk refuses.
            StoreError: the reviews cannot be read, or the trail cannot be written.
        """
        if not self._building.acquire(blocking=False):
            raise DataError("a data set version is being made already: wait until it is there")
        try:
            before = [version for version in list_versions(self.folder) if version.record.name == name]
            left_out = LeftOut()
            version = build_version(
                reviewed_images(self._database, self._evidence, left_out),
                self.folder,
                name=name,
                base=base,
                parent=before[-1].folder if before else None,
                created_by=actor.name,
                note=note,
                settled=settled,
                test_share=before[-1].record.test_share if before else test_share,
            )
            new = all(known.folder != version.folder for known in before)
            if new:
                counts = version.record.counts
                detail = {
                    "digest": version.record.digest,
                    "train": dict(counts.train),
                    "test": dict(counts.test),
                    "settled": sorted(settled),
                }
                self._trail.add(actor, "dataset.make", version.folder.name, detail)
            return Made(version, new, tuple(left_out.words()))
        finally:
            self._building.release()
