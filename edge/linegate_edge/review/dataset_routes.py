"""The API that makes data set versions of reviews: `POST /api/v1/datasets`.

Rules kept here: routes, and nothing behind them. Listing versions is left to `models.training_routes`.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from linegate.dataset_version import Conflict, Counts, NearDuplicates, Sha256, VersionName
from linegate.errors import DataError
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.review.access.gate import Who
from linegate_edge.review.answers import people_errors
from linegate_edge.review.datasets import Datasets
from linegate_edge.review.reviews import Reviews
from linegate_edge.settings import StationSettings


class DatasetRequest(BaseModel):
    """What the version is to be called, and which conflicting images a person has settled, by SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: VersionName = "reviews"
    note: str = Field("", max_length=2000)
    settled: tuple[Sha256, ...] = Field((), max_length=10_000)


class DatasetMade(BaseModel):
    """A version: `new` says that it was not there before; `left_out` has a line for each reason why looks could not be used.

    `conflicts` and `near_duplicates` are for a person to look at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    name: str
    number: int
    digest: Sha256
    new: bool
    counts: Counts
    left_out: tuple[str, ...]
    conflicts: tuple[Conflict, ...]
    near_duplicates: tuple[NearDuplicates, ...]


def add_datasets(app: FastAPI, reviews: Reviews, evidence: EvidenceFolder, settings: StationSettings) -> None:
    """Add the route to an application."""
    datasets = Datasets(reviews.database, reviews.trail, evidence, settings.datasets_folder)
    base = settings.review.base

    @app.post(
        "/api/v1/datasets", tags=["training"], status_code=201, responses=people_errors(409), summary="Make a data set version"
    )
    def make(who: Who, wanted: Annotated[DatasetRequest, ...]) -> DatasetMade:
        """Freeze all that was reviewed as a data set version; where nothing new was said, the one there is comes back."""
        try:
            made = datasets.make(who, name=wanted.name, base=base, note=wanted.note, settled=wanted.settled)
        except DataError as error:
            raise HTTPException(409, str(error)) from None
        record = made.version.record
        return DatasetMade(
            folder=made.version.folder.name,
            name=record.name,
            number=record.number,
            digest=record.digest,
            new=made.new,
            counts=record.counts,
            left_out=made.left_out,
            conflicts=record.conflicts,
            near_duplicates=record.near_duplicates,
        )
