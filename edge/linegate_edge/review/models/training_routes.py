"""The API of training runs and data set versions, under `/api/v1`.

Rules kept here: routes, and nothing behind them; a version is looked up among those that are there, never joined to a path.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Final

from fastapi import FastAPI, Query

from linegate_edge.review.access.gate import Who
from linegate_edge.review.answers import people_errors
from linegate_edge.review.models.answers import DatasetsAnswer, TrainingAnswer, TrainingRequest, TrainingsAnswer
from linegate_edge.review.models.room import ModelRoom
from linegate_edge.review.models.training_runs import why_no_training
from linegate_edge.review.models.views import datasets_answer, training_answer

_LINES_IN_LIST: Final = 3


def add_training(app: FastAPI, room: ModelRoom, refusals: Callable[[], AbstractContextManager[None]]) -> None:
    """Add the routes to an application; `refusals` turns what is refused into a status and one line."""

    @app.get("/api/v1/datasets", tags=["training"], responses=people_errors(), summary="Data set versions")
    def get_datasets() -> DatasetsAnswer:
        """Return the data set versions that this station has, the newest first."""
        return datasets_answer(room.settings.datasets_folder)

    @app.get("/api/v1/training", tags=["training"], responses=people_errors(), summary="All training runs")
    def get_runs() -> TrainingsAnswer:
        """Return the training runs, the newest first, with the last lines of each log."""
        runs = tuple(training_answer(room, run, log_lines=_LINES_IN_LIST) for run in room.runs.listed())
        return TrainingsAnswer(items=runs, why_not=why_no_training())

    @app.post(
        "/api/v1/training", tags=["training"], status_code=201, responses=people_errors(404, 409), summary="Train a candidate"
    )
    def start_run(who: Who, wanted: TrainingRequest) -> TrainingAnswer:
        """Start a training on a data set version; what it makes is compared with the champion on the frozen test set."""
        with refusals():
            run = room.start_training(who, wanted.version, wanted.champion, wanted.options.given)
            return training_answer(room, run, log_lines=_LINES_IN_LIST)

    @app.get("/api/v1/training/{run}", tags=["training"], responses=people_errors(404), summary="One training run")
    def get_run(run: int, lines: Annotated[int, Query(ge=1, le=500)] = 60) -> TrainingAnswer:
        """Return one training run with the end of its log."""
        with refusals():
            return training_answer(room, room.runs.find(run), log_lines=lines)

    @app.post(
        "/api/v1/training/{run}/cancel", tags=["training"], responses=people_errors(404, 409), summary="Cancel a training"
    )
    def cancel_run(who: Who, run: int) -> TrainingAnswer:
        """Ask a training to end; it is made to, if it does not within some seconds."""
        with refusals():
            return training_answer(room, room.runs.cancel(who, run), log_lines=_LINES_IN_LIST)
