from __future__ import annotations

from fastapi import FastAPI

from linegate_edge.review.models.room import ModelRoom


def add_models(app: FastAPI, room: ModelRoom) -> None: ...
