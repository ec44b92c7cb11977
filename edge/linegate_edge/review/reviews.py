"""What a station's people work with, put together: the database of reviews, its audit trail, and the index of parts."""

from __future__ import annotations

from pathlib import Path

from linegate_edge.review.audit import AuditTrail
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.index import PartIndex
from linegate_edge.settings import ReviewSection


class Reviews:
    """The reviews of the station whose store lies in `folder`.

    Raises:
        StoreError: the database cannot be opened.
    """

    def __init__(self, folder: Path, settings: ReviewSection) -> None:
        self.database = ReviewDatabase(folder)
        self.trail = AuditTrail(self.database)
        self.index = PartIndex(self.database, settings)

    def start(self) -> None:
        """Begin to follow the verdicts."""
        self.index.start()

    def stop(self) -> None:
        """Follow no more."""
        self.index.stop()

    def close(self) -> None:
        """Close the database."""
        self.database.close()
